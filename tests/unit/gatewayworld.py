"""A gateway before real HTTP servers that stand in for engines, for tests."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from multidict import CIMultiDictProxy

from retinue_gateway.directory import AgentPoolView, Instance, RoleView, build_directory
from retinue_gateway.keys import PoolKey, Stage
from retinue_gateway.server import Gateway
from retinue_gateway.settings import GatewaySettings

Handler = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]
CODER = PoolKey("agents", "coder")
CHAT = "/agents/coder/v1/chat/completions"
DEADLINE_SECONDS = 10.0


async def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for a condition; fails loudly when it does not come true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_SECONDS
    while not condition():
        if loop.time() > deadline:
            pytest.fail(f"not within {DEADLINE_SECONDS} s: {what}")
        await asyncio.sleep(0.005)


def chunk(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [], **fields}).encode() + b"\n\n"


def token(text: str, finish: str | None = None) -> bytes:
    return chunk(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}])


def usage(prompt: int = 100, completion: int = 3, cached: int = 7) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Engine:
    """A small HTTP server that answers as an engine of its stage would, unless a test replaces `handler`."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name = name
        self.stage = stage
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.handler: Handler = self.prefill if stage is Stage.PREFILL else self.answer
        self.hold: asyncio.Event | None = None
        self.streaming = 0
        self.cancelled = 0
        self.port = 0

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/{kind:.+}", self._serve)
        self.runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        stack.push_async_callback(self.runner.cleanup)
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            return await self.handler(request, body)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def prefill(self, _request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        params = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": self.name,
            "remote_host": "127.0.0.1",
            "remote_port": self.port,
            "remote_request_id": f"r{len(self.requests)}",
            "num_tokens": 100,
        }
        return web.json_response({"usage": usage(completion=1, cached=64), "kv_transfer_params": params})

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            message = {"index": 0, "message": {"role": "assistant", "content": "abc"}, "finish_reason": "stop"}
            return web.json_response({"object": "chat.completion", "choices": [message], "usage": usage()})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]))
        await response.write(token("a"))
        self.streaming += 1
        if self.hold is not None:
            await self.hold.wait()
        await response.write(token("b") + token("c", "stop"))
        if (body.get("stream_options") or {}).get("include_usage"):
            await response.write(chunk(usage=usage()))
        await response.write(b"data: [DONE]\n\n")
        self.streaming -= 1
        return response


def failing(status: int, code: str | None = None) -> Handler:
    async def handler(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "as the test wants", "code": code}}, status=status)

    return handler


@dataclass
class World:
    """A gateway with its engines, and a client that talks to it."""

    gateway: Gateway
    engines: dict[str, Engine]
    routable: dict[str, bool]
    client: aiohttp.ClientSession
    stop_gateway: Callable[[], Awaitable[None]]
    agent_pools: tuple[AgentPoolView, ...]

    def publish(self) -> None:
        instances = [
            Instance(
                uid=f"uid-{engine.name}",
                name=engine.name,
                namespace="agents",
                pool="coder-primary",
                stage=engine.stage,
                address=f"127.0.0.1:{engine.port}",
                routable=self.routable[engine.name],
            )
            for engine in self.engines.values()
        ]
        self.gateway.table.publish(build_directory(instances, self.agent_pools))
        self.gateway.table_changed()

    def set_routable(self, name: str, value: bool) -> None:
        self.routable[name] = value
        self.publish()

    async def post(
        self, session: str | None = None, *, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any
    ) -> tuple[int, Any, CIMultiDictProxy[str]]:
        """Status, body (JSON, or the text of a stream) and headers."""
        async with self.client.post(path, json=chat(**fields), headers=sent(session, headers)) as response:
            streamed = response.content_type == "text/event-stream"
            body = await response.text() if streamed else await response.json()
            return response.status, body, response.headers

    async def metric(self, name: str, **labels: str) -> float | None:
        """The value of the gateway's series with these labels, as a scrape sees it."""
        return self.gateway.metrics.registry.get_sample_value(
            f"retinue_gateway_{name}", {"namespace": "agents", "agent_pool": "coder", "role": "primary", **labels}
        )


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "primary", "messages": [{"role": "user", "content": "hello"}], **fields}


def sent(session: str | None, headers: dict[str, str] | None = None) -> dict[str, str]:
    return ({"x-session-id": session} if session else {}) | (headers or {})


def events(text: str) -> list[Any]:
    payloads = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


@asynccontextmanager
async def world(*, prefill: int = 0, decode: int = 1, **settings: Any) -> AsyncIterator[World]:
    """A gateway before that many engines of each stage. Without prefill engines the role is served aggregated."""
    async with AsyncExitStack() as stack:
        engines: dict[str, Engine] = {}
        for stage, count in ((Stage.PREFILL, prefill), (Stage.DECODE, decode)):
            for index in range(count):
                engine = Engine(f"coder-primary-{stage}-{index}", stage)
                await engine.start(stack)
                engines[engine.name] = engine
        pools = ("coder-primary" if prefill else None, "coder-primary")
        roles = (
            RoleView("primary", "Primary", "kimi", None, bool(prefill), *pools),
            RoleView("explorer", "SubAgent", None, "primary", False, None, None),
        )
        options: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "shutdown_grace": 5.0, "queue_timeout": 5.0}
        gateway = Gateway(GatewaySettings(**options | settings))
        listening = await stack.enter_async_context(AsyncExitStack())
        await listening.enter_async_context(gateway.listening())
        client = await stack.enter_async_context(
            aiohttp.ClientSession(f"http://127.0.0.1:{gateway.port}", connector=aiohttp.TCPConnector(limit=0))
        )
        agent_pools = (AgentPoolView(CODER, 1_700_000_000, roles),)
        made = World(gateway, engines, dict.fromkeys(engines, True), client, listening.aclose, agent_pools)
        made.publish()
        yield made
