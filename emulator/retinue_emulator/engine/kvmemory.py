"""KV memory of one engine: device blocks that requests reserve, and the host cache that evicted blocks fall into.

Device memory is one pool of blocks. Requests pin the blocks of their prompt (shared between requests) and hold private
blocks for their partial last block and their output; what is left is the prefix cache. A request reserves all that it
can need when it is admitted, so it is never preempted. Evicted blocks move down to the host cache, and a hit there
moves them up again: a block is in one of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retinue_emulator.engine.prefixcache import PrefixCache


@dataclass(frozen=True, slots=True)
class Reservation:
    """Memory of an admitted request, and the leading run of its prompt that was cached, by source, in blocks."""

    ranges: Sequence[range]
    private: int
    device_hit: int
    host_hit: int

    @property
    def hit(self) -> int:
        """Leading blocks that need no computing."""
        return self.device_hit + self.host_hit


class KvMemory:
    """Device blocks and the host cache beneath them. Sizes are blocks, times model seconds.

    Args:
        blocks: device blocks in all.
        host_blocks: blocks of the host cache; 0 for none.
        on_drop: receives keys that leave the lowest local level.
    """

    def __init__(self, blocks: int, host_blocks: int = 0, on_drop: Callable[[list[int]], None] | None = None) -> None:
        self.blocks = blocks
        self.released = 0
        """Counts releases: a request that did not fit need not be tried again until this changes."""
        self._private = 0
        self._on_drop = on_drop
        self.device = PrefixCache(blocks, on_evict=self._to_host)
        self.host = PrefixCache(host_blocks, on_evict=self._to_next)

    @property
    def in_use(self) -> int:
        """Device blocks that requests hold."""
        return self._private + self.device.pinned

    @property
    def usage(self) -> float:
        """Share of the device blocks that requests hold, 0..1; cached blocks that nobody holds do not count."""
        return self.in_use / self.blocks

    def reserve(self, ranges: Sequence[range], private: int, now: float) -> Reservation | None:
        """Look a prompt up, make its blocks most recently used, and hold them with `private` more.

        Returns:
            None when what requests hold leaves too little room; then nothing has changed.
        """
        if self.in_use + self.device.count_unpinned(ranges) + private > self.blocks:
            return None
        device_hit, host_ranges, host_hit = self._match(ranges)
        for keys in host_ranges:
            self.host.discard(keys)
        self._private += private
        self.device.pin_new(ranges, now, capacity=self.blocks - self._private)
        return Reservation(ranges, private, device_hit, host_hit)

    def release(self, held: Reservation, now: float, computed: int | None = None) -> None:
        """Give private blocks back; the prompt's blocks stay cached, most recently used.

        `computed` is how many leading blocks of the prompt have their content, None for all: those of a request that
        ended before its prefill or transfer did must not be hits later.
        """
        self._private -= held.private
        self.device.capacity = self.blocks - self._private
        self.device.unpin(held.ranges, now)
        if computed is not None:
            self.device.discard_unheld(held.ranges, computed)
        self.released += 1

    def clear(self) -> None:
        """Forget all blocks (a restart)."""
        self._private = 0
        self.device.clear()
        self.device.capacity = self.blocks
        self.host.clear()

    def _match(self, ranges: Sequence[range]) -> tuple[int, list[range], int]:
        """Leading run over both levels: device blocks, ranges found in the host cache, their blocks."""
        on_device = on_host = 0
        host_ranges: list[range] = []
        device, host = self.device, self.host
        for keys in ranges:
            for key in keys:
                if key in device:
                    on_device += 1
                elif key in host:
                    on_host += 1
                    if host_ranges and host_ranges[-1].stop == key:
                        host_ranges[-1] = range(host_ranges[-1].start, key + 1)
                    else:
                        host_ranges.append(range(key, key + 1))
                else:
                    return on_device, host_ranges, on_host
        return on_device, host_ranges, on_host

    def _to_host(self, keys: list[int], last_used: float, now: float) -> None:
        if self.host.capacity:
            self.host.insert(keys, now, last_used)
        elif self._on_drop is not None:
            self._on_drop(keys)

    def _to_next(self, keys: list[int], last_used: float, now: float) -> None:
        del last_used, now
        if self._on_drop is not None:
            self._on_drop(keys)
