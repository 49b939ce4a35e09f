"""What one decision reads: signals that may be missing, roles, pools and tiers."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from retinue.autoscaling.settings import CacheGoals, Goals, Settings, Tuning


class PoolKind(StrEnum):
    """Spelled as the value of the label retinue.dev/pool-kind."""

    PREFILL = "prefill"
    DECODE = "decode"
    TIER = "tier"


# No fleet holds so many bytes or tokens, and no time is so long.
LARGEST = 1e18


def _number(value: float | None) -> float | None:
    if value is None or not math.isfinite(value) or not 0 <= value <= LARGEST:
        return None
    return float(value)


@dataclass(frozen=True)
class Signal:
    """One number from Prometheus, three-valued: missing is never zero.

    value and age known: measured `age` seconds ago. Only age known: the targets were scraped, but nothing happened that
    could be measured (a hit rate without traffic). Neither known: missing. NaN, infinities, negative numbers and those
    above LARGEST are not values of any canonical signal; they count as no value.
    """

    value: float | None = None
    age: float | None = None

    def __post_init__(self) -> None:
        age = _number(self.age)
        object.__setattr__(self, "age", age)
        object.__setattr__(self, "value", None if age is None else _number(self.value))

    @property
    def missing(self) -> bool:
        """Whether nothing at all is known."""
        return self.age is None


MISSING = Signal()


@dataclass(frozen=True)
class PoolSignals:
    """Signals of one prefill or decode pool. Rates per second over the metrics window; times in seconds."""

    computed_rate: Signal = MISSING
    """Uncached prompt tokens that the engines computed."""
    cached_rate: Signal = MISSING
    """Prompt tokens that came from a cache."""
    prompt_rate: Signal = MISSING
    """All prompt tokens prefilled."""
    hit_rate: Signal = MISSING
    """cached / prompt tokens, 0..1; no value without traffic."""
    generation_rate: Signal = MISSING
    queue_time: Signal = MISSING
    """Quantile of the time from arrival at the engine to being scheduled."""
    prefill_time: Signal = MISSING
    """Quantile of the time from being scheduled to the first token."""
    transfer_time: Signal = MISSING
    """Quantile of the time of a KV transfer into this pool."""
    inter_token_time: Signal = MISSING
    """Quantile of the gap between two tokens, as the engine measures it."""
    ttft: Signal = MISSING
    """Quantile of the time from arrival at the engine to its first token."""
    running: Signal = MISSING
    """Requests running now, all instances."""
    running_peak: Signal = MISSING
    """The highest `running` within the window."""
    waiting: Signal = MISSING
    """Requests queued in the engines now."""
    waiting_low: Signal = MISSING
    """The fewest requests that were queued at once within the last TTFT goal: 0 = nobody waits longer than that."""
    kv_use: Signal = MISSING
    """Share of KV memory that running requests hold, mean over instances, 0..1."""
    prefill_speed: Signal = MISSING
    """Uncached prompt tokens per second of prefill, one instance."""
    reporting: Signal = MISSING
    """Instances whose metrics are scraped now."""
    host_capacity_bytes: Signal = MISSING
    host_used_bytes: Signal = MISSING
    host_hit_rate: Signal = MISSING
    """Prompt tokens from the host memory tier / prompt tokens."""
    host_eviction_age: Signal = MISSING
    """Idle seconds of what the host memory tier evicted last, the shortest of all instances."""


@dataclass(frozen=True)
class RoleSignals:
    """Signals of one role, all from the gateway. Rates per second over the metrics window; times in seconds."""

    ttft: Signal = MISSING
    prefill_stage_time: Signal = MISSING
    first_decode_time: Signal = MISSING
    """Quantile of the time from the end of prefill to the first token: KV transfer and decode's admission."""
    token_time: Signal = MISSING
    """Quantile of a request's mean time per output token."""
    arrivals: Signal = MISSING
    """Requests started."""
    completions: Signal = MISSING
    """Requests ended, with any code."""
    in_flight: Signal = MISSING
    """Requests between arrival and last token now."""
    queued_prefill_tokens: Signal = MISSING
    """Prompt tokens (cached or not) of requests that wait for prefill or are in it now."""
    prompt_rate: Signal = MISSING
    cached_rate: Signal = MISSING
    completion_tokens_rate: Signal = MISSING
    hit_rate: Signal = MISSING
    open_sessions: Signal = MISSING
    context_tokens: Signal = MISSING
    """Sum of the context lengths of open sessions."""


@dataclass(frozen=True)
class TierSignals:
    """Signals of one tier that runs servers."""

    capacity_bytes: Signal = MISSING
    used_bytes: Signal = MISSING
    hit_rate: Signal = MISSING
    lookup_rate: Signal = MISSING
    """Tokens asked for per second."""
    eviction_age: Signal = MISSING
    """Idle seconds of what was evicted last, the shortest of all servers."""
    reporting: Signal = MISSING


@dataclass(frozen=True)
class RoleInputs:
    """One role: the pools that serve it (of another role if it is served by that one) and what the gateway sees."""

    name: str
    prefill: str | None
    """Name of its prefill pool; None = its decode pool is aggregated."""
    decode: str | None
    tiers: tuple[str, ...] = ()
    """Names of the tiers with servers that keep its sessions' cache."""
    kv_bytes_per_token: float | None = None
    signals: RoleSignals = field(default_factory=RoleSignals)

    @cached_property
    def key(self) -> str:
        return f"role/{self.name}"


@dataclass(frozen=True)
class PoolInputs:
    """One prefill or decode pool: what it has, what it may have, what its instances can do."""

    name: str
    kind: PoolKind
    min: int
    max: int
    current: int
    """Instances wanted now: the pool's spec.replicas."""
    ready_ages: tuple[float, ...] = ()
    """Per ready instance: seconds since it became ready. A large number if unknown."""
    starting_ages: tuple[float, ...] = ()
    """Per instance that is not ready yet and not leaving: seconds since it was created."""
    draining: int = 0
    aggregated: bool = False
    """A decode pool that also does prefill."""
    kv_tokens: float | None = None
    """Tokens of KV that one instance holds in device memory."""
    host_tokens: float = 0.0
    """Tokens of KV that one instance holds in its host memory tier."""
    prefill_speed: float | None = None
    """Uncached prompt tokens/s of one instance by the cost model."""
    slots: float | None = None
    """Requests that one instance decodes at once within the inter-token goal, by the cost model and engine limits."""
    cost_per_hour: float | None = None
    """Of one instance."""
    placeable: int | None = None
    """Instances beyond the current number that would find free devices now; None = unknown, no limit."""
    signals: PoolSignals = field(default_factory=PoolSignals)

    @cached_property
    def key(self) -> str:
        return key(self.kind, self.name)

    @property
    def ready(self) -> int:
        return len(self.ready_ages)


@dataclass(frozen=True)
class TierInputs:
    """One tier that runs servers."""

    name: str
    min: int
    max: int
    current: int
    ready_ages: tuple[float, ...] = ()
    starting_ages: tuple[float, ...] = ()
    draining: int = 0
    capacity_bytes: float | None = None
    """Of one server."""
    retention: float | None = None
    """Seconds that a block should stay after its last use."""
    cost_per_hour: float | None = None
    placeable: int | None = None
    signals: TierSignals = field(default_factory=TierSignals)

    @property
    def kind(self) -> PoolKind:
        return PoolKind.TIER

    @cached_property
    def key(self) -> str:
        return key(self.kind, self.name)

    @property
    def ready(self) -> int:
        return len(self.ready_ages)


@dataclass(frozen=True)
class Inputs:
    """Everything that one decision depends on besides the state and the time."""

    namespace: str
    agent_pool: str
    roles: tuple[RoleInputs, ...]
    pools: tuple[PoolInputs, ...]
    tiers: tuple[TierInputs, ...] = ()
    goals: Goals = field(default_factory=Goals)
    cache: CacheGoals = field(default_factory=CacheGoals)
    settings: Settings = field(default_factory=Settings)
    tuning: Tuning = field(default_factory=Tuning)
    max_cost_per_hour: float | None = None
    metrics_error: str | None = None
    """Why Prometheus gave no answer, if it gave none."""

    def roles_of(self, pool: PoolInputs) -> tuple[RoleInputs, ...]:
        """The roles whose requests this pool serves."""
        if pool.kind is PoolKind.PREFILL:
            return tuple(role for role in self.roles if role.prefill == pool.name)
        return tuple(role for role in self.roles if role.decode == pool.name)

    @property
    def subjects(self) -> tuple[PoolInputs | TierInputs, ...]:
        """All that a decision sizes."""
        return (*self.pools, *self.tiers)

    def pool(self, kind: PoolKind, name: str | None) -> PoolInputs | None:
        return next((pool for pool in self.pools if pool.kind is kind and pool.name == name), None)


def key(kind: PoolKind, name: str) -> str:
    """The name of a pool or tier within a decision: a prefill and a decode pool may have the same name."""
    return f"{kind.value}/{name}"
