"""Places instances: gives each complete gated one a domain and releases its pods together, or says why none fits."""

from collections.abc import Mapping

from retinue.api import labels
from retinue.api.pool import PackMode
from retinue.catalog.facts import TopologyLevel
from retinue.conditions import Reason
from retinue.nodeclass.nodes import Hold
from retinue.placement.capacity import domain_of
from retinue.placement.pack import NoFit, Placement, Request, place, placement_of
from retinue.plan import Apply
from retinue.pool.admission import Admission
from retinue.pool.build import build_pod
from retinue.pool.draft import Draft
from retinue.pool.instances import Instance, pod_name
from retinue.pool.shape import InstanceShape
from retinue.pool.snapshot import PoolSnapshot

PLACEMENT_RETRY_SECONDS = 30.0


def choose_class(snapshot: PoolSnapshot, admission: Admission) -> InstanceShape:
    """The shape for a new instance: on the first class of the pool's list that has room, else on the first."""
    for shape in admission.shapes.values():
        found = place(_request(snapshot, shape, {}), shape.node_class, snapshot.nodes, snapshot.holds)
        if isinstance(found, Placement):
            return shape
    return next(iter(admission.shapes.values()))


def release_gated(
    snapshot: PoolSnapshot, admission: Admission, instances: tuple[Instance, ...], revision: str, draft: Draft
) -> None:
    """Releases each complete gated instance into one domain; what has no room waits, or moves to another class."""
    promised: list[Hold] = []
    placed: dict[str, Placement] = {}
    for instance in instances:
        if not instance.gated or instance.going or instance.failure or instance.name in draft.removed:
            continue
        shape = admission.shapes.get(instance.node_class)
        if shape is None or instance.revision != revision:
            continue
        if _built_otherwise(snapshot, shape, instance):
            draft.remove(instance.pods, snapshot.pool.metadata.namespace)
            draft.again(1.0)
            continue
        holds = (*snapshot.holds, *promised)
        if any(not pod.gated for pod in instance.pods):
            found: Placement | NoFit | None = _begun(snapshot, shape, instance)
            if found is None:  # Its nodes are gone meanwhile, so the rest of it cannot follow.
                draft.remove(instance.pods, snapshot.pool.metadata.namespace)
                continue
        else:
            occupied = _occupied(snapshot, shape, instances, placed)
            found = place(_request(snapshot, shape, occupied), shape.node_class, snapshot.nodes, holds)
        if isinstance(found, NoFit):
            _try_other_class(snapshot, admission, instance, shape, holds, draft)
            draft.unplaced.append(found)
            draft.again(PLACEMENT_RETRY_SECONDS)
            continue
        placed[instance.name] = found
        for pod in instance.pods:
            if pod.gated:
                draft.apply.append(Apply(build_pod(snapshot, shape, instance.name, pod.rank, revision, found)))
                name = pod_name(instance.name, pod.rank)
                promised.append(Hold(name, None, shape.node_class.name, found.domain, shape.requests))
        where = f"{found.domain_label}={found.domain}" if found.domain else "any of its nodes"
        text = f"placed {instance.name} on class {found.node_class}, {where}"
        draft.say(Reason.INSTANCE_PLACED, text, writes=[pod.name for pod in instance.pods])


def _built_otherwise(snapshot: PoolSnapshot, shape: InstanceShape, instance: Instance) -> bool:
    """Whether gated pods differ from what would be built now in more than the gate: then they must be made anew."""
    for pod in instance.pods:
        wanted = build_pod(snapshot, shape, instance.name, pod.rank, instance.revision, None)
        if pod.gated and pod.template != wanted["metadata"]["annotations"][labels.TEMPLATE]:
            return True
    return False


def _begun(snapshot: PoolSnapshot, shape: InstanceShape, instance: Instance) -> Placement | None:
    """The placement of an instance whose release was interrupted: the rest of its pods follow those that went ahead."""
    if instance.domain is None:
        return Placement(shape.node_class.name, None, None)
    return placement_of(instance.domain, _request(snapshot, shape, {}), shape.node_class, snapshot.nodes)


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
        if isinstance(place(_request(snapshot, other, {}), other.node_class, snapshot.nodes, holds), Placement):
            draft.remove(instance.pods, snapshot.pool.metadata.namespace)
            draft.removed.add(instance.name)
            draft.again(1.0)
            return


def _request(snapshot: PoolSnapshot, shape: InstanceShape, occupied: Mapping[str, int]) -> Request:
    topology = snapshot.pool.spec.topology
    return Request(
        pods=shape.pods,
        requests=shape.requests,
        pack=topology.pack,
        required=topology.mode == PackMode.REQUIRED,
        spread=topology.spread,
        occupied=occupied,
    )


def _occupied(
    snapshot: PoolSnapshot, shape: InstanceShape, instances: tuple[Instance, ...], placed: Mapping[str, Placement]
) -> dict[str, int]:
    """How many of the pool's instances sit in, or were just promised to, each domain of the spread level."""
    spread = snapshot.pool.spec.topology.spread
    level = shape.node_class.level(spread) if spread else None
    if level is None:
        return {}
    nodes = {node.name: node for node in snapshot.nodes}
    counts: dict[str, int] = {}
    for instance in instances:
        used = {domain_of(nodes[pod.node], level) for pod in instance.pods if pod.node in nodes}
        promise = placed.get(instance.name)
        domain = promise.domain if promise else instance.domain
        for name in used or _spread_domains(snapshot, shape, level, domain):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _spread_domains(
    snapshot: PoolSnapshot, shape: InstanceShape, level: TopologyLevel, domain: str | None
) -> frozenset[str]:
    """The domains of the spread level in which an instance that is promised to `domain` of any level will be."""
    return frozenset(
        domain_of(node, level)
        for node in snapshot.nodes
        if domain is not None
        and shape.node_class.matches(node)
        and any(domain_of(node, packed) == domain for packed in shape.node_class.topology)
    )
