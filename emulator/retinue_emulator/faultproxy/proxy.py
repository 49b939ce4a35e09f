"""The proxy itself: takes HTTP or HTTPS, asks the server behind it, and lets the faults of its program happen."""

import asyncio
import contextlib
import datetime
import email.utils
import json
import random
import socket
import ssl
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from ..loopback.ports import HOST, pick_ports
from .eventstream import EventStream
from .faults import (
    Delay,
    Fault,
    HalfBody,
    Hold,
    LateAnswer,
    LostAnswer,
    Meet,
    Refuse,
    Request,
    Reset,
    Rule,
    Silence,
    SkewedDate,
    first_to_strike,
)

_HOP_BY_HOP = frozenset({"host", "connection", "keep-alive", "transfer-encoding", "content-length", "upgrade"})
_REMEMBERED = 100_000


@dataclass(frozen=True)
class Seen:
    """One request that came in: its time (monotonic seconds), and the fault that struck it at its beginning, if any."""

    time: float
    request: Request
    fault: Fault | None


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


class FaultProxy:
    """`async with FaultProxy("https://127.0.0.1:6443", serve=context, trust=context) as proxy:` serves on `proxy.url`.

    serve: the certificate that clients see, None for plain HTTP. trust: whom the server's certificate must be from.
    `program` may be changed at any time; running watches obey the new one from their next event on.
    """

    def __init__(
        self,
        upstream: str,
        *,
        serve: ssl.SSLContext | None = None,
        trust: ssl.SSLContext | None = None,
        seed: int = 0,
    ) -> None:
        self.program: list[Rule] = []
        self.seen: deque[Seen] = deque(maxlen=_REMEMBERED)
        self._upstream = upstream.rstrip("/")
        self._serve = serve
        self._trust = trust
        self._chance = random.Random(seed)
        self._port = 0
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._held: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"{'http' if self._serve is None else 'https'}://{HOST}:{self._port}"

    def inject(self, fault: Fault, matches: Callable[[Request], bool] = lambda _: True, **how: Any) -> Rule:
        """Adds a rule at the front of the program and returns it; `how` is its share and times."""
        rule = Rule(fault, matches, **how)
        self.program.insert(0, rule)
        return rule

    def calm(self) -> None:
        """Nothing goes wrong from now on; what is silent stays so."""
        self.program.clear()

    def count(self, matches: Callable[[Request], bool] = lambda _: True, since: float = float("-inf")) -> int:
        """How many matching requests came since that moment (time.monotonic)."""
        return sum(1 for seen in self.seen if seen.time >= since and matches(seen.request))

    def tally(self, since: float = float("-inf")) -> Counter[str]:
        """Requests since that moment by method, with watches apart."""
        return Counter(
            "WATCH" if seen.request.watch else seen.request.method for seen in self.seen if seen.time >= since
        )

    async def start(self) -> None:
        """Begins to serve."""
        connector = aiohttp.TCPConnector(limit=0, ssl=self._trust if self._trust is not None else True)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=2**21,
        )
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        # A client that goes takes its request to the server with it, as without a proxy.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        (self._port,) = pick_ports(1)
        await web.TCPSite(self._runner, HOST, self._port, ssl_context=self._serve, reuse_address=True).start()

    async def stop(self) -> None:
        """Ends all connections."""
        for task in self._held:
            task.cancel()
        await asyncio.gather(*self._held, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- one exchange -------------------------------------------------------------------------------------------------

    async def _handle(self, incoming: web.Request) -> web.StreamResponse:
        body = await incoming.read()
        request = Request(
            incoming.method,
            incoming.path,
            incoming.query_string,
            incoming.headers.get("User-Agent", ""),
            incoming.query.get("watch") in ("true", "1"),
        )
        fault = first_to_strike(self.program, request, self._chance, on_event=False)
        self.seen.append(Seen(time.monotonic(), request, fault))
        match fault:
            case Reset():
                return self._reset(incoming)
            case Refuse():
                return _refusal(fault)
            case Silence():
                await asyncio.Event().wait()
            case Delay():
                await asyncio.sleep(fault.seconds)
            case Meet() if not fault.answered:
                fault.action(request)
            case Hold():
                return await self._hold(fault, incoming, body)
        try:
            if request.watch:
                return await self._stream(incoming, request)
            return await self._answer(incoming, request, fault, await self._ask(incoming, body))
        except aiohttp.ClientError:
            # The server is gone: so is the connection, as without a proxy.
            return self._reset(incoming)

    async def _ask(self, incoming: web.Request, body: bytes) -> _Answer:
        async with self._request(incoming, body) as answer:
            return _Answer(answer.status, _kept(answer.headers.items()), await answer.read())

    async def _hold(self, fault: Hold, incoming: web.Request, body: bytes) -> web.StreamResponse:
        async def deliver() -> _Answer:
            await fault.released.wait()
            return await self._ask(incoming, body)

        task = asyncio.create_task(deliver())
        self._held.add(task)
        task.add_done_callback(self._held.discard)
        # The client may go meanwhile; what the network has, it delivers.
        return _response(await asyncio.shield(task))

    async def _answer(
        self, incoming: web.Request, request: Request, fault: Fault | None, answer: _Answer
    ) -> web.StreamResponse:
        match fault:
            case LostAnswer():
                return self._reset(incoming)
            case LateAnswer():
                await asyncio.sleep(fault.seconds)
            case Meet() if fault.answered:
                fault.action(request)
            case HalfBody():
                response = web.StreamResponse(status=answer.status)
                response.headers.extend(answer.headers)
                response.content_length = len(answer.body)
                await response.prepare(incoming)
                await response.write(answer.body[: len(answer.body) // 2])
                return self._reset(incoming)
            case SkewedDate():
                then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=fault.seconds)
                dated = [(name, value) for name, value in answer.headers if name.lower() != "date"]
                dated.append(("Date", email.utils.format_datetime(then, usegmt=True)))
                return _response(_Answer(answer.status, dated, answer.body))
        return _response(answer)

    async def _stream(self, incoming: web.Request, request: Request) -> web.StreamResponse:
        async with self._request(incoming, b"") as answer:
            response = web.StreamResponse(status=answer.status)
            response.headers.extend(_kept(answer.headers.items()))
            await response.prepare(incoming)
            events = EventStream()
            async for line in answer.content:
                fault = first_to_strike(self.program, request, self._chance, on_event=True)
                if isinstance(fault, Silence):
                    # Also when the server ends the stream: the client is not to notice anything.
                    await asyncio.Event().wait()
                for text in events.passed(line, fault):
                    await response.write(text)
                if isinstance(fault, HalfBody):
                    return self._reset(incoming)
                if events.ended:
                    break
            await response.write_eof()
            return response

    def _request(self, incoming: web.Request, body: bytes) -> Any:
        assert self._session is not None
        return self._session.request(
            incoming.method,
            self._upstream + incoming.raw_path,
            headers=[(name, value) for name, value in incoming.headers.items() if name.lower() not in _HOP_BY_HOP],
            data=body or None,
            allow_redirects=False,
        )

    def _reset(self, incoming: web.Request) -> web.StreamResponse:
        transport = incoming.transport
        if transport is not None:
            raw = transport.get_extra_info("socket")
            if raw is not None:
                with contextlib.suppress(OSError):
                    # Closing then sends RST in place of FIN.
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        # Nobody will read this; a handler must return something.
        return web.Response(status=500)


def _kept(headers: Any) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP]


def _response(answer: _Answer) -> web.Response:
    return web.Response(status=answer.status, body=answer.body, headers=CIMultiDict(answer.headers))


def _refusal(fault: Refuse) -> web.Response:
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": fault.message,
        "reason": "Conflict" if fault.status == 409 else "InternalError",
        "code": fault.status,
    }
    return web.Response(
        status=fault.status, headers=headers, body=json.dumps(status).encode(), content_type="application/json"
    )
