"""What hit rate a schedule can reach: the trace's requests put through the engine's own prefix cache, without time.

A request hits on the longest leading run of its blocks that is cached: hit tokens = min(run * block size, prompt).
Hit rates are token-weighted: hit tokens / prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from retinue_emulator.engine.blockkeys import BlockKeys
from retinue_emulator.engine.prefixcache import PrefixCache
from retinue_emulator.replay.events import GapKind, Request, Trace


@dataclass(frozen=True, slots=True)
class HitCount:
    """Prompt tokens and those of them that hit, main agents and sub-agents apart."""

    main_tokens: int = 0
    main_hit_tokens: int = 0
    sub_tokens: int = 0
    sub_hit_tokens: int = 0

    def plus(self, request: Request, hit_tokens: int) -> HitCount:
        """With one more request counted."""
        if request.is_main:
            return HitCount(
                self.main_tokens + request.in_tokens,
                self.main_hit_tokens + hit_tokens,
                self.sub_tokens,
                self.sub_hit_tokens,
            )
        return HitCount(
            self.main_tokens,
            self.main_hit_tokens,
            self.sub_tokens + request.in_tokens,
            self.sub_hit_tokens + hit_tokens,
        )

    @property
    def main(self) -> float:
        """Hit rate of the main agents' requests; 0 if there were none."""
        return self.main_hit_tokens / self.main_tokens if self.main_tokens else 0.0

    @property
    def subagents(self) -> float:
        """Hit rate of the sub-agents' requests; 0 if there were none."""
        return self.sub_hit_tokens / self.sub_tokens if self.sub_tokens else 0.0

    @property
    def all(self) -> float:
        """Hit rate of all requests; 0 if there were none."""
        tokens = self.main_tokens + self.sub_tokens
        return (self.main_hit_tokens + self.sub_hit_tokens) / tokens if tokens else 0.0


class CacheReplay:
    """One cache and its block names, fed with requests."""

    def __init__(self, cache: PrefixCache | None = None) -> None:
        self.cache = cache if cache is not None else PrefixCache()
        self._keys = BlockKeys()

    def hit_tokens(self, request: Request, now: float) -> int:
        """Look the prompt up, take it in, and return how many of its tokens hit."""
        matched = self.cache.lookup(self._keys.ranges(request.scope, request.runs), now)
        return min(matched * request.block_size, request.in_tokens)


def expected_hit(trace: Trace, *, capacity_tokens: int | None = None, ttl: float | None = None) -> HitCount:
    """Hits of the trace's schedule in one shared cache; no limit unless given.

    ``capacity_tokens`` limits the cache (least recently used goes first), ``ttl`` keeps a block so many seconds after
    its last use. All requests must have blocks of one size if a capacity is given.
    """
    capacity = None
    if capacity_tokens is not None:
        sizes = {request.block_size for request in trace.requests()}
        if len(sizes) != 1:
            raise ValueError(f"a capacity in tokens needs one block size, the trace has {sorted(sizes)}")
        capacity = capacity_tokens // sizes.pop()
    replay = CacheReplay(PrefixCache(capacity=capacity, ttl=ttl))
    return _count(trace.schedule(), replay.hit_tokens)


def expected_hits(trace: Trace) -> dict[str, int]:
    """Request id -> tokens that hit in one shared cache without limit."""
    replay = CacheReplay()
    return {request.id: replay.hit_tokens(request, when) for when, request in trace.schedule()}


def round_robin_hit(trace: Trace, workers: int) -> HitCount:
    """Hits if turn number k of every session went to worker k mod ``workers``: no affinity, no sharing, no eviction."""
    caches = [CacheReplay() for _ in range(workers)]
    turn = {request.id: k for session in trace.sessions for k, request in enumerate(session.requests)}
    return _count(trace.schedule(), lambda request, now: caches[turn[request.id] % workers].hit_tokens(request, now))


def parent_dropped_hit(trace: Trace) -> HitCount:
    """Hits if every main agent's cache were gone after each wait for sub-agents; sub-agents share one that stays."""
    root_of = trace.root_of()
    mains = {root.id: CacheReplay() for root in trace.roots()}
    subagents = CacheReplay()

    def hit_tokens(request: Request, now: float) -> int:
        if not request.is_main:
            return subagents.hit_tokens(request, now)
        own = mains[root_of[request.session]]
        if request.gap_kind is GapKind.SUBAGENT:
            own.cache.clear()
        return own.hit_tokens(request, now)

    return _count(trace.schedule(), hit_tokens)


def _count(events: Iterable[tuple[float, Request]], hit_tokens: Callable[[Request, float], int]) -> HitCount:
    total = HitCount()
    for now, request in events:
        total = total.plus(request, hit_tokens(request, now))
    return total
