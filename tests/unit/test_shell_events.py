"""Events: repeats are counted on the first one, a full queue drops, and nobody waits."""

import asyncio
from typing import Any, cast

from retinue.plan import Event, EventType, Manifest
from retinue_operator.client import KubeClient
from retinue_operator.errors import ApiDown, NotFound
from retinue_operator.events import Recorder
from retinue_operator.metrics import Metrics

POOL: Manifest = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "DecodePool",
    "metadata": {"name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "1"},
}
SCALED = Event(EventType.NORMAL, "ScalingUp", "from 1 to 2")


class EventServer:
    def __init__(self) -> None:
        self.created: list[Manifest] = []
        self.patched: list[tuple[str, Any]] = []
        self.error: Exception | None = None

    async def create_event(self, manifest: Manifest) -> Manifest:
        if self.error is not None:
            raise self.error
        self.created.append(manifest)
        return manifest

    async def patch_event(self, namespace: str, name: str, patch: Manifest) -> Manifest:
        if self.error is not None:
            raise self.error
        self.patched.append((f"{namespace}/{name}", patch["series"]["count"]))
        return patch


class Bench:
    def __init__(self, size: int = 100) -> None:
        self.now = 1000.0
        self.server = EventServer()
        self.metrics = Metrics()
        self.recorder = Recorder(cast(KubeClient, self.server), self.metrics, lambda: self.now, "pod-1", size)

    async def flush(self) -> None:
        posting = asyncio.create_task(self.recorder.run())
        await self.recorder.flush(5)
        posting.cancel()

    def outcomes(self, outcome: str) -> float:
        return float(self.metrics.events.labels(outcome)._value.get())


async def test_an_event_says_what_happened_to_which_object() -> None:
    bench = Bench()
    bench.recorder.record(POOL, SCALED)
    await bench.flush()
    (event,) = bench.server.created
    assert (event["type"], event["reason"], event["note"]) == ("Normal", "ScalingUp", "from 1 to 2")
    assert event["regarding"]["name"] == "p"
    assert event["metadata"]["namespace"] == "ns"
    assert event["reportingInstance"] == "pod-1"


async def test_repeats_within_ten_minutes_raise_a_count_and_are_patched_now_and_then() -> None:
    bench = Bench()
    for _ in range(10):
        bench.recorder.record(POOL, SCALED)
        await bench.flush()
        bench.now += 10
    assert len(bench.server.created) == 1
    assert [count for _, count in bench.server.patched] == [4, 7, 10]
    assert bench.outcomes("aggregated") == 6


async def test_the_same_after_ten_quiet_minutes_is_a_new_event() -> None:
    bench = Bench()
    bench.recorder.record(POOL, SCALED)
    bench.now += 601
    bench.recorder.record(POOL, SCALED)
    await bench.flush()
    assert len({event["metadata"]["name"] for event in bench.server.created}) == 2


async def test_another_message_reason_or_object_is_another_event() -> None:
    bench = Bench()
    successor = {**POOL, "metadata": {**POOL["metadata"], "uid": "v"}}
    bench.recorder.record(POOL, SCALED)
    bench.recorder.record(POOL, Event(EventType.NORMAL, "ScalingUp", "from 2 to 3"))
    bench.recorder.record(POOL, Event(EventType.NORMAL, "ScalingDown", "from 1 to 2"))
    bench.recorder.record(successor, SCALED)
    await bench.flush()
    assert len(bench.server.created) == 4


async def test_a_full_queue_drops_and_counts_instead_of_waiting() -> None:
    bench = Bench(size=2)
    for number in range(5):
        bench.recorder.record(POOL, Event(EventType.NORMAL, "ScalingUp", str(number)))
    await bench.flush()
    assert len(bench.server.created) == 2
    assert bench.outcomes("dropped") == 3


async def test_a_server_that_is_down_loses_the_event_and_nothing_else() -> None:
    bench = Bench()
    bench.server.error = ApiDown("down")
    bench.recorder.record(POOL, SCALED)
    await bench.flush()
    assert bench.outcomes("failed") == 1


async def test_a_repeat_of_an_event_that_has_expired_starts_a_new_one() -> None:
    bench = Bench()
    bench.recorder.record(POOL, SCALED)
    await bench.flush()
    bench.now += 60
    bench.server.error = NotFound("expired")
    bench.recorder.record(POOL, SCALED)
    await bench.flush()
    bench.server.error = None
    bench.recorder.record(POOL, SCALED)
    await bench.flush()
    assert len(bench.server.created) == 2


async def test_events_of_cluster_scoped_objects_go_to_the_default_namespace() -> None:
    bench = Bench()
    bench.recorder.record({**POOL, "kind": "NodeClass", "metadata": {"name": "h100", "uid": "n"}}, SCALED)
    await bench.flush()
    assert bench.server.created[0]["metadata"]["namespace"] == "default"
    assert "namespace" not in bench.server.created[0]["regarding"]
