"""Makes the cluster as planned with as few writes as possible: compare first, then server-side apply."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import structlog

from retinue.api.labels import ROUTABLE, SPEC_HASH
from retinue.plan import Apply, Delete, Manager, Manifest, Plan
from retinue_operator.cache import Cache
from retinue_operator.client import KubeClient
from retinue_operator.compare import Difference, differences, spec_hash
from retinue_operator.errors import Conflict, ErrorClass, KubeError, NameTaken, NotFound, one_line, retry_after
from retinue_operator.metrics import Metrics
from retinue_operator.resources import identity, resource_of

_LOG = structlog.stdlib.get_logger(__name__)
_SETTLED_LIMIT = 50_000


@dataclass(frozen=True)
class WriteError:
    """One write that failed; `retry_after` in seconds if the server asked for it."""

    verb: str
    kind: str
    namespace: str
    name: str
    error_class: ErrorClass
    message: str
    retry_after: float | None = None

    def __str__(self) -> str:
        target = f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"
        return f"{self.verb} {target}: {self.message}"


@dataclass(frozen=True)
class Outcome:
    """What executing a plan did: each write in words, the number of writes not needed, and failures."""

    written: tuple[str, ...] = ()
    skipped: int = 0
    errors: tuple[WriteError, ...] = ()

    def __add__(self, other: "Outcome") -> "Outcome":
        return Outcome(self.written + other.written, self.skipped + other.skipped, self.errors + other.errors)


class Settled:
    """Remembers what the API server makes of a manifest that it does not keep as written.

    Without this memory a default or a normal form that the comparison does not know would be "repaired" for ever.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, ...], tuple[str, frozenset[Difference]]] = OrderedDict()

    def accepts(self, key: tuple[str, ...], hash_: str, found: frozenset[Difference]) -> bool:
        """Whether these differences are just what was left after writing the same manifest."""
        seen = self._seen.get(key)
        return seen is not None and seen[0] == hash_ and found <= seen[1]

    def remember(self, key: tuple[str, ...], hash_: str, left: frozenset[Difference]) -> None:
        """Takes note of what differs right after the write; nothing is remembered when nothing does."""
        self._seen.pop(key, None)
        if left:
            self._seen[key] = (hash_, left)
            if len(self._seen) > _SETTLED_LIMIT:
                self._seen.popitem(last=False)


class Applier:
    """Executes plans: each planned object is written only if it is missing or not as planned.

    The answers go into the cache at once, so that the next reconcile sees its own writes. A failure of one object does
    not stop the others.
    """

    def __init__(self, client: KubeClient, cache: Cache, metrics: Metrics) -> None:
        self._client = client
        self._cache = cache
        self._metrics = metrics
        self._settled = Settled()

    async def execute(self, plan: Plan) -> Outcome:
        """Applies, then deletes, each in the plan's order; never raises a KubeError."""
        outcome = Outcome()
        for wish in plan.apply:
            outcome += await self._guarded("apply", *identity(wish.manifest), self._apply(wish))
        for removal in plan.delete:
            target = (removal.kind, removal.namespace, removal.name)
            outcome += await self._guarded("delete", *target, self._delete(removal))
        return outcome

    async def _guarded(self, verb: str, kind: str, namespace: str, name: str, write: Any) -> Outcome:
        try:
            why: str | None = await write
        except Conflict as error:
            stranger = await self._refresh(kind, namespace, name)
            return self._failed(verb, kind, namespace, name, stranger or error)
        except KubeError as error:
            return self._failed(verb, kind, namespace, name, error)
        if why is not None:
            self._metrics.skipped.labels(kind, verb, why).inc()
            return Outcome(skipped=1)
        self._metrics.writes.labels(kind, verb, "ok").inc()
        return Outcome(written=(f"{verb} {kind} {name}",))

    def _failed(self, verb: str, kind: str, namespace: str, name: str, error: KubeError) -> Outcome:
        failure = WriteError(verb, kind, namespace, name, error.error_class, one_line(error), retry_after(error))
        self._metrics.writes.labels(kind, verb, error.error_class).inc()
        return Outcome(errors=(failure,))

    async def _apply(self, wish: Apply) -> str | None:
        kind, namespace, name = identity(wish.manifest)
        live = self._cache.get(kind, namespace, name)
        # All but the operator's own are parts of an object that somebody made before.
        partial = wish.manager != Manager.OPERATOR
        if live is None and partial:
            return "missing"
        if live is not None and live["metadata"].get("deletionTimestamp"):
            return "deleting"
        hash_ = spec_hash(wish.manifest)
        planned = wish.manifest if partial else _stamped(wish.manifest, hash_)
        key = (kind, namespace, name, str(wish.manager))
        if live is not None:
            found = differences(planned, live)
            if not found or self._settled.accepts(key, hash_, found):
                return "as-planned"
        # Bound to the object that the plan was made for: a successor or a deleted one is a conflict, not a surprise.
        # A name that should be free is not taken by force.
        answer = await self._client.apply(
            planned if live is None else _bound(planned, live["metadata"], to_version=_takes_away(wish)),
            wish.manager,
            force=live is not None,
        )
        self._settled.remember(key, hash_, differences(planned, answer))
        self._cache.put(answer)
        return None

    async def _delete(self, removal: Delete) -> str | None:
        live = self._cache.get(removal.kind, removal.namespace, removal.name)
        if live is None or live["metadata"].get("uid") != removal.uid:
            return "gone"
        if live["metadata"].get("deletionTimestamp") and not _shortens(removal, live):
            return "deleting"
        try:
            answer = await self._client.delete(
                removal.kind,
                removal.namespace,
                removal.name,
                uid=removal.uid,
                version=live["metadata"].get("resourceVersion"),
                grace_seconds=removal.grace_seconds,
            )
        except NotFound:
            self._cache.remove(live)
            return "gone"
        if answer.get("kind") == removal.kind and answer["metadata"].get("deletionTimestamp"):
            self._cache.put(answer)
        else:
            self._cache.remove(live)
        return None

    async def _refresh(self, kind: str, namespace: str, name: str) -> NameTaken | None:
        """Reads an object again after a conflict: the cache is behind, and the retry must not wait for the watch.

        An object that no watch of ours shows is somebody else's: it stays out of the cache, and the conflict is told.
        """
        try:
            found = await self._client.get(kind, namespace, name)
        except NotFound:
            stale = self._cache.get(kind, namespace, name)
            if stale is not None:
                self._cache.remove(stale)
            return None
        except KubeError as error:
            _LOG.debug("object not read again after a conflict", object_kind=kind, error=one_line(error))
            return None
        if resource_of(kind).selects(found):
            self._cache.put(found)
            return None
        return NameTaken("an object that is not managed by Retinue has this name: rename or remove it")


def _shortens(removal: Delete, live: Manifest) -> bool:
    if removal.grace_seconds is None:
        return False
    return removal.grace_seconds < int(live["metadata"].get("deletionGracePeriodSeconds") or 0)


def _stamped(manifest: Manifest, hash_: str) -> Manifest:
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), SPEC_HASH: hash_}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _takes_away(wish: Apply) -> bool:
    """Whether it takes an engine out of service or sizes a pool: wrong if anything has changed meanwhile.

    A write can be under way for long, and another operator may lead when it arrives.
    """
    if wish.manager == Manager.AUTOSCALER:
        return True
    return (wish.manifest["metadata"].get("labels") or {}).get(ROUTABLE) == "false"


def _bound(manifest: Manifest, live: Manifest, *, to_version: bool) -> Manifest:
    bond = {"uid": live["uid"]}
    if to_version and "resourceVersion" in live:
        bond["resourceVersion"] = live["resourceVersion"]
    return {**manifest, "metadata": {**manifest["metadata"], **bond}}
