"""The status of an AgentPool: roles, sessions, cache, cost, the last decision, conditions, and events about changes."""

from collections.abc import Iterable, Sequence

from retinue.agentpool.children import child_findings
from retinue.agentpool.inputs import shape_of, tier_server_cost
from retinue.agentpool.names import Serving, serving
from retinue.agentpool.snapshot import AgentPoolSnapshot, Measurements
from retinue.api import DecodePool, PrefillPool
from retinue.api.agentgoals import AutoscalingMode
from retinue.api.agentpoolstatus import (
    MOST_INPUTS,
    AgentPoolStatus,
    DecisionInput,
    DecisionTarget,
    Endpoint,
    LastDecision,
    RoleStatus,
    SessionsStatus,
)
from retinue.api.kvcachetier import Medium
from retinue.api.pool import InstancePhase
from retinue.api.units import format_duration, format_ratio, format_share
from retinue.autoscaling.decision import Decision
from retinue.autoscaling.inputs import Signal
from retinue.conditions import ConditionType, Finding, Reason, find, merge, timestamp
from retinue.economics.price import input_cost_ratio
from retinue.plan import Event
from retinue.transitions import transitions

_GOOD = {
    ConditionType.READY: True,
    ConditionType.VALID: True,
    ConditionType.METRICS_FRESH: True,
    ConditionType.SCALING_LIMITED: False,
}


def agent_pool_status(
    snapshot: AgentPoolSnapshot, taken: Sequence[str], now: float
) -> tuple[AgentPoolStatus, tuple[Event, ...]]:
    """The status after this plan, and events about what has changed since the last one."""
    agent_pool = snapshot.agent_pool
    measured = snapshot.measured or Measurements()
    served = serving(agent_pool)
    roles = [_role(snapshot, who, measured) for who in served]
    ready = sum(role.ready for role in roles)
    hit_rate = _weighted_hit_rate(measured)
    findings = [_valid(taken), _ready(snapshot, roles, taken), *_tools(snapshot), *_decided(snapshot)]
    # Tools that nobody runs hide no failing pool, nor the other way round: the failing pool is told first.
    summed = child_findings(snapshot)
    failing = any(finding.type is ConditionType.DEGRADED and finding.status for finding in summed)
    told = {finding.type for finding in findings if not (failing and finding.type is ConditionType.DEGRADED)}
    findings = [f for f in findings if f.type in told] + [f for f in summed if f.type not in told]
    generation = agent_pool.metadata.generation
    cache = agent_pool.spec.cache
    cost = None
    if hit_rate is not None:
        cost = f"{input_cost_ratio(hit_rate, float(cache.write_premium), float(cache.hit_discount)):.3f}"
    status = AgentPoolStatus(
        observed_generation=generation,
        roles=roles,
        roles_ready=f"{ready}/{len(roles)}",
        sessions=SessionsStatus(
            open=_sum(signals.open_sessions for signals in measured.roles.values()),
            context_tokens=_sum(signals.context_tokens for signals in measured.roles.values()),
        ),
        hit_rate=None if hit_rate is None else format_ratio(hit_rate),
        input_cost_ratio=cost,
        cost_per_hour=_cost(snapshot),
        ttft_p95=_worst(signals.ttft for signals in measured.roles.values()),
        itl_p95=_worst(signals.inter_token_time for signals in measured.decode.values()),
        endpoints=[_endpoint(snapshot, who) for who in served],
        last_decision=_last_decision(snapshot),
        conditions=merge(agent_pool.status.conditions, findings, generation, now),
    )
    return status, transitions(agent_pool.status.conditions, findings, _GOOD)


def _role(snapshot: AgentPoolSnapshot, who: Serving, measured: Measurements) -> RoleStatus:
    prefill = snapshot.prefill_pools.get(who.prefill) if who.prefill else None
    decode = snapshot.decode_pools.get(who.decode)
    signals = measured.roles.get(who.role.name)
    ready = _is_ready(decode) and (who.prefill is None or _is_ready(prefill))
    model = who.owner.model.name if who.owner.model else (decode.spec.model.name if decode else None)
    return RoleStatus(
        name=who.role.name,
        type=who.role.type,
        model=model,
        served_by=who.role.served_by,
        prefill_pool=who.prefill,
        decode_pool=who.decode,
        ready=ready,
        hit_rate=format_share(signals.hit_rate.value) if signals else None,
        prefill_replicas=prefill.status.ready_replicas if prefill else None,
        decode_replicas=decode.status.ready_replicas if decode else None,
    )


def _is_ready(pool: PrefillPool | DecodePool | None) -> bool:
    if pool is None:
        return False
    condition = find(pool.status.conditions, ConditionType.READY)
    return condition is not None and condition.status == "True" and (pool.status.ready_replicas or 0) > 0


def _endpoint(snapshot: AgentPoolSnapshot, who: Serving) -> Endpoint:
    meta = snapshot.agent_pool.metadata
    url = f"{snapshot.gateway_url.rstrip('/')}/{meta.namespace}/{meta.name}/v1"
    return Endpoint(role=who.role.name, url=url, model=who.role.name)


def _weighted_hit_rate(measured: Measurements) -> float | None:
    """Cached over prompt tokens of all roles together; None without traffic or without numbers for every role."""
    cached = prompt = 0.0
    for signals in measured.roles.values():
        if signals.prompt_rate.value is None or signals.cached_rate.value is None:
            continue
        prompt += signals.prompt_rate.value
        cached += signals.cached_rate.value
    return min(1.0, cached / prompt) if prompt > 0 else None


def _sum(signals: Iterable[Signal]) -> int | None:
    known = [signal.value for signal in signals if signal.value is not None]
    return round(sum(known)) if known else None


def _worst(signals: Iterable[Signal]) -> str | None:
    known = [signal.value for signal in signals if signal.value is not None]
    return format_duration(max(known)) if known else None


def _cost(snapshot: AgentPoolSnapshot) -> str | None:
    """Hourly cost of what the AgentPool's own instances and tier servers hold, draining ones too; None if unknown."""
    total = 0.0
    uid = snapshot.agent_pool.metadata.uid
    pools: list[PrefillPool | DecodePool] = [*snapshot.prefill_pools.values(), *snapshot.decode_pools.values()]
    for pool in pools:
        if not pool.metadata.controlled_by(uid):
            continue
        for instance in pool.status.instances:
            if instance.phase is InstancePhase.PENDING:
                continue  # It holds no device yet.
            shape = shape_of(snapshot, pool, on=instance.node_class)
            if shape is None or shape.cost_per_hour is None:
                return None
            total += shape.cost_per_hour
    for tier in snapshot.tiers.values():
        if tier.metadata.controlled_by(uid) and tier.spec.medium == Medium.CONTEXT_STORAGE:
            cost = tier_server_cost(snapshot, tier)
            if cost is None:
                return None
            total += (tier.status.replicas or 0) * cost
    return f"{total:.2f}"


def _valid(taken: Sequence[str]) -> Finding:
    if taken:
        message = f"{', '.join(taken)} exists and belongs to somebody else: rename the AgentPool or delete the object"
        return Finding(ConditionType.VALID, False, Reason.NAME_TAKEN, message)
    return Finding(ConditionType.VALID, True, Reason.ACCEPTED, "")


def _ready(snapshot: AgentPoolSnapshot, roles: Sequence[RoleStatus], taken: Sequence[str]) -> Finding:
    if taken:
        return Finding(ConditionType.READY, False, Reason.NAME_TAKEN, f"{taken[0]} belongs to somebody else")
    waiting = [role for role in roles if not role.ready]
    if not waiting:
        return Finding(ConditionType.READY, True, Reason.ROLES_READY, f"all {len(roles)} roles are served")
    return Finding(
        ConditionType.READY, False, Reason.ROLES_NOT_READY, "; ".join(_why(snapshot, role) for role in waiting)
    )


def _why(snapshot: AgentPoolSnapshot, role: RoleStatus) -> str:
    """Why a role is not served: the first of its pools that is missing or not ready, in that pool's own words."""
    pools = (
        ("PrefillPool", role.prefill_pool, snapshot.prefill_pools.get(role.prefill_pool or "")),
        ("DecodePool", role.decode_pool, snapshot.decode_pools.get(role.decode_pool or "")),
    )
    for kind, name, pool in pools:
        if name is None:
            continue
        if pool is None:
            return f"role {role.name}: {kind} {name} does not exist yet"
        condition = find(pool.status.conditions, ConditionType.READY)
        if condition is None or condition.status != "True":
            text = condition.message if condition else "it was not looked at yet"
            return f"role {role.name}: {kind} {name}: {text}"
    return f"role {role.name}: its pools have no ready instance"


def _tools(snapshot: AgentPoolSnapshot) -> tuple[Finding, ...]:
    if snapshot.agent_pool.spec.tools is None:
        return ()
    message = "spec.tools is stored but no tool sandboxes are run by this version; inference is not affected"
    return (Finding(ConditionType.DEGRADED, True, Reason.TOOLS_NOT_MANAGED, message),)


def _decided(snapshot: AgentPoolSnapshot) -> tuple[Finding, ...]:
    """What the newest decision says of scaling and of its metrics; before it, the conditions stay as they were."""
    if snapshot.decision is not None:
        return snapshot.decision.findings
    kept = (ConditionType.SCALED, ConditionType.SCALING_LIMITED, ConditionType.METRICS_FRESH)
    return tuple(
        Finding(type_, {"True": True, "False": False}.get(old.status), Reason(old.reason), old.message)
        for type_ in kept
        if (old := find(snapshot.agent_pool.status.conditions, type_)) is not None and old.reason in set(Reason)
    )


def _last_decision(snapshot: AgentPoolSnapshot) -> LastDecision | None:
    """The newest decision in wire form; the old record stays while a new one says the same of the same numbers."""
    old = snapshot.agent_pool.status.last_decision
    if snapshot.decision is None:
        return old
    new = decision_record(snapshot.decision, snapshot.agent_pool.spec.autoscaling.mode)
    return old if old is not None and _same(old, new) else new


def decision_record(decision: Decision, mode: AutoscalingMode) -> LastDecision:
    """A decision as status.lastDecision shows it: values with four digits, ages in whole seconds."""
    return LastDecision(
        time=timestamp(decision.time),
        mode=mode,
        reason=decision.reason.value,
        message=decision.message[:1024],
        targets=[
            DecisionTarget(
                name=target.key,
                current=target.current,
                desired=target.desired,
                reason=target.reason.value,
                message=target.message[:512],
                clamps=[f"{clamp.reason.value}: {clamp.message}"[:128] for clamp in target.clamps][:8],
            )
            for target in decision.targets
        ][:32],
        inputs=[
            DecisionInput(
                name=used.name,
                value=None if used.value is None else f"{used.value:.4g}",
                age_seconds=None if used.age is None else f"{used.age:.0f}",
            )
            for used in decision.inputs
        ][:MOST_INPUTS],
    )


def _same(old: LastDecision, new: LastDecision) -> bool:
    """Whether two records differ in nothing but time and the ages of their inputs."""
    values = [(used.name, used.value) for used in old.inputs] == [(used.name, used.value) for used in new.inputs]
    return values and (old.mode, old.reason, old.message, old.targets) == (
        new.mode,
        new.reason,
        new.message,
        new.targets,
    )
