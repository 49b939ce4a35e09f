"""Packs one instance into one domain, or says precisely why not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retinue.api.units import format_bytes
from retinue.catalog.facts import TopologyLevel
from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.resolve import ResolvedClass
from retinue.placement.capacity import MEMORY, Free, free_in
from retinue.placement.members import Domain, Members, domain_key, domain_of, members_of
from retinue.placement.room import Room, slots_on


@dataclass(frozen=True)
class Request:
    """One instance: `pods` equal pods, each taking `requests` from one node.

    `pack` names the level whose domain must (`required`) or should hold all pods; None leaves the choice of nodes to
    the scheduler for a single pod. `spread` names the level over which instances of one pool are spread;
    `occupied` counts the pool's other instances per domain of that level.
    """

    pods: int
    requests: Mapping[str, int]
    pack: str | None
    required: bool
    spread: str | None
    occupied: Mapping[str, int]


@dataclass(frozen=True)
class Placement:
    """Where the instance goes: a class, and a domain as a label that the scheduler can match (None = any node).

    `nearer_labels` are keys that come before `domain_label` at its level: a node that carries one of them is in another
    domain, whatever its `domain_label` says.
    """

    node_class: str
    domain: str | None
    domain_label: str | None
    nearer_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class NoFit:
    """Why an instance cannot be placed on a class: what was asked for, what is free, the nearest miss."""

    node_class: str
    message: str


def place(request: Request, class_: ResolvedClass, nodes: Iterable[Node], holds: Iterable[Hold]) -> Placement | NoFit:
    """The best domain of `class_` for one instance, or why none fits; see `place_in`."""
    return place_in(Room(class_, nodes, holds), request)


def place_in(room: Room, request: Request) -> Placement | NoFit:
    """The best domain of the room's class for one instance, or why none fits; takes nothing.

    Best fit: among the domains that hold all pods, the one with the fewest of the pool's instances at the spread
    level, then the one that is left with the least free, so that large free domains stay whole.
    """
    class_ = room.class_
    level = _pack_level(request, class_, room.members)
    if isinstance(level, str):
        return NoFit(
            class_.name,
            f"{_asked(request, class_)}: class {class_.name} has no topology level {level!r}; "
            f"it has {_names(class_.topology)}",
        )
    if level is None:
        return _place_anywhere(request, room)
    domains = room.members.domains(level)
    slots, pods = room.slots(level, request.requests), request.pods
    fitting = [domain for domain, found in slots.items() if found >= pods]
    if not fitting and not request.required:
        return _place_anywhere(request, room)
    if not fitting:
        return NoFit(class_.name, _explain(request, room, level))
    spread = class_.level(request.spread) if request.spread else None
    if spread is not None and request.occupied:
        crowding = {domain: _crowding(domains[domain], spread, request.occupied) for domain in fitting}
        least = min(crowding.values())
        fitting = [domain for domain in fitting if crowding[domain] == least]
    left = room.left(level)
    best = min(fitting, key=lambda domain: (left[domain], domain.name, domain.key))
    return _placement_in(class_, best, level)


def placement_of(domain: str, request: Request, class_: ResolvedClass, nodes: Iterable[Node]) -> Placement | None:
    """The placement that `place` gave when it chose `domain` for this request; None when no node is in it any more."""
    members = members_of(class_, nodes)
    level = _pack_level(request, class_, members)
    if level is None or isinstance(level, str):
        return None
    keys = {domain_key(node, level) for node in members.matching if domain_of(node, level) == domain}
    found = next((key for key in level.keys if key in keys), None)
    return None if found is None else _placement_in(class_, Domain(domain, found), level)


def _placement_in(class_: ResolvedClass, domain: Domain, level: TopologyLevel) -> Placement:
    return Placement(class_.name, domain.name, domain.key, level.keys[: level.keys.index(domain.key)])


def _pack_level(request: Request, class_: ResolvedClass, members: Members) -> TopologyLevel | str | None:
    """The level to pack into; its name alone when the class lacks it; None when any nodes will do.

    An instance over several nodes that names no level gets the nearest one that has a domain of so many nodes.
    """
    if request.pack is not None:
        return class_.level(request.pack) or request.pack
    if request.pods > 1 and class_.topology:
        wide = (level for level in class_.topology if members.widest(level) >= request.pods)
        return next(wide, class_.topology[0])
    if request.spread is not None:
        return class_.level(request.spread) or request.spread
    return None


def _crowding(nodes: Iterable[Node], spread: TopologyLevel, occupied: Mapping[str, int]) -> int:
    return sum(occupied.get(name, 0) for name in {domain_of(node, spread) for node in nodes})


def _place_anywhere(request: Request, room: Room) -> Placement | NoFit:
    if room.total_slots(request.requests, enough=request.pods) >= request.pods:
        return Placement(room.class_.name, None, None)
    return NoFit(room.class_.name, _explain(request, room, None))


def _asked(request: Request, class_: ResolvedClass) -> str:
    parts = [f"{_amount(name, amount)} {name}" for name, amount in sorted(request.requests.items()) if amount > 0]
    pods = "1 pod" if request.pods == 1 else f"{request.pods} pods"
    return f"asked for {pods} with {' and '.join(parts) or 'no devices'} each on class {class_.name}"


def _explain(request: Request, room: Room, level: TopologyLevel | None) -> str:
    class_, matching, free = room.class_, room.members.matching, free_in(room)
    if not matching:
        selector = ",".join(f"{key}={value}" for key, value in sorted(class_.node_selector.items()))
        return f"{_asked(request, class_)}: no node has the labels {selector}"
    counted = class_.counted
    lines = [f"{_asked(request, class_)}: {len(free)} of {len(matching)} nodes are usable"]
    if counted is not None:
        total = sum(class_.devices_on(member.node) for member in free)
        lines.append(f"{sum(max(0, m.free.get(counted, 0)) for m in free)} of their {total} {counted} are free")
    if level is not None:
        domains = room.members.domains(level)
        if not domains:
            lines.append(f"no usable node carries a label of level {level.level} ({', '.join(level.keys)})")
        else:
            by_domain = room.slots(level, request.requests)
            best = max(domains, key=lambda domain: (by_domain[domain], domain.name))
            slots = by_domain[best]
            miss = f"nearest miss: {level.level} {best.name} has room for {slots} of {request.pods} pods"
            inside = [Free(node, room.free(node.name)) for node in domains[best]]
            lines.append(f"{miss}: {_nearest_node(inside, request)}" if slots == 0 else miss)
            lines.extend(_too_narrow(request, class_, level, domains.values()))
    elif free:
        lines.append(f"nearest miss: {_nearest_node(free, request)}")
    return "; ".join(lines)


def _nearest_node(free: Sequence[Free], request: Request) -> str:
    best = max(free, key=lambda member: (_score(member, request.requests), member.node.name))
    return f"node {best.node.name} {_lacks(best, request.requests)}"


def _too_narrow(
    request: Request, class_: ResolvedClass, level: TopologyLevel, domains: Iterable[Sequence[Node]]
) -> list[str]:
    """What to do when no domain of the level has as many nodes as the instance has pods, whatever is free."""
    widest = max(len(members) for members in domains)
    names = [each.level for each in class_.topology]
    wider = names[names.index(level.level) + 1 :]
    if request.pods == 1 or widest >= request.pods or not wider:
        return []
    return [f"no {level.level} has more than {widest} nodes: set spec.topology.pack to {' or '.join(wider)}"]


def _score(member: Free, requests: Mapping[str, int]) -> tuple[float, float]:
    """How near the node comes: by what it lacks most, then by all of it."""
    shares = [min(1.0, member.free.get(name, 0) / amount) for name, amount in requests.items() if amount > 0]
    return min(shares, default=0.0), sum(shares)


def _amount(resource: str, amount: int) -> str:
    return format_bytes(amount) if resource == MEMORY else str(amount)


def _lacks(member: Free, requests: Mapping[str, int]) -> str:
    short = [
        f"{_amount(name, max(0, member.free.get(name, 0)))} of {_amount(name, amount)} {name}"
        for name, amount in sorted(requests.items())
        if amount > member.free.get(name, 0)
    ]
    return "has " + " and ".join(short) if short else f"has room for {slots_on(member.free, requests)} pods"


def _names(levels: Sequence[TopologyLevel]) -> str:
    return ", ".join(level.level for level in levels) or "none"


def instances_that_fit(
    request: Request, class_: ResolvedClass, nodes: Iterable[Node], holds: Iterable[Hold], limit: int = 64
) -> int:
    """How many more such instances the class can take now, counting up to `limit`."""
    room = Room(class_, nodes, holds)
    level = _pack_level(request, class_, room.members)
    if isinstance(level, str):
        return 0
    pods = max(1, request.pods)
    if level is None or not request.required:
        return min(limit, room.total_slots(request.requests) // pods)
    return min(limit, sum(slots // pods for slots in room.slots(level, request.requests).values()))
