"""Writes core/v1 Events about pods and nodes in the background, and counts repeats instead of adding objects."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from .apiserver import MERGE_PATCH, TRANSIENT_ERRORS, ApiError, ApiServer, JsonObject
from .containerstate import timestamp

_LOGGER = logging.getLogger(__name__)
_COMPONENT = "retinue-node-plugin"
# Events are for readers, not for machines: when too many wait, the newest are dropped.
_QUEUE = 2000
_REMEMBERED = 2000


@dataclass(frozen=True)
class _Key:
    uid: str
    kind: str
    reason: str
    message: str


class EventRecorder:
    """Use `emit` from anywhere in the event loop; `run` writes until cancelled, `flush` waits until all is written."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api
        self._queue: asyncio.Queue[tuple[_Key, JsonObject, str, datetime]] = asyncio.Queue(_QUEUE)
        self._written: dict[_Key, tuple[str, int]] = {}
        self.dropped = 0

    def emit(self, about: JsonObject, host: str, kind: str, reason: str, message: str) -> None:
        """Queues one event. `about` is the reference of an involvedObject, `kind` is Normal or Warning."""
        key = _Key(about["uid"], kind, reason, message)
        try:
            self._queue.put_nowait((key, about, host, datetime.now(UTC)))
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Writes events until cancelled. An event that cannot be written is dropped: it must never hold up a pod."""
        while True:
            key, about, host, at = await self._queue.get()
            try:
                await self._write(key, about, host, at)
            except (ApiError, *TRANSIENT_ERRORS) as error:
                self.dropped += 1
                _LOGGER.debug("event %s of %s dropped: %s", key.reason, about.get("name"), error)
            finally:
                self._queue.task_done()

    async def flush(self, timeout: float) -> None:
        """Returns when all events so far are written, or after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._queue.join()

    async def _write(self, key: _Key, about: JsonObject, host: str, at: datetime) -> None:
        namespace = about.get("namespace") or "default"
        path = f"/api/v1/namespaces/{namespace}/events"
        if key in self._written:
            name, count = self._written[key]
            self._written[key] = (name, count + 1)
            update = {"count": count + 1, "lastTimestamp": timestamp(at)}
            await self._api.patch(f"{path}/{name}", update, content_type=MERGE_PATCH)
            return
        name = f"{about['name'][:200]}.{secrets.token_hex(8)}"
        await self._api.create(
            path,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": about,
                "type": key.kind,
                "reason": key.reason,
                "message": key.message,
                "source": {"component": _COMPONENT, "host": host},
                "reportingComponent": _COMPONENT,
                "reportingInstance": host,
                "firstTimestamp": timestamp(at),
                "lastTimestamp": timestamp(at),
                "count": 1,
            },
        )
        if len(self._written) >= _REMEMBERED:
            self._written.pop(next(iter(self._written)))
        self._written[key] = (name, 1)


def pod_reference(pod: JsonObject) -> JsonObject:
    """The involvedObject for a pod."""
    metadata = pod["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
    }


def node_reference(name: str) -> JsonObject:
    """The involvedObject for a node; kubelets give the name as uid, and `kubectl describe node` looks for that."""
    return {"apiVersion": "v1", "kind": "Node", "name": name, "uid": name}
