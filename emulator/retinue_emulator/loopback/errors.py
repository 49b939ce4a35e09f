"""The one error of the loopback package: what is wrong in one line, and what to do about it."""


class LoopbackError(Exception):
    """Something the loopback control plane needs is missing or failed.

    `message` says what is wrong, `remedy` what the user can do; `str()` joins them into one line. Commands print that
    line and exit with status 1; they never show a traceback for it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}: {remedy}")
        self.message = message
        self.remedy = remedy


class PortTakenError(LoopbackError):
    """Another process took a port between its choice and its use; starting again with other ports helps."""
