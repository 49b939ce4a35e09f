"""The gateway against real HTTP servers that stand in for engines: routing, prefill then decode, retries, streams."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from retinue_gateway.keys import PoolKey

from .gatewayworld import CHAT, DEADLINE_SECONDS, chat, chunk, events, failing, sent, token, until, world


async def test_a_session_stays_on_its_instance_and_others_spread() -> None:
    async with world(decode=2) as w:
        first = [(await w.post("s1"))[2]["x-retinue-decode-instance"] for _ in range(4)]
        second = [(await w.post("s2"))[2]["x-retinue-decode-instance"] for _ in range(4)]
    assert len(set(first)) == len(set(second)) == 1
    assert set(first) != set(second)


async def test_the_engine_gets_the_model_name_and_the_identity_headers_only() -> None:
    async with world() as w:
        secret = {"authorization": "Bearer x", "cookie": "a=b", "x-request-id": "req-1"}
        status, _, headers = await w.post("s1", headers=secret)
        engine = w.engines["coder-primary-decode-0"]
    assert status == 200
    assert engine.requests[0]["model"] == "kimi"
    assert engine.headers[0]["x-session-id"] == "s1"
    assert engine.headers[0]["x-request-id"] == headers["x-request-id"] == "req-1"
    assert not {"authorization", "cookie"} & engine.headers[0].keys()


async def test_prefill_then_decode_follows_the_transfer_protocol() -> None:
    async with world(prefill=1, decode=1) as w:
        status, text, headers = await w.post(
            "s1", stream=True, max_completion_tokens=50, min_tokens=5, stream_options={"include_usage": True}
        )
        prefill = w.engines["coder-primary-prefill-0"].requests[0]
        decode = w.engines["coder-primary-decode-0"].requests[0]
    assert status == 200
    assert prefill["kv_transfer_params"] == {"do_remote_decode": True, "do_remote_prefill": False}
    assert (prefill["max_tokens"], prefill["max_completion_tokens"], prefill["stream"]) == (1, 1, False)
    assert "stream_options" not in prefill
    assert "min_tokens" not in prefill
    assert decode["kv_transfer_params"]["remote_request_id"] == "r1"
    assert decode["max_completion_tokens"] == 50
    assert headers["x-retinue-prefill-instance"] == "coder-primary-prefill-0"
    received = events(text)
    assert received[-1] == "[DONE]"
    assert received[-2]["usage"]["prompt_tokens_details"]["cached_tokens"] == 64


async def test_the_answer_of_a_plain_request_carries_the_prefill_engines_cached_tokens() -> None:
    async with world(prefill=1, decode=1) as w:
        _, body, _ = await w.post("s1")
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 64
        assert await w.metric("cached_tokens_total") == 64
        assert await w.metric("prompt_tokens_total") == 100
        assert await w.metric("completion_tokens_total") == 3


async def test_usage_is_counted_but_hidden_from_a_client_that_did_not_ask() -> None:
    async with world() as w:
        _, text, _ = await w.post("s1", stream=True)
        assert await w.metric("completion_tokens_total") == 3
    assert "usage" not in text
    assert "".join(e["choices"][0]["delta"]["content"] for e in events(text)[:-1]) == "abc"


async def test_the_first_token_arrives_while_the_engine_still_holds_the_rest() -> None:
    async with world() as w:
        engine = w.engines["coder-primary-decode-0"]
        engine.hold = asyncio.Event()
        async with w.client.post(CHAT, json=chat(stream=True)) as response:
            async with asyncio.timeout(DEADLINE_SECONDS):
                early = await response.content.readany()
            assert b'"a"' in early
            assert engine.streaming == 1
            assert await w.metric("requests_in_flight") == 1
            assert await w.metric("queued_prefill_tokens") == 0
            engine.hold.set()
            assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
        assert await w.metric("time_to_first_token_seconds_count") == 1
        assert await w.metric("requests_in_flight") == 0


async def test_an_unroutable_instance_finishes_its_stream_and_gets_nothing_new() -> None:
    async with world(decode=2) as w:
        held = asyncio.Event()
        for engine in w.engines.values():
            engine.hold = held
        async with w.client.post(CHAT, json=chat(stream=True), headers=sent("s1")) as response:
            await response.content.readany()
            name = response.headers["x-retinue-decode-instance"]
            w.set_routable(name, False)
            other = await w.post("s1")
            assert other[2]["x-retinue-decode-instance"] != name
            held.set()
            assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
        assert len(w.engines[name].requests) == 1
        assert await w.metric("session_moves_total", reason="unroutable", stage="decode") == 1


@pytest.mark.parametrize(("status", "reason"), [(503, "unavailable"), (500, "engine_error")])
async def test_a_request_without_a_token_goes_to_another_instance(status: int, reason: str) -> None:
    async with world(decode=2) as w:
        name = (await w.post("s1"))[2]["x-retinue-decode-instance"]
        w.engines[name].handler = failing(status)
        answered, _, headers = await w.post("s1")
        assert answered == 200
        assert headers["x-retinue-decode-instance"] != name
        assert await w.metric("retries_total", reason=reason) == 1
        assert await w.metric("session_moves_total", reason="failed", stage="decode") == 1


async def test_a_request_that_two_engines_break_on_gets_the_engines_own_answer() -> None:
    async with world(decode=3) as w:
        for engine in w.engines.values():
            engine.handler = failing(500, "template_error")
        status, body, _ = await w.post("s1")
        assert (status, body["error"]["code"]) == (500, "template_error")
        assert sum(len(engine.requests) for engine in w.engines.values()) == 2


async def test_a_prompt_that_waits_for_decode_is_no_backlog_of_prefill() -> None:
    async with world(prefill=1, decode=1) as w:
        decode, go = w.engines["coder-primary-decode-0"], asyncio.Event()

        async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            await go.wait()
            return await decode.answer(request, body)

        decode.handler = slow
        asking = asyncio.create_task(w.post("s1", stream=True))
        await until(lambda: bool(decode.requests), "decode has the request")
        assert await w.metric("queued_prefill_tokens") == 0
        assert await w.metric("requests_in_flight") == 1
        go.set()
        assert (await asking)[0] == 200
        assert await w.metric("queued_prefill_tokens") == 0


async def test_a_refused_connection_goes_to_another_instance() -> None:
    async with world(decode=2) as w:
        name = (await w.post("s1"))[2]["x-retinue-decode-instance"]
        await w.engines[name].runner.cleanup()
        answers = [await w.post("s1") for _ in range(2)]
        assert [status for status, _, _ in answers] == [200, 200]
        assert all(headers["x-retinue-decode-instance"] != name for _, _, headers in answers)


async def test_a_connection_that_breaks_once_does_not_move_the_session() -> None:
    async with world(decode=2) as w:
        name = (await w.post("s1"))[2]["x-retinue-decode-instance"]
        engine, calls = w.engines[name], 0

        async def break_once(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            nonlocal calls
            calls += 1
            if calls == 1:
                assert request.transport is not None
                request.transport.abort()
            return await engine.answer(request, body)

        engine.handler = break_once
        status, _, headers = await w.post("s1")
        assert (status, headers["x-retinue-decode-instance"]) == (200, name)
        assert await w.metric("retries_total", reason="connection_lost") == 1


async def test_a_stream_that_breaks_before_its_first_token_is_served_elsewhere() -> None:
    async with world(decode=2) as w:
        name = (await w.post("s1"))[2]["x-retinue-decode-instance"]

        async def role_then_break(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]))
            assert request.transport is not None
            request.transport.abort()
            return response

        w.engines[name].handler = role_then_break
        status, text, headers = await w.post("s1", stream=True)
        assert status == 200
        assert headers["x-retinue-decode-instance"] != name
        assert [e["choices"][0]["delta"].get("role") for e in events(text)[:-1]].count("assistant") == 1


async def test_after_the_first_token_nothing_is_retried_and_the_client_is_told() -> None:
    async with world(decode=2) as w:

        async def token_then_break(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(token("a"))
            await asyncio.sleep(0)
            assert request.transport is not None
            request.transport.close()
            return response

        for engine in w.engines.values():
            engine.handler = token_then_break
        status, text, _ = await w.post("s1", stream=True)
        assert status == 200
        assert events(text)[0]["choices"][0]["delta"]["content"] == "a"
        assert events(text)[-1]["error"]["code"] == "stream_broken"
        assert sum(len(engine.requests) for engine in w.engines.values()) == 1
        assert await w.metric("requests_total", code="502") == 1


async def test_a_failed_kv_transfer_starts_again_from_prefill() -> None:
    async with world(prefill=1, decode=1) as w:
        decode = w.engines["coder-primary-decode-0"]

        async def fail_once(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            if len(decode.requests) == 1:
                return await failing(503, "kv_transfer_failed")(request, body)
            return await decode.answer(request, body)

        decode.handler = fail_once
        status, _, _ = await w.post("s1", stream=True)
        assert status == 200
        assert len(w.engines["coder-primary-prefill-0"].requests) == 2
        assert [body["kv_transfer_params"]["remote_request_id"] for body in decode.requests] == ["r1", "r2"]
        assert await w.metric("retries_total", reason="kv_transfer_failed") == 1
        assert await w.metric("session_moves_total", reason="failed", stage="decode") == 0


async def test_attempts_are_bounded() -> None:
    async with world(decode=1, max_attempts=3) as w:
        engine = w.engines["coder-primary-decode-0"]
        engine.handler = failing(503)
        status, body, headers = await w.post()
        assert (status, body["error"]["code"]) == (503, "attempts_exhausted")
        assert "Retry-After" in headers
        assert len(engine.requests) == 3


async def test_a_request_that_kills_engines_is_not_carried_to_all_of_them() -> None:
    async with world(decode=6) as w:

        async def die(request: web.Request, _body: dict[str, Any]) -> web.StreamResponse:
            assert request.transport is not None
            request.transport.abort()
            raise asyncio.CancelledError

        for engine in w.engines.values():
            engine.handler = die
        status, _, _ = await w.post("s1")
        assert status == 503
        assert sum(len(engine.requests) for engine in w.engines.values()) == 4


async def test_an_error_of_the_engine_reaches_the_client_unchanged() -> None:
    async with world() as w:
        w.engines["coder-primary-decode-0"].handler = failing(400, "context_length_exceeded")
        status, body, _ = await w.post()
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
        assert await w.metric("requests_total", code="400") == 1


async def test_a_client_that_leaves_stops_the_engine() -> None:
    async with world() as w:
        engine = w.engines["coder-primary-decode-0"]
        engine.hold = asyncio.Event()
        async with w.client.post(CHAT, json=chat(stream=True), headers=sent("s1")) as response:
            await response.content.readany()
            response.close()
        await until(lambda: engine.cancelled == 1, "the engine's request is cancelled")
        await until(lambda: w.gateway.loads.total_in_flight() == 0, "the load is given back")
        assert await w.metric("requests_total", code="499") == 1
        assert await w.metric("open_sessions") == 1


async def test_a_request_waits_for_an_instance_to_become_routable() -> None:
    async with world(prefill=1, decode=1) as w:
        w.set_routable("coder-primary-decode-0", False)
        asked = asyncio.create_task(w.post("s1"))
        await until(
            lambda: (
                w.gateway.metrics.registry.get_sample_value(
                    "retinue_gateway_requests_in_flight",
                    {"namespace": "agents", "agent_pool": "coder", "role": "primary"},
                )
                == 1
            ),
            "the request is accepted",
        )
        assert not w.engines["coder-primary-prefill-0"].requests, "no prefill while nobody could take its result"
        assert await w.metric("queued_prefill_tokens") == len("userhello") // 4
        w.set_routable("coder-primary-decode-0", True)
        assert (await asked)[0] == 200


async def test_a_request_that_waits_too_long_is_told_what_for() -> None:
    async with world(queue_timeout=0.05) as w:
        w.set_routable("coder-primary-decode-0", False)
        status, body, headers = await w.post()
    assert (status, body["error"]["code"]) == (503, "no_ready_instance")
    assert "decode pool coder-primary" in body["error"]["message"]
    assert int(headers["Retry-After"]) > 0


async def test_too_many_waiting_requests_are_refused_at_once() -> None:
    async with world(max_waiting=0) as w:
        w.set_routable("coder-primary-decode-0", False)
        status, body, _ = await w.post()
    assert (status, body["error"]["code"]) == (503, "too_many_waiting")


@pytest.mark.parametrize(
    ("raw", "param", "says"),
    [
        (b"{", None, "not valid JSON"),
        (b"[]", None, "JSON object"),
        (b'{"messages": []}', "model", "model must be"),
        (b'{"model": "primary"}', "messages", "messages must be"),
        (b'{"model": "primary", "messages": [1], "stream": "yes"}', "stream", "true or false"),
        (b'{"model": "primary", "messages": [1], "max_tokens": 0}', "max_tokens", "whole number"),
        (b'{"model": "primary", "messages": [1], "stream_options": 3}', "stream_options", "object"),
        (b'{"model": "primary", "messages": [1], "retinue_prompt": {}}', "retinue_prompt.tokens", "whole number"),
    ],
)
async def test_a_bad_body_is_refused_with_the_field_that_is_wrong(raw: bytes, param: str | None, says: str) -> None:
    async with world() as w, w.client.post(CHAT, data=raw) as response:
        error = (await response.json())["error"]
    assert response.status == 400
    assert error["param"] == param
    assert says in error["message"]


async def test_a_body_beyond_the_limit_is_refused() -> None:
    async with world(max_body_bytes=1024) as w:
        status, body, _ = await w.post(messages=[{"role": "user", "content": "x" * 2000}])
    assert (status, body["error"]["code"]) == (413, "body_too_large")


async def test_unknown_names_are_answered_with_the_known_ones() -> None:
    async with world() as w:
        status, body, _ = await w.post(path="/agents/other/v1/chat/completions")
        assert (status, "agents/coder" in body["error"]["message"]) == (404, True)
        status, body, _ = await w.post(model="gpt")
        assert (status, body["error"]["param"]) == (404, "model")
        assert all(name in body["error"]["message"] for name in ("primary", "explorer", "kimi"))
        status, body, _ = await w.post(path="/agents/coder/v1/embeddings")
        assert (status, body["error"]["code"]) == (404, "path_not_found")
        async with w.client.get(CHAT) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (405, "method_not_allowed")


async def test_the_bare_path_needs_a_header_unless_there_is_one_agent_pool() -> None:
    async with world() as w:
        assert (await w.post(path="/v1/chat/completions", model="kimi"))[0] == 200
        w.agent_pools += (replace(w.agent_pools[0], key=PoolKey("agents", "writer")),)
        w.publish()
        status, body, _ = await w.post(path="/v1/chat/completions")
        assert (status, body["error"]["code"]) == (404, "agent_pool_not_named")
        named = {"x-retinue-agent-pool": "agents/writer"}
        assert (await w.post(path="/v1/chat/completions", headers=named))[0] == 200


async def test_models_lists_the_roles() -> None:
    async with world() as w, w.client.get("/agents/coder/v1/models") as response:
        listed = (await response.json())["data"]
    assert [(model["id"], model["root"]) for model in listed] == [("primary", "kimi"), ("explorer", "kimi")]


async def test_a_sub_agent_of_a_shared_pool_starts_where_its_parent_is() -> None:
    async with world(decode=3) as w:
        home = (await w.post("main"))[2]["x-retinue-decode-instance"]
        child = {"x-session-id": "child", "x-parent-session-id": "main"}
        _, _, headers = await w.post(headers=child, model="explorer")
    assert headers["x-retinue-decode-instance"] == home


async def test_open_sessions_and_their_context_are_exposed_until_the_final_request() -> None:
    async with world(decode=2) as w:
        name = (await w.post("s1"))[2]["x-retinue-decode-instance"]
        assert await w.metric("open_sessions") == 1
        assert await w.metric("open_session_context_tokens") == 103
        assert await w.metric("instance_sessions", retinue_instance=name) == 1
        await w.post("s1", headers={"x-session-final": "true"})
        assert await w.metric("open_sessions") == 0
        assert await w.metric("open_session_context_tokens") == 0
        assert await w.metric("instance_sessions", retinue_instance=name) == 0
        assert await w.metric("sessions_closed_total", reason="final") == 1


async def test_an_idle_session_is_no_longer_open_but_finds_its_cache_again() -> None:
    async with world(decode=2, session_idle_timeout=0.05) as w:
        name = (await w.post("s1"))[2]["x-retinue-decode-instance"]
        await w.post("s2")

        def closed() -> bool:
            w.gateway.sessions.expire(asyncio.get_running_loop().time())
            return not any(session.open for session in w.gateway.sessions)

        await until(closed, "both sessions are closed")
        assert await w.metric("open_sessions") == 0
        assert (await w.post("s1"))[2]["x-retinue-decode-instance"] == name


async def test_the_metrics_of_a_removed_role_disappear() -> None:
    async with world() as w:
        await w.post("s1")
        assert await w.metric("requests_total", code="200") == 1
        w.agent_pools = ()
        w.publish()
        async with w.client.get("/metrics") as response:
            text = await response.text()
    assert 'role="primary"' not in text


async def test_known_roles_have_their_series_before_the_first_request() -> None:
    async with world(decode=1) as w:
        for labels in ({"code": "200"}, {"code": "503"}):
            assert await w.metric("requests_total", **labels) == 0
        assert await w.metric("time_to_first_token_seconds_count") == 0
        assert await w.metric("stage_seconds_count", stage="prefill") == 0
        assert await w.metric("open_sessions") == 0
        assert await w.metric("instance_sessions", retinue_instance="coder-primary-decode-0") == 0


async def test_latency_bounds_shrink_with_the_latency_scale() -> None:
    async with world(latency_scale=10) as w:
        assert await w.metric("time_to_first_token_seconds_bucket", le="0.2") == 0
        assert await w.metric("time_to_first_token_seconds_bucket", le="64.0") == 0


async def test_a_stop_refuses_new_connections_and_lets_a_stream_finish() -> None:
    async with world() as w:
        engine = w.engines["coder-primary-decode-0"]
        engine.hold = asyncio.Event()
        async with w.client.post(CHAT, json=chat(stream=True)) as response:
            await response.content.readany()
            stopping = asyncio.ensure_future(w.stop_gateway())
            await wait_refused(w.gateway.port)
            assert not stopping.done()
            engine.hold.set()
            assert (await response.content.read()).endswith(b"data: [DONE]\n\n")
        async with asyncio.timeout(DEADLINE_SECONDS):
            await stopping


async def wait_refused(port: int) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue  # accepted by the kernel just before the listening socket went
            writer.close()


async def test_many_streams_run_side_by_side() -> None:
    async with world(prefill=2, decode=2) as w:
        held = asyncio.Event()
        for engine in w.engines.values():
            engine.hold = held
        asked = [asyncio.create_task(w.post(f"s{index}", stream=True)) for index in range(150)]
        await until(
            lambda: sum(engine.streaming for engine in w.engines.values()) == 150 or any(task.done() for task in asked),
            "all streams are open",
        )
        held.set()
        answers = await asyncio.gather(*asked)
    assert {status for status, _, _ in answers} == {200}
    per_instance = [headers["x-retinue-decode-instance"] for _, _, headers in answers]
    assert abs(per_instance.count("coder-primary-decode-0") - 75) <= 5
