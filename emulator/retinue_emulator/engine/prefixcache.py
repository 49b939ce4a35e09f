"""Block-level prefix cache: least recently used blocks go first, pinned blocks stay.

Semantics. A prompt hits on its longest leading run of cached blocks. Then all its blocks become most recently used, the
last block first, so that the head of the prefix is the newest: a cache that runs out of room eats prefixes from their
tails and keeps what later prompts are likeliest to share. This is how vLLM frees blocks (in reverse order).

Speed. Recency is a stamp per block, kept in one dict and written in bulk; the eviction order is a queue of stamped
ranges in which outdated entries are skipped. A block that is touched n times is therefore looked at n times at most on
its way out, and touching a prompt of thousands of blocks runs at the speed of dict.update.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice

# Rebuild the eviction queue when it holds this many more segments than is worth skipping one by one.
_MAX_SEGMENTS = 20_000


EvictedBlocks = Callable[[list[int], float, float], None]
"""Told which keys left the cache for want of room, the least recently used first; when the last of them was last used;
and the present time."""


@dataclass(slots=True)
class _Segment:
    """Keys that were touched together; key number `offset` has stamp `stamp` + `offset`."""

    keys: Sequence[int]
    stamp: int
    time: float
    offset: int = 0


class PrefixCache:
    """An LRU set of block keys with optional capacity, time to live and pins.

    Args:
        capacity: blocks; None for no limit.
        ttl: seconds that a block is kept after its last use; None for ever. A block still hits when exactly `ttl` old.
        on_evict: receives what capacity pushed out (not what expired).
    """

    def __init__(
        self, capacity: int | None = None, ttl: float | None = None, on_evict: EvictedBlocks | None = None
    ) -> None:
        if capacity is not None and capacity < 0:
            raise ValueError(f"capacity must not be negative, got {capacity}")
        self.capacity = capacity
        self.ttl = ttl
        self.evicted_total = 0
        self.eviction_age: float | None = None
        """Idle age in seconds of the block evicted last."""
        self._on_evict = on_evict
        self._stamps: dict[int, int] = {}
        self._next_stamp = 0
        self._queue: deque[_Segment] = deque()
        self._tracks_order = capacity is not None or ttl is not None
        self._pins: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._stamps)

    def __contains__(self, key: int) -> bool:
        return key in self._stamps

    @property
    def pinned(self) -> int:
        """Blocks that running requests hold."""
        return len(self._pins)

    def keys(self) -> Iterable[int]:
        """All cached keys, in no particular order."""
        return self._stamps.keys()

    def match(self, ranges: Sequence[range], now: float) -> int:
        """Length in blocks of the longest leading run that is cached; changes nothing but expires old blocks."""
        self._expire(now)
        stamps, matched = self._stamps, 0
        for keys in ranges:
            for key in keys:
                if key not in stamps:
                    return matched
                matched += 1
        return matched

    def touch(self, ranges: Sequence[range], now: float) -> None:
        """Make all blocks most recently used, the last first, and insert those that are missing; then make room."""
        self._expire(now)
        for keys in reversed(ranges):
            self._use(keys[::-1], now)
        self._make_room(now)

    def lookup(self, ranges: Sequence[range], now: float) -> int:
        """`match`, then `touch`: what a prompt does to the cache. Returns the leading run that hit, in blocks."""
        matched = self.match(ranges, now)
        self.touch(ranges, now)
        return matched

    def insert(self, keys: list[int], now: float, last_used: float | None = None) -> None:
        """Take in blocks in the given order, the last becoming the newest (what a tier does with evicted blocks).

        `last_used` keeps the age that they had in the level above.
        """
        self._expire(now)
        self._use(keys, now if last_used is None else last_used)
        self._make_room(now)

    def pin(self, ranges: Sequence[range]) -> None:
        """Hold cached blocks for a running request: they are neither evicted nor expired until unpinned.

        Raises:
            KeyError: a block is not cached.
        """
        keys = list(chain.from_iterable(ranges))
        missing = next((key for key in keys if key not in self._stamps), None)
        if missing is not None:
            raise KeyError(f"block {missing} is not cached")
        self._pins.update(keys)

    def pin_new(self, ranges: Sequence[range], now: float, capacity: int) -> None:
        """`touch` and `pin` under a new capacity: no block of this prompt is evicted to make room for it."""
        self._expire(now)
        self.capacity = capacity
        for keys in reversed(ranges):
            self._use(keys[::-1], now)
        self._pins.update(chain.from_iterable(ranges))
        self._make_room(now)

    def evict(self, blocks: int, now: float) -> None:
        """Push out the `blocks` least recently used blocks (for a store whose room is not counted in blocks)."""
        capacity = self.capacity
        self.capacity = max(0, len(self._stamps) - blocks)
        self._make_room(now)
        self.capacity = capacity

    def discard(self, keys: Iterable[int]) -> None:
        """Forget blocks that moved elsewhere; this is no eviction."""
        for key in keys:
            self._stamps.pop(key, None)

    def discard_unheld(self, ranges: Sequence[range], kept: int) -> None:
        """Forget the blocks after the first `kept`, except those that running requests hold."""
        pins = self._pins
        self.discard(key for key in islice(chain.from_iterable(ranges), kept, None) if key not in pins)

    def unpin(self, ranges: Sequence[range], now: float) -> None:
        """Release what `pin` held; the blocks become most recently used, the last first."""
        pins = self._pins
        for key in chain.from_iterable(ranges):
            held = pins[key]
            if held > 1:
                pins[key] = held - 1
            else:
                del pins[key]
        self.touch(ranges, now)

    def count_unpinned(self, ranges: Sequence[range]) -> int:
        """How many distinct blocks of these no running request holds (cached or not)."""
        return len(set(chain.from_iterable(ranges)).difference(self._pins))

    def clear(self) -> None:
        """Forget everything, pins included."""
        self._stamps.clear()
        self._queue.clear()
        self._pins.clear()

    def _use(self, keys: Sequence[int], now: float) -> None:
        stamp = self._next_stamp
        self._stamps.update(zip(keys, count(stamp), strict=False))
        self._next_stamp = stamp + len(keys)
        if self._tracks_order and keys:
            self._queue.append(_Segment(keys, stamp, now))
            if len(self._queue) > _MAX_SEGMENTS + len(self._stamps):
                self._rebuild_queue()

    def _make_room(self, now: float) -> None:
        if self.capacity is None or len(self._stamps) <= self.capacity:
            return
        stamps, pins, queue, capacity = self._stamps, self._pins, self._queue, self.capacity
        evicted: list[int] = []
        last_used = now
        while len(stamps) > capacity and queue:
            segment = queue[0]
            keys, stamp, end = segment.keys, segment.stamp, len(segment.keys)
            offset = segment.offset
            excess = len(stamps) - capacity
            while offset < end and excess:
                key = keys[offset]
                # A pinned block leaves the queue here and comes back to it when it is unpinned, which touches it.
                if stamps.get(key) == stamp + offset and key not in pins:
                    del stamps[key]
                    evicted.append(key)
                    excess -= 1
                    last_used = segment.time
                offset += 1
            segment.offset = offset
            if offset == end:
                queue.popleft()
        if evicted:
            self.evicted_total += len(evicted)
            self.eviction_age = now - last_used
            if self._on_evict is not None:
                self._on_evict(evicted, last_used, now)

    def _expire(self, now: float) -> None:
        if self.ttl is None:
            return
        stamps, pins, queue = self._stamps, self._pins, self._queue
        while queue and now - queue[0].time > self.ttl:
            segment = queue.popleft()
            for offset in range(segment.offset, len(segment.keys)):
                key = segment.keys[offset]
                if stamps.get(key) == segment.stamp + offset and key not in pins:
                    del stamps[key]

    def _rebuild_queue(self) -> None:
        """Drop outdated entries: the queue then holds each block once, in the same order."""
        stamps, pins = self._stamps, self._pins
        fresh: deque[_Segment] = deque()
        for segment in self._queue:
            live = [
                offset
                for offset in range(segment.offset, len(segment.keys))
                if stamps.get(segment.keys[offset]) == segment.stamp + offset and segment.keys[offset] not in pins
            ]
            start = 0
            for position in range(1, len(live) + 1):
                if position == len(live) or live[position] != live[position - 1] + 1:
                    first, last = live[start], live[position - 1]
                    fresh.append(_Segment(segment.keys[first : last + 1], segment.stamp + first, segment.time))
                    start = position
        self._queue = fresh
