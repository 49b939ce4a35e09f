"""The nodes of one class and their domains: worked out once per class and list of nodes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from retinue.catalog.facts import TopologyLevel
from retinue.nodeclass.nodes import Node, Nodes
from retinue.nodeclass.resolve import ResolvedClass


class Domain(NamedTuple):
    """One domain of a level: nodes whose first label of the level has this key and value."""

    name: str
    key: str


def domain_of(node: Node, level: TopologyLevel) -> str:
    """The node's domain at a level: the value of the first key it carries; a node without any is alone."""
    for key in level.keys:
        if key in node.labels:
            return node.labels[key]
    return node.name


def domain_key(node: Node, level: TopologyLevel) -> str | None:
    """The label key that names the node's domain at this level, or None when it carries none of the keys."""
    return next((key for key in level.keys if key in node.labels), None)


class Members:
    """Views of the nodes of a class; each is worked out when it is first asked for."""

    def __init__(self, class_: ResolvedClass, nodes: Iterable[Node]) -> None:
        self.class_ = class_
        self.matching = tuple(node for node in nodes if class_.matches(node))
        """Nodes that carry the labels of the class, whatever their state."""
        self.accepted = tuple(sorted((node for node in self.matching if class_.accepts(node)), key=_name))
        """Those on which pods of the class may run now, by name."""
        self.by_name: Mapping[str, Node] = {node.name: node for node in self.accepted}
        self.offers: Mapping[str, Mapping[str, int]] = {node.name: class_.offers(node) for node in self.accepted}
        """What each of these can give when nothing is taken, by its name."""
        self._domains: dict[TopologyLevel, dict[Domain, tuple[Node, ...]]] = {}
        self._widest: dict[TopologyLevel, int] = {}
        self._inside: dict[str, tuple[Node, ...]] | None = None

    def domains(self, level: TopologyLevel) -> Mapping[Domain, tuple[Node, ...]]:
        """The accepted nodes by domain. A node without any of the level's labels cannot be matched by the scheduler,
        so it is no domain."""
        if level not in self._domains:
            found: dict[Domain, list[Node]] = {}
            for node in self.accepted:
                key = domain_key(node, level)
                if key is not None:
                    found.setdefault(Domain(node.labels[key], key), []).append(node)
            self._domains[level] = {domain: tuple(nodes) for domain, nodes in found.items()}
        return self._domains[level]

    def inside(self, domain: str) -> tuple[Node, ...]:
        """The accepted nodes that are in a domain of this name at any level."""
        if self._inside is None:
            found: dict[str, list[Node]] = {}
            for node in self.accepted:
                for name in {domain_of(node, level) for level in self.class_.topology}:
                    found.setdefault(name, []).append(node)
            self._inside = {name: tuple(nodes) for name, nodes in found.items()}
        return self._inside.get(domain, ())

    def widest(self, level: TopologyLevel) -> int:
        """How many of the matching nodes the largest domain of the level has."""
        if level not in self._widest:
            labelled = Counter(domain_of(n, level) for n in self.matching if domain_key(n, level) is not None)
            self._widest[level] = max(labelled.values(), default=0)
        return self._widest[level]


def members_of(class_: ResolvedClass, nodes: Iterable[Node]) -> Members:
    """The members of a class; found again for the same class and the same `Nodes`."""
    if not isinstance(nodes, Nodes):
        return Members(class_, nodes)
    # The entry keeps the class alive, so that no other one can get its id.
    found = nodes.memo.get((Members, id(class_)))
    if not isinstance(found, Members):
        found = nodes.memo[Members, id(class_)] = Members(class_, nodes)
    return found


def _name(node: Node) -> str:
    return node.name
