"""The gateway's side of a client's connection: how many there may be, how slow they may be, and errors as JSON."""

import asyncio
import json
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web

from retinue_gateway.errors import GatewayError, error_body

_TLS_HANDSHAKE_SECONDS = 10.0
# How long the rest of a refused body is read and dropped, so that the client sees the answer and no reset.
_LINGERING_SECONDS = 1.0
_BACKLOG = 1024
_LOG = structlog.get_logger(__name__)


class ClientConnection(web.RequestHandler):
    """One connection. What aiohttp itself refuses (broken HTTP, an unknown expectation) is an OpenAI error, too, and a
    client that does not take its answer within `write_seconds` is cut off, because the answer waits in memory."""

    __slots__ = ("_write_seconds",)

    def __init__(self, server: web.Server, *, write_seconds: float, idle_seconds: float) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=idle_seconds,
            lingering_time=_LINGERING_SECONDS,
        )
        self._write_seconds = write_seconds

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called by aiohttp for what is no valid HTTP, and for an exception that a handler did not expect."""
        del request, message  # The latter repeats what was sent.
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _LOG.error("a request failed in the gateway itself", exc_info=exc)
            text, code = "the gateway failed on this request; its log says more", "internal_error"
        else:
            text, code = "this is no valid HTTP/1.1 request, or its head is too large", "invalid_http"
        response = GatewayError(status, text, code=code).response()
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Called by aiohttp to send what is not sent yet."""
        if isinstance(resp, web.HTTPException):
            resp = GatewayError(resp.status, resp.reason, code="http_error").response()
        try:
            async with asyncio.timeout(self._write_seconds):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            cut_off(request)
            return resp, True


class ClientSite(web.BaseSite):
    """Listens on a host and port. A connection beyond `most` gets 503 and is closed, before anything is read."""

    def __init__(
        self,
        runner: web.AppRunner,
        host: str,
        port: int,
        *,
        most: int,
        idle_seconds: float,
        write_seconds: float,
        tls: Any = None,
    ) -> None:
        """tls: an ssl.SSLContext, None for plain HTTP."""
        super().__init__(runner, ssl_context=tls, backlog=_BACKLOG)
        self._host, self._port = host, port
        self._most = most
        self._idle_seconds, self._write_seconds = idle_seconds, write_seconds

    @property
    def name(self) -> str:
        return f"{'https' if self._ssl_context else 'http'}://{self._host}:{self._port}"

    async def start(self) -> None:
        await super().start()
        tls: dict[str, Any] = {}
        if self._ssl_context is not None:
            tls = {"ssl": self._ssl_context, "ssl_handshake_timeout": _TLS_HANDSHAKE_SECONDS}
        self._server = await asyncio.get_running_loop().create_server(
            self._connection, self._host, self._port, backlog=self._backlog, **tls
        )

    def _connection(self) -> asyncio.Protocol:
        server = self._runner.server
        if server is None or len(server.connections) >= self._most:
            return _Refused()
        return ClientConnection(server, write_seconds=self._write_seconds, idle_seconds=self._idle_seconds)


class _Refused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        message = "this gateway has as many connections as it takes: try again"
        body = json.dumps(error_body(HTTPStatus.SERVICE_UNAVAILABLE, message, code="too_many_connections")).encode()
        head = (
            "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
        )
        if isinstance(transport, asyncio.Transport):
            transport.write(head.encode() + body)
        transport.close()


def cut_off(request: web.BaseRequest) -> None:
    """Ends a connection at once; closing it would first wait for a client that does not read."""
    if isinstance(request.transport, asyncio.Transport):
        request.transport.abort()
