"""Writes a pod's status when, and only when, it differs from what was written last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from .apiserver import ApiError, ApiServer, JsonObject, is_transient
from .podstatus import PodView, pod_status

_LOGGER = logging.getLogger(__name__)
_FIRST_RETRY_SECONDS = 0.2
_LONGEST_RETRY_SECONDS = 5.0


class StatusWriter:
    """Changes that come while a write is under way are written together by the next one.

    view: the pod's present state; annotations: what else the pod object should carry (the status subresource accepts
    annotations too, so no right to change pods themselves is needed); written: called after each write.
    """

    def __init__(
        self,
        api: ApiServer,
        view: Callable[[], PodView],
        annotations: Callable[[], dict[str, str]],
        written: Callable[[], None],
    ) -> None:
        self._api = api
        self._view = view
        self._annotations = annotations
        self._written = written
        self._dirty = asyncio.Event()
        self._last: JsonObject | None = None
        self._transitions: JsonObject = {}

    def wake(self) -> None:
        """The status may have changed."""
        self._dirty.set()

    async def run(self) -> None:
        """Writes until cancelled or until the pod is gone."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not await self._write():
                return

    async def write_last(self) -> bool:
        """Writes the present state; False when the pod is gone."""
        return await self._write()

    async def remove_pod(self) -> None:
        """Deletes the pod object at once, which tells the API server that nothing of it runs any more."""
        metadata = self._view().pod["metadata"]
        retry = _FIRST_RETRY_SECONDS
        while True:
            try:
                await self._api.delete(_path(metadata), uid=metadata["uid"], grace_seconds=0)
                return
            except Exception as error:
                if not is_transient(error):
                    raise
            await asyncio.sleep(retry)
            retry = min(2 * retry, _LONGEST_RETRY_SECONDS)

    async def _write(self) -> bool:
        retry = _FIRST_RETRY_SECONDS
        while True:
            patch = self._patch()
            if patch == self._last:
                return True
            metadata = self._view().pod["metadata"]
            try:
                # The uid makes the write fail if another pod has taken the name.
                body = {**patch, "metadata": {"uid": metadata["uid"], **patch["metadata"]}}
                answer = await self._api.patch(f"{_path(metadata)}/status", body)
            except ApiError as error:
                if error.gone or error.conflict:
                    return False
                if not is_transient(error):
                    # Nothing that a retry could change; the next change of the pod will try again.
                    _LOGGER.error("status of pod %s was refused: %s", metadata["name"], error)
                    return True
            except Exception as error:
                if not is_transient(error):
                    raise
            else:
                self._last = patch
                self._transitions = {c["type"]: c for c in answer["status"].get("conditions", [])}
                self._written()
                return True
            await asyncio.sleep(retry)
            retry = min(2 * retry, _LONGEST_RETRY_SECONDS)

    def _patch(self) -> JsonObject:
        status = pod_status(self._view(), datetime.now(UTC))
        for condition in status["conditions"]:
            # The pod in the cache may be older than our own last write.
            written = self._transitions.get(condition["type"])
            if written is not None and written["status"] == condition["status"]:
                condition["lastTransitionTime"] = written["lastTransitionTime"]
        for addresses in ("hostIPs", "podIPs"):
            if addresses in status:
                # Merged by address: without the directive, an address of an earlier life would stay.
                status[addresses] = [{"$patch": "replace"}, *status[addresses]]
        annotations = self._annotations()
        return {"metadata": {"annotations": annotations} if annotations else {}, "status": status}


def _path(metadata: JsonObject) -> str:
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
