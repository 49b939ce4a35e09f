"""HTTP to the engines: one prefill, one decode request, and what their failures mean."""

import io
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import aiohttp

from retinue_gateway.calls import Endpoint, read_usage
from retinue_gateway.directory import Instance

KV_TRANSFER_FAILED = "kv_transfer_failed"
# Engines behind uvicorn close an idle connection after 5 s; one that we keep longer would fail under the next request.
_KEEP_ALIVE_SECONDS = 4.0
# An answer of 128K tokens is half a megabyte; with the log probabilities of many alternatives it can be much more.
_LARGEST_ANSWER = 2**26
# An engine may be silent for minutes while it computes, so silence proves nothing; a node that has vanished answers no
# probes either. After so many seconds of silence it is probed, so often; without an answer the connection breaks.
_PROBE_AFTER_SECONDS, _PROBE_SECONDS, _PROBES = 10, 5, 3


class RetryReason(StrEnum):
    """Why a request was sent again."""

    CONNECT_FAILED = "connect_failed"
    CONNECTION_LOST = "connection_lost"
    UNAVAILABLE = "unavailable"
    ENGINE_ERROR = "engine_error"
    KV_TRANSFER_FAILED = "kv_transfer_failed"


@dataclass(eq=False)
class Refused(Exception):
    """The engine answered with an error that is the client's to see."""

    status: int
    content_type: str
    body: bytes


@dataclass(eq=False)
class Broken(Exception):
    """The engine answered with something that is not the protocol, or not at all in time."""

    instance: Instance
    detail: str
    timed_out: bool = False

    def __str__(self) -> str:
        return f"{self.instance.name}: {self.detail}"


@dataclass(eq=False)
class Retryable(Exception):
    """An attempt failed before its first token, and another may succeed. verdict: what to raise if it does not."""

    reason: RetryReason
    instance: Instance
    detail: str
    verdict: Refused | Broken | None = None

    def __str__(self) -> str:
        return f"{self.instance.name}: {self.detail}"


@dataclass(frozen=True)
class Prefilled:
    """kv_transfer_params: for the decode engine, as the prefill engine gave them; cached_tokens: its own number."""

    kv_transfer_params: dict[str, Any]
    prompt_tokens: int | None
    cached_tokens: int | None


def open_session(connect_timeout: float, idle_timeout: float) -> aiohttp.ClientSession:
    """The one client session of a gateway: keep-alive, no limit on connections, no limit on a request's total time."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS, socket_factory=_socket_that_notices
        ),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=idle_timeout),
        auto_decompress=True,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=2**16,
    )


def _socket_that_notices(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket whose connection breaks within half a minute when the other machine is gone without a word."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # Linux
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
        # For what was sent and is not acknowledged, which probes do not cover.
        limit = _PROBE_AFTER_SECONDS + _PROBE_SECONDS * _PROBES
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit * 1000)
    return made


class Engines:
    """Sends requests to engine instances."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def prefill(
        self, instance: Instance, endpoint: Endpoint, body: bytes, headers: Mapping[str, str]
    ) -> Prefilled:
        """Raises Retryable, Refused or Broken."""
        async with self.open(instance, endpoint, body, headers) as response:
            answer = await read_json(instance, response)
        params = answer.get("kv_transfer_params")
        if not isinstance(params, dict):
            raise Broken(instance, "the prefill engine answered without kv_transfer_params: is its KV connector on?")
        usage = read_usage(answer.get("usage"))
        return Prefilled(params, usage.prompt if usage else None, (usage.cached or 0) if usage else None)

    @asynccontextmanager
    async def open(
        self, instance: Instance, endpoint: Endpoint, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The engine's answer, with status 200 and nothing of its body read yet. Leaving early closes the connection,
        which is how an engine learns that nobody waits for its tokens. Raises Retryable, Refused or Broken."""
        try:
            # No redirects: an engine's image is a tenant's, and the gateway reaches what the tenant does not.
            response = await self._session.post(
                f"{instance.url}{endpoint}", data=io.BytesIO(body), headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise failure(instance, error) from error
        try:
            if response.status != 200:
                await _raise_for_status(instance, response)
            yield response
        finally:
            # close() and not release(): what is unread must not be awaited; a fully read connection is back already.
            response.close()


def failure(instance: Instance, error: Exception) -> Retryable | Broken:
    """What a client error before the first token means."""
    detail = str(error) or type(error).__name__
    if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
        return Retryable(RetryReason.CONNECT_FAILED, instance, f"cannot connect: {detail}")
    if isinstance(error, TimeoutError):
        return Broken(instance, "nothing came from the engine in time", timed_out=True)
    if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)):
        return Retryable(RetryReason.CONNECTION_LOST, instance, f"the connection broke: {detail}")
    return Broken(instance, detail)


async def read_json(instance: Instance, response: aiohttp.ClientResponse) -> dict[str, Any]:
    """The whole answer as an object."""
    try:
        answer = json.loads(await _read(instance, response))
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise failure(instance, error) from error
    except (ValueError, RecursionError) as error:
        raise Broken(instance, f"the engine's answer is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise Broken(instance, "the engine's answer is not a JSON object")
    return answer


async def _read(instance: Instance, response: aiohttp.ClientResponse) -> bytes:
    """The answer's body. Engines run images that tenants chose, so its size is limited, too. Raises Broken."""
    chunks: list[bytes] = []
    size = 0
    while chunk := await response.content.readany():
        size += len(chunk)
        if size > _LARGEST_ANSWER:
            raise Broken(instance, f"the engine's answer is larger than {_LARGEST_ANSWER} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def retry_reason(status: int, code: str) -> RetryReason | None:
    """The reason to try again after an error that an engine reported, or None if it would be no use."""
    if code == KV_TRANSFER_FAILED:
        return RetryReason.KV_TRANSFER_FAILED
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return RetryReason.UNAVAILABLE
    return RetryReason.ENGINE_ERROR if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None


async def _raise_for_status(instance: Instance, response: aiohttp.ClientResponse) -> None:
    try:
        body = await _read(instance, response)
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        raise failure(instance, error) from error
    code, message = _error(body)
    verdict: Refused | Broken
    if response.content_type == "application/json" and response.status >= HTTPStatus.BAD_REQUEST:
        verdict = Refused(response.status, response.content_type, body)
    else:
        verdict = Broken(instance, f"HTTP {response.status}: {body[:200].decode(errors='replace')}")
    reason = retry_reason(response.status, code)
    if reason is None:
        raise verdict
    detail = message or f"HTTP {response.status}"
    raise Retryable(reason, instance, detail, verdict if reason is RetryReason.ENGINE_ERROR else None)


def _error(body: bytes) -> tuple[str, str]:
    """Code and message of an OpenAI error object; engines also send the object without the wrapping `error`."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    error = found.get("error", found) if isinstance(found, dict) else None
    if not isinstance(error, dict):
        return "", ""
    return str(error.get("code") or ""), str(error.get("message") or "")
