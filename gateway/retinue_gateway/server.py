"""The gateway as a server: its parts put together, its ports, its probes, and an end that cuts no stream."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from retinue_gateway.admission import Admission
from retinue_gateway.callers import Access
from retinue_gateway.cluster import connect
from retinue_gateway.credentials import Credentials
from retinue_gateway.errors import GatewayError
from retinue_gateway.exchange import Services
from retinue_gateway.gauges import StateCollector
from retinue_gateway.identity import HeaderNames
from retinue_gateway.keys import RoleKey
from retinue_gateway.listening import ClientSite
from retinue_gateway.load import LoadBook
from retinue_gateway.metrics import GatewayMetrics
from retinue_gateway.observe import ClusterObserver
from retinue_gateway.placing import Placer
from retinue_gateway.proxy import Proxy, ProxyOptions
from retinue_gateway.routing import Policy
from retinue_gateway.sessions import SessionTable
from retinue_gateway.settings import GatewaySettings
from retinue_gateway.table import RoutingTable
from retinue_gateway.upstream import Engines, open_session

_EXPIRE_SECONDS = 1.0
# The kubelet brings a changed Secret within about a minute; reading a few small files costs nothing.
_REREAD_SECONDS = 5.0
_LOG = structlog.get_logger(__name__)


class Gateway:
    """One gateway in one event loop. Publish directories to `table`, or let `serve` follow a cluster.

    Raises Unusable if a file of certificates or tokens cannot be used.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.credentials = Credentials(settings)
        self.table = RoutingTable()
        self.metrics = GatewayMetrics(settings.latency_scale)
        self._clock = asyncio.get_running_loop().time
        self.sessions = SessionTable(
            idle_timeout=settings.session_idle_timeout,
            memory=settings.session_memory,
            capacity=settings.max_sessions,
            on_close=lambda session, reason: self.metrics.closed(session.key.role, reason),
        )
        self.loads: LoadBook[str] = LoadBook()
        self._roles: LoadBook[RoleKey] = LoadBook()
        self.admission = Admission(
            most=settings.max_in_flight,
            most_per_share=settings.max_in_flight_per_tenant,
            most_bytes=settings.max_held_body_bytes,
            most_body=settings.max_body_bytes,
            body_seconds=settings.client_body_timeout,
        )
        self.metrics.registry.register(StateCollector(self.table, self.sessions, self._roles))
        self._problems: Callable[[], list[str]] = lambda: [] if self.table.synced else ["the cluster is not read yet"]
        self._stopping = False
        self.port = 0
        self.admin_port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serves HTTP inside the block. At its end: new connections are refused, requests in flight may finish within
        `shutdown_grace`, then the rest is cut."""
        settings = self.settings
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(
                open_session(settings.connect_timeout, settings.upstream_idle_timeout)
            )
            proxy = self._proxy(Engines(client))
            admin = [
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._metrics),
            ]
            # The last to start is the first to stop: metrics stay readable on a port of their own while streams end.
            host, keys = settings.host, self.credentials
            if settings.admin_port is None:
                both = [*proxy.routes(), *admin]
                self.port = self.admin_port = await self._listen(stack, both, host, settings.port, keys.api_tls)
            else:
                admin_host = settings.admin_host or host
                self.admin_port = await self._listen(stack, admin, admin_host, settings.admin_port, keys.admin_tls)
                self.port = await self._listen(stack, proxy.routes(), host, settings.port, keys.api_tls)
            for task in (self._expire_sessions(), keys.keep_fresh(_REREAD_SECONDS)):
                stack.callback(asyncio.create_task(task).cancel)
            tls = keys.api_tls is not None
            _LOG.info("listening", host=host, port=self.port, admin_port=self.admin_port, tls=tls)
            if keys.tenants is None:
                _LOG.warning("serving without authentication: everybody who reaches this port may use every AgentPool")
            try:
                yield
            finally:
                self._stopping = True
                _LOG.info("stopping", in_flight=self._roles.total_in_flight())

    async def serve(self, stop: asyncio.Event) -> None:
        """Follows the cluster and serves until `stop` is set. Raises ClusterConfigError."""
        async with connect(self.settings.kubeconfig) as cluster:
            observer = ClusterObserver(
                cluster, self.table, namespaces=self.settings.namespaces, on_publish=self.table_changed
            )
            self._problems = observer.problems
            following = asyncio.create_task(observer.run())
            stopping = asyncio.create_task(stop.wait())
            try:
                async with self.listening():
                    await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if following.done():
                        # It follows for ever unless there is a bug; without it the routing table would be a lie.
                        await following
                    self._stopping = True
                    await asyncio.sleep(self.settings.shutdown_delay)
            finally:
                following.cancel()
                stopping.cancel()

    def table_changed(self) -> None:
        """Call after publishing to `table`: known roles get their metrics, roles that are gone are forgotten."""
        roles = self.table.current.routes.keys()
        self.metrics.keep_roles(roles)
        self.sessions.keep_roles(roles)

    def _proxy(self, engines: Engines) -> Proxy:
        settings = self.settings
        placer = Placer(
            self.table,
            self.sessions,
            self.loads,
            policy=Policy(
                context_weight=settings.context_weight,
                parent_slack_tokens=settings.parent_slack_tokens,
                spill_queue_tokens=settings.spill_queue_tokens,
            ),
            clock=self._clock,
            max_waiting=settings.max_waiting,
            on_move=self.metrics.moved,
        )
        services = Services(
            placer,
            engines,
            self.loads,
            self.metrics,
            self._clock,
            settings.max_attempts,
            settings.client_write_timeout,
        )
        names = HeaderNames(settings.session_headers, settings.parent_session_headers, settings.final_session_headers)
        options = ProxyOptions(
            names,
            settings.forward_headers,
            settings.queue_timeout,
            settings.cache_isolation,
            self.credentials.engine_token,
        )
        access = Access(self.credentials.tenants)
        return Proxy(options, services, self.table, self.sessions, self._roles, access, self.admission)

    async def _listen(
        self, stack: AsyncExitStack, routes: list[web.RouteDef], host: str, port: int, tls: ssl.SSLContext | None
    ) -> int:
        """Serves routes on a port; returns the port. Stopping waits for the handlers that run."""
        settings = self.settings
        app = web.Application(middlewares=[_openai_errors])
        app.add_routes(routes)
        # handler_cancellation: a client that leaves must stop the engine from generating for nobody.
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=settings.shutdown_grace
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        site = ClientSite(
            runner,
            host,
            port,
            most=settings.max_connections,
            idle_seconds=settings.client_idle_timeout,
            write_seconds=settings.client_write_timeout,
            tls=tls,
        )
        await site.start()
        bound: int = runner.addresses[0][1]
        return bound

    async def _expire_sessions(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_SECONDS)
            self.sessions.expire(self._clock())

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        problems = ["stopping"] if self._stopping else self._problems()
        return web.Response(status=503 if problems else 200, text="\n".join(problems or ["ok"]) + "\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        if not self.credentials.may_scrape(request.headers.get("Authorization")):
            return GatewayError(401, "metrics are for those with a token for them", code="invalid_api_key").response()
        self.sessions.expire(self._clock())
        return web.Response(body=generate_latest(self.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


@web.middleware
async def _openai_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Says in the API's own form that there is no such path or method."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        message = (
            f"there is no {request.path}; served are chat/completions, completions and models"
            " under /<namespace>/<agentpool>/v1 and /v1"
        )
        return GatewayError(404, message, code="path_not_found").response()
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.path} does not take {error.method}, but {allowed}"
        return GatewayError(405, message, code="method_not_allowed").response()
