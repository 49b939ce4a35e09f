"""The OpenAI endpoints: from a client's request to an exchange, and the account of how it ended."""

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import structlog
from aiohttp import web

from retinue_gateway.admission import Admission, ClientGone, Place
from retinue_gateway.callers import Access, CacheIsolation, Caller, cache_salt
from retinue_gateway.calls import Call, Endpoint, parse_call, with_cache_salt
from retinue_gateway.directory import AgentPoolRoutes, Route
from retinue_gateway.errors import GatewayError, unknown
from retinue_gateway.exchange import Exchange, Order, Services
from retinue_gateway.headers import LONGEST_FORWARDED, LONGEST_ID, checked
from retinue_gateway.identity import HeaderNames, Identity, identify
from retinue_gateway.keys import PoolKey, RoleKey, SessionKey
from retinue_gateway.load import LoadBook, Ticket
from retinue_gateway.metrics import GatewayMetrics
from retinue_gateway.sessions import Session, SessionTable
from retinue_gateway.table import RoutingTable
from retinue_gateway.upstream import Refused

POOL_HEADER = "x-retinue-agent-pool"
_CLIENT_CLOSED_REQUEST = 499
_LOG = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ProxyOptions:
    """forward_headers: lower-case names that engines get too; queue_timeout: seconds that a request may wait;
    engine_token: what the gateway authenticates itself with at engines, None for nothing."""

    header_names: HeaderNames
    forward_headers: tuple[str, ...]
    queue_timeout: float
    cache_isolation: CacheIsolation
    engine_token: Callable[[], str | None]


class Proxy:
    """Handlers of the OpenAI endpoints, under /{namespace}/{agentpool}/v1 and under /v1."""

    def __init__(
        self,
        options: ProxyOptions,
        services: Services,
        table: RoutingTable,
        sessions: SessionTable,
        roles: LoadBook[RoleKey],
        access: Access,
        admission: Admission,
    ) -> None:
        self._options = options
        self._services = services
        self._table = table
        self._sessions = sessions
        self._roles = roles
        self._access = access
        self._admission = admission
        self._forwarded = options.header_names.all | frozenset((*options.forward_headers, "x-request-id"))

    @property
    def _metrics(self) -> GatewayMetrics:
        return self._services.metrics

    def routes(self) -> list[web.RouteDef]:
        """All routes; the bare ones need a header, or there to be one AgentPool only."""
        return [
            route
            for prefix in ("", "/{namespace}/{agent_pool}")
            for route in (
                web.post(f"{prefix}/v1/chat/completions", self.chat),
                web.post(f"{prefix}/v1/completions", self.completions),
                web.get(f"{prefix}/v1/models", self.models),
                web.get(f"{prefix}/v1/models/{{model:.+}}", self.model),
            )
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, Endpoint.CHAT)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, Endpoint.COMPLETIONS)

    async def models(self, request: web.Request) -> web.StreamResponse:
        try:
            pool = await self._pool(request, self._access.caller(request.headers))
        except GatewayError as error:
            return self._reject(error)
        return web.json_response({"object": "list", "data": [_model(pool, route) for route in pool.roles]})

    async def model(self, request: web.Request) -> web.StreamResponse:
        try:
            pool = await self._pool(request, self._access.caller(request.headers))
            return web.json_response(_model(pool, _find_role(pool, request.match_info["model"])))
        except GatewayError as error:
            return self._reject(error)

    async def _complete(self, request: web.Request, endpoint: Endpoint) -> web.StreamResponse:
        arrived = self._services.clock()
        try:
            caller = self._access.caller(request.headers)
            pool = await self._pool(request, caller)
            with self._admission.enter(caller.share(pool.key.namespace)) as place:
                return await self._admitted(request, endpoint, arrived, caller, pool, place)
        except GatewayError as error:
            return self._reject(error)
        except ClientGone:
            return web.Response(status=_CLIENT_CLOSED_REQUEST)

    async def _admitted(
        self,
        request: web.Request,
        endpoint: Endpoint,
        arrived: float,
        caller: Caller,
        pool: AgentPoolRoutes,
        place: Place,
    ) -> web.StreamResponse:
        """Raises GatewayError or ClientGone as long as the role is not known."""
        identity = identify(request.headers, self._options.header_names)
        headers = self._engine_headers(request)
        call = parse_call(endpoint, await place.read_body(request))
        salt = cache_salt(self._options.cache_isolation, caller, pool.key.namespace, call.body.get("cache_salt"))
        call = with_cache_salt(call, salt)
        role = _find_role(pool, call.model).key
        self._metrics.role(role).started.inc()
        with self._roles.enter(role, call.prompt_tokens) as ticket:
            warm, session = self._begin(SessionKey(role, identity.session or "", caller.session_scope), identity, call)
            order = self._order(headers, role, call, session, warm, arrived, ticket)
            exchange = Exchange(self._services, order)
            code: int = HTTPStatus.INTERNAL_SERVER_ERROR
            try:
                response = await exchange.run(request)
                code = exchange.code
                return response
            except GatewayError as error:
                code = error.status
                return error.response()
            except Refused as refused:
                code = refused.status
                return web.Response(status=refused.status, body=refused.body, content_type=refused.content_type)
            except ClientGone:
                code = _CLIENT_CLOSED_REQUEST
                return web.Response(status=code)
            except asyncio.CancelledError:
                code = _CLIENT_CLOSED_REQUEST
                raise
            finally:
                self._account(order, exchange, code)

    def _begin(self, key: SessionKey, identity: Identity, call: Call) -> tuple[int, Session | None]:
        """The length of the session's context until now, and the session."""
        if identity.session is None:
            return 0, None
        known = self._sessions.get(key)
        warm = known.context_tokens if known else 0
        session = self._sessions.begin(
            key,
            parent=identity.parent,
            context_tokens=call.prompt_tokens,
            final=identity.final,
            now=self._services.clock(),
        )
        return warm, session

    def _engine_headers(self, request: web.Request) -> dict[str, str]:
        """What engines get of the client's headers, and their own. Raises GatewayError 400."""
        found = {name: checked(request.headers, name, LONGEST_FORWARDED) for name in self._forwarded}
        headers = {name: value for name, value in found.items() if value is not None}
        headers.setdefault("x-request-id", uuid.uuid4().hex)
        token = self._options.engine_token()
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return headers | {"content-type": "application/json", "accept-encoding": "identity"}

    def _order(
        self,
        headers: dict[str, str],
        role: RoleKey,
        call: Call,
        session: Session | None,
        warm: int,
        arrived: float,
        ticket: Ticket[RoleKey],
    ) -> Order:
        return Order(
            role=role,
            call=call,
            session=session,
            warm_tokens=warm,
            headers=headers,
            arrived=arrived,
            deadline=arrived + self._options.queue_timeout,
            on_prompt_done=ticket.prompt_done,
        )

    def _account(self, order: Order, exchange: Exchange, code: int) -> None:
        now, usage = self._services.clock(), exchange.usage
        metrics = self._metrics.role(order.role) if order.role in self._table.current.routes else None
        self._metrics.ended(order.role, code)
        if metrics is not None:
            metrics.stage["total"].observe(now - order.arrived)
            if usage is not None:
                metrics.prompt_tokens.inc(usage.prompt)
                metrics.cached_tokens.inc(usage.cached or 0)
                metrics.completion_tokens.inc(usage.completion)
        if order.session is not None:
            length = None if usage is None else usage.prompt + usage.completion
            self._sessions.end(order.session, context_tokens=length, now=now)
        level = _LOG.warning if code >= HTTPStatus.INTERNAL_SERVER_ERROR else _LOG.debug
        level(
            "request",
            role=str(order.role),
            code=int(code),
            request_id=order.headers["x-request-id"],
            session=order.session.key.id if order.session else None,
            seconds=round(now - order.arrived, 3),
        )

    def _reject(self, error: GatewayError) -> web.Response:
        self._metrics.rejected(error.code)
        return error.response()

    async def _pool(self, request: web.Request, caller: Caller) -> AgentPoolRoutes:
        """The AgentPool that a request is for, among those that the caller may know of. Raises GatewayError."""
        await self._wait_synced()
        pools = {key: pool for key, pool in self._table.current.pools.items() if caller.may_use(key.namespace)}
        names = [str(key) for key in pools]
        if "agent_pool" in request.match_info:
            key = PoolKey(request.match_info["namespace"], request.match_info["agent_pool"])
        elif (named := checked(request.headers, POOL_HEADER, LONGEST_ID)) is not None:
            namespace, _, name = named.partition("/")
            key = PoolKey(namespace, name)
        elif len(pools) == 1:
            return next(iter(pools.values()))
        else:
            raise unknown_pool(names)
        if key not in pools:
            raise unknown("AgentPool", str(key), names, code="agent_pool_not_found")
        return pools[key]

    async def _wait_synced(self) -> None:
        deadline = self._services.clock() + self._options.queue_timeout
        while not self._table.synced:
            left = deadline - self._services.clock()
            if left <= 0 or not await self._table.wait_change(left):
                raise GatewayError(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "the gateway has not read the cluster's AgentPools and pods yet",
                    code="not_ready",
                    retry_after=1,
                )


def unknown_pool(known: list[str]) -> GatewayError:
    """For a request that names no AgentPool where one must be named."""
    listed = ", ".join(known) if known else "none"
    return GatewayError(
        HTTPStatus.NOT_FOUND,
        f"name an AgentPool: use the base URL /<namespace>/<agentpool>/v1 or the header {POOL_HEADER}:"
        f" <namespace>/<agentpool>; known: {listed}",
        code="agent_pool_not_named",
    )


def _model(pool: AgentPoolRoutes, route: Route) -> dict[str, object]:
    return {
        "id": route.key.role,
        "object": "model",
        "created": pool.created,
        "owned_by": str(pool.key),
        "root": route.model,
    }


def _find_role(pool: AgentPoolRoutes, model: str) -> Route:
    route = pool.find(model)
    if route is None:
        names = {route.key.role for route in pool.roles} | {route.model for route in pool.roles if route.model}
        raise unknown(f"role or model in AgentPool {pool.key}", model, names, code="model_not_found", param="model")
    return route
