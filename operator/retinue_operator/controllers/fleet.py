"""Classes, nodes and what pods hold, kept in step with the cache: no plan reads all nodes and pods again."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from retinue.api import NodeClass
from retinue.catalog.load import UnknownPreset
from retinue.nodeclass.claims import TEMPLATE_KIND, ClaimTemplate, template_from, template_names
from retinue.nodeclass.holdbook import HoldBook
from retinue.nodeclass.nodes import Hold, Node, Nodes, hold_from, node_from
from retinue.nodeclass.resolve import ResolvedClass, resolve
from retinue.plan import Apply, Manager, Manifest
from retinue_operator.cache import Cache
from retinue_operator.controllers.observe import parse_all

_Name = tuple[str, str]


@dataclass(frozen=True)
class Fleet:
    """Nodes, the classes they belong to, and what pods hold. `errors` says why a class cannot be used.

    `holds` is live: it is read before the next await, and never kept.
    """

    classes: dict[str, ResolvedClass]
    errors: dict[str, str]
    nodes: Nodes
    holds: Collection[Hold]


class FleetView:
    """Follows one cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._nodes: dict[str, Node] = {}
        self._sorted: Nodes | None = None
        self._templates: dict[_Name, ClaimTemplate] = {}
        self._book = HoldBook()
        self._reserved: dict[_Name, Hold] = {}
        self._resolved: dict[tuple[object, ...], ResolvedClass] = {}
        for manifest in cache.select(TEMPLATE_KIND):
            self._template(manifest)
        for kind in ("Node", "Pod"):
            for manifest in cache.select(kind):
                self._changed(None, manifest)
        cache.subscribe(self._changed)

    def now(self) -> Fleet:
        """Everything as the cache has it, and what was reserved beyond that."""
        if self._sorted is None:
            self._sorted = Nodes(self._nodes[name] for name in sorted(self._nodes))
        classes: dict[str, ResolvedClass] = {}
        errors: dict[str, str] = {}
        for name, object_ in parse_all(NodeClass, self._cache.select("NodeClass")).items():
            try:
                classes[name] = self._resolve(name, object_)
            except UnknownPreset as error:
                errors[name] = f"spec.preset: {error}"
        return Fleet(classes, errors, self._sorted, self._book)

    def reserve(self, wishes: Iterable[Apply]) -> Callable[[], None]:
        """Counts the pods of a plan as if they were released already, until the returned function is called.

        Nobody else may be promised the same devices while the plan is carried out.
        """
        names: list[_Name] = []
        for wish in wishes:
            if wish.manifest["kind"] != "Pod" or wish.manager is not Manager.OPERATOR:
                continue
            hold = hold_from(wish.manifest, self._templates)
            if hold is not None:
                name = _name(wish.manifest)
                names.append(name)
                self._reserved[name] = hold
                self._recount(name)

        def release() -> None:
            for name in names:
                self._reserved.pop(name, None)
                self._recount(name)

        return release

    def _resolve(self, name: str, object_: NodeClass) -> ResolvedClass:
        """The same value for the same spec: what was worked out for a class and these nodes is found by it."""
        meta = object_.metadata
        key = (name, meta.uid, meta.generation, tuple(sorted(meta.annotations.items())))
        if not meta.uid or not meta.generation:
            return resolve(name, object_.spec, meta.annotations)
        if key not in self._resolved:
            found = resolve(name, object_.spec, meta.annotations)
            self._resolved = {known: class_ for known, class_ in self._resolved.items() if known[0] != name}
            self._resolved[key] = found
        return self._resolved[key]

    def _changed(self, old: Manifest | None, new: Manifest | None) -> None:
        some = new or old
        if some is None:
            return
        if some["kind"] == "Node":
            self._node(some["metadata"]["name"], None if new is None else node_from(new))
        elif some["kind"] == "Pod":
            self._recount(_name(some))
        elif some["kind"] == TEMPLATE_KIND:
            if new is None:
                self._templates.pop(_name(some), None)
            else:
                self._template(new)
            for pod in self._cache.select("Pod", some["metadata"].get("namespace", "")):
                if some["metadata"]["name"] in template_names(pod.get("spec", {})):
                    self._recount(_name(pod))

    def _node(self, name: str, node: Node | None) -> None:
        """Takes over a node; what was worked out from the list of nodes stays where it reads the same as before."""
        if self._nodes.get(name) == node:
            return
        self._sorted = None
        if node is None:
            del self._nodes[name]
        else:
            self._nodes[name] = node

    def _template(self, manifest: Manifest) -> None:
        self._templates[_name(manifest)] = template_from(manifest)

    def _recount(self, name: _Name) -> None:
        pod = self._cache.get("Pod", *name)
        hold = None if pod is None else hold_from(pod, self._templates)
        self._book.put("/".join(name), hold or self._reserved.get(name))


def view_of(cache: Cache) -> FleetView:
    """The one view of a cache."""
    return cache.view(FleetView)


def fleet(cache: Cache) -> Fleet:
    """All nodes and classes, and the holds of all pods that Retinue manages."""
    return view_of(cache).now()


def _name(manifest: Manifest) -> _Name:
    return manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]
