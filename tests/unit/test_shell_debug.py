"""The debug pages: what waits, what is known, and why pools have their sizes."""

import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from retinue.plan import Key
from retinue_operator.cache import Cache
from retinue_operator.debug import DebugServer
from retinue_operator.schedule import Pace, Schedule

POOL = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "DecodePool",
    "metadata": {"namespace": "agents", "name": "coder", "uid": "u1", "resourceVersion": "7"},
    "spec": {"engine": {"env": [{"name": "TOKEN", "value": "secret"}]}},
    "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Healthy"}]},
}


class Autoscaler:
    def tell(self) -> Mapping[str, str]:
        return {"AgentPool/agents/coder": '{"now": 5.0}'}


@pytest.fixture
async def pages() -> Any:
    schedule: Schedule[Key] = Schedule(Pace(), lambda: 0.5)
    schedule.add(Key("DecodePool", "agents", "coder"), 100.0)
    schedule.add(Key("NodeClass", "", "h100"), 100.0, delay=30.0)
    assert schedule.take(100.0) is not None
    schedule.back_off(Key("NodeClass", "", "h100"))
    cache = Cache()
    cache.put(POOL)
    server = DebugServer(0, lambda: schedule.entries(100.0), cache, ("DecodePool", "Pod"), [Autoscaler()])
    await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:

        async def get(path: str) -> tuple[int, str]:
            async with session.get(path) as answer:
                return answer.status, await answer.text()

        yield get
    await server.stop()


async def test_the_queue_shows_what_runs_and_what_waits(pages: Any) -> None:
    _, text = await pages("/debug/queue")
    assert json.loads(text) == [
        {"key": "DecodePool/agents/coder", "running": True, "dueInSeconds": None, "failures": 0},
        {"key": "NodeClass/h100", "running": False, "dueInSeconds": 30.0, "failures": 1},
    ]


async def test_the_cache_shows_counts_conditions_and_objects_without_their_spec(pages: Any) -> None:
    assert json.loads((await pages("/debug/cache"))[1]) == {"DecodePool": 1, "Pod": 0}
    (listed,) = json.loads((await pages("/debug/cache/DecodePool?namespace=agents"))[1])
    assert listed["metadata"]["name"] == "coder"
    assert listed["conditions"] == {"Ready": "True Healthy"}
    status, text = await pages("/debug/cache/DecodePool/coder?namespace=agents")
    assert status == 200
    assert json.loads(text)["status"] == POOL["status"]
    assert "secret" not in text


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/debug/cache/Secret", "Secret is not one of DecodePool, Pod"),
        ("/debug/cache/DecodePool/coder", "set ?namespace="),
        ("/debug/cache/DecodePool/lost?namespace=agents", "the cache holds no DecodePool lost"),
    ],
)
async def test_what_is_not_there_is_said(pages: Any, path: str, says: str) -> None:
    status, text = await pages(path)
    assert status == 404
    assert says in text


async def test_decisions_and_the_list_of_pages(pages: Any) -> None:
    assert json.loads((await pages("/debug/decisions"))[1]) == {"AgentPool/agents/coder": {"now": 5.0}}
    assert "/debug/decisions" in (await pages("/debug"))[1]
