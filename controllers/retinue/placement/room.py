"""What a class can still take while one plan places several instances: kept up to date with each that is placed."""

from collections.abc import Iterable, Mapping, Sequence

from retinue.catalog.facts import TopologyLevel
from retinue.nodeclass.holdbook import Promise, sums_of, without
from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.resolve import ResolvedClass
from retinue.placement.members import Domain, domain_key, members_of

_Requests = tuple[tuple[str, int], ...]


class _ByDomain:
    """A number per domain, and the domains whose number must be worked out (again)."""

    def __init__(self, domains: Iterable[Domain]) -> None:
        self.values: dict[Domain, int] = dict.fromkeys(domains, 0)
        self.stale: set[Domain] = set(self.values)

    def outdate(self, node: Node, level: TopologyLevel) -> None:
        """Something on this node was taken."""
        key = domain_key(node, level)
        if key is not None:
            self.stale.add(Domain(node.labels[key], key))


class Room:
    """Free capacity of one class (whole units; memory in bytes).

    Pods that run on a node are charged to it. Pods that were released but are not bound yet are charged to the node of
    their class and domain where the scheduler will most likely put them: the fullest one that fits.
    """

    def __init__(self, class_: ResolvedClass, nodes: Iterable[Node], holds: Iterable[Hold]) -> None:
        self.class_ = class_
        self.members = members_of(class_, nodes)
        sums = sums_of(holds)
        self._counted = class_.counted or ""
        self._free = {name: without(offer, sums.used.get(name)) for name, offer in self.members.offers.items()}
        # What was worked out for each domain of a level, and the domains for which it is not true any more.
        self._slots: dict[tuple[TopologyLevel, _Requests], _ByDomain] = {}
        self._left: dict[TopologyLevel, _ByDomain] = {}
        # Nodes from the fullest on, and up to where pods of this size fit no more.
        self._order: dict[tuple[str, _Requests], tuple[list[str], int]] = {}
        for promise in sorted(promise for promise in sums.promised if promise.node_class == class_.name):
            self._charge(promise, sums.promised[promise])

    def free(self, node: str) -> Mapping[str, int]:
        """What an accepted node can still give."""
        return self._free[node]

    def left(self, level: TopologyLevel) -> Mapping[Domain, int]:
        """How many of the counted devices are free in each domain of a level."""
        domains = self.members.domains(level)
        known = self._left.setdefault(level, _ByDomain(domains))
        for domain in known.stale:
            known.values[domain] = sum(self._free[node.name].get(self._counted, 0) for node in domains[domain])
        known.stale.clear()
        return known.values

    def slots(self, level: TopologyLevel, requests: Mapping[str, int]) -> Mapping[Domain, int]:
        """How many pods of this size the nodes of each domain of a level can take together."""
        domains = self.members.domains(level)
        known = self._slots.setdefault((level, _sized(requests)), _ByDomain(domains))
        for domain in known.stale:
            known.values[domain] = sum(slots_on(self._free[node.name], requests) for node in domains[domain])
        known.stale.clear()
        return known.values

    def total_slots(self, requests: Mapping[str, int], enough: int | None = None) -> int:
        """How many pods of this size all nodes can take together; counting stops at `enough`."""
        total = 0
        for free in self._free.values():
            total += slots_on(free, requests)
            if enough is not None and total >= enough:
                break
        return total

    def take(self, pods: int, requests: Mapping[str, int], domain: str | None) -> None:
        """Promises room for so many pods in a domain of any level, or anywhere."""
        self._charge(Promise(self.class_.name, domain or "", _sized(requests)), pods)

    def _charge(self, promise: Promise, count: int) -> None:
        """Fills the fullest nodes first. What fits nowhere is charged to nobody."""
        key = (promise.domain, promise.requests)
        order, start = self._order.get(key) or (self._fullest_first(promise.domain), 0)
        requests = dict(promise.requests)
        while count and start < len(order):
            free = self._free[order[start]]
            fitting = min(count, slots_on(free, requests)) if requests else 0
            if fitting <= 0:
                start += 1
                continue
            for name, amount in requests.items():
                free[name] = free.get(name, 0) - fitting * amount
            self._forget(order[start])
            count -= fitting
        self._order = {known: place for known, place in self._order.items() if known == key}
        self._order[key] = (order, start)

    def _fullest_first(self, domain: str) -> list[str]:
        nodes: Sequence[Node] = self.members.inside(domain) if domain else self.members.accepted
        counted, free = self._counted, self._free
        return sorted((node.name for node in nodes), key=lambda name: (free[name].get(counted, 0), name))

    def _forget(self, name: str) -> None:
        """What was worked out for the domains of a node is true no more."""
        node = self.members.by_name[name]
        for (level, _), slots in self._slots.items():
            slots.outdate(node, level)
        for level, left in self._left.items():
            left.outdate(node, level)


def slots_on(free: Mapping[str, int], requests: Mapping[str, int]) -> int:
    """How many pods of this size a node with so much left can take; one that asks for nothing fits once."""
    least: int | None = None
    for name, amount in requests.items():
        if amount > 0:
            fitting = free.get(name, 0) // amount
            if least is None or fitting < least:
                least = fitting
    return 1 if least is None else max(0, least)


def _sized(requests: Mapping[str, int]) -> _Requests:
    return tuple(sorted(requests.items()))
