"""A simulated engine over HTTP: the OpenAI API, errors, cached tokens, P/D transfer, draining, metrics."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from retinue.economics.costmodel import decode_step_seconds, kv_bytes_per_token, prefill_seconds
from retinue_emulator.engine.clock import Clock
from retinue_emulator.engine.config import TierConfig, parse_engine
from retinue_emulator.engine.engine import SimulatedEngine
from retinue_emulator.engine.tier import TierServer

SPEED = 20.0
ARGS = (
    "--role=aggregated",
    "--model=gpt-oss-120b",
    "--served-model-name=coder",
    "--precision=MXFP4",
    "--kv-precision=FP8",
    "--context-window=131072",
    "--tensor=2",
    "--device=h200",
    "--cold-start-seconds=0",
)


async def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        await asyncio.sleep(0.005)


async def until_async(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        await asyncio.sleep(0.005)


@dataclass
class World:
    """Engines and tiers on loopback, and an HTTP client for them."""

    http: aiohttp.ClientSession
    clock: Clock = field(default_factory=lambda: Clock(SPEED))
    parts: list[SimulatedEngine | TierServer] = field(default_factory=list)

    async def engine(self, *args: str, env: dict[str, str] | None = None, ready: bool = True) -> SimulatedEngine:
        engine = SimulatedEngine(parse_engine([*ARGS, *args], env or {}), self.clock, "127.0.0.1", 0)
        self.parts.append(engine)
        await engine.start()
        if ready:
            await asyncio.wait_for(engine.ready.wait(), 5)
        return engine

    async def tier(self, capacity_bytes: int = 10**12, bytes_per_second: float = 100e9) -> TierServer:
        tier = TierServer(TierConfig(capacity_bytes, bytes_per_second), self.clock, "127.0.0.1", 0)
        self.parts.append(tier)
        await tier.start()
        return tier

    def url(self, part: SimulatedEngine | TierServer, path: str) -> str:
        return f"http://127.0.0.1:{part.port}{path}"

    async def post(self, engine: SimulatedEngine, body: dict[str, Any], path: str = "/v1/chat/completions") -> Answer:
        async with self.http.post(self.url(engine, path), json=body) as response:
            return Answer(response.status, await response.json())

    async def stream(self, engine: SimulatedEngine, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The decoded events of a stream; asserts that it ends with [DONE]."""
        url = self.url(engine, "/v1/chat/completions")
        async with self.http.post(url, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Content-Type"] == "text/event-stream"
            text = (await response.read()).decode()
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]

    async def metrics(self, part: SimulatedEngine | TierServer) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Samples by name and labels (without model_name and engine)."""
        async with self.http.get(self.url(part, "/metrics")) as response:
            text = await response.text()
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
                found[sample.name, frozenset(labels.items())] = sample.value
        return found


@dataclass
class Answer:
    status: int
    body: dict[str, Any]

    @property
    def cached(self) -> int:
        return int(self.body["usage"]["prompt_tokens_details"]["cached_tokens"])

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with aiohttp.ClientSession() as http:
        made = World(http)
        yield made
        await asyncio.gather(*(part.stop() for part in made.parts))
        await made.clock.stop_watch()


def replay(scope: str, runs: list[list[int]], tokens: int, max_tokens: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "model": "coder",
        "messages": [{"role": "user", "content": "replayed"}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "retinue_prompt": {"scope": scope, "block_size": 64, "tokens": tokens, "runs": runs},
        **more,
    }


def sample(metrics: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return metrics[name, frozenset(labels.items())]


async def test_a_prompt_hits_on_what_an_earlier_one_of_its_scope_left(world: World) -> None:
    engine = await world.engine()
    first = await world.post(engine, replay("s1", [[0, 100]], 6_430))
    again = await world.post(engine, replay("s1", [[0, 100], [500, 20]], 7_700))
    other = await world.post(engine, replay("s2", [[0, 100]], 6_430))
    assert [answer.status for answer in (first, again, other)] == [200, 200, 200]
    assert [answer.cached for answer in (first, again, other)] == [0, 6_400, 0]
    assert first.body["usage"] == {
        "prompt_tokens": 6_430,
        "completion_tokens": 4,
        "total_tokens": 6_434,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert first.body["object"] == "chat.completion"
    assert first.body["choices"][0]["finish_reason"] == "length"


async def test_blocks_of_512_tokens_count_as_eight_of_64(world: World) -> None:
    engine = await world.engine()
    body = replay("m", [[7, 10]], 5_000)
    body["retinue_prompt"]["block_size"] = 512
    assert (await world.post(engine, body)).cached == 0
    assert (await world.post(engine, body)).cached == 5_000


async def test_a_stream_carries_all_tokens_then_usage_then_done(world: World) -> None:
    engine = await world.engine()
    body = replay("s", [[0, 10]], 640, max_tokens=3_000, stream_options={"include_usage": True})
    events = await world.stream(engine, body)
    text = "".join(event["choices"][0]["delta"]["content"] for event in events[:-1])
    assert text == " token" * 3_000
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]][-1] == "length"
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-2])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 3_000
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert 2 < len(events) < 150, "tokens are coalesced, but not into one piece"


async def test_a_stream_without_usage_option_has_no_usage(world: World) -> None:
    engine = await world.engine()
    assert all("usage" not in event for event in await world.stream(engine, replay("s", [[0, 1]], 64)))


async def test_plain_text_prompts_share_their_equal_prefix(world: World) -> None:
    engine = await world.engine()
    system = {"role": "system", "content": "You write code. " * 400}
    bodies = [
        {"model": "coder", "messages": [system, {"role": "user", "content": text}], "max_tokens": 2}
        for text in ("one", "two")
    ]
    cold, warm = [await world.post(engine, body) for body in bodies]
    salted = await world.post(engine, {**bodies[1], "cache_salt": "tenant-b"})
    assert cold.body["usage"]["prompt_tokens"] == pytest.approx(1_606, abs=5)
    assert (cold.cached, warm.cached, salted.cached) == (0, 1_600, 0)


async def test_legacy_completions_work_too(world: World) -> None:
    engine = await world.engine()
    body = {"model": "coder", "prompt": "def f():", "max_tokens": 3}
    answer = await world.post(engine, body, "/v1/completions")
    assert answer.body["object"] == "text_completion"
    assert answer.body["choices"][0]["text"] == " token" * 3


async def test_models_are_listed(world: World) -> None:
    engine = await world.engine()
    async with world.http.get(world.url(engine, "/v1/models")) as response:
        listed = await response.json()
    assert [(entry["id"], entry["max_model_len"]) for entry in listed["data"]] == [("coder", 131_072)]


@pytest.mark.parametrize(
    ("change", "status", "match"),
    [
        ({"model": "other"}, 404, "The model `other` does not exist"),
        ({"max_tokens": 0}, 400, "max_tokens must be a positive integer"),
        ({"max_tokens": 140_000}, 400, "maximum context length is 131072 tokens"),
        ({"retinue_prompt": {"scope": "s", "tokens": 64, "runs": "x"}}, 400, "runs must be a list"),
        ({"retinue_prompt": {"scope": "s", "tokens": 64, "runs": [[1]]}}, 400, "pairs, got"),
        ({"retinue_prompt": {"scope": "s", "tokens": 64, "runs": [[1, 2]]}}, 400, "but only 64 tokens"),
        ({"retinue_prompt": {"scope": "", "tokens": 64, "runs": []}}, 400, "scope must be"),
        ({"retinue_prompt": {"scope": "s", "tokens": 64, "runs": [], "block_size": 16}}, 400, "multiple of 64"),
        ({"retinue_prompt": None, "messages": []}, 400, "messages must be a non-empty list"),
        ({"kv_transfer_params": {"do_remote_prefill": True}}, 400, "needs remote_host"),
    ],
)
async def test_bad_requests_are_refused_in_openais_shape(
    world: World, change: dict[str, Any], status: int, match: str
) -> None:
    engine = await world.engine()
    answer = await world.post(engine, {**replay("s", [[0, 1]], 64), **change})
    assert answer.status == status
    assert match in answer.body["error"]["message"]
    assert set(answer.body["error"]) == {"message", "type", "param", "code"}
    assert engine.in_flight == 0


async def test_a_body_that_is_no_json_is_refused(world: World) -> None:
    engine = await world.engine()
    async with world.http.post(world.url(engine, "/v1/chat/completions"), data=b"{nope") as response:
        assert response.status == 400


async def test_it_is_not_ready_before_its_cold_start_has_passed(world: World) -> None:
    engine = await world.engine("--cold-start-seconds=4", ready=False)
    async with world.http.get(world.url(engine, "/health")) as response:
        assert response.status == 503
    refused = await world.post(engine, replay("s", [[0, 1]], 64))
    assert (refused.status, refused.code) == (503, "not_ready")
    started = world.clock.now()
    await until(engine.ready.is_set, "the engine is ready")
    assert world.clock.now() - started < 4 + SPEED, "at most a second of the wall late"
    async with world.http.get(world.url(engine, "/health")) as response:
        assert response.status == 200


async def test_the_cold_start_follows_from_the_weights(world: World) -> None:
    config = parse_engine([arg for arg in ARGS if "cold-start" not in arg], {})
    assert SimulatedEngine(config, world.clock, "127.0.0.1", 0).cold_start_seconds == pytest.approx(20 + 65 / 4, abs=1)


async def test_other_ranks_serve_health_and_metrics_only(world: World) -> None:
    follower = await world.engine(env={"RETINUE_RANK": "1", "RETINUE_WORLD_SIZE": "2"})
    async with world.http.get(world.url(follower, "/health")) as response:
        assert response.status == 200
    assert sample(await world.metrics(follower), "vllm:num_requests_running") == 0
    async with world.http.post(world.url(follower, "/v1/chat/completions"), json={}) as response:
        assert response.status == 404


async def test_decode_pulls_the_kv_that_prefill_holds(world: World) -> None:
    prefill, decode = await world.engine("--role=prefill"), await world.engine("--role=decode")
    body = replay("s", [[0, 500]], 32_000, max_tokens=50)
    ask = {"do_remote_decode": True, "do_remote_prefill": False}
    first = await world.post(prefill, {**body, "max_tokens": 1, "kv_transfer_params": ask})
    params = first.body["kv_transfer_params"]
    assert params["do_remote_prefill"] is True
    assert params["num_tokens"] == 32_000
    assert (params["remote_host"], params["remote_port"]) == ("127.0.0.1", prefill.port)
    assert len(prefill.held) == 1
    held = await world.metrics(prefill)
    assert sample(held, "vllm:kv_cache_usage_perc") > 0

    events = await world.stream(
        decode, {**body, "kv_transfer_params": params, "stream_options": {"include_usage": True}}
    )
    assert events[-1]["usage"]["completion_tokens"] == 50
    assert len(prefill.held) == 0
    after_p, after_d = await world.metrics(prefill), await world.metrics(decode)
    assert sample(after_p, "vllm:kv_cache_usage_perc") == 0
    assert sample(after_p, "vllm:prompt_tokens_by_source_total", source="local_compute") == 32_000
    assert sample(after_d, "vllm:prompt_tokens_by_source_total", source="local_compute") == 0
    assert sample(after_d, "vllm:prompt_tokens_by_source_total", source="external_kv_transfer") == 32_000
    assert sample(after_d, "vllm:nixl_xfer_time_seconds_count") == 1
    assert sample(after_d, "vllm:nixl_bytes_transferred_sum") == pytest.approx(32_000 * 18_432)


async def test_decode_pulls_only_what_it_does_not_hold(world: World) -> None:
    prefill, decode = await world.engine("--role=prefill"), await world.engine("--role=decode")
    for blocks in (100, 120):
        body = replay("s", [[0, blocks]], 64 * blocks)
        ask = {"do_remote_decode": True}
        first = await world.post(prefill, {**body, "max_tokens": 1, "kv_transfer_params": ask})
        await world.stream(decode, {**body, "kv_transfer_params": first.body["kv_transfer_params"]})
    metrics = await world.metrics(decode)
    assert sample(metrics, "vllm:nixl_bytes_transferred_sum") == pytest.approx(120 * 64 * 18_432)


async def test_a_failed_pull_is_a_503_before_any_token(world: World) -> None:
    prefill, decode = await world.engine("--role=prefill"), await world.engine("--role=decode")
    gone = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": prefill.port}
    body = replay("s", [[0, 10]], 640, stream=True)
    unknown = await world.post(decode, {**body, "kv_transfer_params": {**gone, "remote_request_id": "never"}})
    assert (unknown.status, unknown.code) == (503, "kv_transfer_failed")
    await prefill.stop()
    dead = await world.post(decode, {**body, "kv_transfer_params": {**gone, "remote_request_id": "never"}})
    assert (dead.status, dead.code) == (503, "kv_transfer_failed")
    assert sample(await world.metrics(decode), "vllm:nixl_num_failed_transfers_total") == 2
    assert decode.memory.in_use == 0
    # Nothing was pulled, so nothing may hit.
    assert len(decode.memory.device) == 0


async def test_held_kv_that_nobody_pulls_is_given_back_after_its_lease(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retinue_emulator.engine.kvtransfer.LEASE_SECONDS", 2.0)
    prefill = await world.engine("--role=prefill")
    ask = {"do_remote_decode": True}
    await world.post(prefill, {**replay("s", [[0, 10]], 640), "max_tokens": 1, "kv_transfer_params": ask})
    await until(lambda: len(prefill.held) == 0, "the lease has ended")
    assert prefill.memory.in_use == 0
    assert sample(await world.metrics(prefill), "vllm:nixl_num_kv_expired_reqs_total") == 1


async def test_draining_finishes_running_streams_and_refuses_new_requests(world: World) -> None:
    engine = await world.engine()
    running = asyncio.create_task(world.stream(engine, replay("s", [[0, 10]], 640, max_tokens=5_000)))
    await until(lambda: engine.scheduler.running == 1, "the stream runs")
    draining = asyncio.create_task(engine.drain(30))
    await until(lambda: engine.draining, "the engine drains")
    refused = await world.post(engine, replay("t", [[0, 1]], 64))
    assert (refused.status, refused.code) == (503, "draining")
    assert sample(await world.metrics(engine), "vllm:num_requests_running") == 1
    events = await running
    assert sum(event["choices"][0]["delta"]["content"].count("token") for event in events) == 5_000
    assert await draining is True
    with pytest.raises(aiohttp.ClientConnectionError):
        await world.post(engine, replay("t", [[0, 1]], 64))


async def test_draining_waits_for_held_kv_to_be_pulled(world: World) -> None:
    prefill, decode = await world.engine("--role=prefill"), await world.engine("--role=decode")
    body = replay("s", [[0, 10]], 640)
    first = await world.post(prefill, {**body, "max_tokens": 1, "kv_transfer_params": {"do_remote_decode": True}})
    draining = asyncio.create_task(prefill.drain(30))
    await until(lambda: prefill.draining, "the engine drains")
    await world.stream(decode, {**body, "kv_transfer_params": first.body["kv_transfer_params"]})
    assert await draining is True


async def test_after_the_grace_period_streams_are_cut_without_done(world: World) -> None:
    engine = await world.engine()
    url = world.url(engine, "/v1/chat/completions")
    body = replay("s", [[0, 10]], 640, max_tokens=100_000, stream=True)
    async with world.http.post(url, json=body) as response:
        assert await response.content.readline()
        assert await engine.drain(0.05) is False
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_client_that_goes_away_stops_costing(world: World) -> None:
    engine = await world.engine()
    body = replay("s", [[0, 10]], 640, max_tokens=100_000, stream=True)
    async with world.http.post(world.url(engine, "/v1/chat/completions"), json=body) as response:
        assert await response.content.readline()
        response.close()
    await until(lambda: engine.in_flight == 0, "the request is aborted")
    assert engine.memory.in_use == 0
    assert sample(await world.metrics(engine), "vllm:request_success_total", finished_reason="abort") == 1


async def test_requests_queue_while_the_kv_cache_is_full(world: World) -> None:
    engine = await world.engine("--num-gpu-blocks-override=200", "--context-window=12800")
    bodies = [replay(f"s{n}", [[0, 100]], 6_400, max_tokens=3_000) for n in range(3)]
    tasks = [asyncio.create_task(world.post(engine, body)) for body in bodies]
    await until(lambda: engine.scheduler.waiting == 2, "two requests wait")
    metrics = await world.metrics(engine)
    assert sample(metrics, "vllm:num_requests_running") == 1
    assert sample(metrics, "vllm:num_requests_waiting") == 2
    assert sample(metrics, "vllm:num_requests_waiting_by_reason", reason="capacity") == 2
    assert sample(metrics, "vllm:request_queue_time_seconds_count") == 0, "booked when a request ends"
    assert sample(metrics, "vllm:kv_cache_usage_perc") == pytest.approx(149 / 200), "prompt, output, windowed layers"
    assert [answer.status for answer in await asyncio.gather(*tasks)] == [200, 200, 200]
    done = await world.metrics(engine)
    assert sample(done, "vllm:num_requests_waiting") == 0
    assert sample(done, "vllm:request_queue_time_seconds_count") == 3
    assert sample(done, "vllm:request_queue_time_seconds_sum") > 0


async def test_metrics_have_vllms_names_and_labels(world: World) -> None:
    engine = await world.engine("--host-cache-bytes=1000000000")
    async with world.http.get(world.url(engine, "/metrics")) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        text = await response.text()
    for line in (
        'vllm:num_requests_running{engine="0",model_name="coder"} 0.0',
        'vllm:num_requests_waiting_by_reason{engine="0",model_name="coder",reason="deferred"} 0.0',
        'vllm:prompt_tokens_total{engine="0",model_name="coder"} 0.0',
        'vllm:prompt_tokens_by_source_total{engine="0",model_name="coder",source="local_compute"} 0.0',
        'vllm:prompt_tokens_cached_by_source_total{engine="0",model_name="coder",source="host"} 0.0',
        'vllm:request_success_total{engine="0",finished_reason="length",model_name="coder"} 0.0',
        'vllm:time_to_first_token_seconds_count{engine="0",model_name="coder"} 0.0',
        'vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="coder"} 0.0',
        'retinue_sim_host_cache_capacity_bytes{engine="0",model_name="coder"} 1e+09',
        'retinue_sim_behind_total{engine="0",model_name="coder"} 0.0',
    ):
        assert sorted_labels(line) in {sorted_labels(found) for found in text.splitlines()}, line
    families = {family.name: family for family in text_string_to_metric_families(text)}
    # 25 ms of model time is a bucket bound whatever the speed.
    bounds = {s.labels.get("le") for s in families["vllm:inter_token_latency_seconds"].samples}
    assert str(0.025 / SPEED) in bounds
    info = families["vllm:cache_config_info"].samples[0].labels
    assert (info["block_size"], info["num_gpu_blocks"]) == ("64", str(engine.config.kv_blocks))
    for name in (
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prefill_kv_computed_tokens",
        "nixl_xfer_time_seconds",
        "nixl_bytes_transferred",
    ):
        assert families[f"vllm:{name}"].type == "histogram"
    for name in ("prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "external_prefix_cache_hits"):
        assert families[f"vllm:{name}"].type == "counter"


def sorted_labels(line: str) -> str:
    name, _, rest = line.partition("{")
    labels, _, value = rest.partition("} ")
    return f"{name}|{','.join(sorted(labels.split(',')))}|{value}"


async def test_prompt_tokens_by_source_sum_to_the_prompt_tokens(world: World) -> None:
    engine = await world.engine()
    for blocks in (100, 150, 150, 60):
        await world.post(engine, replay("s", [[0, blocks]], 64 * blocks + 10))
    metrics = await world.metrics(engine)
    sources = {
        s: sample(metrics, "vllm:prompt_tokens_by_source_total", source=s) for s in ("local_compute", "local_cache_hit")
    }
    total = sample(metrics, "vllm:prompt_tokens_total")
    assert sum(sources.values()) == total == 460 * 64 + 40
    assert sources["local_cache_hit"] == sample(metrics, "vllm:prompt_tokens_cached_total") == 310 * 64
    assert sample(metrics, "vllm:prefix_cache_hits_total") / sample(metrics, "vllm:prefix_cache_queries_total") == (
        pytest.approx(sources["local_cache_hit"] / total)
    )
    assert sample(metrics, "vllm:generation_tokens_total") == 16


async def test_times_follow_the_cost_model_by_the_engines_own_clock(world: World) -> None:
    engine = await world.engine()
    await world.post(engine, replay("s", [[0, 125]], 8_000, max_tokens=201))
    metrics = await world.metrics(engine)
    prefill = prefill_seconds(engine.config.shape, 8_000, 0)
    step = decode_step_seconds(engine.config.shape, 1, 8_100)
    assert sample(metrics, "vllm:request_prefill_time_seconds_sum") * SPEED == pytest.approx(prefill, rel=1e-6)
    assert sample(metrics, "vllm:request_decode_time_seconds_sum") * SPEED == pytest.approx(200 * step, rel=0.01)
    assert sample(metrics, "vllm:inter_token_latency_seconds_count") == 200
    assert sample(metrics, "vllm:request_time_per_output_token_seconds_sum") * SPEED == pytest.approx(step, rel=0.01)


async def test_a_client_sees_the_modelled_times_on_the_wall(world: World) -> None:
    engine = await world.engine()
    began = time.monotonic()
    await world.stream(engine, replay("s", [[0, 250]], 16_000, max_tokens=1_001))
    took = (time.monotonic() - began) * SPEED
    shape = engine.config.shape
    expected = prefill_seconds(shape, 16_000, 0) + 1_000 * decode_step_seconds(shape, 1, 16_500)
    assert expected <= took < expected + SPEED, "at most a second of the wall late"


async def test_a_host_cache_catches_what_falls_out_of_device_memory(world: World) -> None:
    small = ("--num-gpu-blocks-override=220", "--context-window=12800")
    engine = await world.engine(*small, "--host-cache-bytes=1000000000")
    for scope in ("a", "b", "c"):
        assert (await world.post(engine, replay(scope, [[0, 100]], 6_400))).cached == 0
    assert (await world.post(engine, replay("a", [[0, 100]], 6_400))).cached == 6_400
    metrics = await world.metrics(engine)
    assert sample(metrics, "vllm:prompt_tokens_cached_by_source_total", source="host") > 0
    assert sample(metrics, "vllm:external_prefix_cache_hits_total") > 0
    assert sample(metrics, "retinue_sim_host_cache_used_bytes") > 0
    bare = await world.engine(*small)
    for scope in ("a", "b", "c", "a"):
        last = await world.post(bare, replay(scope, [[0, 100]], 6_400))
    assert last.cached < 6_400


async def test_engines_share_blocks_through_a_remote_tier(world: World) -> None:
    tier = await world.tier()
    small = ("--num-gpu-blocks-override=220", "--context-window=12800", f"--tier=warm=http://127.0.0.1:{tier.port}")
    one, two = await world.engine(*small), await world.engine(*small)
    for scope in ("a", "b", "c"):
        await world.post(one, replay(scope, [[0, 100]], 6_400))

    await until(lambda: len(tier.store.blocks) >= 80, "evicted blocks have reached the tier")
    stored = len(tier.store.blocks)
    assert (await world.post(two, replay("a", [[0, 100]], 6_400))).cached < 6_400, "the tail went, the head stayed"
    for scope in ("x", "y"):
        await world.post(one, replay(scope, [[0, 100]], 6_400))
    await until(lambda: len(tier.store.blocks) > stored + 80, "the rest has reached the tier")
    other = await world.engine(*small)
    assert (await world.post(other, replay("a", [[0, 100]], 6_400))).cached == 6_400
    metrics = await world.metrics(other)
    assert sample(metrics, "vllm:prompt_tokens_cached_by_source_total", source="external_unspecified") == 6_400
    tier_metrics = await world.metrics(tier)
    assert sample(tier_metrics, "retinue_tier_hit_tokens_total") >= 6_400
    assert sample(tier_metrics, "master_key_count") == len(tier.store.blocks)
    assert sample(tier_metrics, "retinue_tier_up") == 1


async def test_kv_from_a_remote_tier_takes_the_time_that_its_bandwidth_allows(world: World) -> None:
    tier = await world.tier(bytes_per_second=1e9)
    engine = await world.engine(f"--tier=warm=http://127.0.0.1:{tier.port}")
    shape = engine.config.shape
    block = 64 * kv_bytes_per_token(shape)
    tier.store.put(f"{shape.model.name}\0{shape.kv_precision}\0s", [(0, 100)], block, world.clock.now())
    assert (await world.post(engine, replay("s", [[0, 100]], 6_400))).cached == 6_400
    took = sample(await world.metrics(engine), "vllm:request_prefill_time_seconds_sum") * SPEED
    assert 100 * block / 1e9 <= took < 100 * block / 1e9 + SPEED, "at most a second of the wall late"


async def test_a_dead_tier_costs_a_miss_not_the_request(world: World) -> None:
    tier = await world.tier()
    engine = await world.engine(f"--tier=warm=http://127.0.0.1:{tier.port}")
    await tier.stop()
    answer = await world.post(engine, replay("a", [[0, 10]], 640))
    assert (answer.status, answer.cached) == (200, 0)


async def test_many_streams_at_once_all_complete(world: World) -> None:
    engine = await world.engine()
    bodies = [replay(f"s{n % 7}", [[0, 50 + n]], 64 * (50 + n), max_tokens=20 + n) for n in range(60)]
    streams = await asyncio.gather(*(world.stream(engine, body) for body in bodies))
    counts = [sum(e["choices"][0]["delta"]["content"].count("token") for e in events) for events in streams]
    assert counts == [20 + n for n in range(60)]
    assert engine.memory.in_use == 0
    assert engine.in_flight == 0
