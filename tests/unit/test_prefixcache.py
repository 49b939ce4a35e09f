"""The prefix cache against a slow reference, and what pins, capacity, age and tiers do to it."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_emulator.engine import prefixcache
from retinue_emulator.engine.blockkeys import BlockKeys
from retinue_emulator.engine.kvmemory import KvMemory
from retinue_emulator.engine.prefixcache import PrefixCache


class Reference:
    """The definition, block by block: one ordered dict, the most recently used at its end."""

    def __init__(self, capacity: int | None, ttl: float | None) -> None:
        self.capacity, self.ttl = capacity, ttl
        self.blocks: OrderedDict[int, float] = OrderedDict()

    def lookup(self, prompt: list[int], now: float) -> int:
        if self.ttl is not None:
            for block in [b for b, used in self.blocks.items() if now - used > self.ttl]:
                del self.blocks[block]
        hit = 0
        while hit < len(prompt) and prompt[hit] in self.blocks:
            hit += 1
        for block in reversed(prompt):
            self.blocks[block] = now
            self.blocks.move_to_end(block)
        while self.capacity is not None and len(self.blocks) > self.capacity:
            self.blocks.popitem(last=False)
        return hit


prompts = st.lists(
    st.tuples(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), min_size=1, max_size=4), st.floats(0, 20)),
    max_size=40,
)


@given(prompts, st.one_of(st.none(), st.integers(0, 60)), st.one_of(st.none(), st.floats(0, 60)))
def test_it_hits_and_holds_exactly_what_the_definition_says(
    sequence: list[tuple[list[tuple[int, int]], float]], capacity: int | None, ttl: float | None
) -> None:
    cache, reference, now = PrefixCache(capacity, ttl), Reference(capacity, ttl), 0.0
    for runs, pause in sequence:
        now += pause
        ranges = [range(first, first + count) for first, count in runs]
        assert cache.lookup(ranges, now) == reference.lookup([key for keys in ranges for key in keys], now)
        assert set(cache.keys()) == set(reference.blocks)


def test_rebuilding_its_queue_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def contents(limit: int) -> list[set[int]]:
        monkeypatch.setattr(prefixcache, "_MAX_SEGMENTS", limit)
        cache = PrefixCache(capacity=40)
        states = []
        for turn in range(200):
            cache.lookup([range(turn % 7, turn % 7 + 9), range(100 + turn % 11, 105 + turn % 11)], turn)
            states.append(set(cache.keys()))
        return states

    assert contents(-38) == contents(10**9)


def test_the_tail_of_a_prefix_goes_before_its_head() -> None:
    cache = PrefixCache(capacity=10)
    cache.lookup([range(8)], 0)
    cache.lookup([range(100, 105)], 1)
    assert set(cache.keys()) == {0, 1, 2, 3, 4, 100, 101, 102, 103, 104}


def test_a_hole_ends_the_hit_even_when_later_blocks_are_cached() -> None:
    cache = PrefixCache()
    cache.touch([range(3), range(4, 9)], 0)
    assert cache.match([range(9)], 0) == 3


def test_a_block_hits_when_exactly_as_old_as_the_limit() -> None:
    cache = PrefixCache(ttl=10)
    cache.touch([range(5)], 0)
    assert cache.match([range(5)], 10) == 5
    assert cache.match([range(5)], 10.001) == 0


def test_pinned_blocks_are_neither_evicted_nor_expired() -> None:
    cache = PrefixCache(capacity=6, ttl=10)
    cache.touch([range(4)], 0)
    cache.pin([range(4)])
    cache.touch([range(50, 60)], 5)
    assert cache.match([range(4)], 100) == 4
    cache.unpin([range(4)], 100)
    assert cache.pinned == 0
    assert cache.match([range(4)], 110) == 4
    assert cache.match([range(4)], 111) == 0


def test_two_pins_need_two_releases() -> None:
    cache = PrefixCache(capacity=4)
    cache.touch([range(4)], 0)
    cache.pin([range(4)])
    cache.pin([range(4)])
    cache.unpin([range(4)], 1)
    cache.touch([range(9, 13)], 2)
    assert cache.match([range(4)], 2) == 4


def test_pinning_what_is_not_cached_is_an_error() -> None:
    with pytest.raises(KeyError, match="block 7 is not cached"):
        PrefixCache().pin([range(7, 8)])


def test_evicted_blocks_are_reported_oldest_first_with_their_age() -> None:
    told: list[tuple[list[int], float, float]] = []
    cache = PrefixCache(capacity=4, on_evict=lambda keys, used, now: told.append((keys, used, now)))
    cache.touch([range(4)], 10)
    cache.touch([range(20, 22)], 25)
    assert told == [([3, 2], 10, 25)]
    assert (cache.evicted_total, cache.eviction_age) == (2, 15)


def test_scopes_never_share_blocks_and_runs_survive_the_way_there_and_back() -> None:
    keys = BlockKeys()
    one, two = keys.ranges("one", [(0, 5)]), keys.ranges("two", [(0, 5)])
    wide = keys.ranges("one", [(2**63, 2)])
    assert not {*one[0]} & {*two[0], *wide[0]}
    assert keys.runs([*one[0], *two[0], *wide[0], one[0][3]]) == [
        ("one", [(0, 5)]),
        ("two", [(0, 5)]),
        ("one", [(2**63, 2), (3, 1)]),
    ]
    with pytest.raises(ValueError, match="outside"):
        keys.ranges("one", [(-1, 2)])


def test_memory_refuses_what_running_requests_leave_no_room_for() -> None:
    memory = KvMemory(blocks=100)
    first = memory.reserve([range(60)], 10, 0)
    assert first is not None
    assert memory.usage == pytest.approx(0.7)
    assert memory.reserve([range(1000, 1040)], 0, 1) is None
    shared = memory.reserve([range(60), range(2000, 2020)], 5, 2)
    assert shared is not None
    assert shared.device_hit == 60
    assert memory.in_use == 95
    memory.release(first, 3)
    memory.release(shared, 4)
    assert memory.in_use == 0
    assert memory.device.match([range(60)], 5) == 60


def test_private_blocks_push_cached_ones_out() -> None:
    memory = KvMemory(blocks=100)
    held = memory.reserve([range(80)], 0, 0)
    assert held is not None
    memory.release(held, 1)
    assert memory.reserve([range(500, 510)], 50, 2) is not None
    assert len(memory.device) == 50


def test_evicted_blocks_fall_to_the_host_and_hits_rise_again() -> None:
    dropped: list[int] = []
    memory = KvMemory(blocks=100, host_blocks=60, on_drop=dropped.extend)
    for scope in range(3):
        held = memory.reserve([range(1000 * scope, 1000 * scope + 80)], 0, scope)
        assert held is not None
        memory.release(held, scope + 0.5)
    # 240 blocks: 100 on the device, 60 on the host, 80 dropped; no block is in two places.
    assert len(memory.device) == 100
    assert len(memory.host) == 60
    assert len(dropped) == 80
    assert not set(memory.device.keys()) & set(memory.host.keys())
    again = memory.reserve([range(1000, 1080)], 0, 9)
    assert again is not None
    assert (again.device_hit, again.host_hit) == (20, 60)
    assert not set(memory.device.keys()) & set(memory.host.keys())


def test_blocks_that_were_never_computed_do_not_hit_after_their_request_has_ended() -> None:
    memory = KvMemory(blocks=200)
    first = memory.reserve([range(40)], 0, 0)
    assert first is not None
    memory.release(first, 1)
    cut = memory.reserve([range(100)], 0, 2)
    sharing = memory.reserve([range(60)], 0, 3)
    assert cut is not None
    assert sharing is not None
    memory.release(cut, 4, computed=50)
    # What another request holds is that one's to compute.
    assert memory.device.match([range(100)], 5) == 60
    memory.release(sharing, 6, computed=50)
    assert memory.device.match([range(100)], 7) == 50
    assert memory.in_use == 0
