"""Writes the status that a plan wants: only if it changed, never under a successor's name, and errors included."""

import re
from collections import defaultdict
from typing import Any

import structlog

from retinue.conditions import ConditionType, timestamp
from retinue.plan import Key, Manifest
from retinue_operator.apply import Outcome, Settled, WriteError
from retinue_operator.cache import Cache
from retinue_operator.client import KubeClient
from retinue_operator.compare import differences, spec_hash, surplus
from retinue_operator.errors import NEEDS_ATTENTION, InvalidObject, KubeError, one_line, retry_after
from retinue_operator.fence import clock
from retinue_operator.metrics import Metrics

_LOG = structlog.stdlib.get_logger(__name__)
_MESSAGE_LIMIT = 1024
# What server-side apply says of a field that the installed CRD does not have; an index or key in brackets for lists.
_UNDECLARED = re.compile(r"\.status((?:\.\w+|\[[^\]]*\])+): field not declared in schema")
_BRACKETS = re.compile(r"\[[^\]]*\]")
_FORGET_SECONDS = 600.0

Path = tuple[str, ...]


class StatusWriter:
    """Applies statuses as field manager retinue-status; a field that is no longer planned disappears.

    A field that the installed CRD does not have, because it is of an older version, is left out and told in the log:
    the others matter all the same, and records of restarts and drains are among them.
    """

    def __init__(self, client: KubeClient, cache: Cache, metrics: Metrics) -> None:
        self._client = client
        self._cache = cache
        self._metrics = metrics
        self._settled = Settled()
        self._undeclared: defaultdict[str, dict[Path, float]] = defaultdict(dict)

    async def write(self, key: Key, status: Manifest) -> Outcome:
        """Brings the status of the object to `status` (wire form); never raises a KubeError."""
        live = self._cache.get(key.kind, key.namespace, key.name)
        if live is None:
            return self._skipped(key, "gone")
        shown = live.get("status") or {}
        status = self._declared(key.kind, status)
        hash_ = spec_hash(status)
        memory = (key.kind, key.namespace, key.name)
        found = differences(status, shown) | surplus(status, shown)
        if not found or self._settled.accepts(memory, hash_, found):
            return self._skipped(key, "as-planned")
        metadata = {"name": key.name, "uid": live["metadata"]["uid"]}
        if key.namespace:
            metadata["namespace"] = key.namespace
        manifest = {"apiVersion": live["apiVersion"], "kind": key.kind, "metadata": metadata, "status": status}
        try:
            try:
                answer = await self._client.apply_status(manifest)
            except InvalidObject as error:
                if not self._learn(key.kind, str(error)):
                    raise
                status = self._declared(key.kind, status)
                answer = await self._client.apply_status({**manifest, "status": status})
                hash_ = spec_hash(status)
        except KubeError as error:
            self._metrics.writes.labels(key.kind, "status", error.error_class).inc()
            failure = WriteError(
                "status", key.kind, key.namespace, key.name, error.error_class, one_line(error), retry_after(error)
            )
            return Outcome(errors=(failure,))
        after = answer.get("status") or {}
        self._settled.remember(memory, hash_, differences(status, after) | surplus(status, after))
        self._cache.put(answer)
        self._metrics.writes.labels(key.kind, "status", "ok").inc()
        return Outcome(written=(f"status {key.kind} {key.name}",))

    def _learn(self, kind: str, message: str) -> bool:
        """Takes note of fields that the CRD lacks, for a while: it may be upgraded. False if the message names none."""
        found = {tuple(_BRACKETS.sub("", text).strip(".").split(".")) for text in _UNDECLARED.findall(message)}
        for path in found:
            field = ".".join(("status", *path))
            _LOG.warning("field left out: the installed CRD lacks it, upgrade the CRDs", object_kind=kind, field=field)
            self._undeclared[kind][path] = clock() + _FORGET_SECONDS
        return bool(found)

    def _declared(self, kind: str, status: Manifest) -> Manifest:
        known = self._undeclared[kind]
        for path, until in list(known.items()):
            if clock() >= until:
                del known[path]
            else:
                status = _without(status, path)
        return status

    def _skipped(self, key: Key, why: str) -> Outcome:
        self._metrics.skipped.labels(key.kind, "status", why).inc()
        return Outcome(skipped=1)


def with_errors(
    status: Manifest, shown: Manifest, errors: tuple[WriteError, ...], generation: int, now: float
) -> Manifest:
    """The status with failed writes joined into its Degraded condition, so that `kubectl describe` tells of them.

    Only errors that somebody has to do something about count; a conflict or an API server that restarts passes by
    itself. `shown` is the status in the cluster: its condition keeps its transition time while it stays true.
    """
    grave = [error for error in errors if error.error_class in NEEDS_ATTENTION]
    if not grave or "conditions" not in status:
        return status
    conditions: dict[str, dict[str, Any]] = {condition["type"]: condition for condition in status["conditions"]}
    planned = conditions.get(ConditionType.DEGRADED)
    texts = [str(error) for error in grave]
    reason = str(grave[0].error_class)
    if planned is not None and planned["status"] == "True":
        texts.insert(0, planned["message"])
        reason = planned["reason"]
    before = next(
        (
            old
            for old in shown.get("conditions") or []
            if old["type"] == ConditionType.DEGRADED and old["status"] == "True"
        ),
        None,
    )
    conditions[ConditionType.DEGRADED] = {
        "type": str(ConditionType.DEGRADED),
        "status": "True",
        "reason": reason,
        "message": "; ".join(texts)[:_MESSAGE_LIMIT],
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before else timestamp(now),
    }
    return {**status, "conditions": sorted(conditions.values(), key=lambda condition: str(condition["type"]))}


def _without(value: Any, path: Path) -> Any:
    """The value without a field; of a list, of each of its entries."""
    if isinstance(value, list):
        return [_without(entry, path) for entry in value]
    if not isinstance(value, dict) or path[0] not in value:
        return value
    if len(path) == 1:
        return {name: part for name, part in value.items() if name != path[0]}
    return {**value, path[0]: _without(value[path[0]], path[1:])}
