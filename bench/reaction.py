"""How soon the operator reacts: seconds from a pod's failure, or a change of a spec, to what the API server shows."""

import asyncio
import random
import time
from dataclasses import dataclass, field

from bench.apiserver import MERGE, STRATEGIC, Api
from bench.kubelet import BulkKubelet, wire_now
from bench.objects import GROUP, POOLS, Manifest, failed, is_ready
from retinue_emulator.loopback import eventually

_PATIENCE = 30.0


@dataclass
class Waiting:
    """What somebody waits for among pod events: `awaited` maps a pool or pod to when and how it was reached."""

    awaited: dict[str, asyncio.Future[float]] = field(default_factory=dict)

    def until(self, mark: str) -> asyncio.Future[float]:
        """Resolved with the monotonic time at which an event of that mark was seen."""
        self.awaited[mark] = asyncio.get_running_loop().create_future()
        return self.awaited[mark]

    def seen(self, type_: str, pod: Manifest) -> None:
        meta = pod["metadata"]
        tags = meta.get("labels") or {}
        marks = [f"{type_} {meta['name']}", f"any {tags.get('retinue.dev/pool')}"]
        if type_ == "MODIFIED" and tags.get("retinue.dev/routable") != "false":
            # Only what the operator writes counts, not what a kubelet says of the pod.
            marks.pop()
        for mark in marks:
            future = self.awaited.pop(mark, None)
            if future is not None and not future.done():
                future.set_result(time.monotonic())


async def failures(api: Api, kubelet: BulkKubelet, count: int, rate: float, chance: random.Random) -> list[float]:
    """Lets `count` ready pods fail, `rate` a second; seconds until each one's replacement exists."""
    waiting = Waiting()
    kubelet.listeners.append(waiting.seen)
    ready = [pod for _, pod in sorted(kubelet.pods.items()) if is_ready(pod)]
    victims = chance.sample(ready, min(count, len(ready)))

    async def one(pod: Manifest, after: float) -> float:
        await asyncio.sleep(after)
        meta = pod["metadata"]
        made = waiting.until(f"ADDED {meta['name']}")
        began = time.monotonic()
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        await api.send("PATCH", path, {"status": failed(pod, wire_now())}, STRATEGIC)
        return await asyncio.wait_for(made, _PATIENCE) - began

    try:
        return await asyncio.gather(*(one(pod, number / rate) for number, pod in enumerate(victims)))
    finally:
        kubelet.listeners.remove(waiting.seen)


async def spec_changes(
    api: Api, kubelet: BulkKubelet, pools: list[Manifest], count: int, rate: float, chance: random.Random
) -> list[float]:
    """Takes one replica from `count` pools, `rate` a second; seconds until the first write about one of its pods.

    The replicas are given back when the instances have drained, which is measured, too.
    """
    waiting = Waiting()
    kubelet.listeners.append(waiting.seen)
    chosen = chance.sample(pools, min(count, len(pools)))

    async def one(pool: Manifest, after: float, by: int) -> float:
        await asyncio.sleep(after)
        meta = pool["metadata"]
        written = waiting.until(f"any {meta['name']}")
        began = time.monotonic()
        path = f"{GROUP}/namespaces/{meta['namespace']}/{POOLS}/{meta['name']}"
        await api.send("PATCH", path, {"spec": {"replicas": pool["spec"]["replicas"] + by}}, MERGE)
        return await asyncio.wait_for(written, _PATIENCE) - began

    try:
        down = await asyncio.gather(*(one(pool, number / rate, -1) for number, pool in enumerate(chosen)))
        left: int = sum(pool["spec"]["replicas"] for pool in pools) - len(chosen)

        async def drained() -> bool:
            return len(kubelet.pods) == left

        await eventually(drained, what=f"{left} pods are left", timeout=_PATIENCE)
        up = await asyncio.gather(*(one(pool, number / rate, 0) for number, pool in enumerate(chosen)))
        return [*down, *up]
    finally:
        kubelet.listeners.remove(waiting.seen)


async def bare(api: Api, kubelet: BulkKubelet, template: Manifest, count: int) -> list[float]:
    """The same with no logic in between: delete a pod and make another one, until the watch shows it."""
    waiting = Waiting()
    kubelet.listeners.append(waiting.seen)
    namespace = template["metadata"]["namespace"]
    spec = {k: v for k, v in template["spec"].items() if k != "nodeName"} | {
        "schedulingGates": [{"name": "bench/bare"}]
    }
    path = f"/api/v1/namespaces/{namespace}/pods"
    taken = []
    try:
        for number in range(count):
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"bare-{number}", "labels": {}},
                "spec": spec,
            }
            await api.send("POST", path, pod)
            made = waiting.until(f"ADDED again-{number}")
            began = time.monotonic()
            await api.send("DELETE", f"{path}/bare-{number}", {"gracePeriodSeconds": 0})
            await api.send("POST", path, {**pod, "metadata": {"name": f"again-{number}"}})
            taken.append(await asyncio.wait_for(made, _PATIENCE) - began)
            await api.send("DELETE", f"{path}/again-{number}", {"gracePeriodSeconds": 0})
        return taken
    finally:
        kubelet.listeners.remove(waiting.seen)
