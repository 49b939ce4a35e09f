"""Agents talk to engines through the gateway with the openai package: answers, streams, errors, and cache hits."""

import asyncio

import openai
import pytest

from .clients import begin, client, stream
from .manifests import decode_pool, pool_of
from .world import World

PREFIX = "Which files define the gateway, and what is in them? " * 400


async def test_completions_streams_and_errors_are_what_the_openai_client_expects(world: World, namespace: str) -> None:
    world.apply(decode_pool(namespace, "small", 1), pool_of(namespace, "small"))
    await world.ready(namespace, "agentpool", "solo")
    async with client(world.base_url(namespace, "solo")) as agents:
        answer = await agents.chat.completions.create(
            model="primary", messages=[{"role": "user", "content": "hello"}], max_tokens=5
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
        assert answer.choices[0].finish_reason == "length"

        streamed = await stream(agents, "a", tokens=7)
        assert (streamed.tokens, streamed.finished, streamed.error) == (7, True, None)
        assert streamed.instance == "small-decode-0"

        models = await agents.models.list()
        assert [model.id for model in models.data] == ["primary"]
        with pytest.raises(openai.NotFoundError, match="nobody"):
            await agents.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hello"}])
        with pytest.raises(openai.BadRequestError):
            await agents.chat.completions.create(model="primary", messages=[{"role": "user", "content": PREFIX * 40}])
    async with client(world.base_url(namespace, "missing")) as agents:
        with pytest.raises(openai.NotFoundError, match="missing"):
            await agents.chat.completions.create(model="primary", messages=[{"role": "user", "content": "hello"}])


async def test_hits_rise_with_session_affinity_and_fall_without(world: World, namespace: str) -> None:
    world.apply(decode_pool(namespace, "cached", 3), pool_of(namespace, "cached"))
    await world.ready(namespace, "agentpool", "solo")
    await world.replicas(namespace, "dp", "cached", 3)
    async with client(world.base_url(namespace, "solo")) as agents:
        # Each turn of a conversation repeats all before it. With one session id it goes where its cache is.
        with_affinity = [await stream(agents, "one", tokens=1, text=PREFIX + "more " * turn) for turn in range(12)]
        assert {answer.error for answer in with_affinity} == {None}
        assert len({answer.instance for answer in with_affinity}) == 1
        assert with_affinity[0].cached == 0
        assert all(answer.cached > 3000 for answer in with_affinity[1:])
        # As sessions of their own the turns spread, and each instance must compute the prefix itself.
        other = "Quite another conversation with a long prefix. " * 400
        without = [await stream(agents, f"s{turn}", tokens=1, text=other + "more " * turn) for turn in range(12)]
        assert {answer.error for answer in without} == {None}
        cold = [answer for answer in without if answer.cached == 0]
        assert len(cold) == len({answer.instance for answer in without}) > 1


async def test_a_scale_down_and_a_rollout_under_fifty_streams_cut_none(world: World, namespace: str) -> None:
    # Slow enough that a client on a loaded machine reads fifty streams as fast as they come.
    slow = {"type": "Simulated", "args": ["--speed=0.04", "--cold-start-seconds=0.1"]}
    world.apply(decode_pool(namespace, "busy", 3, engine=slow), pool_of(namespace, "busy"))
    await world.ready(namespace, "agentpool", "solo")
    await world.replicas(namespace, "dp", "busy", 3)
    async with client(world.base_url(namespace, "solo")) as agents:
        running = await begin(agents, 50, tokens=200)
        world.kubectl("scale", "dp", "busy", "-n", namespace, "--replicas=1")
        await world.until(
            lambda: _draining(world, namespace, "busy", 2), "two instances drain while streams run", timeout=30
        )
        assert not any(task.done() for task in running)
        ended = [await task for task in running]
        assert {(s.tokens, s.finished, s.error) for s in ended} == {(200, True, None)}
        assert len({s.instance for s in ended}) == 3
        await world.replicas(namespace, "dp", "busy", 1)

        running = await begin(agents, 50, tokens=200, prefix="r")
        before = world.get("dp", "busy", "-n", namespace)["status"]["revision"]
        world.apply(decode_pool(namespace, "busy", 1, engine={**slow, "args": [*slow["args"], "--max-num-seqs=128"]}))
        await world.until(
            lambda: _draining(world, namespace, "busy", 1), "the old instance drains while streams run", timeout=60
        )
        ended = [await task for task in running]
        assert {(s.tokens, s.finished, s.error) for s in ended} == {(200, True, None)}
        found = await world.replicas(namespace, "dp", "busy", 1)
        assert found["status"]["revision"] != before


async def _draining(world: World, namespace: str, pool: str, count: int) -> bool:
    found = await asyncio.to_thread(world.get, "dp", pool, "-n", namespace)
    return bool(found["status"].get("drainingReplicas") == count)
