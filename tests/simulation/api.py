"""An API server in memory: versions, uids, generations, server-side apply, deletion, and the collector of orphans.

It keeps to what plans rely on. Objects are never changed in place, so that readers may hold on to what they got.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from retinue.api import KINDS
from retinue.conditions import timestamp
from retinue.plan import Manager, Manifest
from retinue_operator.client import Listing
from retinue_operator.errors import Conflict, InvalidObject, KubeError, NotFound
from retinue_operator.resources import identity, resource_of

Name = tuple[str, str, str]
_MODELS = {model.kind_info.kind: model for model in KINDS}
_NUMBERS = itertools.count(1)
_VERSIONS_OF_A_SERVER = 1_000_000


@dataclass(frozen=True)
class Change:
    """One write as it happened; before or after is None when the object was made or went."""

    time: float
    by: str
    before: Manifest | None
    after: Manifest | None

    @property
    def manifest(self) -> Manifest:
        """The object in its newest form."""
        found = self.after if self.after is not None else self.before
        assert found is not None
        return found


class MemoryApi:
    """The part of KubeClient that the operator uses, upon a dictionary.

    trouble: asked before each request of the operator with verb and name; what it returns is raised.
    watch: called with each change, in order.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._objects: dict[Name, Manifest] = {}
        self._kinds: defaultdict[str, dict[Name, Manifest]] = defaultdict(dict)
        self._applied: dict[tuple[str, str], Manifest] = {}
        self._versions = 0
        self._uids = 0
        # Uids are unique among all worlds of a process, as they are among all clusters.
        self._number = next(_NUMBERS)
        self.trouble: Callable[[str, Name], KubeError | None] = lambda _verb, _name: None
        self.watch: Callable[[Change], None] = lambda _change: None

    def copy(self, clock: Callable[[], float]) -> "MemoryApi":
        """Another server with the same objects; versions of what either writes from now on are never the other's."""
        other = MemoryApi(clock)
        other._objects = dict(self._objects)
        other._kinds = defaultdict(dict, {kind: dict(found) for kind, found in self._kinds.items()})
        other._applied = dict(self._applied)
        other._uids, other._versions = self._uids, self._versions + other._number * _VERSIONS_OF_A_SERVER
        return other

    # --- what everybody may do

    def all(self, kind: str) -> list[Manifest]:
        """All objects of a kind, by name."""
        found = self._kinds[kind]
        return [found[name] for name in sorted(found)]

    def find(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object, or None."""
        return self._objects.get((kind, namespace, name))

    def write(self, manifest: Manifest, by: str = "user") -> Manifest:
        """Makes an object or takes it over as it is; its uid, version and generation are the server's."""
        name = identity(manifest)
        before = self._objects.get(name)
        metadata = dict(manifest["metadata"])
        if before is None:
            self._uids += 1
            metadata |= {
                "uid": f"uid-{self._number}-{self._uids}",
                "creationTimestamp": timestamp(self._clock()),
                "generation": 1,
            }
        else:
            kept = ("uid", "creationTimestamp", "generation")
            metadata |= {field: before["metadata"][field] for field in kept}
            if manifest.get("spec") != before.get("spec"):
                metadata["generation"] += 1
        after = {**manifest, "metadata": metadata}
        if before is not None and _unversioned(after) == _unversioned(before):
            return before
        self._check(before, after)
        self._versions += 1
        metadata["resourceVersion"] = str(self._versions)
        self._objects[name] = self._kinds[name[0]][name] = after
        self.watch(Change(self._clock(), by, before, after))
        return after

    def remove(self, name: Name, by: str = "user") -> None:
        """Takes an object away at once."""
        before = self._objects.pop(name)
        del self._kinds[name[0]][name]
        self._versions += 1
        gone = {**before, "metadata": {**before["metadata"], "resourceVersion": str(self._versions)}}
        self.watch(Change(self._clock(), by, gone, None))

    def edit(self, name: Name, by: str, **parts: Any) -> None:
        """Merges parts (metadata, spec, status) into an object that exists."""
        live = self._objects[name]
        self.write(merged(live, parts), by)

    def collect_orphans(self) -> None:
        """What the garbage collector does: objects whose owners are all gone go as well."""
        uids = {found["metadata"]["uid"] for found in self._objects.values()}
        for name, found in list(self._objects.items()):
            owners = found["metadata"].get("ownerReferences") or []
            if owners and not any(owner["uid"] in uids for owner in owners):
                self.begin_deletion(name, "garbage-collector")

    def begin_deletion(self, name: Name, by: str, grace: int | None = None) -> Manifest | None:
        """A running pod gets a deadline, everything else goes at once. What is left, if anything is."""
        live = self._objects[name]
        spec, ended = live.get("spec") or {}, ("Failed", "Succeeded")
        running = spec.get("nodeName") and live["status"].get("phase") not in ended
        seconds = grace if grace is not None else spec.get("terminationGracePeriodSeconds", 30)
        if name[0] != "Pod" or not running or seconds == 0:
            self.remove(name, by)
            return None
        if live["metadata"].get("deletionTimestamp"):
            seconds = min(seconds, live["metadata"]["deletionGracePeriodSeconds"])
        stamps = {"deletionTimestamp": timestamp(self._clock()), "deletionGracePeriodSeconds": seconds}
        self.edit(name, by, metadata=stamps)
        return self._objects[name]

    # --- KubeClient, for the operator

    async def list(self, kind: str, namespace: str = "", label_selector: str | None = None) -> Listing:
        """All objects that the kind's selector takes."""
        assert label_selector is None
        self._ask("list", (kind, namespace, ""))
        chosen = (found for found in self.all(kind) if namespace in ("", found["metadata"].get("namespace", "")))
        return Listing(tuple(filter(resource_of(kind).selects, chosen)), self._versions)

    async def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """One object; raises NotFound."""
        self._ask("get", (kind, namespace, name))
        return self._existing((kind, namespace, name))

    async def apply(
        self, manifest: Manifest, manager: str, *, force: bool = True, subresource: str = "", dry_run: bool = False
    ) -> Manifest:
        """Server-side apply: what the manager stops naming goes, and a uid binds it to one object."""
        assert not dry_run
        name = identity(manifest)
        self._ask("apply", name)
        live, uid = self._objects.get(name), manifest["metadata"].get("uid")
        if live is None:
            if uid or subresource:
                raise Conflict(f"{name} is not there (any more)", 409)
            live = {"status": {"phase": "Pending"}} if name[0] == "Pod" else {}
        elif uid and live["metadata"]["uid"] != uid:
            raise Conflict(f"{name} is another object by now", 409)
        elif manifest["metadata"].get("resourceVersion") not in (None, live["metadata"]["resourceVersion"]):
            raise Conflict(f"{name} has changed meanwhile", 409)
        elif not force and self._owned_by_others(live, manager):
            raise Conflict(f"{name} belongs to somebody else", 409)
        key = (uid or (live.get("metadata") or {}).get("uid", ""), str(manager))
        fields = {"status": manifest["status"]} if subresource else {k: v for k, v in manifest.items() if k != "status"}
        after = self.write(merged(without(live, self._applied.get(key, {}), fields), fields), str(manager))
        self._applied[after["metadata"]["uid"], str(manager)] = fields
        return after

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """The status alone."""
        return await self.apply(manifest, Manager.STATUS, subresource="status")

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        grace_seconds: int | None = None,
    ) -> Manifest:
        """Deletes exactly the object with that uid, if it is of that version."""
        self._ask("delete", (kind, namespace, name))
        live = self._existing((kind, namespace, name))
        if uid is not None and live["metadata"]["uid"] != uid:
            raise Conflict(f"{name} is another object by now", 409)
        if version not in (None, live["metadata"]["resourceVersion"]):
            raise Conflict(f"{name} has changed meanwhile", 409)
        return self.begin_deletion((kind, namespace, name), Manager.OPERATOR, grace_seconds) or {"kind": "Status"}

    def _ask(self, verb: str, name: Name) -> None:
        error = self.trouble(verb, name)
        if error is not None:
            raise error

    def _existing(self, name: Name) -> Manifest:
        found = self._objects.get(name)
        if found is None:
            raise NotFound(f"{name} does not exist", 404)
        return found

    def _owned_by_others(self, live: Manifest, manager: str) -> bool:
        return (live["metadata"]["uid"], manager) not in self._applied

    def _check(self, before: Manifest | None, after: Manifest) -> None:
        """What the real one refuses: objects that their schema forbids, and changes of a pod but for its gates."""
        model = _MODELS.get(after["kind"])
        if model is not None:
            model.model_validate(after)
        if before is None or after["kind"] != "Pod":
            return
        old, new = dict(before["spec"]), dict(after["spec"])
        gates, left = old.pop("schedulingGates", None), new.pop("schedulingGates", None)
        if left and left != gates:
            raise InvalidObject("spec.schedulingGates: only removing is allowed", 422)
        for field in ("nodeName", *(("affinity",) if gates else ())):
            old.pop(field, None)
            new.pop(field, None)
        if old != new:
            raise InvalidObject(f"spec of pod {after['metadata']['name']} cannot be changed", 422)


def without(live: Manifest, before: Manifest, now: Manifest) -> Manifest:
    """The live object without what its manager named last time and names no more."""
    left: Manifest = {}
    for key, value in live.items():
        if key in before and key not in now:
            continue
        if isinstance(value, dict) and isinstance(before.get(key), dict) and isinstance(now.get(key), dict):
            value = without(value, before[key], now[key])
        left[key] = value
    return left


def merged(live: Mapping[str, Any], planned: Mapping[str, Any]) -> Manifest:
    """Maps are merged, everything else is taken from `planned`."""
    found = dict(live)
    for key, value in planned.items():
        known = found.get(key)
        found[key] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return found


def _unversioned(manifest: Manifest) -> Manifest:
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}
    return {**manifest, "metadata": metadata}
