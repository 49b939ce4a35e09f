"""Whatever clients and engines send, the gateway answers in the form of the OpenAI API and keeps nothing of it.

Hypothesis prints how to repeat a failure. RETINUE_FUZZ_EXAMPLES sets the number of examples of each test.
"""

import asyncio
import json
import os
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue_emulator.loopback import eventually

from .gatewayworld import CHAT, World, chat, world

ENGINE = "coder-primary-decode-0"
_MOST_SESSIONS = 20
_EXAMPLES = settings(
    max_examples=int(os.environ.get("RETINUE_FUZZ_EXAMPLES", "60")),
    deadline=None,
    print_blob=True,
    # One gateway serves all examples: that is how what one leaves behind shows in the next.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(10**500) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KNOWN_FIELDS = st.sampled_from([
    "model", "messages", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "tools", "n",
    "retinue_prompt", "cache_salt", "kv_transfer_params", "vllm_xargs", "temperature", "user", "session_params",
])  # fmt: skip
ALMOST_RIGHT = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["primary", "explorer", "kimi", "", "primary\n"]) | JSON,
        "messages": st.just([{"role": "user", "content": "hello"}]) | JSON,
        "prompt": st.text(max_size=20) | st.lists(st.integers(), max_size=4) | JSON,
        "stream": st.booleans() | JSON,
        "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}) | JSON,
        "max_tokens": st.integers(-2, 5) | JSON,
        "retinue_prompt": st.fixed_dictionaries({"tokens": st.integers(-1, 10**12) | JSON}) | JSON,
        "cache_salt": st.text(max_size=5) | JSON,
    },
)
BODIES = (
    st.builds(
        lambda right, more: json.dumps(right | more).encode(),
        ALMOST_RIGHT,
        st.dictionaries(KNOWN_FIELDS, JSON, max_size=2),
    )
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200)
)
HEADER_NAMES = st.sampled_from([
    "x-session-id", "X-SESSION-ID", "x-parent-session-id", "x-session-final", "x-claude-code-session-id", "session-id",
    "x-request-id", "traceparent", "x-retinue-agent-pool", "authorization", "expect", "content-encoding", "te",
    "transfer-encoding", "content-length", "upgrade", "connection", "accept-encoding", "host", "x-anything",
])  # fmt: skip
HEADER_VALUES = (
    st.sampled_from(
        ["", "s1", "agents/coder", "true", "gzip", "deflate", "br", "chunked", "close", "100-continue", "-1", "5"]
    )
    | st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=20)
    | st.just("x" * 1500)
)
PATHS = st.sampled_from([
    CHAT, "/agents/coder/v1/completions", "/agents/coder/v1/models", "/agents/coder/v1/models/primary", "/v1/models",
    "/v1/chat/completions", "/agents/nobody/v1/models", "/%2e%2e/%00/v1/models", "/livez", "/readyz", "/metrics", "/",
    "*", "//", "/agents/coder/v1/models/" + "x" * 300, "/\u00e9",
])  # fmt: skip
METHODS = st.sampled_from(["POST"] * 5 + ["GET", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW"])


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[asyncio.Runner, World]]:
    """A gateway before one engine, in a loop that all examples share."""
    options = {"max_sessions": _MOST_SESSIONS, "max_body_bytes": 100_000, "max_held_body_bytes": 200_000}

    async def start() -> tuple[AsyncExitStack, World]:
        stack = AsyncExitStack()
        made = await stack.enter_async_context(
            world(**options, client_body_timeout=0.2, client_idle_timeout=0.3, queue_timeout=0.2)
        )
        # A connection of its own for each request: the gateway closes idle ones very soon here.
        once = aiohttp.TCPConnector(force_close=True)
        made.client = await stack.enter_async_context(
            aiohttp.ClientSession(f"http://127.0.0.1:{made.gateway.port}", connector=once)
        )
        return stack, made

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        stack, made = runner.run(start())
        try:
            yield runner, made
        finally:
            runner.run(stack.aclose())


async def exchange(w: World, sent: bytes) -> bytes:
    """All that the gateway answers to these bytes until it closes. We close our side when it has read them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", w.gateway.port)
    received = b""
    try:
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(20):
            received = await reader.read()
    except ConnectionError:
        pass
    finally:
        writer.close()
    return received


def check_answers(received: bytes) -> None:
    """Every answer is HTTP, no status is a failure of the gateway, and every error is an OpenAI error."""
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        assert separator, received
        status = int(head.split(b" ", 2)[1])
        if status == 100:
            received = rest
            continue
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        assert status != 500, received
        if b"content-length" not in headers:
            # A stream; the errors within it have tests of their own.
            assert status == 200, received
            return
        length = int(headers[b"content-length"])
        body, received = rest[:length], rest[length:]
        if status < 400 or not body or status == 499:
            continue
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str)
        assert error["code"]
        if status == 429:
            assert b"retry-after" in headers


async def nothing_is_left(w: World) -> None:
    gateway = w.gateway

    async def quiet() -> bool:
        return gateway.admission.requests == 0

    await eventually(quiet, what="no request is under way", timeout=20, interval=0.001)
    assert gateway.admission.held_bytes == 0
    assert len(gateway.sessions) <= _MOST_SESSIONS
    assert gateway.loads.total_in_flight() == 0
    async with w.client.get("/metrics") as response:
        assert response.status == 200
    status, body, _ = await w.post("a good one")
    assert status == 200, body


def run(running: tuple[asyncio.Runner, World], work: Coroutine[Any, Any, None]) -> None:
    running[0].run(work)


@_EXAMPLES
@given(
    method=METHODS,
    path=PATHS,
    headers=st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=5),
    body=BODIES,
    length=st.sampled_from(["right", "right", "right", "none", "more", "less"]),
)
def test_any_request_gets_a_well_formed_answer(
    running: tuple[asyncio.Runner, World],
    method: str,
    path: str,
    headers: list[tuple[str, str]],
    body: bytes,
    length: str,
) -> None:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers)]
    size = {"right": len(body), "more": len(body) + 5, "less": max(0, len(body) - 5)}.get(length)
    lines += [] if size is None else [f"Content-Length: {size}"]
    sent = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body

    async def work() -> None:
        check_answers(await exchange(running[1], sent))
        await nothing_is_left(running[1])

    run(running, work())


@_EXAMPLES
@given(body=BODIES, session=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=30))
def test_any_body_is_served_or_refused_and_never_breaks_the_gateway(
    running: tuple[asyncio.Runner, World], body: bytes, session: str
) -> None:
    async def work() -> None:
        async with running[1].client.post(CHAT, data=body, headers={"x-session-id": session}) as response:
            answer = await response.read()
            assert response.status in (200, 400, 404), answer
            if response.status != 200:
                assert json.loads(answer)["error"]["code"]
        await nothing_is_left(running[1])

    run(running, work())


@_EXAMPLES
@given(
    sent=st.binary(max_size=300)
    | st.builds(
        lambda at, cut, wrong: _GOOD[: at % len(_GOOD)] + wrong + _GOOD[at % len(_GOOD) + cut :],
        st.integers(0, 1000),
        st.integers(0, 30),
        st.binary(max_size=30),
    )
)
def test_bytes_that_are_no_request_do_no_harm(running: tuple[asyncio.Runner, World], sent: bytes) -> None:
    async def work() -> None:
        check_answers(await exchange(running[1], sent))
        await nothing_is_left(running[1])

    run(running, work())


_GOOD_BODY = json.dumps(chat(stream=True)).encode()
_GOOD = (
    f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nx-session-id: s1\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(_GOOD_BODY)}\r\n\r\n"
).encode() + _GOOD_BODY

EVENTS = (
    JSON.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n")
    | st.builds(
        lambda choices, usage: b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\r\n\r\n",
        JSON | st.lists(st.fixed_dictionaries({"delta": JSON, "text": JSON}), max_size=2),
        JSON | st.fixed_dictionaries({"prompt_tokens": JSON, "prompt_tokens_details": JSON}),
    )
    | st.just(b"data: [DONE]\n\n")
    | st.binary(max_size=40)
)


@_EXAMPLES
@given(
    status=st.sampled_from([200, 200, 200, 200, 204, 302, 400, 404, 429, 500, 503]),
    kind=st.sampled_from(["application/json", "text/event-stream", "text/html", "nonsense"]),
    parts=st.lists(EVENTS, max_size=6),
    stream=st.booleans(),
)
def test_whatever_an_engine_answers_the_client_gets_an_answer(
    running: tuple[asyncio.Runner, World], status: int, kind: str, parts: list[bytes], stream: bool
) -> None:
    async def handler(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Type": kind})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    async def work() -> None:
        w = running[1]
        engine = w.engines[ENGINE]
        usual, engine.handler = engine.handler, handler
        # An engine that is told to be unavailable is asked again and again, until nothing is left of the time for it.
        try:
            async with w.client.post(CHAT, json=chat(stream=stream), headers={"x-session-id": "s1"}) as response:
                text = await response.read()
                assert response.status != 500 or status == 500, text
                if response.status >= 400 and status == 200:
                    assert json.loads(text)["error"]["code"]
        finally:
            engine.handler = usual
        await nothing_is_left(w)

    run(running, work())
