"""Kubernetes Events for what the operator decides: repeats are one Event with a count, and nobody ever waits."""

import asyncio
import datetime
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from retinue.plan import Event, Manifest
from retinue_operator.client import KubeClient
from retinue_operator.errors import Gone, KubeError, one_line
from retinue_operator.metrics import Metrics
from retinue_operator.resources import EVENT

_LOG = structlog.stdlib.get_logger(__name__)

CONTROLLER = "retinue.dev/operator"
_WINDOW = 600.0
# A repeat updates the count at most this often: an event storm must not become a write storm.
_PATCH_GAP = 30.0
_QUEUE = 1000
_REMEMBERED = 10_000
_NOTE_LIMIT = 1024
_REASON_LIMIT = 128


@dataclass
class _Series:
    """One Event that was posted and the repeats since."""

    namespace: str
    name: str
    first: float
    last: float
    patched: float
    count: int = 1


class Recorder:
    """Posts events in the background from a bounded queue; `record` never blocks and drops when it is full."""

    def __init__(
        self, client: KubeClient, metrics: Metrics, clock: Callable[[], float], instance: str, size: int = _QUEUE
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._clock = clock
        self._instance = instance[:128]
        self._queue: asyncio.Queue[tuple[_Series, Manifest | None]] = asyncio.Queue(size)
        self._series: OrderedDict[tuple[str, ...], _Series] = OrderedDict()

    def record(self, regarding: Manifest, event: Event, action: str = "Reconcile") -> None:
        """Posts `event` about an object; the same again within 10 minutes raises the count of the first one."""
        now = self._clock()
        metadata = regarding["metadata"]
        key = (metadata.get("uid", ""), str(event.type), str(event.reason), event.message)
        series = self._series.get(key)
        if series is not None and now - series.last < _WINDOW:
            series.count += 1
            series.last = now
            if now - series.patched >= _PATCH_GAP:
                series.patched = now
                self._enqueue(series, None)
            else:
                self._metrics.events.labels("aggregated").inc()
            return
        namespace = metadata.get("namespace") or "default"
        digest = hashlib.sha256("\0".join(key).encode() + str(now).encode()).hexdigest()[:16]
        series = _Series(namespace, f"{metadata['name'][:230]}.{digest}", first=now, last=now, patched=now)
        self._series[key] = series
        self._series.move_to_end(key)
        if len(self._series) > _REMEMBERED:
            self._series.popitem(last=False)
        self._enqueue(series, self._manifest(regarding, event, action, series))

    async def run(self) -> None:
        """Posts what is queued until cancelled."""
        while True:
            series, manifest = await self._queue.get()
            try:
                await self._post(series, manifest)
            finally:
                self._queue.task_done()

    async def flush(self, grace: float) -> None:
        """Waits up to `grace` seconds until everything queued is posted."""
        try:
            async with asyncio.timeout(grace):
                await self._queue.join()
        except TimeoutError:
            _LOG.warning("events left unposted", count=self._queue.qsize())

    def _enqueue(self, series: _Series, manifest: Manifest | None) -> None:
        try:
            self._queue.put_nowait((series, manifest))
        except asyncio.QueueFull:
            self._metrics.events.labels("dropped").inc()

    async def _post(self, series: _Series, manifest: Manifest | None) -> None:
        try:
            if manifest is not None:
                await self._client.create_event(manifest)
            else:
                patch = {"series": {"count": series.count, "lastObservedTime": _micro(series.last)}}
                await self._client.patch_event(series.namespace, series.name, patch)
        except Gone:
            # The Event has expired, or its namespace is gone or going: a later repeat starts a new one.
            series.last = float("-inf")
            self._metrics.events.labels("gone").inc()
        except KubeError as error:
            self._metrics.events.labels("failed").inc()
            _LOG.warning("event not posted", error=one_line(error), event_name=series.name)
        else:
            self._metrics.events.labels("posted" if manifest is not None else "counted").inc()

    def _manifest(self, regarding: Manifest, event: Event, action: str, series: _Series) -> Manifest:
        metadata = regarding["metadata"]
        reference = {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        if metadata.get("namespace"):
            reference["namespace"] = metadata["namespace"]
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": series.name, "namespace": series.namespace},
            "eventTime": _micro(series.first),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "action": action[:_REASON_LIMIT],
            "type": str(event.type),
            "reason": str(event.reason)[:_REASON_LIMIT],
            "note": event.message[:_NOTE_LIMIT],
            "regarding": reference,
        }


def _micro(now: float) -> str:
    return datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
