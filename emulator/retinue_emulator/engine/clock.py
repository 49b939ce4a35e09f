"""Model time: wall time multiplied by `speed`, with a watch that tells when the emulator cannot keep up.

An emulator that shares two cores with a control plane will sometimes wake late. Single late wake-ups are hiccups; what
spoils measurements is losing a large part of the time. So the watch ticks every `TICK_SECONDS`, books what each tick
was late beyond `TOLERANCE_SECONDS`, and calls the emulator *behind* once the late time in any `WINDOW_SECONDS` exceeds
`ALLOWED_SHARE` of the window. That verdict stays: the run's numbers are not to be trusted after it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

TICK_SECONDS = 0.05
TOLERANCE_SECONDS = 0.1
WINDOW_SECONDS = 10.0
ALLOWED_SHARE = 0.25


class LagWatch:
    """Books late wake-ups and decides whether the emulator is behind its clock. Times are wall seconds."""

    def __init__(self) -> None:
        self.lag_seconds = 0.0
        """How late the last tick was."""
        self.worst_seconds = 0.0
        self.behind_total = 0
        """Ticks that were later than the tolerance."""
        self.verdict: str | None = None
        """Why the emulator counts as behind; None while it keeps up."""
        self._late: deque[tuple[float, float]] = deque()

    @property
    def behind(self) -> bool:
        """True once too much time was lost within one window."""
        return self.verdict is not None

    def record(self, now: float, late: float) -> None:
        """Book that a tick due at `now - late` ran at `now`."""
        self.lag_seconds = max(0.0, late)
        self.worst_seconds = max(self.worst_seconds, late)
        while self._late and self._late[0][0] < now - WINDOW_SECONDS:
            self._late.popleft()
        if late <= TOLERANCE_SECONDS:
            return
        self.behind_total += 1
        self._late.append((now, late))
        lost = sum(seconds for _, seconds in self._late)
        if lost > ALLOWED_SHARE * WINDOW_SECONDS and self.verdict is None:
            self.verdict = (
                f"the emulator lost {lost:.1f} s to late wake-ups within {WINDOW_SECONDS:.0f} s "
                f"(allowed: {ALLOWED_SHARE * WINDOW_SECONDS:.1f} s); lower the speed or the load"
            )


class Clock:
    """Model seconds since the clock was made, running `speed` times as fast as the wall.

    Args:
        speed: model seconds per wall second, above 0.
        monotonic: source of wall seconds.
    """

    def __init__(self, speed: float = 1.0, monotonic: Callable[[], float] = time.monotonic) -> None:
        if speed <= 0:
            raise ValueError(f"speed must be above 0, got {speed}")
        self.speed = speed
        self.watch = LagWatch()
        self._monotonic = monotonic
        self._start = monotonic()
        self._watching: asyncio.Task[None] | None = None

    def now(self) -> float:
        """Model seconds."""
        return (self._monotonic() - self._start) * self.speed

    def wall(self, model_seconds: float) -> float:
        """How long `model_seconds` take on the wall."""
        return model_seconds / self.speed

    async def sleep(self, model_seconds: float) -> None:
        """Wait for a span of model time; at least one turn of the event loop."""
        await asyncio.sleep(max(0.0, model_seconds) / self.speed)

    def start_watch(self) -> None:
        """Begin to watch the running event loop for lag; a second call does nothing."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(), name="clock-lag-watch")

    async def stop_watch(self) -> None:
        """End the watch."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None

    async def _watch(self) -> None:
        while True:
            due = self._monotonic() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            now = self._monotonic()
            self.watch.record(now, now - due)
