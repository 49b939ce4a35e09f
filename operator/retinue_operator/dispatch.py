"""From a change of the cache to the keys to reconcile."""

from collections.abc import Callable, Iterable, Sequence

import structlog

from retinue.conditions import ConditionType
from retinue.nodeclass.nodes import node_from
from retinue.plan import Key, Manifest
from retinue_operator.cache import Cache, same_but_for_version
from retinue_operator.controller import EVERY, WAITING, Controller, node_of
from retinue_operator.resources import OWN_KINDS, identity

_LOG = structlog.stdlib.get_logger(__name__)


class Dispatcher:
    """Adds to the queue what each controller says a change concerns. Subscribe `changed` to the cache."""

    def __init__(self, controllers: Sequence[Controller], cache: Cache, add: Callable[[Key, float], None]) -> None:
        self._controllers = {controller.kind: controller for controller in controllers}
        self._cache = cache
        self._waiting = cache.view(Waiting)
        self._add = add

    def changed(self, old: Manifest | None, new: Manifest | None) -> None:
        """One object changed from `old` to `new`; each key that this concerns is added once."""
        versions = [version for version in (old, new) if version is not None]
        keys = [own for own in {Key(*identity(version)) for version in versions} if own.kind in self._controllers]
        if old is None or new is None or not alike_for_others(old, new):
            asked = ((controller, version) for version in versions for controller in self._controllers.values())
            keys += [key for controller, version in asked for key in _concerned(controller, version)]
        for one in dict.fromkeys(one for key in dict.fromkeys(keys) for one in self._expand(key)):
            self._add(one, 0.0)

    def everything(self, spread: Callable[[], float] = lambda: 0.0) -> None:
        """Enqueues every object of every controller's kind, each delayed by `spread()` seconds."""
        for kind in self._controllers:
            for key in self._expand(Key(kind, "", EVERY)):
                self._add(key, spread())

    def _expand(self, key: Key) -> Iterable[Key]:
        controller = self._controllers.get(key.kind)
        if controller is None:
            _LOG.error("no controller for key", key=str(key))
            return []
        node = node_of(key)
        if node is not None:
            owners = (owner for pod in self._cache.pods_on(node) for owner in _concerned(controller, pod))
            return [owner for owner in owners if owner.name not in (EVERY, WAITING)]
        if key.name == WAITING:
            return self._waiting.keys(key.kind, key.namespace)
        if key.name == EVERY:
            return [Key(*identity(found)) for found in self._cache.select(key.kind, key.namespace or None)]
        return [key]


def _concerned(controller: Controller, manifest: Manifest) -> Sequence[Key]:
    kind, _, name = identity(manifest)
    try:
        return list(controller.keys_for(kind, manifest))
    except Exception:
        # A mapping that fails on one odd object must not blind the operator for all others; the sweep still looks at
        # everything.
        _LOG.exception("keys_for failed", controller=controller.kind, object_kind=kind, object_name=name)
        return []


class Waiting:
    """Which objects of a cache say that they have found no place for something; kept in step with it."""

    def __init__(self, cache: Cache) -> None:
        self._keys: dict[str, set[Key]] = {resource.kind: set() for resource in OWN_KINDS}
        for kind in self._keys:
            for found in cache.select(kind):
                self._changed(None, found)
        cache.subscribe(self._changed)

    def keys(self, kind: str, namespace: str) -> list[Key]:
        """Those of a kind, in one namespace or (empty) all, in order."""
        found = (key for key in self._keys[kind] if namespace in ("", key.namespace))
        return sorted(found, key=lambda key: (key.namespace, key.name))

    def _changed(self, old: Manifest | None, new: Manifest | None) -> None:
        some = new or old
        # Pods and nodes, of which most changes are, wait for nothing in this sense.
        if some is None or some["kind"] not in self._keys:
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
    return new["kind"] == "NodeClass" and same_but_for_version({**old, "status": None}, {**new, "status": None})


def _waits(manifest: Manifest) -> bool:
    """Whether an object says that it has found no place for something."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    return any(c.get("type") == ConditionType.PLACED and c.get("status") == "False" for c in conditions)
