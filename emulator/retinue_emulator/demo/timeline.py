"""What was seen of the cluster over time: one sample a second, and the decisions of the autoscaler.

Latencies are wall seconds, as the API shows them; whoever shows them to people multiplies by the speed and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PoolSample:
    """One pool: its wanted size and its instances by phase. `kind` is prefill or decode."""

    kind: str
    name: str
    role: str
    desired: int
    pending: int
    starting: int
    ready: int
    draining: int
    is_ready: bool
    why: str
    """What is missing while the pool is not ready."""

    @property
    def key(self) -> str:
        """`prefill/coder-primary`."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class TierSample:
    """One KV cache tier; `fill` is used over capacity, None while unknown."""

    name: str
    medium: str
    members: int
    desired: int
    fill: float | None
    hit_rate: float | None
    capacity: str
    is_ready: bool

    @property
    def key(self) -> str:
        """`tier/coder-cold`."""
        return f"tier/{self.name}"


@dataclass(frozen=True)
class RoleSample:
    """One role as the AgentPool's status shows it."""

    name: str
    model: str
    ready: bool
    hit_rate: float | None


@dataclass(frozen=True)
class Sample:
    """The cluster at one moment, `at` wall seconds after the load began (negative before it)."""

    at: float
    pools: tuple[PoolSample, ...]
    tiers: tuple[TierSample, ...]
    roles: tuple[RoleSample, ...]
    open_sessions: int | None
    context_tokens: int | None
    hit_rate: float | None
    ttft_p95: float | None
    itl_p95: float | None
    cost_per_hour: float | None
    decision: str = ""
    """Reason and message of the autoscaler's last decision."""

    def pool(self, key: str) -> PoolSample | None:
        """The pool with this key."""
        return next((pool for pool in self.pools if pool.key == key), None)

    @property
    def all_ready(self) -> bool:
        """Whether every pool and tier of the AgentPool is there and says it is ready."""
        parts = [*(pool.is_ready for pool in self.pools), *(tier.is_ready for tier in self.tiers)]
        return bool(self.pools) and all(parts)


@dataclass(frozen=True)
class Move:
    """A decision that changed the size of one pool or tier, `at` wall seconds after the load began."""

    at: float
    key: str
    before: int
    after: int
    reason: str
    message: str
    clamps: tuple[str, ...] = ()

    @property
    def up(self) -> bool:
        """Whether it grew."""
        return self.after > self.before


class Timeline:
    """Samples in order of time, and the moves seen so far."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.moves: list[Move] = []

    def add(self, sample: Sample) -> None:
        """Appends a sample, which must not be older than the last one."""
        self.samples.append(sample)

    def shift(self, seconds: float) -> None:
        """Moves all samples so many seconds into the past: a new zero of time."""
        self.samples = [replace(sample, at=sample.at - seconds) for sample in self.samples]
        self.moves = [replace(move, at=move.at - seconds) for move in self.moves]

    @property
    def last(self) -> Sample | None:
        """The newest sample."""
        return self.samples[-1] if self.samples else None

    def subjects(self) -> tuple[str, ...]:
        """Keys of all pools and tiers ever seen that have servers of their own, in order of appearance."""
        return tuple(dict.fromkeys(key for sample in self.samples for key, _ in _sizes(sample)))

    def sizes(self, key: str) -> list[tuple[float, int]]:
        """(time, wanted size) of one pool or tier."""
        return [(sample.at, size) for sample in self.samples for name, size in _sizes(sample) if name == key]


@dataclass(frozen=True)
class SizeChange:
    """How one pool or tier changed: where it began, its peak, and where it ended."""

    key: str
    first: int
    peak: int
    last: int

    @property
    def grew(self) -> bool:
        """Whether it was larger than at the beginning at some time."""
        return self.peak > self.first

    @property
    def shrank(self) -> bool:
        """Whether it ended smaller than it had been."""
        return self.last < self.peak


def size_changes(timeline: Timeline) -> tuple[SizeChange, ...]:
    """The change of every pool and tier over the whole timeline."""
    changes = []
    for key in timeline.subjects():
        sizes = [size for _, size in timeline.sizes(key)]
        changes.append(SizeChange(key, sizes[0], max(sizes), sizes[-1]))
    return tuple(changes)


def known(values: Iterable[tuple[float, float | None]]) -> Sequence[tuple[float, float]]:
    """The points that have a value."""
    return [(at, value) for at, value in values if value is not None]


def _sizes(sample: Sample) -> Iterator[tuple[str, int]]:
    for pool in sample.pools:
        yield pool.key, pool.desired
    for tier in sample.tiers:
        if tier.medium == "ContextStorage":
            yield tier.key, tier.desired
