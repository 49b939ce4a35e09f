"""List and watch: a store that follows one kind of object of the cluster, through disconnects and expired versions."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import aiohttp
import structlog

from retinue_gateway.cluster import Cluster

T = TypeVar("T")

_PAGE = "500"
# The server ends a watch after this time; a connection that has died without a word is noticed a little later.
_WATCH_SECONDS = 60
_READ_MARGIN_SECONDS = 10.0
_LIST_READ_SECONDS = 30.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0
_LOG = structlog.get_logger(__name__)


class ListNeeded(Exception):
    """The version to watch from has expired: only a new list helps."""


class ApiRefused(Exception):
    """The API server answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


class Informer(Generic[T]):
    """Follows the objects at one API path.

    read: what to keep of an object, None to leave it out; on_change: called without arguments after the store changed,
    once per list and once per event; a label_selector narrows what the server sends. `synced` is true after the first
    list. An object that no longer matches the selector is removed, as the server reports it deleted.
    """

    def __init__(
        self,
        cluster: Cluster,
        path: str,
        *,
        read: Callable[[Mapping[str, Any]], T | None],
        on_change: Callable[[], None],
        label_selector: str = "",
    ) -> None:
        self._cluster = cluster
        self._path = path
        self._read = read
        self._on_change = on_change
        self._selector = {"labelSelector": label_selector} if label_selector else {}
        self._store: dict[str, T] = {}
        self.synced = False
        self.error: str | None = None

    def objects(self) -> list[T]:
        """What is known now."""
        return list(self._store.values())

    async def run(self) -> None:
        """Follows until cancelled. Failures are logged once per kind of failure and retried with growing pauses."""
        version: str | None = None
        pause = _FIRST_PAUSE
        while True:
            try:
                if version is None:
                    version = await self._list()
                async for event in self._watch(version):
                    version = self._apply(event) or version
                    pause = _FIRST_PAUSE
                self._recovered()
                continue
            except ListNeeded:
                version = None
            except (aiohttp.ClientError, TimeoutError, ConnectionError, ValueError, ApiRefused) as error:
                self._failed(error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _list(self) -> str:
        """Replaces the store by what exists; returns the version to watch from."""
        found: dict[str, T] = {}
        params = {"limit": _PAGE, **self._selector}
        while True:
            async with self._cluster.get(self._path, params, read_timeout=_LIST_READ_SECONDS) as response:
                await _check(response)
                page = json.loads(await response.read())
            for item in page.get("items") or ():
                self._keep(found, item)
            more = page["metadata"].get("continue")
            if not more:
                break
            params["continue"] = more
        self._store = found
        self.synced = True
        self._recovered()
        self._on_change()
        version: str = page["metadata"]["resourceVersion"]
        return version

    async def _watch(self, version: str) -> AsyncIterator[dict[str, Any]]:
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(_WATCH_SECONDS),
            **self._selector,
        }
        read_timeout = _WATCH_SECONDS + _READ_MARGIN_SECONDS
        async with self._cluster.get(self._path, params, read_timeout=read_timeout) as response:
            await _check(response)
            self._recovered()
            rest = b""
            async for data in response.content.iter_any():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line:
                        yield json.loads(line)

    def _apply(self, event: Mapping[str, Any]) -> str | None:
        """Changes the store; returns the version that it now has. Raises ListNeeded or ApiRefused."""
        kind, found = event["type"], event["object"]
        if kind == "ERROR":
            if found.get("code") == HTTPStatus.GONE:
                raise ListNeeded
            raise ApiRefused(found.get("code", 0), found.get("message", ""))
        if kind == "DELETED":
            self._store.pop(found["metadata"]["uid"], None)
            self._on_change()
        elif kind in ("ADDED", "MODIFIED"):
            self._keep(self._store, found)
            self._on_change()
        version: str | None = found["metadata"].get("resourceVersion")
        return version

    def _keep(self, store: dict[str, T], found: Mapping[str, Any]) -> None:
        uid = found["metadata"]["uid"]
        try:
            kept = self._read(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # One object that is not as expected must not hide all others.
            name = found["metadata"].get("name")
            _LOG.warning("object ignored", path=self._path, name=name, error=f"{type(error).__name__}: {error}")
            kept = None
        if kept is None:
            store.pop(uid, None)
        else:
            store[uid] = kept

    def _failed(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if text != self.error:
            _LOG.warning("cannot follow the cluster, trying again", path=self._path, error=text)
        self.error = text

    def _recovered(self) -> None:
        if self.error is not None:
            _LOG.info("following the cluster again", path=self._path)
        self.error = None


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status == HTTPStatus.GONE:
        raise ListNeeded
    if response.status != HTTPStatus.OK:
        raise ApiRefused(response.status, (await response.text())[:300])
