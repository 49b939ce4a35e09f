"""Whether the process lives and is ready, as ordered lists of small named checks."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TICK = 1.0


@dataclass(frozen=True)
class Check:
    """One named check; `failure()` says what is wrong, None = fine."""

    name: str
    failure: Callable[[], str | None]


@dataclass(frozen=True)
class Report:
    """The outcome of a list of checks, with one line for each."""

    healthy: bool
    text: str


def report(checks: Sequence[Check]) -> Report:
    """Runs all checks, in order."""
    findings = [(check.name, check.failure()) for check in checks]
    lines = [f"[+] {name} ok" if failure is None else f"[-] {name} failed: {failure}" for name, failure in findings]
    return Report(all(failure is None for _, failure in findings), "\n".join(lines) + "\n")


class Heartbeat:
    """Notices an event loop that is blocked: a tick that comes late means that nothing else ran either."""

    def __init__(self, limit: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._last = clock()
        self.worst_lag = 0.0

    async def run(self) -> None:
        """Ticks until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(_TICK)

    def beat(self) -> None:
        """Takes note that the loop turns."""
        now = self._clock()
        self.worst_lag = max(self.worst_lag, now - self._last - _TICK)
        self._last = now

    def failure(self) -> str | None:
        """See Check."""
        age = self._clock() - self._last
        return None if age <= self._limit else f"the event loop has not turned for {age:.1f} s"
