"""What the gateway takes on at one time, how slow a client may be, and what it never passes through."""

import asyncio
import gzip
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from retinue_emulator.loopback import eventually
from retinue_gateway.settings import GatewaySettings

from .gatewayworld import CHAT, World, chat, chunk, token, until, usage, world

ENGINE = "coder-primary-decode-0"


async def raw(w: World, *parts: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", w.gateway.port)
    for part in parts:
        writer.write(part)
    return reader, writer


def head(length: int, *lines: str) -> bytes:
    return "\r\n".join([f"POST {CHAT} HTTP/1.1", "Host: x", f"Content-Length: {length}", *lines, "", ""]).encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    """Status and JSON body of an answer after which the gateway closes."""
    async with asyncio.timeout(20):
        text = await reader.read()
    first, _, rest = text.partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(rest)


def in_flight(w: World) -> int:
    return sum(engine.streaming for engine in w.engines.values())


async def test_more_requests_than_the_gateway_takes_are_told_to_come_again() -> None:
    async with world(max_in_flight=2) as w:
        held = w.engines[ENGINE].hold = asyncio.Event()
        running = [asyncio.create_task(w.post(stream=True)) for _ in range(2)]
        await until(lambda: in_flight(w) == 2, "two requests are under way")
        status, body, headers = await w.post()
        assert (status, body["error"]["code"], headers["Retry-After"]) == (429, "gateway_busy", "1")
        assert body["error"]["type"] == "rate_limit_error"
        held.set()
        assert [result[0] for result in await asyncio.gather(*running)] == [200, 200]
        assert (await w.post())[0] == 200


async def test_one_namespace_cannot_take_more_than_its_share_and_gets_it_back() -> None:
    async with world(max_in_flight_per_tenant=1) as w:
        held = w.engines[ENGINE].hold = asyncio.Event()
        running = asyncio.create_task(w.post(stream=True))
        await until(lambda: in_flight(w) == 1, "one request is under way")
        status, body, _ = await w.post()
        assert (status, body["error"]["code"]) == (429, "too_many_requests")
        assert "namespace agents" in body["error"]["message"]
        held.set()
        await running
        assert (await w.post())[0] == 200


async def test_bodies_of_all_requests_together_have_bounded_room() -> None:
    async with world(max_body_bytes=4096, max_held_body_bytes=6000) as w:
        held = w.engines[ENGINE].hold = asyncio.Event()
        running = asyncio.create_task(w.post(stream=True, user="x" * 3500))
        await until(lambda: in_flight(w) == 1, "a large request is under way")
        status, body, headers = await w.post(user="x" * 3500)
        assert (status, body["error"]["code"]) == (429, "gateway_busy")
        assert "Retry-After" in headers
        assert (await w.post(stream=True, user="x" * 5000))[0] == 413
        held.set()
        await running
        assert (await w.post(user="x" * 3500))[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_grows_when_it_is_unpacked_is_stopped_at_the_limit(chunked: bool) -> None:
    packed = gzip.compress(json.dumps(chat(user="x" * 50_000_000)).encode())

    async def pieces() -> Any:
        for start in range(0, len(packed), 4096):
            yield packed[start : start + 4096]

    async with world(max_body_bytes=1_000_000) as w:
        data = pieces() if chunked else packed
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        async with w.client.post(CHAT, data=data, headers=headers) as response:
            body = await response.json()
            assert (response.status, body["error"]["code"]) == (413, "body_too_large")


async def test_a_packed_body_within_the_limit_is_served() -> None:
    async with world() as w:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        async with w.client.post(CHAT, data=gzip.compress(json.dumps(chat()).encode()), headers=headers) as response:
            assert response.status == 200
        assert "content-encoding" not in w.engines[ENGINE].headers[0]


async def test_a_body_that_is_not_what_its_headers_say_is_a_400() -> None:
    async with world() as w:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        async with w.client.post(CHAT, data=b"no gzip at all", headers=headers) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_body")


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async with world(client_body_timeout=0.2) as w:
        reader, writer = await raw(w, head(1000, "Connection: close"), b'{"model"')
        status, body = await answer(reader)
        assert (status, body["error"]["code"]) == (408, "body_timeout")
        writer.close()
        assert (await w.post())[0] == 200


async def test_a_client_that_leaves_within_its_body_leaves_nothing_behind() -> None:
    async with world(max_in_flight=1) as w:
        _, writer = await raw(w, head(1000), b'{"model"')
        await until(lambda: w.gateway.admission.requests == 1, "the gateway has read the head")
        assert w.gateway.admission.held_bytes == 1000
        writer.close()
        await until(lambda: w.gateway.admission.requests == 0, "its place is free")
        assert w.gateway.admission.held_bytes == 0


async def test_a_head_that_does_not_come_is_given_up() -> None:
    async with world(client_idle_timeout=0.2) as w:
        reader, writer = await raw(w, f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-Slow: ".encode())
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


async def test_a_client_that_does_not_read_its_stream_is_cut_off_and_the_engine_stops_for_it() -> None:
    endless = token("x" * 4096)

    async def handler(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(endless)

    async with world(client_write_timeout=0.3) as w:
        engine = w.engines[ENGINE]
        engine.handler = handler
        body = json.dumps(chat(stream=True)).encode()
        _, writer = await raw(w, head(len(body)), body)
        await until(lambda: engine.cancelled == 1, "the engine's request is cancelled")
        assert await w.metric("requests_total", code="499") == 1
        assert await w.metric("requests_in_flight") == 0
        writer.close()


async def test_a_client_that_does_not_read_a_whole_answer_is_cut_off() -> None:
    async def handler(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        choice = {"index": 0, "message": {"role": "assistant", "content": "x" * 30_000_000}, "finish_reason": "stop"}
        return web.json_response({"object": "chat.completion", "choices": [choice], "usage": usage()})

    async with world(client_write_timeout=0.3, max_connections=1) as w:
        w.engines[ENGINE].handler = handler
        body = json.dumps(chat()).encode()
        reader, writer = await raw(w, head(len(body)), body)
        assert await reader.read(100)

        async def another_is_served() -> bool:
            other, closing = await raw(w, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            try:
                return (await other.read()).startswith(b"HTTP/1.1 200")
            except ConnectionResetError:
                return False
            finally:
                closing.close()

        # Not reading on: the only connection that there may be is free again.
        await eventually(another_is_served, what="the slow client is gone", timeout=20, interval=0.02)
        writer.close()


async def test_more_connections_than_the_gateway_takes_are_answered_and_closed() -> None:
    async with world(max_connections=1) as w:
        _, first = await raw(w)
        for _ in range(100):
            reader, writer = await raw(w, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            try:
                status, body = await answer(reader)
            except (ConnectionResetError, IndexError):
                # It was closed while we still wrote: no answer could be read.
                continue
            finally:
                writer.close()
            if (status, body["error"]["code"]) == (503, "too_many_connections"):
                break
        else:
            pytest.fail("no connection was refused")
        first.close()


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"x-session-id": "x" * 300}, "x-session-id has 300 characters: send at most 256"),
        ({"x-parent-session-id": "caf\u00e9"}, "x-parent-session-id holds a character that is not printable ASCII"),
        ({"x-request-id": "y" * 2000}, "x-request-id has 2000 characters: send at most 1024"),
        ({"traceparent": "\u00ff"}, "traceparent holds a character"),
    ],
)
async def test_a_header_that_engines_would_get_is_checked_and_named(headers: dict[str, str], told: str) -> None:
    async with world() as w:
        status, body, _ = await w.post(headers=headers)
        assert (status, body["error"]["code"]) == (400, "invalid_header")
        assert told in body["error"]["message"]
        assert body["error"]["param"] in headers
        assert not w.engines[ENGINE].requests


async def test_the_header_that_names_the_pool_is_checked_too() -> None:
    async with world() as w:
        status, body, _ = await w.post(path="/v1/chat/completions", headers={"x-retinue-agent-pool": "a/" + "b" * 300})
        assert (status, body["error"]["param"]) == (400, "x-retinue-agent-pool")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": "primary", "messages": ' + b"[" * 900 + b"]" * 900 + b"}", None),
        (b'{"model": "primary", "messages": [' + b"[]," * 2_000_000 + b"[]]}", "invalid_json"),
        (b'{"model": "primary", "temperature": NaN, "messages": ["x"]}', "invalid_json"),
        (b'{"model": "\\ud800", "messages": ["x"]}', "model_not_found"),
        (b'{"model": "' + b"x" * 600 + b'", "messages": ["x"]}', "invalid_value"),
        (b'{"model": "primary", "messages": ["\\ud800"]}', None),
        (
            b'{"model": "primary", "messages": ["x"], "retinue_prompt": {"tokens": 1' + b"0" * 400 + b"}}",
            "invalid_value",
        ),
        (b"\xff\xfe", "invalid_json"),
        (b"", "invalid_json"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_strange_body_is_a_400_or_is_served_and_never_a_crash(body: bytes, code: str | None) -> None:
    async with world() as w:
        async with w.client.post(CHAT, data=body, headers={"x-session-id": "s"}) as response:
            told = await response.json()
        if code is None:
            assert response.status in (200, 400)
        else:
            assert (response.status in (400, 404), told["error"]["code"]) == (True, code)
        assert (await w.post())[0] == 200
        async with w.client.get("/metrics") as response:
            assert response.status == 200


@pytest.mark.parametrize("where", ["http://127.0.0.1:{port}/v1/elsewhere", "/v1/elsewhere"])
async def test_a_redirect_of_an_engine_is_not_followed(where: str) -> None:
    async with world() as w:
        engine = w.engines[ENGINE]

        async def handler(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
            if request.path.endswith("elsewhere"):
                pytest.fail("the gateway went where the engine sent it")
            location = where.format(port=engine.port)
            return web.json_response({"error": {"message": "there"}}, status=307, headers={"Location": location})

        engine.handler = handler
        status, body, headers = await w.post()
        assert (status, body["error"]["code"]) == (502, "engine_error")
        assert "Location" not in headers
        assert len(engine.requests) == 1


async def test_an_engine_that_sends_without_end_does_not_fill_the_gateways_memory() -> None:
    for first in (b"data: ", chunk(choices=[]), token("a") + b"data: "):

        async def handler(request: web.Request, _body: dict[str, Any], first: bytes = first) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            filler = first if first == chunk(choices=[]) else b"x" * 65536
            await response.write(first)
            while True:
                await response.write(filler * (1 + 65536 // len(filler)))

        async with world() as w:
            w.engines[ENGINE].handler = handler
            async with w.client.post(CHAT, json=chat(stream=True)) as response:
                text = await response.text()
            assert response.status in (200, 502)
            assert "without the end of an event or a token" in text
            assert len(text) < 10_000


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_tokens": "many"},
        {"prompt_tokens": 10**400, "completion_tokens": 1},
        {"prompt_tokens": 5, "completion_tokens": "few", "prompt_tokens_details": [1]},
        {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": -1}},
        {"prompt_tokens": True},
        ["usage"],
    ],
    ids=str,
)
async def test_nonsense_in_an_engines_usage_is_not_counted_and_breaks_nothing(wrong: Any) -> None:
    async def handler(_request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"choices": [], "usage": wrong})

    async with world() as w:
        w.engines[ENGINE].handler = handler
        assert (await w.post("s1"))[0] == 200
        assert await w.metric("completion_tokens_total") == 0
        async with w.client.get("/metrics") as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"nonsense\r\n\r\n", "invalid_http"),
        (b"GET / HTTP/1.1\r\nBroken Header: x\r\n\r\n", "invalid_http"),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n\r\n", "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 10_000 + b"\r\n\r\n", "invalid_http"),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n", "http_error"),
        (b"POST /agents/coder/v1/chat/completions HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n", "http_error"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_is_no_http_is_answered_with_an_openai_error(sent: bytes, code: str) -> None:
    async with world() as w:
        reader, writer = await raw(w, sent.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"))
        status, body = await answer(reader)
        writer.close()
        assert 400 <= status < 500
        assert body["error"]["code"] == code
        assert body["error"]["type"] == "invalid_request_error"


def test_settings_that_do_not_fit_together_are_refused() -> None:
    for settings, told in (
        ({"tls_cert_file": "/c"}, "tls_cert_file and tls_key_file go together"),
        ({"admin_host": "127.0.0.1"}, "need an admin_port"),
        ({"max_body_bytes": 4096, "max_held_body_bytes": 2048}, "max_held_body_bytes must be at least max_body_bytes"),
    ):
        with pytest.raises(ValueError, match=told):
            GatewaySettings(**settings)  # type: ignore[arg-type]


async def test_a_gateway_that_authenticates_nobody_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    async with world():
        pass
    assert "serving without authentication" in "".join(capsys.readouterr())


async def test_the_client_library_understands_every_refusal() -> None:
    from openai import APIStatusError, AsyncOpenAI

    async with world(max_in_flight=1) as w, aiohttp.ClientSession():
        w.engines[ENGINE].hold = held = asyncio.Event()
        running = asyncio.create_task(w.post(stream=True))
        await until(lambda: in_flight(w) == 1, "one request is under way")
        url = f"http://127.0.0.1:{w.gateway.port}/agents/coder/v1"
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            with pytest.raises(APIStatusError) as refused:
                await client.chat.completions.create(model="primary", messages=[{"role": "user", "content": "x"}])
        assert (refused.value.status_code, refused.value.code) == (429, "gateway_busy")
        held.set()
        await running


async def test_each_port_listens_where_it_was_told_and_nowhere_else() -> None:
    async with world(host="127.0.0.2", admin_port=0, admin_host="127.0.0.3") as w:
        for port, place, path in (
            (w.gateway.port, "127.0.0.2", "/v1/models"),
            (w.gateway.admin_port, "127.0.0.3", "/livez"),
        ):
            for address in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
                async with aiohttp.ClientSession() as http:
                    if address == place:
                        async with http.get(f"http://{address}:{port}{path}") as response:
                            assert response.status == 200
                    else:
                        with pytest.raises(aiohttp.ClientConnectorError):
                            await http.get(f"http://{address}:{port}{path}")
