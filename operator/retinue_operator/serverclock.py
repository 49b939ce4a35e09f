"""The time of day as the API server tells it: one clock for all replicas, whatever their own clocks do."""

import email.utils
import time
from collections.abc import Callable

from retinue_operator import fence


class ServerClock:
    """Called, it returns the API server's time in seconds since the epoch, within about a second.

    Times that outlive a process (when a drain began, when an instance restarted last) are written to the cluster by one
    replica and judged by the next. By their own clocks, one that is hours ahead would find every drain timed out, and
    one that is behind would wait for hours. So the time comes from the Date headers of the API server's answers, and
    goes on with a clock that nobody can set. A jump of the machine's own clock does nothing at all.

    wall: this machine's clock, for the time before the first answer.
    """

    def __init__(self, wall: Callable[[], float] = time.time, now: Callable[[], float] = fence.clock) -> None:
        self._now = now
        self._offset = wall() - now()
        self._told = False

    def __call__(self) -> float:
        """The time now."""
        return self._now() + self._offset

    def heard(self, date: str | None, since: float) -> None:
        """Takes note of a Date header (whole seconds, rounded down) that came just now.

        since: `fence.clock()` before the request was sent. Nonsense is ignored.
        """
        try:
            told = email.utils.parsedate_to_datetime(date or "").timestamp()
        except (TypeError, ValueError, OverflowError, OSError):
            return
        # The server wrote this between the request and now, and the fraction of its second is unknown.
        low, high = told - self._now(), told + 1.0 - since
        if not self._told:
            self._told = True
            self._offset = (low + high) / 2
        else:
            # A slow answer has wide bounds and changes nothing; a quick one narrows the error.
            self._offset = min(max(self._offset, low), high)
