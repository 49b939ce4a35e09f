"""Plans one AgentPool: the pools and tiers of its roles, their replicas as decided, and its status."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from retinue.agentpool.build import (
    API_VERSION,
    build_decode_pool,
    build_prefill_pool,
    build_replicas,
    build_tier,
)
from retinue.agentpool.names import pool_name, tier_name
from retinue.agentpool.snapshot import AgentPoolSnapshot
from retinue.agentpool.status import agent_pool_status
from retinue.api import DecodePool, KVCacheTier, PrefillPool, labels
from retinue.api.agentgoals import AutoscalingMode
from retinue.autoscaling.decision import Decision, Target
from retinue.autoscaling.inputs import PoolKind
from retinue.conditions import Reason
from retinue.plan import Apply, Delete, Event, EventType, Manager, Manifest, Plan

Child = PrefillPool | DecodePool | KVCacheTier
KIND_OF = {PoolKind.PREFILL: "PrefillPool", PoolKind.DECODE: "DecodePool", PoolKind.TIER: "KVCacheTier"}


@dataclass
class Draft:
    """What the plan has decided so far; `taken` names children that belong to somebody else."""

    apply: list[Apply] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    wanted: set[tuple[str, str]] = field(default_factory=set)
    taken: list[str] = field(default_factory=list)


def plan(snapshot: AgentPoolSnapshot, now: float) -> Plan:
    """The next step of one AgentPool; `now` in seconds since the epoch."""
    draft = Draft()
    _have_tiers(snapshot, draft)
    _have_pools(snapshot, draft)
    _remove_unwanted(snapshot, draft)
    if snapshot.decision is not None and snapshot.carry_out:
        _carry_out(snapshot, snapshot.decision, draft)
    status, events = agent_pool_status(snapshot, draft.taken, now)
    return Plan(
        apply=tuple(draft.apply),
        delete=tuple(draft.delete),
        status=status.to_wire(),
        events=(*draft.events, *events),
    )


def _have_tiers(snapshot: AgentPoolSnapshot, draft: Draft) -> None:
    agent_pool = snapshot.agent_pool
    for template in agent_pool.spec.tiers:
        name = tier_name(agent_pool, template.name)
        initial = template.replicas.min if template.replicas else template.spec.replicas
        _have(snapshot, snapshot.tiers.get(name), build_tier(agent_pool, template), initial, draft)


def _have_pools(snapshot: AgentPoolSnapshot, draft: Draft) -> None:
    agent_pool = snapshot.agent_pool
    for role in agent_pool.spec.roles:
        name = pool_name(agent_pool.metadata.name, role.name)
        if role.prefill is not None:
            manifest = build_prefill_pool(agent_pool, role, role.prefill)
            _have(snapshot, snapshot.prefill_pools.get(name), manifest, role.prefill.replicas.min, draft)
        if role.decode is not None:
            manifest = build_decode_pool(agent_pool, role, role.decode)
            _have(snapshot, snapshot.decode_pools.get(name), manifest, role.decode.replicas.min, draft)


def _have(snapshot: AgentPoolSnapshot, existing: Child | None, manifest: Manifest, initial: int, draft: Draft) -> None:
    """Applies a child, and its first replicas once. Somebody else's object is never taken over."""
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    draft.wanted.add((kind, name))
    if existing is not None and not existing.metadata.controlled_by(snapshot.agent_pool.metadata.uid):
        draft.taken.append(f"{kind} {name}")
        return
    draft.apply.append(Apply(manifest))
    if existing is None or labels.SIZED not in existing.metadata.annotations:
        namespace = snapshot.agent_pool.metadata.namespace
        draft.apply.append(Apply(build_replicas(kind, namespace, name, initial), Manager.AUTOSCALER))


def _remove_unwanted(snapshot: AgentPoolSnapshot, draft: Draft) -> None:
    """Deletes children of roles and templates that the spec no longer has."""
    uid = snapshot.agent_pool.metadata.uid
    children: Iterable[Child] = (
        *snapshot.prefill_pools.values(),
        *snapshot.decode_pools.values(),
        *snapshot.tiers.values(),
    )
    for child in children:
        kind, meta = child.kind_info.kind, child.metadata
        if meta.controlled_by(uid) and (kind, meta.name) not in draft.wanted and meta.deletion_timestamp is None:
            draft.delete.append(Delete(API_VERSION, kind, meta.namespace, meta.name, meta.uid))


def _carry_out(snapshot: AgentPoolSnapshot, decision: Decision, draft: Draft) -> None:
    """Writes the replicas that the decision changes, and says so; a dry run only says."""
    if not decision.apply or snapshot.agent_pool.spec.autoscaling.mode is not AutoscalingMode.AUTO:
        return
    meta = snapshot.agent_pool.metadata
    for target in decision.targets:
        existing = _child(snapshot, target)
        if existing is None or existing.spec.replicas == target.desired or target.current == target.desired:
            continue
        if not existing.metadata.controlled_by(meta.uid):
            continue
        if existing.spec.replicas != target.current:
            continue  # Somebody changed replicas since the decision was made: the next one starts from theirs.
        manifest = build_replicas(KIND_OF[target.kind], meta.namespace, target.name, target.desired)
        draft.apply.append(Apply(manifest, Manager.AUTOSCALER))
        up = target.desired > target.current
        reason = Reason.SCALING_UP if up else Reason.SCALING_DOWN
        text = f"{KIND_OF[target.kind]} {target.name} {target.current} -> {target.desired}: {target.message}"
        draft.events.append(Event(EventType.NORMAL, reason.value, text))


def _child(snapshot: AgentPoolSnapshot, target: Target) -> Child | None:
    if target.kind is PoolKind.PREFILL:
        return snapshot.prefill_pools.get(target.name)
    if target.kind is PoolKind.DECODE:
        return snapshot.decode_pools.get(target.name)
    return snapshot.tiers.get(target.name)
