"""The delay before a container that keeps ending is started again: doubling, as a kubelet's CrashLoopBackOff."""

from __future__ import annotations

FIRST_SECONDS = 10.0
LONGEST_SECONDS = 300.0
RESET_SECONDS = 600.0


class RestartBackoff:
    """Seconds are model seconds, so a fast emulator also restarts faster."""

    def __init__(self) -> None:
        self._next = 0.0

    def after_run(self, ran_seconds: float) -> float:
        """The delay after a run of this length: none at first, then 10, 20, 40 ... 300; long runs start over."""
        if ran_seconds >= RESET_SECONDS:
            self._next = 0.0
        delay = self._next
        self._next = min(LONGEST_SECONDS, max(FIRST_SECONDS, 2 * self._next))
        return delay
