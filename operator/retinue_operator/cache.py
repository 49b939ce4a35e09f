"""What the cluster looks like now, as far as we know: never older than what was seen before, corrected by each list."""

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, TypeVar

from retinue.api.labels import AGENT_POOL, INSTANCE, POOL, TIER
from retinue.plan import Manifest
from retinue_operator.resources import identity

# Called with the object before and after a change; None = did not exist, does not exist any more.
Subscriber = Callable[[Manifest | None, Manifest | None], None]

_Name = tuple[str, str]
_View = TypeVar("_View")
_INDEXED_LABELS = (AGENT_POOL, POOL, TIER, INSTANCE)
# Uids of deleted objects: answers to requests and events that are still under way must not bring them back.
_TOMBSTONES = 20_000
_SHORT = 256


class Cache:
    """Live objects by kind, namespace and name. They are shared: never change what a look-up returns.

    Events, lists and answers to our own writes arrive in any order; an older version never replaces a newer one.
    """

    def __init__(self, indexed_labels: Iterable[str] = _INDEXED_LABELS) -> None:
        self._objects: dict[str, dict[_Name, Manifest]] = defaultdict(dict)
        self._indexed = tuple(indexed_labels)
        self._by_label: dict[tuple[str, str, str], set[_Name]] = defaultdict(set)
        self._by_owner: dict[str, set[tuple[str, _Name]]] = defaultdict(set)
        self._by_node: dict[str, set[_Name]] = defaultdict(set)
        self._tombstones: OrderedDict[str, None] = OrderedDict()
        self._subscribers: list[Subscriber] = []
        self._views: dict[object, Any] = {}

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The object, or None."""
        return self._objects[kind].get((namespace, name))

    def select(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Manifest]:
        """All objects of a kind, ordered by namespace and name; optionally of one namespace and with these labels."""
        wanted = dict(labels or {})
        found: Iterable[_Name] = self._objects[kind]
        indexed = next((label for label in self._indexed if label in wanted), None)
        if indexed is not None:
            found = self._by_label.get((kind, indexed, wanted.pop(indexed)), ())
        objects = self._objects[kind]
        return [
            objects[name]
            for name in sorted(found)
            if (namespace is None or name[0] == namespace)
            and (not wanted or wanted.items() <= _labels(objects[name]).items())
        ]

    def owned_by(self, uid: str, kind: str | None = None) -> list[Manifest]:
        """Objects with an owner reference to that uid, ordered by kind, namespace and name."""
        found = self._by_owner.get(uid, ())
        return [self._objects[owned][name] for owned, name in sorted(found) if kind is None or owned == kind]

    def pods_on(self, node: str) -> list[Manifest]:
        """The pods that are bound to a node, ordered by namespace and name."""
        return [self._objects["Pod"][name] for name in sorted(self._by_node.get(node, ()))]

    def count(self, kind: str) -> int:
        """How many objects of a kind there are."""
        return len(self._objects[kind])

    def subscribe(self, subscriber: Subscriber) -> None:
        """Calls `subscriber(old, new)` after each change that is more than a new resource version."""
        self._subscribers.append(subscriber)

    def view(self, make: Callable[["Cache"], _View]) -> _View:
        """What `make(cache)` once made of this cache: something that subscribes and keeps in step."""
        if make not in self._views:
            self._views[make] = make(self)
        found: _View = self._views[make]
        return found

    def put(self, manifest: Manifest) -> bool:
        """Takes over an object as seen in an event, a list or the answer to a write; False if it is old news."""
        new = trim(manifest)
        kind, namespace, name = identity(new)
        uid = new["metadata"].get("uid", "")
        old = self._objects[kind].get((namespace, name))
        if uid in self._tombstones:
            return False
        if old is not None and version(new) <= version(old):
            return False
        self._store(kind, (namespace, name), old, _shared(new))
        return True

    def remove(self, manifest: Manifest) -> bool:
        """Takes note of a deletion: of exactly the object with this uid. False if it was not there (any more)."""
        kind, namespace, name = identity(manifest)
        uid = manifest["metadata"].get("uid", "")
        self._bury(uid)
        old = self._objects[kind].get((namespace, name))
        if old is None or old["metadata"].get("uid", "") != uid:
            return False
        self._store(kind, (namespace, name), old, None)
        return True

    def replace(self, kind: str, items: Iterable[Manifest], resource_version: int, namespace: str | None = None) -> int:
        """Makes a list the truth as of its resource version and returns how many objects changed.

        Objects that it lacks are gone, unless they are newer than the list. `namespace`: the list covers this one only.
        """
        listed = {(item["metadata"].get("namespace", ""), item["metadata"]["name"]): item for item in items}
        changed = 0
        for name, old in list(self._objects[kind].items()):
            inside = namespace is None or name[0] == namespace
            if inside and name not in listed and version(old) <= resource_version:
                changed += self.remove(old)
        return changed + sum(self.put(item) for item in listed.values())

    def keep(self, kind: str, uids: Container[str], resource_version: int, namespace: str | None = None) -> int:
        """Removes what a list of uids lacks, as `replace` does; returns how many objects went."""
        gone = [
            old
            for name, old in self._objects[kind].items()
            if (namespace is None or name[0] == namespace)
            and old["metadata"].get("uid", "") not in uids
            and version(old) <= resource_version
        ]
        return sum(self.remove(old) for old in gone)

    def _store(self, kind: str, name: _Name, old: Manifest | None, new: Manifest | None) -> None:
        if old is not None:
            self._unindex(kind, name, old)
            if new is None or new["metadata"].get("uid") != old["metadata"].get("uid"):
                self._bury(old["metadata"].get("uid", ""))
        if new is None:
            del self._objects[kind][name]
        else:
            self._objects[kind][name] = new
            self._index(kind, name, new)
        if not same_but_for_version(old, new):
            for subscriber in self._subscribers:
                subscriber(old, new)

    def _index(self, kind: str, name: _Name, manifest: Manifest) -> None:
        labels = _labels(manifest)
        for label in self._indexed:
            if label in labels:
                self._by_label[kind, label, labels[label]].add(name)
        for uid in _owners(manifest):
            self._by_owner[uid].add((kind, name))
        if kind == "Pod" and (node := _node(manifest)):
            self._by_node[node].add(name)

    def _unindex(self, kind: str, name: _Name, manifest: Manifest) -> None:
        labels = _labels(manifest)
        for label in self._indexed:
            if label in labels:
                _discard(self._by_label, (kind, label, labels[label]), name)
        for uid in _owners(manifest):
            _discard(self._by_owner, uid, (kind, name))
        if kind == "Pod" and (node := _node(manifest)):
            _discard(self._by_node, node, name)

    def _bury(self, uid: str) -> None:
        if not uid:
            return
        self._tombstones[uid] = None
        if len(self._tombstones) > _TOMBSTONES:
            self._tombstones.popitem(last=False)


def version(manifest: Manifest) -> int:
    """The resource version as a number; comparable between versions of objects of one kind (KEP-5504)."""
    return int(manifest["metadata"].get("resourceVersion") or 0)


def trim(manifest: Manifest) -> Manifest:
    """The object without what nobody reads: managed fields, and the heartbeats and image lists of nodes."""
    trimmed = dict(manifest)
    trimmed["metadata"] = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    if manifest["kind"] == "Node" and "status" in manifest:
        status = {key: value for key, value in manifest["status"].items() if key != "images"}
        # A heartbeat every few seconds of every node would look like a change of the cluster.
        status["conditions"] = [
            {key: value for key, value in condition.items() if key != "lastHeartbeatTime"}
            for condition in status.get("conditions") or []
        ]
        trimmed["status"] = status
    return trimmed


def _shared(value: Any) -> Any:
    """The same value with one copy of each short string: objects of a kind have nearly all of theirs in common.

    A pod of an engine takes 9 KiB in place of 21.
    """
    if isinstance(value, dict):
        return {sys.intern(key): _shared(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shared(inner) for inner in value]
    return sys.intern(value) if type(value) is str and len(value) <= _SHORT else value


def same_but_for_version(old: Manifest | None, new: Manifest | None) -> bool:
    """Whether two versions of an object differ in nothing but the resource version."""
    if old is None or new is None:
        return old is new
    return _without_version(old) == _without_version(new)


def _without_version(manifest: Manifest) -> Manifest:
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}
    return {**manifest, "metadata": metadata}


def _labels(manifest: Manifest) -> dict[str, str]:
    return manifest["metadata"].get("labels") or {}


def _owners(manifest: Manifest) -> list[str]:
    return [owner["uid"] for owner in manifest["metadata"].get("ownerReferences") or []]


def _node(pod: Manifest) -> str | None:
    found: str | None = (pod.get("spec") or {}).get("nodeName")
    return found


def _discard(index: dict[Any, set[Any]], key: Any, member: Any) -> None:
    members = index[key]
    members.discard(member)
    if not members:
        del index[key]
