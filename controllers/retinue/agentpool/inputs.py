"""Turns an AgentPool's snapshot into the inputs of one autoscaling decision."""

from collections.abc import Iterable

from retinue.agentpool.names import Serving, pool_name, serving, tier_name
from retinue.agentpool.snapshot import AgentPoolSnapshot, InstanceAge, Measurements
from retinue.api import DecodePool, KVCacheTier, PrefillPool
from retinue.api.agentrole import PoolTemplate, ReplicaBounds
from retinue.api.kvcachetier import Medium
from retinue.api.pool import PackMode
from retinue.api.units import quantity, seconds
from retinue.autoscaling.inputs import (
    Inputs,
    PoolInputs,
    PoolKind,
    PoolSignals,
    RoleInputs,
    RoleSignals,
    TierInputs,
    TierSignals,
)
from retinue.autoscaling.settings import CacheGoals, Goals, Settings
from retinue.catalog.facts import MissingFact
from retinue.economics.costmodel import decode_step_seconds, kv_bytes_per_token, prefill_seconds
from retinue.placement.pack import Request, instances_that_fit
from retinue.pool.shape import InstanceShape, Misfit, instance_shape

# The cost model's speeds depend on the request: these are the medians of recorded coding agents (notes/agents.md 2.1
# and traces/README.md: input p50 105K tokens, new tokens per turn p50 705 and mean 3,205).
TYPICAL_CONTEXT_TOKENS = 105_000
TYPICAL_NEW_TOKENS = 3_205
MAX_SEQUENCES = 256
"""Requests that an engine runs at once at most (vLLM's default --max-num-seqs)."""


def build_inputs(snapshot: AgentPoolSnapshot, now: float) -> Inputs:
    """The inputs of one decision at `now` (seconds since the epoch): only pools and tiers that the AgentPool owns."""
    spec, meta = snapshot.agent_pool.spec, snapshot.agent_pool.metadata
    measured = snapshot.measured or Measurements()
    scaling = spec.autoscaling
    return Inputs(
        namespace=meta.namespace,
        agent_pool=meta.name,
        roles=tuple(_role(snapshot, who, measured) for who in serving(snapshot.agent_pool)),
        pools=tuple(_pools(snapshot, measured, now)),
        tiers=tuple(_tiers(snapshot, measured, now)),
        goals=Goals(ttft=seconds(spec.slo.ttft.target), itl=seconds(spec.slo.itl.target)),
        cache=CacheGoals(
            target_hit_rate=float(spec.cache.target_hit_rate),
            hit_discount=float(spec.cache.hit_discount),
            write_premium=float(spec.cache.write_premium),
        ),
        settings=Settings(
            mode=scaling.mode,
            evaluation_interval=seconds(scaling.evaluation_interval),
            metrics_window=seconds(scaling.metrics_window),
            startup_estimate=seconds(scaling.startup_estimate),
            down_stabilization=seconds(scaling.scale_down.stabilization),
            down_interval=seconds(scaling.scale_down.interval),
            missing_up=scaling.on_missing_metrics.scale_up,
            max_age=seconds(scaling.on_missing_metrics.max_age),
        ),
        max_cost_per_hour=float(spec.budget.max_cost_per_hour) if spec.budget else None,
        metrics_error=measured.error,
    )


def shape_of(
    snapshot: AgentPoolSnapshot, pool: PrefillPool | DecodePool, on: str | None = None
) -> InstanceShape | None:
    """The shape of the pool's instances on the class `on`, or else on the first of its list that can hold one."""
    tiers = {name: snapshot.tiers[name] for name in pool.spec.kv_cache_tiers if name in snapshot.tiers}
    for name in pool.spec.node_classes if on is None else [on]:
        class_ = snapshot.classes.get(name)
        if class_ is None:
            continue
        shape = instance_shape(pool.spec.model, pool.spec.parallelism, class_, tiers)
        if not isinstance(shape, Misfit):
            return shape
    return None


def _role(snapshot: AgentPoolSnapshot, who: Serving, measured: Measurements) -> RoleInputs:
    decode = snapshot.decode_pools.get(who.decode)
    shape = shape_of(snapshot, decode) if decode else None
    names = [tier_name(snapshot.agent_pool, name) for name in who.owner.kv_cache_tiers]
    return RoleInputs(
        name=who.role.name,
        prefill=who.prefill,
        decode=who.decode,
        tiers=tuple(name for name in names if _has_servers(snapshot.tiers.get(name))),
        kv_bytes_per_token=kv_bytes_per_token(shape.engine) if shape else None,
        signals=measured.roles.get(who.role.name, RoleSignals()),
    )


def tier_server_cost(snapshot: AgentPoolSnapshot, tier: KVCacheTier) -> float | None:
    """Hourly cost of one server pod: its node's, because its capacity is the node's flash. None where unknown."""
    class_ = snapshot.classes.get(tier.spec.node_class or "")
    return class_.cost_per_node_hour if class_ else None


def _has_servers(tier: KVCacheTier | None) -> bool:
    return tier is not None and tier.spec.medium == Medium.CONTEXT_STORAGE


def _pools(snapshot: AgentPoolSnapshot, measured: Measurements, now: float) -> Iterable[PoolInputs]:
    uid = snapshot.agent_pool.metadata.uid
    for role in snapshot.agent_pool.spec.roles:
        name = pool_name(snapshot.agent_pool.metadata.name, role.name)
        prefill, decode = snapshot.prefill_pools.get(name), snapshot.decode_pools.get(name)
        if role.prefill is not None and prefill is not None and prefill.metadata.controlled_by(uid):
            signals = measured.prefill.get(name, PoolSignals())
            yield _pool(snapshot, PoolKind.PREFILL, prefill, role.prefill, signals, False, now)
        if role.decode is not None and decode is not None and decode.metadata.controlled_by(uid):
            alone = role.prefill is None and role.prefill_pool_ref is None
            signals = measured.decode.get(name, PoolSignals())
            yield _pool(snapshot, PoolKind.DECODE, decode, role.decode, signals, alone, now)


def _pool(
    snapshot: AgentPoolSnapshot,
    kind: PoolKind,
    pool: PrefillPool | DecodePool,
    template: PoolTemplate,
    signals: PoolSignals,
    aggregated: bool,
    now: float,
) -> PoolInputs:
    shape = shape_of(snapshot, pool)
    ages = snapshot.ages.get((kind.value, pool.metadata.name), ())
    ready, starting, draining = _ages(ages, now)
    return PoolInputs(
        name=pool.metadata.name,
        kind=kind,
        min=template.replicas.min,
        max=template.replicas.max,
        current=pool.spec.replicas,
        ready_ages=ready,
        starting_ages=starting,
        draining=draining,
        aggregated=aggregated,
        kv_tokens=float(shape.kv_capacity_tokens) if shape else None,
        host_tokens=shape.host_cache_bytes / kv_bytes_per_token(shape.engine) if shape else 0.0,
        prefill_speed=_prefill_speed(shape),
        slots=_slots(shape, seconds(snapshot.agent_pool.spec.slo.itl.target)),
        cost_per_hour=shape.cost_per_hour if shape else None,
        placeable=_placeable(snapshot, pool),
        signals=signals,
    )


def _ages(ages: Iterable[InstanceAge], now: float) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    live = [age for age in ages if not age.draining]
    ready = tuple(sorted(max(0.0, now - age.ready_since) for age in live if age.ready_since is not None))
    starting = tuple(sorted(max(0.0, now - age.created) for age in live if age.ready_since is None))
    return ready, starting, sum(age.draining for age in ages)


def _prefill_speed(shape: InstanceShape | None) -> float | None:
    """Uncached tokens/s of one instance on a typical turn, by the cost model."""
    if shape is None:
        return None
    try:
        taken = prefill_seconds(shape.engine, TYPICAL_NEW_TOKENS, TYPICAL_CONTEXT_TOKENS)
        return TYPICAL_NEW_TOKENS / taken * shape.node_class.time_scale
    except MissingFact:
        return None


def _slots(shape: InstanceShape | None, inter_token_goal: float) -> float | None:
    """The largest batch of typical contexts whose step meets the inter-token goal and that fits in KV memory."""
    if shape is None:
        return None
    goal = inter_token_goal * shape.node_class.time_scale
    fits = max(1, min(MAX_SEQUENCES, shape.kv_capacity_tokens // TYPICAL_CONTEXT_TOKENS))
    try:
        low, high = 1, fits
        while low < high:
            middle = (low + high + 1) // 2
            if decode_step_seconds(shape.engine, middle, TYPICAL_CONTEXT_TOKENS) <= goal:
                low = middle
            else:
                high = middle - 1
    except MissingFact:
        return None
    return float(low)


def _placeable(snapshot: AgentPoolSnapshot, pool: PrefillPool | DecodePool) -> int | None:
    """Further instances that would find free devices now, over all classes of the pool."""
    if not snapshot.nodes:
        return None
    tiers = {name: snapshot.tiers[name] for name in pool.spec.kv_cache_tiers if name in snapshot.tiers}
    total = 0
    for name in pool.spec.node_classes:
        class_ = snapshot.classes.get(name)
        shape = instance_shape(pool.spec.model, pool.spec.parallelism, class_, tiers) if class_ else None
        if class_ is None or shape is None or isinstance(shape, Misfit):
            continue
        topology = pool.spec.topology
        required = topology.mode == PackMode.REQUIRED
        request = Request(shape.pods, shape.requests, topology.pack, required, topology.spread, {})
        total += instances_that_fit(request, class_, snapshot.nodes, snapshot.holds)
    return total


def _tiers(snapshot: AgentPoolSnapshot, measured: Measurements, now: float) -> Iterable[TierInputs]:
    for template in snapshot.agent_pool.spec.tiers:
        name = tier_name(snapshot.agent_pool, template.name)
        tier = snapshot.tiers.get(name)
        if tier is None or not _has_servers(tier):
            continue
        if not tier.metadata.controlled_by(snapshot.agent_pool.metadata.uid):
            continue
        bounds = template.replicas or ReplicaBounds(min=tier.spec.replicas, max=max(1, tier.spec.replicas))
        ready, starting, draining = _ages(snapshot.ages.get((PoolKind.TIER.value, name), ()), now)
        capacity = tier.spec.capacity_per_member
        yield TierInputs(
            name=name,
            min=bounds.min,
            max=bounds.max,
            current=tier.spec.replicas,
            ready_ages=ready,
            starting_ages=starting,
            draining=draining,
            capacity_bytes=float(quantity(capacity)) if capacity else None,
            # A tier that loses a paused session within its run is too small; human gaps are kept if there is room.
            retention=max(seconds(tier.spec.retention.tool_gap), seconds(tier.spec.retention.sub_agent_wait)),
            cost_per_hour=tier_server_cost(snapshot, tier),
            signals=measured.tiers.get(name, TierSignals()),
        )
