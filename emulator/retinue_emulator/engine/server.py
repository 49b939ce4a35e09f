"""The engine's HTTP surface: OpenAI completions with streaming, health, metrics, and the KV pull."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from retinue_emulator.engine.prompts import ApiError, Call, parse_call
from retinue_emulator.engine.request import FinishReason, Phase, SimRequest

if TYPE_CHECKING:
    from retinue_emulator.engine.engine import SimulatedEngine

_MAX_BODY = 64 * 2**20
_WORD = " token"


def engine_app(engine: SimulatedEngine) -> web.Application:
    """The application of one engine; a follower rank gets health and metrics only."""
    handlers = _Handlers(engine)
    app = web.Application(client_max_size=_MAX_BODY)
    app.router.add_get("/health", handlers.health)
    app.router.add_get("/metrics", handlers.metrics)
    if engine.config.rank == 0:
        app.router.add_get("/v1/models", handlers.models)
        app.router.add_post("/v1/chat/completions", handlers.chat)
        app.router.add_post("/v1/completions", handlers.completion)
        app.router.add_get("/internal/kv/{request_id}", handlers.pull)
    return app


class _Handlers:
    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._created = int(time.time())

    async def health(self, _: web.Request) -> web.Response:
        if self._engine.draining or not self._engine.ready.is_set():
            return _unavailable(self._engine.draining)
        return web.Response()

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._engine.metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def models(self, _: web.Request) -> web.Response:
        if not self._engine.ready.is_set():
            return _unavailable(self._engine.draining)
        config = self._engine.config
        entry = {
            "id": config.served_model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "retinue",
            "root": config.shape.model.name,
            "max_model_len": config.context_window,
        }
        return web.json_response({"object": "list", "data": [entry]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, chat=True)

    async def completion(self, request: web.Request) -> web.StreamResponse:
        return await self._complete(request, chat=False)

    async def pull(self, request: web.Request) -> web.Response:
        try:
            seconds = float(request.query.get("seconds", "0"))
        except ValueError:
            return web.json_response({"error": "seconds must be a number"}, status=400)
        tokens = await self._engine.held.pull(request.match_info["request_id"], seconds)
        if tokens is None:
            return web.json_response({"error": "no KV is held for this request"}, status=404)
        return web.json_response({"num_tokens": tokens, "remote_engine_id": self._engine.engine_id})

    async def _complete(self, http: web.Request, *, chat: bool) -> web.StreamResponse:
        engine = self._engine
        if engine.draining or not engine.ready.is_set():
            return _unavailable(engine.draining)
        try:
            call = parse_call(
                await _body(http),
                chat=chat,
                model=engine.config.served_model_name,
                context_window=engine.config.context_window,
            )
            request = engine.submit(call, f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}")
        except ApiError as error:
            return web.json_response(error.body, status=error.status)
        answer = _Answer(engine, request, call, chat)
        try:
            return await (answer.stream(http) if call.stream else answer.whole())
        finally:
            if request.phase is not Phase.DONE:
                engine.abort(request)


class _Answer:
    """The response to one request, streamed or whole."""

    def __init__(self, engine: SimulatedEngine, request: SimRequest, call: Call, chat: bool) -> None:
        self._engine = engine
        self._request = request
        self._call = call
        self._chat = chat
        self._head = {
            "id": request.id,
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": engine.config.served_model_name,
        }

    async def whole(self) -> web.Response:
        """One JSON object, when the last token is there."""
        request = self._request
        while request.phase is not Phase.DONE:
            await self._progress()
        if request.finished is not FinishReason.LENGTH:
            return self._failure()
        text = _WORD * request.generated
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "logprobs": None}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        body: dict[str, Any] = {**self._head, "choices": [choice], "usage": self._usage()}
        if self._call.hold_kv:
            body["kv_transfer_params"] = {
                "do_remote_prefill": True,
                "do_remote_decode": False,
                "remote_engine_id": self._engine.engine_id,
                "remote_host": self._engine.advertised,
                "remote_port": self._engine.port,
                "remote_request_id": request.id,
                "num_tokens": request.prompt_tokens,
            }
        return web.json_response(body)

    async def stream(self, http: web.Request) -> web.StreamResponse:
        """Server-sent events; tokens that appeared together share a chunk. Headers go out with the first token."""
        request = self._request
        while request.generated == 0 and request.phase is not Phase.DONE:
            await self._progress()
        if request.generated == 0:
            return self._failure()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        response.headers["X-Request-Id"] = http.headers.get("X-Request-Id", request.id)
        await response.prepare(http)
        before, after, last = self._frames()
        sent = 0
        while True:
            over = request.phase is Phase.DONE
            new = request.generated - sent
            sent += new
            if over:
                break
            if new:
                await response.write(before + (_WORD * new).encode() + after)
            await self._progress()
        if request.finished is not FinishReason.LENGTH:
            # Cut without [DONE]: the client must not take a broken answer for a complete one.
            if http.transport is not None:
                http.transport.close()
            return response
        tail = before + (_WORD * new).encode() + last
        if self._call.include_usage:
            usage: dict[str, Any] = {
                **self._head,
                "object": self._chunk_object(),
                "choices": [],
                "usage": self._usage(),
            }
            tail += b"data: " + json.dumps(usage).encode() + b"\n\n"
        await response.write(tail + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _progress(self) -> None:
        await self._request.changed.wait()
        self._request.changed.clear()

    def _chunk_object(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _frames(self) -> tuple[bytes, bytes, bytes]:
        """A chunk before its text, after it, and after the last text; made once, because there are many chunks."""
        head = json.dumps({**self._head, "object": self._chunk_object()})[:-1]
        if self._chat:
            before = f'data: {head}, "choices": [{{"index": 0, "delta": {{"role": "assistant", "content": "'
            close = '"}, "logprobs": null, "finish_reason": '
        else:
            before = f'data: {head}, "choices": [{{"index": 0, "text": "'
            close = '", "logprobs": null, "finish_reason": '
        return before.encode(), f"{close}null}}]}}\n\n".encode(), f'{close}"length"}}]}}\n\n'.encode()

    def _usage(self) -> dict[str, Any]:
        request = self._request
        return {
            "prompt_tokens": request.prompt_tokens,
            "completion_tokens": request.generated,
            "total_tokens": request.prompt_tokens + request.generated,
            "prompt_tokens_details": {"cached_tokens": request.cached_tokens},
        }

    def _failure(self) -> web.Response:
        message = self._request.error
        if message is not None:
            return _error(503, f"KV transfer failed: {message}", "kv_transfer_failed")
        return _unavailable(draining=True)


async def _body(http: web.Request) -> Mapping[str, Any]:
    try:
        body = json.loads(await http.read())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is no JSON: {error}", "BadRequestError") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object", "BadRequestError")
    return body


def _unavailable(draining: bool) -> web.Response:
    if draining:
        return _error(503, "The engine is shutting down.", "draining")
    return _error(503, "The engine is loading the model.", "not_ready")


def _error(status: int, message: str, code: str) -> web.Response:
    body = {"error": {"message": message, "type": "ServiceUnavailableError", "param": None, "code": code}}
    return web.json_response(body, status=status)
