"""A clock that can stand still: how one engine of many in a process hangs while the others go on."""

from __future__ import annotations

import asyncio

from retinue_emulator.engine.clock import Clock

# While the clock stands, whoever waits looks again this often (wall seconds): never in a busy loop.
_HALTED_POLL_SECONDS = 0.1


class HaltingClock(Clock):
    """Model time of `parent`, without the spans for which it was halted. The lag watch is the parent's."""

    def __init__(self, parent: Clock) -> None:
        super().__init__(parent.speed)
        self.watch = parent.watch
        self._parent = parent
        self._lost = 0.0
        self._halted_at: float | None = None

    @property
    def halted(self) -> bool:
        """Whether the clock stands still."""
        return self._halted_at is not None

    def halt(self, halted: bool) -> None:
        """Stops the clock or lets it go on."""
        if halted and self._halted_at is None:
            self._halted_at = self._parent.now()
        elif not halted and self._halted_at is not None:
            self._lost += self._parent.now() - self._halted_at
            self._halted_at = None

    def now(self) -> float:
        """Model seconds that have passed while the clock was going."""
        return (self._parent.now() if self._halted_at is None else self._halted_at) - self._lost

    def wall(self, model_seconds: float) -> float:
        """How long `model_seconds` take on the wall, were the clock going."""
        span = super().wall(model_seconds)
        return max(span, _HALTED_POLL_SECONDS) if self.halted else span

    async def sleep(self, model_seconds: float) -> None:
        """Waits until the span has passed on this clock; at least one turn of the event loop."""
        end = self.now() + model_seconds
        await asyncio.sleep(0)
        while True:
            left = end - self.now()
            if left <= 0 and not self.halted:
                return
            await asyncio.sleep(self.wall(max(0.0, left)))

    def start_watch(self) -> None:
        """The parent watches."""
        self._parent.start_watch()

    async def stop_watch(self) -> None:
        """The parent's watch goes on: other engines depend on it."""
