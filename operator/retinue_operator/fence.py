"""Until when this process may write: a deadline on a clock that goes on while the process or the machine sleeps."""

import socket
import sys
import time
from collections.abc import Callable

from aiohttp import TraceConfig

from retinue_operator.errors import NotLeading

_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_MILLISECONDS = 1000


def clock() -> float:
    """Seconds that only ever go forward, also while the process is stopped or the machine suspended.

    CLOCK_MONOTONIC stands still while a machine is suspended, and the other replica does not.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Fence:
    """Stops writes when the right to write has run out.

    It is asked for each request as late as our process can ask: the connection stands, and the next thing is that the
    bytes go to the kernel. So neither a request that waited in a queue or for a connection, nor a process that was
    stopped and goes on, writes after its time. What is in the kernel by then is given up by it after `linger` seconds
    without an acknowledgement. What the network delivers later still meets a precondition, see docs/architecture.md.
    """

    def __init__(self, linger: float = 3.0, now: Callable[[], float] = clock) -> None:
        self._linger = linger
        self._now = now
        self._until = float("inf")

    def open_until(self, deadline: float) -> None:
        """Writes are fine before this moment of `clock()`."""
        self._until = deadline

    def close(self) -> None:
        """No more writes."""
        self._until = float("-inf")

    def check(self, method: str) -> None:
        """Raises NotLeading when a request with this HTTP method must not go out now."""
        if method not in _READS and self._now() >= self._until:
            raise NotLeading("the lease was not renewed in time: not sent")

    def trace(self) -> TraceConfig:
        """Asks before the head and before the body of each request of a session."""
        config = TraceConfig()

        async def asked(_: object, __: object, parameters: object) -> None:
            self.check(str(getattr(parameters, "method", "")))

        # Both: head and body go out together, in a later turn of the event loop than the first hook.
        config.on_request_headers_sent.append(asked)
        config.on_request_chunk_sent.append(asked)
        return config

    def open_socket(self, address: tuple[object, ...]) -> socket.socket:
        """A TCP socket whose kernel gives up what it could not deliver; for `aiohttp.TCPConnector(socket_factory=)`."""
        family, kind, protocol = address[:3]
        opened = socket.socket(family=family, type=kind, proto=protocol)  # type: ignore[arg-type]
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self._linger * _MILLISECONDS))
        return opened
