"""What is free where: nodes of a class minus what pods hold or were promised."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from retinue.catalog.facts import TopologyLevel
from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.resolve import ResolvedClass

MEMORY = "memory"


@dataclass(frozen=True)
class Free:
    """One node that the class accepts, and what it can still give (whole units; memory in bytes)."""

    node: Node
    free: Mapping[str, int]

    def fits(self, requests: Mapping[str, int]) -> bool:
        return all(self.free.get(name, 0) >= amount for name, amount in requests.items() if amount > 0)

    def taken(self, requests: Mapping[str, int]) -> "Free":
        left = {**self.free, **{name: self.free.get(name, 0) - amount for name, amount in requests.items()}}
        return replace(self, free=left)


def domain_of(node: Node, level: TopologyLevel) -> str:
    """The node's domain at a level: the value of the first key it carries; a node without any is alone."""
    for key in level.keys:
        if key in node.labels:
            return node.labels[key]
    return node.name


def domain_key(node: Node, level: TopologyLevel) -> str | None:
    """The label key that names the node's domain at this level, or None when it carries none of the keys."""
    return next((key for key in level.keys if key in node.labels), None)


def free_capacity(class_: ResolvedClass, nodes: Iterable[Node], holds: Iterable[Hold]) -> tuple[Free, ...]:
    """Free capacity of the class's nodes, ordered by name.

    Pods that run on a node are charged to it. Pods that were released but are not bound yet are charged to the
    node of their class and domain where the scheduler will most likely put them: the fullest one that fits.
    """
    held = tuple(holds)
    free = {node.name: Free(node, class_.offers(node)) for node in nodes if class_.accepts(node)}
    for hold in held:
        if hold.node is not None and hold.node in free:
            free[hold.node] = free[hold.node].taken(hold.requests)
    for hold in held:
        if hold.node is None and hold.node_class == class_.name:
            target = _promised_node(hold, free.values(), class_)
            if target is not None:
                free[target] = free[target].taken(hold.requests)
    return tuple(free[name] for name in sorted(free))


def _promised_node(hold: Hold, candidates: Iterable[Free], class_: ResolvedClass) -> str | None:
    counted = class_.counted or ""
    fitting = [
        candidate
        for candidate in candidates
        if candidate.fits(hold.requests)
        and (hold.domain is None or any(domain_of(candidate.node, lv) == hold.domain for lv in class_.topology))
    ]
    if not fitting:
        return None
    return min(fitting, key=lambda c: (c.free.get(counted, 0), c.node.name)).node.name
