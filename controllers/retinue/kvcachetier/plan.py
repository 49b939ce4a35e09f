"""Plans one tier: its server pods, if its medium has any, and a status that says what it holds and who uses it."""

from collections.abc import Iterable, Mapping

from retinue.api import KVCacheTier, labels
from retinue.api.kvcachetier import Backend, KVCacheTierStatus, Medium
from retinue.api.units import format_bytes, format_duration, format_ratio, format_share, quantity
from retinue.conditions import ConditionType, Finding, Reason, merge, prometheus_answers
from retinue.kvcachetier.build import build_server, build_service, revision, server_labels, server_name
from retinue.kvcachetier.snapshot import ServerView, TierSnapshot
from retinue.nodeclass.nodes import Node
from retinue.placement.capacity import MEMORY
from retinue.plan import Apply, Delete, Plan, earliest
from retinue.podtemplate import wrong_template
from retinue.transitions import transitions

_GOOD = {ConditionType.READY: True, ConditionType.VALID: True, ConditionType.DEGRADED: False}
RESTART_SECONDS = 10.0
"""A server that failed for good is replaced no sooner than this after it was made."""


def plan(snapshot: TierSnapshot, now: float) -> Plan:
    """The next step of one tier; `now` in seconds since the epoch."""
    tier = snapshot.tier
    valid = _valid(snapshot)
    apply: list[Apply] = []
    delete: list[Delete] = []
    requeue: float | None = None
    if valid.status and tier.spec.medium == Medium.CONTEXT_STORAGE and snapshot.node_class is not None:
        apply.append(Apply(build_service(tier)))
        existing = {server.name: server for server in snapshot.servers}
        for index in range(tier.spec.replicas):
            server = existing.get(server_name(tier.metadata.name, index))
            if server is None:
                apply.append(Apply(build_server(tier, snapshot.node_class, index)))
            elif _ended(server):
                due = server.created + RESTART_SECONDS
                if now >= due:
                    delete.append(_delete(tier, server))
                else:
                    requeue = earliest(requeue, due - now)
        # The highest index goes first, so that names stay 0..n-1 and most keys stay where they are.
        surplus = [s for s in snapshot.servers if s.index >= tier.spec.replicas and not s.deleting]
        delete.extend(_delete(tier, server) for server in sorted(surplus, key=lambda s: -s.index))
        delete.extend(entry for entry in _outdated(snapshot) if entry not in delete)
    findings = _findings(snapshot, valid)
    return Plan(
        apply=tuple(apply),
        delete=tuple(delete),
        status=_status(snapshot, findings, now).to_wire(),
        events=transitions(tier.status.conditions, findings, _GOOD),
        requeue_after=requeue,
    )


def _outdated(snapshot: TierSnapshot) -> list[Delete]:
    """Servers of an older revision: those that do not serve at once, the others one at a time while all serve."""
    tier = snapshot.tier
    old = [s for s in snapshot.servers if s.revision != revision(tier) and not s.deleting]
    # A server that never became ready must not keep its own repair from coming.
    idle = [server for server in old if not server.ready and not _ended(server)]
    if idle:
        return [_delete(tier, server) for server in idle]
    serving = sum(server.ready and not server.deleting for server in snapshot.servers)
    if serving < max(len(snapshot.servers), tier.spec.replicas):
        return []
    return [_delete(tier, server) for server in old[:1]]


def _ended(server: ServerView) -> bool:
    return server.phase in ("Failed", "Succeeded") and not server.deleting


def _delete(tier: KVCacheTier, server: ServerView) -> Delete:
    return Delete("v1", "Pod", tier.metadata.namespace, server.name, server.uid)


def _valid(snapshot: TierSnapshot) -> Finding:
    """The first check that fails names the reason."""
    tier, spec = snapshot.tier, snapshot.tier.spec
    name = tier.metadata.name
    if spec.medium in (Medium.LOCAL_DISK, Medium.OBJECT) or spec.backend in (Backend.LMCACHE, Backend.MOONCAKE):
        message = (
            f"spec.medium {spec.medium} with backend {spec.backend} is not run by this version: it runs HostMemory "
            f"with backend Engine and ContextStorage with backend Simulated"
        )
        return Finding(ConditionType.VALID, False, Reason.NOT_SUPPORTED, message)
    cycle = _cycle(name, tier, snapshot.others)
    if cycle is not None:
        message = f"spec.nextTier: {' -> '.join(cycle)} is a cycle: blocks would be evicted in circles; break it"
        return Finding(ConditionType.VALID, False, Reason.TIER_CYCLE, message)
    if spec.next_tier is not None and spec.next_tier not in snapshot.others:
        message = f"spec.nextTier: no KVCacheTier {spec.next_tier} in this namespace: create it or remove the field"
        return Finding(ConditionType.VALID, False, Reason.NEXT_TIER_MISSING, message)
    if spec.medium == Medium.CONTEXT_STORAGE and snapshot.node_class is None:
        error = snapshot.class_error or f"NodeClass {spec.node_class} does not exist"
        message = f"spec.nodeClass: {error}: create it or correct the field"
        return Finding(ConditionType.VALID, False, Reason.NODE_CLASS_MISSING, message)
    if (wrong := wrong_template(spec.pod_template)) is not None:
        return Finding(ConditionType.VALID, False, Reason.WRONG_POD_TEMPLATE, wrong)
    return Finding(ConditionType.VALID, True, Reason.ACCEPTED, "")


def _cycle(name: str, tier: KVCacheTier, others: Mapping[str, KVCacheTier]) -> list[str] | None:
    path, current = [name], tier.spec.next_tier
    while current is not None and current in others:
        path.append(current)
        if current == name:
            return path
        if current in path[:-1]:
            return None  # a cycle further down: the tiers on it say so
        current = others[current].spec.next_tier
    return [*path, name] if current == name else None


def _findings(snapshot: TierSnapshot, valid: Finding) -> tuple[Finding, ...]:
    return (valid, _ready(snapshot, valid, _serving(snapshot)), *_memory(snapshot), *_fresh(snapshot))


def _serving(snapshot: TierSnapshot) -> list[ServerView]:
    return [server for server in snapshot.servers if server.ready and not server.deleting]


def _status(snapshot: TierSnapshot, findings: Iterable[Finding], now: float) -> KVCacheTierStatus:
    tier, spec = snapshot.tier, snapshot.tier.spec
    serving = _serving(snapshot)
    servers = spec.medium == Medium.CONTEXT_STORAGE
    members = len(serving) if servers else sum(user.ready for user in snapshot.users)
    capacity = members * quantity(spec.capacity_per_member) if spec.capacity_per_member else None
    metrics = snapshot.metrics
    used = metrics.used if metrics else None
    generation = tier.metadata.generation
    return KVCacheTierStatus(
        observed_generation=generation,
        replicas=len([s for s in snapshot.servers if not s.deleting]) if servers else 0,
        ready_replicas=len(serving) if servers else 0,
        selector=",".join(f"{key}={value}" for key, value in sorted(server_labels(tier).items())),
        members=members,
        capacity=None if capacity is None else format_bytes(capacity),
        used=None if used is None else format_bytes(used),
        fill=None if used is None or not capacity else format_ratio(min(1.0, used / capacity)),
        hit_rate=format_share(metrics.hit_rate if metrics else None),
        eviction_age=None if metrics is None or metrics.eviction_age is None else format_duration(metrics.eviction_age),
        endpoints=sorted(f"http://{server.ip}:{labels.HTTP_PORT}" for server in serving if server.ip),
        used_by=sorted(f"{user.kind}/{user.name}" for user in snapshot.users),
        conditions=merge(tier.status.conditions, findings, generation, now),
    )


def _ready(snapshot: TierSnapshot, valid: Finding, serving: list[ServerView]) -> Finding:
    spec = snapshot.tier.spec
    if not valid.status:
        return Finding(ConditionType.READY, False, valid.reason, valid.message)
    if spec.medium != Medium.CONTEXT_STORAGE:
        users = len(snapshot.users)
        ready = sum(user.ready for user in snapshot.users)
        if not users:
            return Finding(ConditionType.READY, True, Reason.NO_MEMBERS, "no pool names this tier yet")
        return Finding(ConditionType.READY, True, Reason.MEMBERS_READY, f"{ready} instances of {users} pools hold it")
    if len(serving) < spec.replicas:
        message = f"{len(serving)} of {spec.replicas} servers are ready{_why_waiting(snapshot)}"
        return Finding(ConditionType.READY, False, Reason.SERVERS_STARTING, message)
    return Finding(ConditionType.READY, True, Reason.SERVERS_READY, f"{len(serving)} servers are ready")


def _why_waiting(snapshot: TierSnapshot) -> str:
    class_ = snapshot.node_class
    if class_ is None or any(class_.accepts(node) for node in snapshot.nodes):
        return ""
    return f": no usable node of class {class_.name}; see kubectl describe nc {class_.name}"


def _memory(snapshot: TierSnapshot) -> tuple[Finding, ...]:
    """Whether some node could hold a member of a HostMemory tier at all, whoever else is there."""
    spec = snapshot.tier.spec
    if spec.medium != Medium.HOST_MEMORY or not spec.capacity_per_member or not snapshot.nodes:
        return ()
    largest = max(_memory_of(node) for node in snapshot.nodes)
    wanted = quantity(spec.capacity_per_member)
    if wanted > largest:
        message = (
            f"spec.capacityPerMember {spec.capacity_per_member} is more than any node has ({format_bytes(largest)}): "
            f"lower it, or no instance of one pod can be placed"
        )
        return (Finding(ConditionType.DEGRADED, True, Reason.HOST_MEMORY_TOO_SMALL, message),)
    return ()


def _memory_of(node: Node) -> int:
    return node.allocatable.get(MEMORY, 0)


def _fresh(snapshot: TierSnapshot) -> tuple[Finding, ...]:
    return () if snapshot.metrics is None else (prometheus_answers(snapshot.metrics.error),)
