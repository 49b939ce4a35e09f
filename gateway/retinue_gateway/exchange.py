"""One request on its way through prefill and decode to the client, with retries until its first token."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from aiohttp import web

from retinue_gateway.admission import ClientGone
from retinue_gateway.calls import Call, Usage, decode_body, prefill_body, read_usage, set_cached_tokens
from retinue_gateway.directory import Instance, Route
from retinue_gateway.errors import GatewayError, error_event
from retinue_gateway.events import EventStream, StreamedError, TooLong
from retinue_gateway.keys import RoleKey, Stage
from retinue_gateway.listening import cut_off
from retinue_gateway.load import LoadBook
from retinue_gateway.metrics import GatewayMetrics
from retinue_gateway.placing import Avoided, Place, Placer
from retinue_gateway.sessions import Session
from retinue_gateway.upstream import (
    Broken,
    Engines,
    Prefilled,
    Retryable,
    RetryReason,
    failure,
    read_json,
    retry_reason,
)

# A request that kills its engine must not be carried to all others.
_MOST_LOST_CONNECTIONS = 3
_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_INSTANCE_HEADER = {Stage.PREFILL: "x-retinue-prefill-instance", Stage.DECODE: "x-retinue-decode-instance"}


@dataclass(frozen=True)
class Services:
    """What every exchange shares. clock: seconds, monotonic; write_seconds: that a client may take for what waits for
    it before it is cut off."""

    placer: Placer
    engines: Engines
    loads: LoadBook[str]
    metrics: GatewayMetrics
    clock: Callable[[], float]
    max_attempts: int
    write_seconds: float = 60.0


@dataclass(frozen=True)
class Order:
    """What a client wants. arrived, deadline: on the services' clock, the latter for waiting for an instance;
    warm_tokens: length of the session's context before this request; headers: for the engines and the answer;
    on_prompt_done: called, perhaps again, when no prefill has to be done for it any more."""

    role: RoleKey
    call: Call
    session: Session | None
    warm_tokens: int
    headers: Mapping[str, str]
    arrived: float
    deadline: float
    on_prompt_done: Callable[[], None]


class Exchange:
    """Runs one order. After `run`: `code` is the status that it counts as, `usage` what the engines reported."""

    def __init__(self, services: Services, order: Order) -> None:
        self._services = services
        self._order = order
        self._metrics = services.metrics.role(order.role)
        self._first_token_at: float | None = None
        self._answer_headers = dict[str, str]()
        self.code: int = HTTPStatus.OK
        self.usage: Usage | None = None

    async def run(self, request: web.Request) -> web.StreamResponse:
        """The answer, already sent if it is a stream. Raises GatewayError, Refused or ClientGone."""
        avoided = Avoided()
        failures: list[Retryable] = []
        while True:
            try:
                return await self._attempt(request, avoided)
            except Retryable as failed:
                failures.append(failed)
            except Broken as broken:
                raise _engine_error(broken) from broken
            self._give_up_or_avoid(failures, avoided)
            self._services.metrics.retried(self._order.role, failures[-1].reason)

    def _give_up_or_avoid(self, failures: list[Retryable], avoided: Avoided) -> None:
        """Decides which instance the next attempt avoids; after enough of them raises what the client is told."""
        last = failures[-1]
        if last.verdict is not None and sum(failed.verdict is not None for failed in failures) > 1:
            # Two engines broke on it: a third would, too, and the client is told why.
            raise _engine_error(last.verdict) if isinstance(last.verdict, Broken) else last.verdict
        lost = sum(failed.reason is RetryReason.CONNECTION_LOST for failed in failures)
        if len(failures) >= self._services.max_attempts or lost > _MOST_LOST_CONNECTIONS:
            raise GatewayError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"no instance could serve the request in {len(failures)} attempts; the last: {last}",
                code="attempts_exhausted",
                retry_after=1,
            ) from last
        # The first of these says little about the instance: an idle connection was closed under our request, or the KV
        # expired on the prefill side. Going elsewhere would throw away the session's cache for it.
        first = sum(failed.reason is last.reason for failed in failures) == 1
        lenient = last.reason in (RetryReason.CONNECTION_LOST, RetryReason.KV_TRANSFER_FAILED)
        if not (lenient and first):
            avoided.uids.add(last.instance.uid)

    async def _attempt(self, request: web.Request, avoided: Avoided) -> web.StreamResponse:
        order, services = self._order, self._services
        route = await services.placer.wait_route(order.role, avoided, order.deadline)
        prefilled = await self._prefill(route, avoided) if route.disaggregated else None
        if prefilled is not None:
            route = await services.placer.wait_route(order.role, avoided, order.deadline)
        place = self._place(route, Stage.DECODE, avoided)
        params = prefilled.kv_transfer_params if prefilled else None
        body = decode_body(order.call, route.model, params)
        started = services.clock()
        stage = "prefill" if prefilled is None else "decode_first_token"
        tokens = self._cold_tokens(place) if prefilled is None else 0
        with services.loads.enter(place.instance.uid, tokens) as ticket:

            def first_token() -> None:
                ticket.prompt_done()
                now = services.clock()
                self._metrics.stage[stage].observe(now - started)
                self._metrics.time_to_first_token.observe(now - order.arrived)
                self._first_token_at = now
                order.on_prompt_done()

            async with services.engines.open(place.instance, order.call.endpoint, body, order.headers) as upstream:
                cached = prefilled.cached_tokens if prefilled else None
                if order.call.stream:
                    return await self._stream(request, place.instance, upstream, cached, first_token)
                return await self._whole(place.instance, upstream, cached)

    async def _prefill(self, route: Route, avoided: Avoided) -> Prefilled:
        order, services = self._order, self._services
        place = self._place(route, Stage.PREFILL, avoided)
        started = services.clock()
        with services.loads.enter(place.instance.uid, self._cold_tokens(place)):
            prefilled = await services.engines.prefill(
                place.instance, order.call.endpoint, prefill_body(order.call, route.model), order.headers
            )
        self._metrics.stage["prefill"].observe(services.clock() - started)
        # What is left before the first token, the transfer and a place in decode, is no work for prefill.
        order.on_prompt_done()
        return prefilled

    def _place(self, route: Route, stage: Stage, avoided: Avoided) -> Place:
        place = self._services.placer.place(route, stage, self._order.session, avoided)
        self._answer_headers[_INSTANCE_HEADER[stage]] = place.instance.name
        return place

    def _cold_tokens(self, place: Place) -> int:
        """Prompt tokens that the instance probably has to compute. A prompt shorter than the context before it was
        compacted, and shares little with it."""
        prompt, warm = self._order.call.prompt_tokens, self._order.warm_tokens
        return prompt - warm if place.warm and prompt >= warm else prompt

    async def _whole(
        self, instance: Instance, upstream: aiohttp.ClientResponse, cached: int | None
    ) -> web.StreamResponse:
        answer = await read_json(instance, upstream)
        usage = answer.get("usage")
        if isinstance(usage, dict) and cached is not None:
            set_cached_tokens(usage, cached)
        answer.pop("kv_transfer_params", None)
        self.usage = read_usage(usage)
        return web.json_response(answer, headers=self._headers())

    async def _stream(
        self,
        request: web.Request,
        instance: Instance,
        upstream: aiohttp.ClientResponse,
        cached: int | None,
        first_token: Callable[[], None],
    ) -> web.StreamResponse:
        events = EventStream(wants_usage=self._order.call.wants_usage, cached_tokens=cached)
        response = web.StreamResponse(headers=self._headers() | _STREAM_HEADERS)
        response.content_type = upstream.content_type
        last_token_at = self._services.clock()
        while True:
            try:
                data = await upstream.content.readany()
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                broken = failure(instance, error)
                if not events.first_token:
                    raise broken from error
                await self._break_off(request, response, str(broken))
                break
            if not data:
                break
            try:
                passed = events.feed(data)
            except StreamedError as error:
                reason = retry_reason(0, error.code)
                if reason is not None:
                    raise Retryable(reason, instance, error.message) from error
                raise Broken(instance, error.message) from error
            except TooLong as error:
                if not events.first_token:
                    raise Broken(instance, str(error)) from error
                await self._break_off(request, response, f"{instance.name}: {error}")
                break
            if events.first_token:
                last_token_at = self._services.clock()
                if self._first_token_at is None:
                    first_token()
                if passed:
                    await self._write(request, response, passed)
        if self.code == HTTPStatus.OK:
            await self._write(request, response, events.close())
            if not events.done:
                await self._break_off(request, response, f"{instance.name} ended its answer before it was complete")
        self.usage = events.usage
        self._observe_pace(last_token_at)
        await self._to_client(request, response.write_eof())
        return response

    async def _break_off(self, request: web.Request, response: web.StreamResponse, message: str) -> None:
        """Tells the client that the rest will not come: a stream that just stops looks complete to some clients."""
        self.code = HTTPStatus.BAD_GATEWAY
        await self._write(request, response, error_event(self.code, message, code="stream_broken"))

    async def _write(self, request: web.Request, response: web.StreamResponse, data: bytes) -> None:
        if not response.prepared:
            await self._to_client(request, response.prepare(request))
        await self._to_client(request, response.write(data))

    async def _to_client(self, request: web.Request, writing: Awaitable[object]) -> None:
        """A write to the client; its failure must not be taken for the engine's."""
        try:
            async with asyncio.timeout(self._services.write_seconds):
                await writing
        except TimeoutError as error:
            cut_off(request)
            raise ClientGone from error
        except (ConnectionError, aiohttp.ClientConnectionError) as error:
            raise ClientGone from error

    def _observe_pace(self, last_token_at: float) -> None:
        if self._first_token_at is not None and self.usage is not None and self.usage.completion > 1:
            seconds = last_token_at - self._first_token_at
            self._metrics.time_per_output_token.observe(seconds / (self.usage.completion - 1))

    def _headers(self) -> dict[str, str]:
        return self._answer_headers | {"x-request-id": self._order.headers["x-request-id"]}


def _engine_error(broken: Broken) -> GatewayError:
    status = HTTPStatus.GATEWAY_TIMEOUT if broken.timed_out else HTTPStatus.BAD_GATEWAY
    return GatewayError(status, str(broken), code="engine_error")
