"""Plans one pool: which instances to create, place, restart, drain and remove, and what its status says."""

from collections.abc import Iterable

from retinue.api.pool import InstancePhase
from retinue.conditions import Reason, timestamp
from retinue.nodeclass.claims import API_VERSION, TEMPLATE_KIND
from retinue.nodeclass.nodes import by_name
from retinue.plan import Apply, Delete, Manager, Plan
from retinue.pool.admission import Admission, admit
from retinue.pool.build import build_claim_template, build_marks, build_pod, build_service
from retinue.pool.draft import Draft
from retinue.pool.drain import DRAIN_POLL_SECONDS, finish_drains
from retinue.pool.instances import (
    FALTER_SECONDS,
    NODE_LOST_SECONDS,
    UNSCHEDULABLE_SECONDS,
    Instance,
    free_indexes,
    group,
    instance_name,
    lost_nodes,
    pod_name,
)
from retinue.pool.release import Seats, choose_class, release_gated, where
from retinue.pool.revision import revision as revision_of
from retinue.pool.snapshot import PoolSnapshot
from retinue.pool.status import pool_status
from retinue.rollout.backoff import HEALTHY_SECONDS, restart_delay
from retinue.rollout.planner import Candidate, next_step


def plan(snapshot: PoolSnapshot, now: float) -> Plan:
    """The next step of one pool; `now` in seconds since the epoch."""
    admission = admit(snapshot)
    revision = revision_of(snapshot.pool, dict(snapshot.tiers))
    expected = {name: shape.pods for name, shape in admission.shapes.items()}
    lost = lost_nodes(snapshot.pods, snapshot.nodes, now)
    instances = group(snapshot.pods, snapshot.pool.status.instances, expected, lost, now)
    draft = Draft()
    if admission.valid.status:
        draft.apply.append(Apply(build_service(snapshot)))
        templates = [build_claim_template(snapshot, shape) for shape in admission.shapes.values()]
        draft.apply.extend(Apply(template) for template in templates if template is not None)
        _give_up_lost(snapshot, instances, draft)
        _restart_failed(snapshot, instances, draft)
        seats = Seats(snapshot)
        if any(instance.hidden for instance in instances):
            # What serves is put back where routers find it before anything is taken from the rest.
            draft.again(1.0)
        else:
            _move_towards_replicas(snapshot, admission, instances, revision, seats, draft, now)
        _complete_interrupted(snapshot, admission, instances, revision, seats, draft, now)
        release_gated(snapshot, admission, instances, revision, seats, draft)
    finish_drains(snapshot, instances, draft, now)
    _keep_marks(snapshot, instances, draft)
    _remove_unused_templates(snapshot, draft)
    _look_again_when_due(snapshot, instances, draft, now)
    status, events = pool_status(
        snapshot, admission, instances, revision, draft.restarted, draft.removed, draft.drained, draft.unplaced, now
    )
    return Plan(
        apply=tuple(draft.apply),
        delete=tuple(draft.delete),
        status=status.to_wire(),
        # What the status must keep, or tells for the first time, is written at once.
        status_can_wait=draft.told_later
        and not (draft.restarted or draft.removed or draft.drained or draft.unplaced)
        and not events,
        events=(*draft.events, *events),
        requeue_after=draft.requeue,
    )


def _give_up_lost(snapshot: PoolSnapshot, instances: Iterable[Instance], draft: Draft) -> None:
    """An instance on a node that is gone is replaced by another one: its own pods may never end."""
    for instance in instances:
        if instance.lost is not None:
            draft.remove(instance.pods, snapshot.pool.metadata.namespace)
            draft.removed.add(instance.name)
            draft.say(Reason.INSTANCE_FAILED, f"replacing {instance.name}: {instance.lost}", True)


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
    seats: Seats,
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
        [_candidate(snapshot, admission, instance, revision, now) for instance in instances],
    )
    for name in step.reclaim:
        for pod in by_name[name].pods:
            draft.apply.append(Apply(build_marks(snapshot, pod, None), Manager.INSTANCE))
        draft.reclaimed.add(name)
        draft.say(Reason.SCALING_UP, f"taking {name} back: its cache is warm and it had not finished draining")
    for name in step.drain:
        started = timestamp(now)
        for pod in by_name[name].pods:
            draft.apply.append(Apply(build_marks(snapshot, pod, started), Manager.INSTANCE))
        draft.drained.add(name)
        draft.again(DRAIN_POLL_SECONDS)
        draft.say(Reason.DRAINING, f"draining {name} ({_worth(snapshot, name)}): no new requests are routed to it")
    for name in step.remove:
        draft.remove(by_name[name].pods, meta.namespace)
        draft.removed.add(name)
        draft.say(Reason.INSTANCE_REMOVED, f"removing {name}, which was not serving")
    if step.create and admission.connected:
        # One event for all of a kind: hundreds of them would be hundreds of writes.
        made: dict[str, list[str]] = {}
        written: list[str] = []
        for index in free_indexes(instances, step.create):
            name = instance_name(meta.name, snapshot.kind, index)
            place, pods = _create(snapshot, admission, instances, name, revision, seats, draft)
            made.setdefault(place, []).append(name)
            written.extend(pods)
        for place, names in made.items():
            which = names[0] if len(names) == 1 else f"{len(names)} instances ({', '.join(names)})"
            draft.say(Reason.INSTANCE_CREATED, f"created {which} with revision {revision}{place}", writes=written)


def _keep_marks(snapshot: PoolSnapshot, instances: Iterable[Instance], draft: Draft) -> None:
    """Labels of pods that stay are as they must be, whoever changed them; those of draining ones the drain keeps."""
    for instance in instances:
        if instance.drain_started is not None or instance.failure or instance.going:
            continue
        if instance.name in draft.drained or instance.name in draft.removed:
            continue
        for pod in instance.pods:
            if not pod.deleting:
                draft.apply.append(Apply(build_marks(snapshot, pod, None), Manager.INSTANCE))


def _remove_unused_templates(snapshot: PoolSnapshot, draft: Draft) -> None:
    """A claim template stays while it is wanted for new pods or a pod names it: it says what that pod holds."""
    wanted = {entry.manifest["metadata"]["name"] for entry in draft.apply if entry.manifest["kind"] == TEMPLATE_KIND}
    wanted.update(name for pod in snapshot.pods for name in pod.claim_templates)
    for template in snapshot.claim_templates:
        if template.name not in wanted and not template.deleting:
            meta = snapshot.pool.metadata
            draft.delete.append(Delete(API_VERSION, TEMPLATE_KIND, meta.namespace, template.name, template.uid))


def _look_again_when_due(snapshot: PoolSnapshot, instances: Iterable[Instance], draft: Draft, now: float) -> None:
    """What changes by time alone: pods that find no node, nodes that do not come back, failures that are forgotten."""
    nodes = by_name(snapshot.nodes)
    for instance in instances:
        for pod in instance.pods:
            node = nodes.get(pod.node) if pod.node is not None else None
            if node is not None and node.not_ready_since is not None and not pod.deleting and instance.lost is None:
                draft.again(node.not_ready_since + NODE_LOST_SECONDS - now)
        for pod in instance.pods:
            if pod.node is None and pod.unschedulable_since is not None and not pod.deleting:
                draft.again(pod.unschedulable_since + UNSCHEDULABLE_SECONDS - now)
        if instance.restarts and instance.phase == InstancePhase.READY:
            left = instance.last_restart + HEALTHY_SECONDS - now
            if left > 0:
                draft.again(left)
        if instance.unready_since is not None and now < instance.unready_since + FALTER_SECONDS:
            draft.again(instance.unready_since + FALTER_SECONDS - now)


def _candidate(
    snapshot: PoolSnapshot, admission: Admission, instance: Instance, revision: str, now: float
) -> Candidate:
    metrics = snapshot.metrics
    # Without its tiers the pool can make no new instance, so none is outdated: what serves goes on serving.
    # Nor does a NodeClass that went away move what runs on its nodes.
    class_gone = instance.node_class in snapshot.pool.spec.node_classes and instance.node_class not in snapshot.classes
    current = instance.revision == revision and (instance.node_class in admission.shapes or class_gone)
    phase = InstancePhase.PENDING if instance.failure and instance.phase != InstancePhase.DRAINING else instance.phase
    if instance.lost is not None:
        phase = InstancePhase.GONE
    return Candidate(
        name=instance.name,
        phase=phase,
        # One on a broken device is replaced like an outdated one: by another first, where rollout.maxSurge has room.
        current=(current and instance.unhealthy is None) or not admission.connected,
        sessions=metrics.sessions.get(instance.name) if metrics else None,
        cached_tokens=metrics.cached_tokens.get(instance.name) if metrics else None,
        created=instance.created,
        index=instance.index,
        faltering=phase == InstancePhase.STARTING
        and instance.unready_since is not None
        and now < instance.unready_since + FALTER_SECONDS,
    )


def _worth(snapshot: PoolSnapshot, name: str) -> str:
    known = snapshot.metrics.sessions.get(name) if snapshot.metrics else None
    return "sessions unknown" if known is None else f"{known} open sessions"


def _create(
    snapshot: PoolSnapshot,
    admission: Admission,
    instances: tuple[Instance, ...],
    name: str,
    revision: str,
    seats: Seats,
    draft: Draft,
) -> tuple[str, list[str]]:
    """Applies the pods of an instance on the first class of the list that has room, else on the first.

    They are gated unless they have a place already. Returns where that is in words (empty without), and their names.
    """
    shape, placement = choose_class(snapshot, admission, instances, name, seats)
    for rank in range(shape.pods):
        draft.apply.append(Apply(build_pod(snapshot, shape, name, rank, revision, placement)))
    draft.told_later = True
    draft.again(1.0)
    place = f", placed on class {placement.node_class}, {where(placement)}" if placement else ""
    return place, [pod_name(name, rank) for rank in range(shape.pods)]


def _complete_interrupted(
    snapshot: PoolSnapshot,
    admission: Admission,
    instances: tuple[Instance, ...],
    revision: str,
    seats: Seats,
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
            _create(snapshot, admission, instances, instance.name, revision, seats, draft)
            continue
        shape = admission.shapes.get(instance.node_class)
        if shape is None or instance.revision != revision:
            draft.remove(instance.pods, snapshot.pool.metadata.namespace)
            continue
        existing = {pod.rank for pod in instance.pods}
        for rank in sorted(set(range(shape.pods)) - existing):
            draft.apply.append(Apply(build_pod(snapshot, shape, instance.name, rank, revision, None)))
