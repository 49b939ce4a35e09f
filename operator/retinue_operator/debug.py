"""Pages for whoever looks into a running operator: its queue, its cache and its last decisions, on 127.0.0.1 only.

In a cluster: kubectl port-forward, which reaches a pod's own loopback address.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from aiohttp import web

from retinue.plan import Manifest
from retinue_operator.cache import Cache
from retinue_operator.schedule import Entry

_HOST = "127.0.0.1"
_INDEX = """Retinue operator
/debug/queue                  objects that wait or are looked at: due in seconds, failures in a row
/debug/cache                  how many objects of each kind it knows
/debug/cache/KIND             those of a kind: version, conditions (?namespace= narrows)
/debug/cache/KIND/NAME        one of them without spec and environment (?namespace= of namespaced kinds)
/debug/decisions              the last evaluation of each AgentPool with all that went in, replayable
"""


@runtime_checkable
class Tells(Protocol):
    """A controller with something to tell: texts by the key of an object, each one JSON value."""

    def tell(self) -> Mapping[str, str]:
        """The texts."""
        ...


class DebugServer:
    """Serves the pages from `start()` to `stop()`; `port` is the real one, also when 0 was asked for.

    queue: what waits and runs. kinds: those that the cache holds. tellers: whose texts make up /debug/decisions.
    """

    def __init__(
        self,
        port: int,
        queue: Callable[[], Sequence[Entry[Any]]],
        cache: Cache,
        kinds: Sequence[str],
        tellers: Sequence[Tells],
    ) -> None:
        self.port = port
        self._queue = queue
        self._cache = cache
        self._kinds = tuple(kinds)
        self._tellers = tuple(tellers)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens. Raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/debug", self._index)
        app.router.add_get("/debug/queue", self._show_queue)
        app.router.add_get("/debug/cache", self._counts)
        app.router.add_get("/debug/cache/{kind}", self._list)
        app.router.add_get("/debug/cache/{kind}/{name}", self._object)
        app.router.add_get("/debug/decisions", self._decisions)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, _HOST, self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Closes the port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _index(self, _: web.Request) -> web.Response:
        return web.Response(text=_INDEX)

    async def _show_queue(self, _: web.Request) -> web.Response:
        entries = [
            {"key": str(e.key), "running": e.running, "dueInSeconds": e.due_in, "failures": e.failures}
            for e in self._queue()
        ]
        return _json(entries)

    async def _counts(self, _: web.Request) -> web.Response:
        return _json({kind: self._cache.count(kind) for kind in self._kinds})

    async def _list(self, request: web.Request) -> web.Response:
        kind = self._kind(request)
        found = self._cache.select(kind, request.query.get("namespace"))
        return _json([{"metadata": _identity(m), "conditions": _conditions(m)} for m in found])

    async def _object(self, request: web.Request) -> web.Response:
        kind, name = self._kind(request), request.match_info["name"]
        found = self._cache.get(kind, request.query.get("namespace", ""), name)
        if found is None:
            raise web.HTTPNotFound(text=f"the cache holds no {kind} {name} in that namespace; set ?namespace=\n")
        # A pod's spec may hold what its owner would not want to see here.
        return _json({"kind": kind, "metadata": found["metadata"], "status": found.get("status") or {}})

    async def _decisions(self, _: web.Request) -> web.Response:
        told = {key: json.loads(text) for teller in self._tellers for key, text in teller.tell().items()}
        return _json(told)

    def _kind(self, request: web.Request) -> str:
        kind = request.match_info["kind"]
        if kind not in self._kinds:
            raise web.HTTPNotFound(text=f"{kind} is not one of {', '.join(self._kinds)}\n")
        return kind


def _identity(manifest: Manifest) -> dict[str, Any]:
    metadata = manifest["metadata"]
    return {field: metadata[field] for field in ("namespace", "name", "uid", "resourceVersion") if field in metadata}


def _conditions(manifest: Manifest) -> dict[str, str]:
    found = (manifest.get("status") or {}).get("conditions") or []
    return {c["type"]: f"{c['status']} {c.get('reason', '')}".strip() for c in found}


def _json(value: Any) -> web.Response:
    return web.json_response(value, dumps=lambda content: json.dumps(content, indent=1) + "\n")
