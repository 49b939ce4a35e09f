"""Keeps a local copy of one kind of object by list and watch, and tells a handler about every change."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from .apiserver import ApiError, ApiServer, JsonObject, is_transient

_LOGGER = logging.getLogger(__name__)
# The API server ends watches by itself after this time; longer silence, without even a bookmark, is a dead connection.
_WATCH_SECONDS = 300
_IDLE_SECONDS = 330.0
_PAGE = 500
_FIRST_BACKOFF_SECONDS = 0.2
_LONGEST_BACKOFF_SECONDS = 10.0

Handler = Callable[[JsonObject | None, JsonObject | None], None]
"""Called with (old, new): (None, new) for a new object, (old, None) for a deleted one."""


class Reflector:
    """A watch that survives expired history (410), broken connections and API server restarts.

    objects: the copy, by uid.
    synced: set after the first complete list.
    relists: how often the copy was built from a list.
    """

    def __init__(self, api: ApiServer, path: str, handler: Handler, **selectors: str) -> None:
        self._api = api
        self._path = path
        self._handler = handler
        self._selectors = selectors
        self.objects: dict[str, JsonObject] = {}
        self.synced = asyncio.Event()
        self.relists = 0

    async def run(self) -> None:
        """Runs until cancelled.

        Raises:
            ApiError: the API server refuses the list for a reason that time does not change, such as missing rights.
        """
        version: str | None = None
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            try:
                if version is None:
                    version = await self._list()
                    backoff = _FIRST_BACKOFF_SECONDS
                async for event in self._api.watch(
                    self._path,
                    idle_seconds=_IDLE_SECONDS,
                    resourceVersion=version,
                    timeoutSeconds=str(_WATCH_SECONDS),
                    **self._selectors,
                ):
                    version = str(event["object"]["metadata"]["resourceVersion"])
                    backoff = _FIRST_BACKOFF_SECONDS
                    if event["type"] != "BOOKMARK":
                        self._take(event["object"], deleted=event["type"] == "DELETED")
            except ApiError as error:
                if error.status == 410:
                    version = None
                elif not is_transient(error):
                    raise
                else:
                    backoff = await self._wait(backoff, error)
            except Exception as error:
                if not is_transient(error):
                    raise
                backoff = await self._wait(backoff, error)

    async def _wait(self, backoff: float, error: Exception) -> float:
        _LOGGER.info("watch of %s interrupted, again in %.1f s: %s", self._path, backoff, error)
        await asyncio.sleep(backoff * random.uniform(0.5, 1.5))
        return min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    async def _list(self) -> str:
        """Replaces the copy by a fresh list, reports the differences, returns the list's resource version."""
        fresh: list[JsonObject] = []
        token = ""
        while True:
            page = await self._api.get(self._path, limit=str(_PAGE), **{"continue": token}, **self._selectors)
            fresh.extend(page["items"])
            token = page["metadata"].get("continue", "")
            if not token:
                break
        self.relists += 1
        listed = {item["metadata"]["uid"] for item in fresh}
        for uid in [uid for uid in self.objects if uid not in listed]:
            self._take(self.objects[uid], deleted=True)
        for item in fresh:
            self._take(item, deleted=False)
        self.synced.set()
        return str(page["metadata"]["resourceVersion"])

    def _take(self, item: JsonObject, *, deleted: bool) -> None:
        uid = item["metadata"]["uid"]
        if deleted:
            old = self.objects.pop(uid, None)
            if old is not None:
                self._handler(item, None)
            return
        old = self.objects.get(uid)
        self.objects[uid] = item
        if old is None or old["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
            self._handler(old, item)
