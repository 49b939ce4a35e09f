"""The gateway before simulated engines, used by the OpenAI client: caches hit, transfers work, drains cut nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI

from retinue_emulator.engine.clock import Clock
from retinue_emulator.engine.config import parse_engine
from retinue_emulator.engine.engine import SimulatedEngine
from retinue_emulator.loopback import eventually
from retinue_gateway.directory import AgentPoolView, Instance, RoleView, build_directory
from retinue_gateway.keys import PoolKey, RoleKey, Stage
from retinue_gateway.server import Gateway
from retinue_gateway.settings import GatewaySettings

SPEED = 50.0
ENGINE = (
    "--model=gpt-oss-120b",
    "--served-model-name=coder",
    "--precision=MXFP4",
    "--context-window=131072",
    "--tensor=2",
    "--device=h200",
    "--cold-start-seconds=0",
)
PRIMARY = RoleKey("agents", "coder", "primary")


@dataclass
class World:
    gateway: Gateway
    engines: dict[str, tuple[Stage, SimulatedEngine]]
    client: AsyncOpenAI
    disaggregated: bool

    def publish(self, *unroutable: str) -> None:
        instances = [
            Instance(f"uid-{name}", name, "agents", "coder", stage, f"127.0.0.1:{engine.port}", name not in unroutable)
            for name, (stage, engine) in self.engines.items()
        ]
        pools = ("coder" if self.disaggregated else None, "coder")
        roles = (RoleView("primary", "Primary", "coder", None, self.disaggregated, *pools),)
        view = AgentPoolView(PoolKey("agents", "coder"), 0, roles)
        self.gateway.table.publish(build_directory(instances, [view]))
        self.gateway.table_changed()

    async def turn(self, session: str, tokens: int, *, length: int = 8, **more: Any) -> Any:
        """One request of a session whose prompt is its first `tokens` tokens; the final usage."""
        prompt = {"scope": session, "block_size": 64, "tokens": tokens, "runs": [[0, tokens // 64]]}
        answer = await self.client.chat.completions.create(
            model="primary",
            messages=[{"role": "user", "content": "go on"}],
            max_tokens=length,
            extra_body={"retinue_prompt": prompt, "ignore_eos": True},
            extra_headers={"x-session-id": session},
            **more,
        )
        return answer.usage


@asynccontextmanager
async def world(*, prefill: int, decode: int) -> AsyncIterator[World]:
    clock = Clock(SPEED)
    async with AsyncExitStack() as stack:
        engines: dict[str, tuple[Stage, SimulatedEngine]] = {}
        for stage, count in ((Stage.PREFILL, prefill), (Stage.DECODE, decode)):
            role = str(stage) if prefill else "aggregated"
            for index in range(count):
                config = parse_engine([*ENGINE, f"--role={role}"], {"RETINUE_INSTANCE": f"{stage}-{index}"})
                engine = SimulatedEngine(config, clock, "127.0.0.1", 0)
                await engine.start()
                stack.push_async_callback(engine.stop)
                await asyncio.wait_for(engine.ready.wait(), 5)
                engines[f"{stage}-{index}"] = (stage, engine)
        gateway = Gateway(GatewaySettings(host="127.0.0.1", port=0, shutdown_grace=5, latency_scale=SPEED))
        await stack.enter_async_context(gateway.listening())
        url = f"http://127.0.0.1:{gateway.port}/agents/coder/v1"
        client = await stack.enter_async_context(AsyncOpenAI(base_url=url, api_key="none", max_retries=0))
        made = World(gateway, engines, client, prefill > 0)
        made.publish()
        yield made
        await clock.stop_watch()


@pytest.mark.parametrize(("prefill", "decode"), [(0, 2), (2, 2)], ids=["aggregated", "disaggregated"])
async def test_each_turn_of_a_session_hits_what_its_turns_before_computed(prefill: int, decode: int) -> None:
    async with world(prefill=prefill, decode=decode) as w:
        for session in ("s1", "s2", "s3"):
            cached = [
                (await w.turn(session, tokens)).prompt_tokens_details.cached_tokens for tokens in (6400, 12800, 19200)
            ]
            assert cached == [0, 6400, 12800]


async def test_a_stream_through_the_openai_client_has_all_tokens_and_the_prefill_engines_usage() -> None:
    async with world(prefill=1, decode=1) as w:
        await w.turn("s1", 6400)
        stream = await w.client.chat.completions.create(
            model="coder",
            messages=[{"role": "user", "content": "go on"}],
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"retinue_prompt": {"scope": "s1", "block_size": 64, "tokens": 9600, "runs": [[0, 150]]}},
            extra_headers={"x-session-id": "s1"},
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == " token" * 40
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (9600, 40)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 6400


async def test_an_unroutable_decode_engine_drains_without_cutting_its_streams() -> None:
    async with world(prefill=1, decode=2) as w:
        running = [asyncio.create_task(w.turn(f"s{index}", 6400, length=400)) for index in range(6)]
        victim = w.engines["decode-0"][1]

        async def busy() -> bool:
            return victim.in_flight > 0

        await eventually(busy, what="the instance has requests", timeout=10, interval=0.005)
        w.publish("decode-0")
        draining = asyncio.create_task(victim.drain(10))
        late = await w.turn("late", 6400)
        assert [usage.completion_tokens for usage in await asyncio.gather(*running)] == [400] * 6
        assert late.completion_tokens == 8
        assert await draining, "nothing was cut"


async def test_an_engine_that_starts_to_drain_before_the_gateway_knows_costs_a_retry_and_no_failure() -> None:
    async with world(prefill=0, decode=2) as w:
        await w.turn("s1", 6400)
        session = next(iter(w.gateway.sessions))
        home = session.placement[Stage.DECODE].removeprefix("uid-")
        w.engines[home][1].draining = True
        assert (await w.turn("s1", 12800)).completion_tokens == 8
        labels = {"namespace": "agents", "agent_pool": "coder", "role": "primary"}
        value = w.gateway.metrics.registry.get_sample_value
        assert value("retinue_gateway_retries_total", {**labels, "reason": "unavailable"}) == 1
        moved = {**labels, "reason": "failed", "stage": "decode"}
        assert value("retinue_gateway_session_moves_total", moved) == 1


async def test_an_error_of_the_engine_is_an_openai_error() -> None:
    async with world(prefill=1, decode=1) as w:
        with pytest.raises(APIStatusError) as raised:
            await w.turn("s1", 200_000)
        assert raised.value.status_code == 400
        with pytest.raises(APIStatusError, match="known: coder, primary"):
            await w.client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])
        assert [model.id async for model in w.client.models.list()] == ["primary"]
