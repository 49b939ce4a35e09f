"""The keyed work queue: workers run one handler per key at a time, retry with back-off, and stop gracefully."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from retinue.plan import Key
from retinue_operator.errors import one_line
from retinue_operator.schedule import Entry, Pace, Schedule

_LOG = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class Next:
    """What a handler wants after a run: again in `after` seconds (None = only when added), and whether it failed.

    A failed run without `after` is repeated with exponential back-off.
    """

    after: float | None = None
    failed: bool = False


Handler = Callable[[Key], Awaitable[Next]]


class QueueMetrics(Protocol):
    """Where the queue reports; `latency` is seconds from due to start."""

    def started(self, key: Key, latency: float) -> None: ...


class WorkQueue:
    """Runs `handler(key)` for the added keys with at most `workers` at once. `run()` works until `stop()`."""

    def __init__(
        self,
        handler: Handler,
        *,
        workers: int,
        pace: Pace | None = None,
        metrics: QueueMetrics | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._handler = handler
        self._workers = workers
        self._metrics = metrics
        self._schedule: Schedule[Key] = Schedule(pace or Pace(), chance)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._stopping = False

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Wishes a run of `key` in `delay` seconds; repeats before it starts are one run."""
        self._schedule.add(key, self._now(), delay)
        self._changed.set()

    def depth(self) -> int:
        """How many keys are due and wait for a worker."""
        return self._schedule.depth(self._now())

    def entries(self) -> list[Entry[Key]]:
        """What waits and runs at this moment."""
        return self._schedule.entries(self._now())

    def busy(self) -> int:
        """How many handlers run."""
        return len(self._schedule.running)

    async def run(self) -> None:
        """Starts due keys until `stop()`; cancelling it cancels the running handlers too."""
        try:
            while not self._stopping:
                self._changed.clear()
                while len(self._tasks) < self._workers and (taken := self._schedule.take(self._now())):
                    self._start(*taken)
                await self._sleep()
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            raise

    async def stop(self, grace: float) -> bool:
        """Starts nothing more, waits up to `grace` seconds for what runs, then cancels it. True = all finished."""
        self._stopping = True
        self._changed.set()
        if not self._tasks:
            return True
        _, unfinished = await asyncio.wait(set(self._tasks), timeout=grace)
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
        return not unfinished

    async def _sleep(self) -> None:
        due = self._schedule.next_due()
        # With all workers busy only the end of one of them (or a stop) changes anything.
        patience = None if due is None or len(self._tasks) >= self._workers else max(0.0, due - self._now())
        try:
            async with asyncio.timeout(patience):
                await self._changed.wait()
        except TimeoutError:
            return

    def _start(self, key: Key, due: float) -> None:
        if self._metrics is not None:
            self._metrics.started(key, self._now() - due)
        task = asyncio.create_task(self._work(key), name=f"reconcile {key}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    async def _work(self, key: Key) -> None:
        outcome = Next(failed=True)
        try:
            outcome = await self._handler(key)
        except Exception as error:
            # The handler reports its own failures; what arrives here is a defect that must not end the process.
            _LOG.exception("reconcile raised", key=str(key), error=one_line(error))
        finally:
            self._schedule.finish(key, self._now())
        if not outcome.failed:
            self._schedule.succeeded(key)
            if outcome.after is not None:
                self.add(key, outcome.after)
        else:
            delay = self._schedule.back_off(key)
            self.add(key, delay if outcome.after is None else outcome.after)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
