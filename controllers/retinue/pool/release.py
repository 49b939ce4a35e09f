"""Places instances: gives each complete gated one a domain and releases its pods together, or says why none fits."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from retinue.api import labels
from retinue.api.pool import PackMode
from retinue.catalog.facts import TopologyLevel
from retinue.conditions import Reason
from retinue.nodeclass.nodes import by_name
from retinue.nodeclass.resolve import ResolvedClass
from retinue.placement.members import domain_of
from retinue.placement.pack import NoFit, Placement, Request, place_in, placement_of
from retinue.placement.room import Room
from retinue.plan import Apply
from retinue.pool.admission import Admission
from retinue.pool.build import build_pod
from retinue.pool.draft import Draft
from retinue.pool.instances import Instance
from retinue.pool.shape import InstanceShape
from retinue.pool.snapshot import PoolSnapshot

PLACEMENT_RETRY_SECONDS = 30.0


@dataclass
class Seats:
    """What one plan has promised so far: the room of each class, and the placements by instance name."""

    snapshot: PoolSnapshot
    placed: dict[str, Placement] = field(default_factory=dict)
    _rooms: dict[str, Room] = field(default_factory=dict)

    def room(self, class_: ResolvedClass) -> Room:
        """The room of a class; worked out when it is first needed, because most plans place nothing."""
        if class_.name not in self._rooms:
            self._rooms[class_.name] = Room(class_, self.snapshot.nodes, self.snapshot.holds)
        return self._rooms[class_.name]

    def take(self, name: str, shape: InstanceShape, pods: int, placement: Placement) -> None:
        """Promises the placement to `pods` pods of an instance."""
        self.placed[name] = placement
        self.room(shape.node_class).take(pods, shape.requests, placement.domain)


def choose_class(
    snapshot: PoolSnapshot, admission: Admission, instances: tuple[Instance, ...], name: str, seats: Seats
) -> tuple[InstanceShape, Placement | None]:
    """The shape for a new instance: on the first class of the pool's list that has room, else on the first.

    A placement comes with it for an instance of one pod. The pods of a larger one wait behind the gate until all exist,
    lest half of it holds devices for nothing.
    """
    for shape in admission.shapes.values():
        spread = shape.pods == 1
        occupied = _occupied(snapshot, shape, instances, seats.placed) if spread else {}
        found = place_in(seats.room(shape.node_class), _request(snapshot, shape, occupied))
        if isinstance(found, Placement):
            if shape.pods > 1:
                return shape, None
            seats.take(name, shape, 1, found)
            return shape, found
    return next(iter(admission.shapes.values())), None


def release_gated(
    snapshot: PoolSnapshot,
    admission: Admission,
    instances: tuple[Instance, ...],
    revision: str,
    seats: Seats,
    draft: Draft,
) -> None:
    """Releases each complete gated instance into one domain; what has no room waits, or moves to another class."""
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
        if any(not pod.gated for pod in instance.pods):
            found: Placement | NoFit | None = _begun(snapshot, shape, instance)
            if found is None:  # Its nodes are gone meanwhile, so the rest of it cannot follow.
                draft.remove(instance.pods, snapshot.pool.metadata.namespace)
                continue
        else:
            occupied = _occupied(snapshot, shape, instances, seats.placed)
            found = place_in(seats.room(shape.node_class), _request(snapshot, shape, occupied))
        if isinstance(found, NoFit):
            _try_other_class(snapshot, admission, instance, shape, seats, draft)
            draft.unplaced.append(found)
            draft.again(PLACEMENT_RETRY_SECONDS)
            continue
        gated = [pod for pod in instance.pods if pod.gated]
        seats.take(instance.name, shape, len(gated), found)
        for pod in gated:
            draft.apply.append(Apply(build_pod(snapshot, shape, instance.name, pod.rank, revision, found)))
        draft.told_later = True
        text = f"placed {instance.name} on class {found.node_class}, {where(found)}"
        draft.say(Reason.INSTANCE_PLACED, text, writes=[pod.name for pod in instance.pods])


def where(placement: Placement) -> str:
    """The domain of a placement in words."""
    return f"{placement.domain_label}={placement.domain}" if placement.domain else "any of its nodes"


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
    seats: Seats,
    draft: Draft,
) -> None:
    """Takes a gated instance back when another class of the list has room: it is created there next."""
    for other in admission.shapes.values():
        if other.node_class.name == shape.node_class.name:
            continue
        if isinstance(place_in(seats.room(other.node_class), _request(snapshot, other, {})), Placement):
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
    nodes = by_name(snapshot.nodes)
    counts: dict[str, int] = {}
    known = {instance.name for instance in instances}
    for name, promise in placed.items():
        if name not in known:
            for spread_domain in _spread_domains(snapshot, shape, level, promise.domain):
                counts[spread_domain] = counts.get(spread_domain, 0) + 1
    for instance in instances:
        used = {domain_of(nodes[pod.node], level) for pod in instance.pods if pod.node and pod.node in nodes}
        own = placed.get(instance.name)
        domain = own.domain if own else instance.domain
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
