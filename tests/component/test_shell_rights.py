"""What the operator may do for the sake of rare events only, each on a real API server under its own account."""

import asyncio
import json
import time
from typing import Any

import pytest

from retinue.api.labels import INSTANCE, SPEC_HASH
from retinue.plan import Apply, Event, EventType, Key, Manifest, Plan
from retinue_emulator.loopback import ClusterAccess, eventually
from retinue_operator.access import Access
from retinue_operator.client import KubeClient
from retinue_operator.controller import World
from retinue_operator.events import Recorder
from retinue_operator.metrics import Metrics
from retinue_operator.source import Source

from .manifests import decode_pool
from .toy import POD_SPEC, Toy, prepare, running, tier

pytestmark = pytest.mark.component

CLAIM_TEMPLATE: Manifest = {
    "spec": {"devices": {"requests": [{"name": "devices", "exactly": {"deviceClassName": "gpu.example.com"}}]}}
}


class OneChild(Toy):
    """A controller whose tier `warm` has one child; its plan waits at the gate, made from what was known before."""

    def __init__(self, kind: str, namespace: str) -> None:
        super().__init__()
        decode = decode_pool(namespace, "child", 1)
        prefill = {key: value for key, value in decode["spec"].items() if key != "serves"}
        specs: dict[str, tuple[str, Manifest]] = {
            "Pod": ("v1", POD_SPEC),
            "Service": ("v1", {"clusterIP": "None", "ports": [{"name": "http", "port": 8000}]}),
            "PrefillPool": (decode["apiVersion"], prefill),
            "DecodePool": (decode["apiVersion"], decode["spec"]),
            "KVCacheTier": (decode["apiVersion"], tier(namespace)["spec"]),
            "ResourceClaimTemplate": ("resource.k8s.io/v1", CLAIM_TEMPLATE),
        }
        self.child_kind = kind
        self.api_version, self.spec = specs[kind]

    def child(self, owner: Manifest, instance: str) -> Manifest:
        made = self._child(owner, self.api_version, self.child_kind, "child")
        made["metadata"]["labels"][INSTANCE] = instance
        return {**made, "spec": self.spec}

    async def reconcile(self, key: Key, world: World) -> Plan | None:
        owner = world.cache.get(key.kind, key.namespace, key.name)
        if owner is None or key.name != "warm":
            return None
        self.reconciles += 1
        await self.gate.wait()
        return Plan(apply=(Apply(self.child(owner, "as-planned")),))


@pytest.mark.parametrize(
    "kind", ["Pod", "Service", "PrefillPool", "DecodePool", "KVCacheTier", "ResourceClaimTemplate"]
)
async def test_an_object_made_behind_the_caches_back_is_read_after_the_conflict_and_made_as_planned(
    cluster: ClusterAccess, namespace: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(_: Source) -> None:
        await asyncio.Event().wait()

    # Neither a watch nor a sweep tells of the object: only reading it does.
    monkeypatch.setattr(Source, "run", silent)
    await asyncio.to_thread(cluster.apply, tier(namespace))
    owner = await asyncio.to_thread(cluster.get, "kvt", "warm", "-n", namespace)
    toy = OneChild(kind, namespace)
    toy.gate.clear()
    async with running(cluster, namespace, toy) as op:

        async def planning() -> bool:
            return toy.reconciles == 1

        await eventually(planning, what="the reconcile has begun")
        await asyncio.to_thread(cluster.apply, toy.child(owner, "somebody-elses"))
        toy.gate.set()

        async def as_planned() -> dict[str, Any]:
            found = await op.get(kind.lower(), "child")
            return found if found["metadata"]["labels"][INSTANCE] == "as-planned" else {}

        found = await eventually(as_planned, what="the object is as planned")
        assert SPEC_HASH in found["metadata"]["annotations"]
        conflicts = op.runtime.metrics.writes.labels(kind, "apply", "Conflict")._value.get
        assert conflicts() == 1


async def test_an_event_that_happens_again_is_counted_on_the_first_one(cluster: ClusterAccess, namespace: str) -> None:
    await asyncio.to_thread(cluster.apply, tier(namespace))
    regarding = await asyncio.to_thread(cluster.get, "kvt", "warm", "-n", namespace)
    now = time.time()
    async with await KubeClient.connect(Access(await asyncio.to_thread(prepare, cluster))) as client:
        recorder = Recorder(client, Metrics(), lambda: now, "test")
        posting = asyncio.create_task(recorder.run())
        for _ in range(3):
            recorder.record(regarding, Event(EventType.WARNING, "Tried", "it did not work"))
            await recorder.flush(30)
            now += 60.0
        posting.cancel()
    (event,) = json.loads(cluster.kubectl("get", "events.events.k8s.io", "-n", namespace, "-o", "json"))["items"]
    assert event["regarding"]["uid"] == regarding["metadata"]["uid"]
    assert event["series"]["count"] == 3
