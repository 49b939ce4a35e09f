"""Packs one instance into one domain, or says precisely why not."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retinue.api.units import format_bytes
from retinue.catalog.facts import TopologyLevel
from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.resolve import ResolvedClass
from retinue.placement.capacity import MEMORY, Free, domain_key, domain_of, free_capacity


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
class Domain:
    """One domain of a level: nodes whose first label of the level has this key and value."""

    name: str
    key: str


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
    """The best domain of `class_` for one instance, or why none fits.

    Best fit: among the domains that hold all pods, the one with the fewest of the pool's instances at the spread
    level, then the one that is left with the least free, so that large free domains stay whole.
    """
    all_nodes = tuple(nodes)
    free = free_capacity(class_, all_nodes, holds)
    level = _pack_level(request, class_, all_nodes)
    if isinstance(level, str):
        return NoFit(
            class_.name,
            f"{_asked(request, class_)}: class {class_.name} has no topology level {level!r}; "
            f"it has {_names(class_.topology)}",
        )
    if level is None:
        return _place_anywhere(request, class_, free, all_nodes)
    domains = _domains(free, level)
    fitting = [domain for domain, members in domains.items() if _slots(members, request.requests) >= request.pods]
    if not fitting and not request.required:
        return _place_anywhere(request, class_, free, all_nodes)
    if not fitting:
        return NoFit(class_.name, _explain(request, class_, free, all_nodes, level))
    spread = class_.level(request.spread) if request.spread else None
    counted = class_.counted or ""
    best = min(
        fitting,
        key=lambda domain: (
            _crowding(domains[domain], spread, request.occupied),
            sum(member.free.get(counted, 0) for member in domains[domain]),
            domain.name,
            domain.key,
        ),
    )
    return _placement_in(class_, best, level)


def placement_of(domain: str, request: Request, class_: ResolvedClass, nodes: Iterable[Node]) -> Placement | None:
    """The placement that `place` gave when it chose `domain` for this request; None when no node is in it any more."""
    all_nodes = tuple(nodes)
    level = _pack_level(request, class_, all_nodes)
    if level is None or isinstance(level, str):
        return None
    keys = {domain_key(n, level) for n in all_nodes if class_.matches(n) and domain_of(n, level) == domain}
    found = next((key for key in level.keys if key in keys), None)
    return None if found is None else _placement_in(class_, Domain(domain, found), level)


def _placement_in(class_: ResolvedClass, domain: Domain, level: TopologyLevel) -> Placement:
    return Placement(class_.name, domain.name, domain.key, level.keys[: level.keys.index(domain.key)])


def _pack_level(request: Request, class_: ResolvedClass, nodes: Iterable[Node]) -> TopologyLevel | str | None:
    """The level to pack into; its name alone when the class lacks it; None when any nodes will do.

    An instance over several nodes that names no level gets the nearest one that has a domain of so many nodes.
    """
    if request.pack is not None:
        return class_.level(request.pack) or request.pack
    if request.pods > 1 and class_.topology:
        matching = [node for node in nodes if class_.matches(node)]
        wide = (level for level in class_.topology if _widest(level, matching) >= request.pods)
        return next(wide, class_.topology[0])
    if request.spread is not None:
        return class_.level(request.spread) or request.spread
    return None


def _widest(level: TopologyLevel, nodes: Iterable[Node]) -> int:
    """How many nodes the largest domain of the level has."""
    labelled = Counter(domain_of(node, level) for node in nodes if domain_key(node, level) is not None)
    return max(labelled.values(), default=0)


def _domains(free: Sequence[Free], level: TopologyLevel) -> dict[Domain, list[Free]]:
    domains: dict[Domain, list[Free]] = {}
    for member in free:
        # A node without any of the level's labels cannot be matched by the scheduler, so it is no domain.
        key = domain_key(member.node, level)
        if key is not None:
            domains.setdefault(Domain(member.node.labels[key], key), []).append(member)
    return domains


def _slots(members: Iterable[Free], requests: Mapping[str, int]) -> int:
    """How many pods of this size the nodes can take together."""
    return sum(_slots_on(member, requests) for member in members)


def _slots_on(member: Free, requests: Mapping[str, int]) -> int:
    wanted = [(name, amount) for name, amount in requests.items() if amount > 0]
    if not wanted:
        return 1
    return max(0, min(member.free.get(name, 0) // amount for name, amount in wanted))


def _crowding(members: Sequence[Free], spread: TopologyLevel | None, occupied: Mapping[str, int]) -> int:
    if spread is None:
        return 0
    return sum(occupied.get(name, 0) for name in {domain_of(member.node, spread) for member in members})


def _place_anywhere(
    request: Request, class_: ResolvedClass, free: Sequence[Free], nodes: Sequence[Node]
) -> Placement | NoFit:
    if _slots(free, request.requests) >= request.pods:
        return Placement(class_.name, None, None)
    return NoFit(class_.name, _explain(request, class_, free, nodes, None))


def _asked(request: Request, class_: ResolvedClass) -> str:
    parts = [f"{_amount(name, amount)} {name}" for name, amount in sorted(request.requests.items()) if amount > 0]
    pods = "1 pod" if request.pods == 1 else f"{request.pods} pods"
    return f"asked for {pods} with {' and '.join(parts) or 'no devices'} each on class {class_.name}"


def _explain(
    request: Request, class_: ResolvedClass, free: Sequence[Free], nodes: Sequence[Node], level: TopologyLevel | None
) -> str:
    matching = [node for node in nodes if class_.matches(node)]
    if not matching:
        selector = ",".join(f"{key}={value}" for key, value in sorted(class_.node_selector.items()))
        return f"{_asked(request, class_)}: no node has the labels {selector}"
    counted = class_.counted
    lines = [f"{_asked(request, class_)}: {len(free)} of {len(matching)} nodes are usable"]
    if counted is not None:
        total = sum(class_.devices_on(member.node) for member in free)
        lines.append(f"{sum(max(0, m.free.get(counted, 0)) for m in free)} of their {total} {counted} are free")
    if level is not None:
        domains = _domains(free, level)
        if not domains:
            lines.append(f"no usable node carries a label of level {level.level} ({', '.join(level.keys)})")
        else:
            best = max(domains, key=lambda domain: (_slots(domains[domain], request.requests), domain.name))
            room = _slots(domains[best], request.requests)
            miss = f"nearest miss: {level.level} {best.name} has room for {room} of {request.pods} pods"
            lines.append(f"{miss}: {_nearest_node(domains[best], request)}" if room == 0 else miss)
            lines.extend(_too_narrow(request, class_, level, domains.values()))
    elif free:
        lines.append(f"nearest miss: {_nearest_node(free, request)}")
    return "; ".join(lines)


def _nearest_node(free: Sequence[Free], request: Request) -> str:
    best = max(free, key=lambda member: (_score(member, request.requests), member.node.name))
    return f"node {best.node.name} {_lacks(best, request.requests)}"


def _too_narrow(
    request: Request, class_: ResolvedClass, level: TopologyLevel, domains: Iterable[Sequence[Free]]
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
    return "has " + " and ".join(short) if short else f"has room for {_slots_on(member, requests)} pods"


def _names(levels: Sequence[TopologyLevel]) -> str:
    return ", ".join(level.level for level in levels) or "none"


def instances_that_fit(
    request: Request, class_: ResolvedClass, nodes: Iterable[Node], holds: Iterable[Hold], limit: int = 64
) -> int:
    """How many more such instances the class can take now, counting up to `limit`."""
    all_nodes = tuple(nodes)
    free = free_capacity(class_, all_nodes, holds)
    level = _pack_level(request, class_, all_nodes)
    if isinstance(level, str):
        return 0
    if level is None:
        return min(limit, _slots(free, request.requests) // max(1, request.pods))
    if not request.required:
        return min(limit, _slots(free, request.requests) // max(1, request.pods))
    domains = _domains(free, level).values()
    return min(limit, sum(_slots(members, request.requests) // max(1, request.pods) for members in domains))
