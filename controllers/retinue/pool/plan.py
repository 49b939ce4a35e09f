"""Plans one pool: which instances to create, place, restart, drain and remove, and what its status says."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from retinue.api.pool import InstancePhase, PackMode
from retinue.api.units import seconds
from retinue.conditions import Reason, timestamp
from retinue.nodeclass.nodes import Hold
from retinue.placement.capacity import domain_of
from retinue.placement.pack import NoFit, Placement, Request, place
from retinue.plan import Apply, Delete, Event, EventType, Manager, Plan, earliest
from retinue.pool.admission import Admission, admit
from retinue.pool.build import build_drain_marks, build_pod, build_service
from retinue.pool.instances import Instance, free_indexes, group, instance_name, pod_name
from retinue.pool.revision import revision as revision_of
from retinue.pool.shape import InstanceShape
from retinue.pool.snapshot import PodView, PoolSnapshot
from retinue.pool.status import pool_status
from retinue.rollout.backoff import restart_delay
from retinue.rollout.planner import Candidate, next_step

DRAIN_POLL_SECONDS = 1.0
DRAIN_SETTLE_SECONDS = 2.0
"""Routers learn of an unroutable pod by watch: a drain is not over before they surely have."""
PLACEMENT_RETRY_SECONDS = 30.0


@dataclass
class Draft:
    """What the plan has decided so far."""

    apply: list[Apply] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    requeue: float | None = None
    restarted: dict[str, str] = field(default_factory=dict)
    unplaced: list[NoFit] = field(default_factory=list)
    removed: set[str] = field(default_factory=set)
    drained: set[str] = field(default_factory=set)

    def say(self, reason: Reason, message: str, warning: bool = False) -> None:
        self.events.append(Event(EventType.WARNING if warning else EventType.NORMAL, reason.value, message))

    def again(self, delay: float) -> None:
        self.requeue = earliest(self.requeue, max(0.05, delay))

    def remove(self, pods: Iterable[PodView], namespace: str) -> None:
        for pod in pods:
            if not pod.deleting:
                self.delete.append(Delete("v1", "Pod", namespace, pod.name, pod.uid))


def plan(snapshot: PoolSnapshot, now: float) -> Plan:
    """The next step of one pool; `now` in seconds since the epoch."""
    admission = admit(snapshot)
    revision = revision_of(snapshot.pool, dict(snapshot.tiers))
    expected = {name: shape.pods for name, shape in admission.shapes.items()}
    instances = group(snapshot.pods, snapshot.pool.status.instances, expected, now)
    draft = Draft()
    if admission.valid.status:
        draft.apply.append(Apply(build_service(snapshot)))
        _restart_failed(snapshot, instances, draft)
        _move_towards_replicas(snapshot, admission, instances, revision, draft, now)
        _complete_interrupted(snapshot, admission, instances, revision, draft, now)
        _release_gated(snapshot, admission, instances, revision, draft)
    _finish_drains(snapshot, instances, draft, now)
    status, events = pool_status(
        snapshot, admission, instances, revision, draft.restarted, draft.removed, draft.drained, draft.unplaced, now
    )
    return Plan(
        apply=tuple(draft.apply),
        delete=tuple(draft.delete),
        status=status.to_wire(),
        events=(*draft.events, *events),
        requeue_after=draft.requeue,
    )


def _restart_failed(snapshot: PoolSnapshot, instances: Iterable[Instance], draft: Draft) -> None:
    """A failed pod takes its whole instance with it; an instance that was leaving anyway just goes."""
    for instance in instances:
        if instance.failure is None:
            continue
        draft.remove(instance.pods, snapshot.pool.metadata.namespace)
        if instance.phase == InstancePhase.DRAINING:
            draft.removed.add(instance.name)
            continue
        draft.restarted[instance.name] = instance.failure
        delay = restart_delay(instance.restarts + 1)
        draft.again(max(1.0, delay))
        wait = f"; next start in {delay:.0f}s" if delay else ""
        draft.say(Reason.INSTANCE_RESTARTED, f"restarting {instance.name} as a whole: {instance.failure}{wait}", True)


def _move_towards_replicas(
    snapshot: PoolSnapshot,
    admission: Admission,
    instances: tuple[Instance, ...],
    revision: str,
    draft: Draft,
    now: float,
) -> None:
    """Creates, takes back, drains and removes instances until replicas of the current revision exist."""
    spec, meta = snapshot.pool.spec, snapshot.pool.metadata
    by_name = {instance.name: instance for instance in instances}
    step = next_step(
        spec.replicas,
        spec.rollout.max_surge,
        spec.rollout.max_unavailable,
        [_candidate(snapshot, admission, instance, revision) for instance in instances],
    )
    for name in step.reclaim:
        for pod in by_name[name].pods:
            draft.apply.append(Apply(build_drain_marks(snapshot, pod.name, None), Manager.INSTANCE))
        draft.say(Reason.SCALING_UP, f"taking {name} back: its cache is warm and it had not finished draining")
    for name in step.drain:
        started = timestamp(now)
        for pod in by_name[name].pods:
            draft.apply.append(Apply(build_drain_marks(snapshot, pod.name, started), Manager.INSTANCE))
        draft.drained.add(name)
        draft.again(DRAIN_POLL_SECONDS)
        draft.say(Reason.DRAINING, f"draining {name} ({_worth(snapshot, name)}): no new requests are routed to it")
    for name in step.remove:
        draft.remove(by_name[name].pods, meta.namespace)
        draft.removed.add(name)
        draft.say(Reason.INSTANCE_REMOVED, f"removing {name}, which was not serving")
    if step.create and admission.connected:
        for index in free_indexes(instances, step.create):
            name = instance_name(meta.name, snapshot.kind, index)
            _create(snapshot, admission, name, revision, draft)
            draft.say(Reason.INSTANCE_CREATED, f"created {name} with revision {revision}")


def _candidate(snapshot: PoolSnapshot, admission: Admission, instance: Instance, revision: str) -> Candidate:
    metrics = snapshot.metrics
    phase = InstancePhase.PENDING if instance.failure and instance.phase != InstancePhase.DRAINING else instance.phase
    return Candidate(
        name=instance.name,
        phase=phase,
        current=instance.revision == revision and instance.node_class in admission.shapes,
        sessions=metrics.sessions.get(instance.name) if metrics else None,
        cached_tokens=metrics.cached_tokens.get(instance.name) if metrics else None,
        created=instance.created,
        index=instance.index,
    )


def _worth(snapshot: PoolSnapshot, name: str) -> str:
    known = snapshot.metrics.sessions.get(name) if snapshot.metrics else None
    return "sessions unknown" if known is None else f"{known} open sessions"


def _create(snapshot: PoolSnapshot, admission: Admission, name: str, revision: str, draft: Draft) -> None:
    """Applies the gated pods of an instance on the first class of the list that has room, else on the first."""
    shape = _choose_class(snapshot, admission)
    for rank in range(shape.pods):
        draft.apply.append(Apply(build_pod(snapshot, shape, name, rank, revision, None, _grace(snapshot))))
    draft.again(1.0)


def _choose_class(snapshot: PoolSnapshot, admission: Admission) -> InstanceShape:
    for shape in admission.shapes.values():
        found = place(_request(snapshot, shape, ()), shape.node_class, snapshot.nodes, snapshot.holds)
        if isinstance(found, Placement):
            return shape
    return next(iter(admission.shapes.values()))


def _complete_interrupted(
    snapshot: PoolSnapshot,
    admission: Admission,
    instances: tuple[Instance, ...],
    revision: str,
    draft: Draft,
    now: float,
) -> None:
    """Creates the pods that an instance lacks: it waits to be started again, or its creation was interrupted."""
    for instance in instances:
        if instance.failure or instance.going or not instance.incomplete or instance.name in draft.removed:
            continue
        if instance.phase != InstancePhase.PENDING or not admission.connected:
            continue
        due = instance.last_restart + restart_delay(instance.restarts)
        if instance.restarts and now < due:
            draft.again(due - now)
            continue
        if not instance.pods:
            _create(snapshot, admission, instance.name, revision, draft)
            continue
        shape = admission.shapes.get(instance.node_class)
        if shape is None or instance.revision != revision:
            draft.remove(instance.pods, snapshot.pool.metadata.namespace)
            continue
        existing = {pod.rank for pod in instance.pods}
        for rank in sorted(set(range(shape.pods)) - existing):
            draft.apply.append(Apply(build_pod(snapshot, shape, instance.name, rank, revision, None, _grace(snapshot))))


def _release_gated(
    snapshot: PoolSnapshot, admission: Admission, instances: tuple[Instance, ...], revision: str, draft: Draft
) -> None:
    """Gives each complete gated instance one domain and releases its pods together, or says why none fits."""
    promised: list[Hold] = []
    for instance in instances:
        if not instance.gated or instance.going or instance.failure or instance.name in draft.removed:
            continue
        shape = admission.shapes.get(instance.node_class)
        if shape is None or instance.revision != revision:
            continue
        holds = (*snapshot.holds, *promised)
        found = place(_request(snapshot, shape, instances), shape.node_class, snapshot.nodes, holds)
        if isinstance(found, NoFit):
            _try_other_class(snapshot, admission, instance, shape, holds, draft)
            draft.unplaced.append(found)
            draft.again(PLACEMENT_RETRY_SECONDS)
            continue
        for rank in range(shape.pods):
            pod = build_pod(snapshot, shape, instance.name, rank, revision, found, _grace(snapshot))
            draft.apply.append(Apply(pod))
            promised.append(
                Hold(pod_name(instance.name, rank), None, shape.node_class.name, found.domain, shape.requests)
            )
        where = f"{found.domain_label}={found.domain}" if found.domain else "any of its nodes"
        draft.say(Reason.INSTANCE_PLACED, f"placed {instance.name} on class {found.node_class}, {where}")


def _try_other_class(
    snapshot: PoolSnapshot,
    admission: Admission,
    instance: Instance,
    shape: InstanceShape,
    holds: tuple[Hold, ...],
    draft: Draft,
) -> None:
    """Takes a gated instance back when another class of the list has room: it is created there next."""
    for other in admission.shapes.values():
        if other.node_class.name == shape.node_class.name:
            continue
        if isinstance(place(_request(snapshot, other, ()), other.node_class, snapshot.nodes, holds), Placement):
            draft.remove(instance.pods, snapshot.pool.metadata.namespace)
            draft.removed.add(instance.name)
            draft.again(1.0)
            return


def _request(snapshot: PoolSnapshot, shape: InstanceShape, instances: Iterable[Instance]) -> Request:
    topology = snapshot.pool.spec.topology
    return Request(
        pods=shape.pods,
        requests=shape.requests,
        pack=topology.pack,
        required=topology.mode == PackMode.REQUIRED,
        spread=topology.spread,
        occupied=_occupied(snapshot, shape, instances),
    )


def _occupied(snapshot: PoolSnapshot, shape: InstanceShape, instances: Iterable[Instance]) -> dict[str, int]:
    """How many of the pool's instances sit in each domain of the spread level."""
    spread = snapshot.pool.spec.topology.spread
    level = shape.node_class.level(spread) if spread else None
    if level is None:
        return {}
    nodes = {node.name: node for node in snapshot.nodes}
    counts: dict[str, int] = {}
    for instance in instances:
        used = {domain_of(nodes[pod.node], level) for pod in instance.pods if pod.node in nodes}
        for domain in used or ({instance.domain} if instance.domain else set()):
            counts[domain] = counts.get(domain, 0) + 1
    return counts


def _finish_drains(snapshot: PoolSnapshot, instances: Iterable[Instance], draft: Draft, now: float) -> None:
    """Deletes a drained instance once nothing is in flight on it, or its time is up."""
    timeout = seconds(snapshot.pool.spec.drain.timeout)
    for instance in instances:
        if instance.phase != InstancePhase.DRAINING or instance.drain_started is None or instance.failure:
            continue
        if any(
            entry.manifest["metadata"]["name"] == pod_name(instance.name, 0)
            for entry in draft.apply
            if entry.manager == Manager.INSTANCE
        ):
            continue
        elapsed = now - instance.drain_started
        in_flight = snapshot.in_flight.get(instance.name)
        if elapsed >= timeout:
            left = "unknown" if in_flight is None else str(in_flight)
            draft.say(Reason.DRAIN_TIMED_OUT, f"{instance.name} still had {left} requests after {timeout:.0f}s", True)
        elif elapsed < DRAIN_SETTLE_SECONDS or (in_flight != 0 and instance.ready_pods > 0):
            draft.again(DRAIN_POLL_SECONDS)
            continue
        else:
            draft.say(Reason.DRAINED, f"{instance.name} drained in {elapsed:.0f}s")
        draft.remove(instance.pods, snapshot.pool.metadata.namespace)
        draft.removed.add(instance.name)


def _grace(snapshot: PoolSnapshot) -> int:
    """Seconds a deleted pod may take to finish its streams: as long as a drain may take."""
    return math.ceil(seconds(snapshot.pool.spec.drain.timeout))
