"""Writes the status that a plan wants: only if it changed, never under a successor's name, and errors included."""

from typing import Any

from retinue.conditions import ConditionType, timestamp
from retinue.plan import Key, Manifest
from retinue_operator.apply import Outcome, Settled, WriteError
from retinue_operator.cache import Cache
from retinue_operator.client import KubeClient
from retinue_operator.compare import differences, spec_hash, surplus
from retinue_operator.errors import NEEDS_ATTENTION, KubeError, one_line, retry_after
from retinue_operator.metrics import Metrics

_MESSAGE_LIMIT = 1024


class StatusWriter:
    """Applies statuses as field manager retinue-status; a field that is no longer planned disappears."""

    def __init__(self, client: KubeClient, cache: Cache, metrics: Metrics) -> None:
        self._client = client
        self._cache = cache
        self._metrics = metrics
        self._settled = Settled()

    async def write(self, key: Key, status: Manifest) -> Outcome:
        """Brings the status of the object to `status` (wire form); never raises a KubeError."""
        live = self._cache.get(key.kind, key.namespace, key.name)
        if live is None:
            return self._skipped(key, "gone")
        shown = live.get("status") or {}
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
            answer = await self._client.apply_status(manifest)
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
