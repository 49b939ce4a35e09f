"""Everything that planning one AgentPool reads, as plain values."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from retinue.api import AgentPool, DecodePool, KVCacheTier, PrefillPool
from retinue.autoscaling.decision import Decision
from retinue.autoscaling.inputs import PoolSignals, RoleSignals, TierSignals
from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.resolve import ResolvedClass


@dataclass(frozen=True)
class InstanceAge:
    """When an instance was made, and since when it is ready (None: not ready); seconds since the epoch."""

    created: float
    ready_since: float | None
    draining: bool


@dataclass(frozen=True)
class Measurements:
    """What Prometheus said last; an absent entry is missing."""

    roles: Mapping[str, RoleSignals] = field(default_factory=dict)
    prefill: Mapping[str, PoolSignals] = field(default_factory=dict)
    decode: Mapping[str, PoolSignals] = field(default_factory=dict)
    tiers: Mapping[str, TierSignals] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class AgentPoolSnapshot:
    """One AgentPool and the part of the world that its plan depends on.

    Pools and tiers are those of the namespace by name; `ages` is keyed by (pool kind or "tier", pool name).
    `measured` is None when no Prometheus is configured. `decision` is the newest one, None before the first;
    `carry_out` says that it was made just now, so that its replicas are to be written.
    """

    agent_pool: AgentPool
    prefill_pools: Mapping[str, PrefillPool]
    decode_pools: Mapping[str, DecodePool]
    tiers: Mapping[str, KVCacheTier]
    classes: Mapping[str, ResolvedClass]
    nodes: tuple[Node, ...]
    holds: Collection[Hold]
    ages: Mapping[tuple[str, str], tuple[InstanceAge, ...]]
    measured: Measurements | None
    decision: Decision | None
    carry_out: bool
    gateway_url: str
