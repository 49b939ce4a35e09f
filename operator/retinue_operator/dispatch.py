"""From a change of the cache to the keys to reconcile."""

from collections.abc import Callable, Iterable, Sequence

import structlog

from retinue.conditions import ConditionType
from retinue.plan import Key, Manifest
from retinue_operator.cache import Cache
from retinue_operator.controller import EVERY, WAITING, Controller
from retinue_operator.resources import identity

_LOG = structlog.stdlib.get_logger(__name__)


class Dispatcher:
    """Adds to the queue what each controller says a change concerns. Subscribe `changed` to the cache."""

    def __init__(self, controllers: Sequence[Controller], cache: Cache, add: Callable[[Key, float], None]) -> None:
        self._controllers = controllers
        self._kinds = {controller.kind for controller in controllers}
        self._cache = cache
        self._add = add

    def changed(self, old: Manifest | None, new: Manifest | None) -> None:
        """One object changed from `old` to `new`."""
        for version in (old, new):
            if version is not None:
                for key in self._concerned(version):
                    self._enqueue(key)

    def everything(self, spread: Callable[[], float] = lambda: 0.0) -> None:
        """Enqueues every object of every controller's kind, each delayed by `spread()` seconds."""
        for kind in self._kinds:
            for key in self._expand(Key(kind, "", EVERY)):
                self._add(key, spread())

    def _concerned(self, manifest: Manifest) -> Iterable[Key]:
        kind, namespace, name = identity(manifest)
        if kind in self._kinds:
            yield Key(kind, namespace, name)
        for controller in self._controllers:
            try:
                yield from list(controller.keys_for(kind, manifest))
            except Exception:
                # A mapping that fails on one odd object must not blind the operator for all others; the sweep
                # still looks at everything.
                _LOG.exception("keys_for failed", controller=controller.kind, object_kind=kind, object_name=name)

    def _enqueue(self, key: Key) -> None:
        if key.kind not in self._kinds:
            _LOG.error("no controller for key", key=str(key))
            return
        for one in self._expand(key):
            self._add(one, 0.0)

    def _expand(self, key: Key) -> Iterable[Key]:
        if key.name not in (EVERY, WAITING):
            return [key]
        found = self._cache.select(key.kind, key.namespace or None)
        return [Key(*identity(manifest)) for manifest in found if key.name == EVERY or _waits(manifest)]


def _waits(manifest: Manifest) -> bool:
    """Whether an object says that it has found no place for something."""
    conditions = (manifest.get("status") or {}).get("conditions") or []
    return any(c.get("type") == ConditionType.PLACED and c.get("status") == "False" for c in conditions)
