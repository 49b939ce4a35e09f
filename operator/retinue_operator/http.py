"""The operator's own HTTP port: /livez, /readyz and /metrics."""

import asyncio
from collections.abc import Sequence

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from retinue_operator.credentials import Credentials
from retinue_operator.health import Check, report

# Scrapes come more often; whoever opens a connection and says nothing does not keep it.
_IDLE_SECONDS = 75.0


class ProbeServer:
    """Serves probes and metrics from `start()` to `stop()`; `port` is the real one, also when 0 was asked for.

    Probes need no token: the kubelet has none to send.
    """

    def __init__(
        self,
        host: str,
        port: int,
        live: Sequence[Check],
        ready: Sequence[Check],
        registry: CollectorRegistry,
        credentials: Credentials | None = None,
    ) -> None:
        self._host = host
        self.port = port
        self._live = tuple(live)
        self._ready = tuple(ready)
        self._registry = registry
        self._credentials = credentials or Credentials()
        self._fresh: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listens. Raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/livez", self._livez)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=_IDLE_SECONDS)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self.port, ssl_context=self._credentials.tls).start()
        self.port = self._runner.addresses[0][1]
        self._fresh = asyncio.create_task(self._credentials.keep_fresh())

    async def stop(self) -> None:
        """Closes the port."""
        if self._fresh is not None:
            self._fresh.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(self._live)

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._ready)

    async def _metrics(self, request: web.Request) -> web.Response:
        if not self._credentials.may_scrape(request.headers.get("Authorization")):
            headers = {"WWW-Authenticate": "Bearer"}
            return web.Response(status=401, text="metrics are for those with a token for them\n", headers=headers)
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(checks: Sequence[Check]) -> web.Response:
    found = report(checks)
    return web.Response(text=found.text, status=200 if found.healthy else 503)
