"""From a change of the cache to the keys to reconcile."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import structlog

from retinue.conditions import ConditionType
from retinue.nodeclass.nodes import node_from
from retinue.plan import Key, Manifest
from retinue_operator.cache import Cache
from retinue_operator.controller import EVERY, WAITING, Controller, node_of
from retinue_operator.resources import OWN_KINDS, identity

_LOG = structlog.stdlib.get_logger(__name__)


class Dispatcher:
    """Adds to the queue what each controller says a change concerns. Subscribe `changed` to the cache."""

    def __init__(self, controllers: Sequence[Controller], cache: Cache, add: Callable[[Key, float], None]) -> None:
        self._controllers = controllers
        self._kinds = {controller.kind for controller in controllers}
        self._cache = cache
        self._waiting = cache.view(Waiting)
        self._add = add

    def changed(self, old: Manifest | None, new: Manifest | None) -> None:
        """One object changed from `old` to `new`; each key that this concerns is added once."""
        versions = [version for version in (old, new) if version is not None]
        concerned = dict.fromkeys(identity(version) for version in versions)
        keys = [Key(*one) for one in concerned if one[0] in self._kinds]
        if old is None or new is None or not alike_for_others(old, new):
            keys += [key for version in versions for key in self._concerned(version)]
        for one in dict.fromkeys(one for key in dict.fromkeys(keys) for one in self._expand(key)):
            self._add(one, 0.0)

    def everything(self, spread: Callable[[], float] = lambda: 0.0) -> None:
        """Enqueues every object of every controller's kind, each delayed by `spread()` seconds."""
        for kind in self._kinds:
            for key in self._expand(Key(kind, "", EVERY)):
                self._add(key, spread())

    def _concerned(self, manifest: Manifest) -> Iterable[Key]:
        kind, _, name = identity(manifest)
        for controller in self._controllers:
            try:
                yield from list(controller.keys_for(kind, manifest))
            except Exception:
                # A mapping that fails on one odd object must not blind the operator for all others; the sweep
                # still looks at everything.
                _LOG.exception("keys_for failed", controller=controller.kind, object_kind=kind, object_name=name)

    def _expand(self, key: Key) -> Iterable[Key]:
        if key.kind not in self._kinds:
            _LOG.error("no controller for key", key=str(key))
            return []
        node = node_of(key)
        if node is not None:
            owners = (owner for pod in self._cache.pods_on(node) for owner in self._concerned(pod))
            return [owner for owner in owners if owner.kind == key.kind and owner.name not in (EVERY, WAITING)]
        if key.name == WAITING:
            return self._waiting.keys(key.kind, key.namespace)
        if key.name == EVERY:
            return [Key(*identity(found)) for found in self._cache.select(key.kind, key.namespace or None)]
        return [key]


class Waiting:
    """Which objects of a cache say that they have found no place for something; kept in step with it."""

    def __init__(self, cache: Cache) -> None:
        self._keys: dict[str, set[Key]] = defaultdict(set)
        for resource in OWN_KINDS:
            for found in cache.select(resource.kind):
                self._changed(None, found)
        cache.subscribe(self._changed)

    def keys(self, kind: str, namespace: str) -> list[Key]:
        """Those of a kind, in one namespace or (empty) all, in order."""
        found = (key for key in self._keys[kind] if namespace in ("", key.namespace))
        return sorted(found, key=lambda key: (key.namespace, key.name))

    def _changed(self, old: Manifest | None, new: Manifest | None) -> None:
        some = new or old
        if some is None:
            return
        key = Key(*identity(some))
        if new is not None and _waits(new):
            self._keys[key.kind].add(key)
        else:
            self._keys[key.kind].discard(key)


def alike_for_others(old: Manifest, new: Manifest) -> bool:
    """Whether two versions of an object differ in nothing that other objects are planned from.

    Of a Node, all that placement reads; of a NodeClass, all but its status, which follows the pods.
    """
    if new["kind"] == "Node":
        return node_from(old) == node_from(new)
    return new["kind"] == "NodeClass" and _without_status(old) == _without_status(new)


def _without_status(manifest: Manifest) -> Manifest:
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}
    return {**manifest, "metadata": metadata, "status": None}


def _waits(manifest: Manifest) -> bool:
    """Whether an object says that it has found no place for something."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    return any(c.get("type") == ConditionType.PLACED and c.get("status") == "False" for c in conditions)
