"""The informer against an API server that lists, watches, forgets, breaks off and refuses as the test says."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from retinue_gateway.cluster import Cluster, ClusterConfigError, connect
from retinue_gateway.watch import Informer

_DEADLINE_SECONDS = 10.0
_PATH = "/api/v1/pods"


class ApiServer:
    """Serves `items` as a list and what is put into `events` as a watch; keeps what it was asked."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.version = 100
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.lists: list[dict[str, str]] = []
        self.watches: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.refuse: list[int] = []
        self.page_size = 100

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        if self.refuse:
            return web.Response(status=self.refuse.pop(0), text="refused by the test")
        if request.query.get("watch") == "true":
            self.watches.append(dict(request.query))
            return await self.watch(request)
        self.lists.append(dict(request.query))
        start = int(request.query.get("continue", 0))
        end = start + self.page_size
        metadata = {"resourceVersion": str(self.version)}
        if end < len(self.items):
            metadata["continue"] = str(end)
        return web.json_response({"metadata": metadata, "items": self.items[start:end]})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            event = await self.events.get()
            if event is None:
                assert request.transport is not None
                request.transport.abort()
                return response
            line = json.dumps(event).encode() + b"\n"
            await response.write(line[:20])
            await response.write(line[20:])

    def send(self, kind: str, found: dict[str, Any]) -> None:
        self.events.put_nowait({"type": kind, "object": found})


def thing(name: str, value: Any = 1, version: int = 101) -> dict[str, Any]:
    return {"metadata": {"uid": f"uid-{name}", "name": name, "resourceVersion": str(version)}, "value": value}


def read(found: Any) -> tuple[str, int] | None:
    return None if found["value"] == "hide" else (found["metadata"]["name"], int(found["value"]))


@asynccontextmanager
async def following(server: ApiServer) -> AsyncIterator[tuple[Informer[tuple[str, int]], list[int]]]:
    """A running informer on the server, and a list that grows with each change."""
    app = web.Application()
    app.router.add_get(_PATH, server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration()
    configuration.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    configuration.api_key = {"BearerToken": "Bearer secret"}
    changes: list[int] = []
    async with aiohttp.ClientSession() as session:
        informer = Informer(
            Cluster(configuration, session),
            _PATH,
            read=read,
            on_change=lambda: changes.append(len(changes)),
            label_selector="a=b",
        )
        task = asyncio.create_task(informer.run())
        try:
            yield informer, changes
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cleanup()


async def until(condition: Callable[[], bool], what: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _DEADLINE_SECONDS
    while not condition():
        if loop.time() > deadline:
            pytest.fail(f"not within {_DEADLINE_SECONDS} s: {what}")
        await asyncio.sleep(0.005)


async def test_it_lists_all_pages_with_its_selector_and_credentials_and_watches_from_there() -> None:
    server = ApiServer()
    server.items, server.page_size = [thing(str(index)) for index in range(5)], 2
    async with following(server) as (informer, _):
        await until(lambda: len(server.watches) == 1, "it watches")
        assert sorted(informer.objects()) == [(str(index), 1) for index in range(5)]
    assert len(server.lists) == 3
    assert all(query["labelSelector"] == "a=b" for query in server.lists + server.watches)
    assert server.watches[0]["resourceVersion"] == "100"
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)


async def test_events_change_the_store() -> None:
    server = ApiServer()
    server.items = [thing("a"), thing("b")]
    async with following(server) as (informer, changes):
        server.send("MODIFIED", thing("a", 2))
        server.send("DELETED", thing("b"))
        server.send("ADDED", thing("c", 3))
        await until(lambda: sorted(informer.objects()) == [("a", 2), ("c", 3)], "all events are applied")
        assert len(changes) == 4


async def test_after_a_disconnect_it_watches_on_from_the_last_version_without_a_new_list() -> None:
    server = ApiServer()
    async with following(server) as (informer, _):
        server.send("ADDED", thing("a", 1, 105))
        server.send("BOOKMARK", {"metadata": {"resourceVersion": "110"}})
        await until(lambda: len(informer.objects()) == 1, "the event is applied")
        await until(server.events.empty, "the bookmark is sent")
        server.events.put_nowait(None)
        await until(lambda: len(server.watches) == 2, "it watches again")
    assert server.watches[1]["resourceVersion"] == "110"
    assert len(server.lists) == 1


@pytest.mark.parametrize("how", ["event", "status"])
async def test_an_expired_version_leads_to_a_new_list_that_replaces_the_store(how: str) -> None:
    server = ApiServer()
    server.items = [thing("old")]
    async with following(server) as (informer, _):
        await until(lambda: len(server.watches) == 1, "it watches")
        server.items, server.version = [thing("new")], 200
        if how == "event":
            server.send("ERROR", {"code": 410, "message": "too old"})
        else:
            server.refuse = [410]
            server.events.put_nowait(None)
        await until(lambda: informer.objects() == [("new", 1)], "the store is replaced")
        await until(lambda: len(server.watches) == 2, "it watches again")
    assert server.watches[1]["resourceVersion"] == "200"


async def test_a_refusal_is_remembered_until_it_works_again() -> None:
    server = ApiServer()
    server.refuse = [403, 500]
    async with following(server) as (informer, _):
        await until(lambda: informer.error is not None and "403" in informer.error, "the refusal is told")
        assert not informer.synced
        await until(lambda: informer.synced and informer.error is None, "it works again")


async def test_an_unreadable_object_hides_no_other_and_one_that_is_not_wanted_leaves() -> None:
    server = ApiServer()
    server.items = [thing("bad", "x"), thing("good")]
    async with following(server) as (informer, _):
        await until(lambda: informer.objects() == [("good", 1)], "the good one is there")
        server.send("MODIFIED", thing("good", "hide"))
        await until(lambda: informer.objects() == [], "it has left")


async def test_without_kubeconfig_and_service_account_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterConfigError, match="--kubeconfig"):
        async with connect(None):
            pass
    with pytest.raises(ClusterConfigError, match=r"missing\.yaml"):
        async with connect(tmp_path / "missing.yaml"):
            pass
