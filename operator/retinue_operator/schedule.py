"""When which key may run: once per key at a time, no wake-up lost, the earliest wish wins. No clock and no tasks."""

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Pace:
    """Seconds: the least gap between two runs of a key, and the first and longest back-off after failures."""

    min_gap: float = 0.05
    base_delay: float = 0.1
    max_delay: float = 60.0


@dataclass(frozen=True)
class Entry(Generic[K]):
    """A key that waits, runs, or both. `due_in` in seconds, None if it only runs; failures in a row."""

    key: K
    running: bool
    due_in: float | None
    failures: int


class Schedule(Generic[K]):
    """The state of a keyed work queue; all times are seconds on one clock that the caller reads.

    A key is waiting (with a due time), running, or both: it was added again while it runs, and will run once more.
    `random` returns numbers in [0, 1) and spreads the back-off over the upper half of its length.
    """

    def __init__(self, pace: Pace, random: Callable[[], float]) -> None:
        self._pace = pace
        self._random = random
        self._due: dict[K, float] = {}
        self._running: set[K] = set()
        self._failures: dict[K, int] = {}
        # Lazily cleaned: an entry counts only while it agrees with _due.
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = itertools.count()
        self._ended: dict[K, float] = {}
        self._ends: deque[tuple[float, K]] = deque()

    def add(self, key: K, now: float, delay: float = 0.0) -> None:
        """Wishes a run of `key` in `delay` seconds; of several wishes the earliest wins."""
        due = now + max(delay, 0.0)
        if key in self._ended:
            due = max(due, self._ended[key] + self._pace.min_gap)
        current = self._due.get(key)
        if current is not None and current <= due:
            return
        self._due[key] = due
        if key not in self._running:
            self._push(key, due)

    def take(self, now: float) -> tuple[K, float] | None:
        """The next key to run and the time it was due, or None. It counts as running until `finish`."""
        self._clean()
        if not self._heap or self._heap[0][0] > now:
            return None
        due, _, key = heapq.heappop(self._heap)
        del self._due[key]
        self._running.add(key)
        return key, due

    def finish(self, key: K, now: float) -> None:
        """The run of `key` has ended."""
        self._running.remove(key)
        self._remember_end(key, now)
        if key in self._due:
            self._due[key] = max(self._due[key], now + self._pace.min_gap)
            self._push(key, self._due[key])

    def next_due(self) -> float | None:
        """When the next key may run, or None when none waits."""
        self._clean()
        return self._heap[0][0] if self._heap else None

    def back_off(self, key: K) -> float:
        """Counts a failure of `key` and returns how many seconds to wait before the next attempt."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        whole = min(self._pace.base_delay * 2.0 ** min(failures, 30), self._pace.max_delay)
        return whole * (0.5 + self._random() / 2)

    def succeeded(self, key: K) -> None:
        """Forgets the failures of `key`."""
        self._failures.pop(key, None)

    def depth(self, now: float) -> int:
        """How many keys wait although they are due."""
        return sum(1 for key, due in self._due.items() if due <= now and key not in self._running)

    def entries(self, now: float) -> list[Entry[K]]:
        """All keys that run or wait, those that are due first at the beginning."""
        found = [
            Entry(key, key in self._running, None if due is None else due - now, self._failures.get(key, 0))
            for key in {*self._due, *self._running}
            for due in [self._due.get(key)]
        ]
        return sorted(found, key=lambda entry: (not entry.running, entry.due_in or 0.0, str(entry.key)))

    @property
    def running(self) -> frozenset[K]:
        """The keys that run."""
        return frozenset(self._running)

    @property
    def waiting(self) -> frozenset[K]:
        """The keys that will run some time."""
        return frozenset(self._due)

    def _push(self, key: K, due: float) -> None:
        heapq.heappush(self._heap, (due, next(self._sequence), key))

    def _clean(self) -> None:
        while self._heap:
            due, _, key = self._heap[0]
            if key not in self._running and self._due.get(key) == due:
                return
            heapq.heappop(self._heap)

    def _remember_end(self, key: K, now: float) -> None:
        self._ended[key] = now
        self._ends.append((now, key))
        while self._ends and self._ends[0][0] + self._pace.min_gap <= now:
            ended, old = self._ends.popleft()
            if self._ended.get(old) == ended:
                del self._ended[old]
