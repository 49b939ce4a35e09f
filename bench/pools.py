"""500 pools x 4 pods until everything exists and every status is written, beside a bare loop and LeaderWorkerSet."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.apiserver import APPLY, Api, Request, many
from bench.ground import Ground, create_pools, describe
from bench.lws import LeaderWorkerSets
from bench.machine import Usage
from bench.objects import GROUP, PER_NODE, POOL_KIND, POOLS, Manifest, pool
from bench.report import Figure, Out, Report, Strict, command, stages
from retinue_emulator.loopback import eventually
from retinue_emulator.loopback.components import SCHEDULER
from retinue_emulator.loopback.health import raise_if_ended
from retinue_emulator.loopback.process import ChildProcess
from retinue_emulator.stages import Stage

_TIMEOUT = 900.0
_SERVER_FIELDS = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")


@dataclass(frozen=True)
class Run:
    """What one contestant needed: seconds, writes by request, events, and the objects that exist in the end."""

    seconds: float
    writes: Counter[Request]
    events: int
    objects: int
    usage: Usage | None = None

    @property
    def total(self) -> int:
        return sum(self.writes.values())


@dataclass
class Watched:
    """Pods and pools as a watch shows them."""

    pods: set[str]
    pools: dict[str, Manifest]
    changed: asyncio.Event
    last: float = 0.0

    def pod(self, type_: str, pod: Manifest) -> None:
        (self.pods.discard if type_ == "DELETED" else self.pods.add)(pod["metadata"]["uid"])
        self.touch()

    def pool(self, type_: str, found: Manifest) -> None:
        if type_ == "DELETED":
            self.pools.pop(found["metadata"]["name"], None)
        else:
            self.pools[found["metadata"]["name"]] = found
        self.touch()

    async def wait(self, child: ChildProcess) -> None:
        """Until something changes, a second at most. Raises LoopbackError when the process has ended."""
        raise_if_ended(child)
        self.changed.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), 1)

    def touch(self) -> None:
        self.last = time.monotonic()
        self.changed.set()


async def retinue(ground: Ground, wanted: Sequence[Manifest], pods: int, profile: Path | None) -> Run:
    """The operator runs and the user creates the pools: until all pods exist and every status says so."""
    namespace = wanted[0]["metadata"]["namespace"]
    operator = await ground.operator(profile=profile)
    seen = Watched(set(), {}, asyncio.Event())
    api = ground.api
    watches = [
        asyncio.create_task(api.watch(f"/api/v1/namespaces/{namespace}/pods", seen.pod)),
        asyncio.create_task(api.watch(f"{GROUP}/namespaces/{namespace}/{POOLS}", seen.pool)),
    ]
    try:
        with ground.stages.stage("Retinue") as stage:
            # Leading, synced, watching.
            await asyncio.sleep(3)
            cpu = operator.usage.cpu
            missing = partial(_unfinished, seen, wanted, pods)
            done = await _filled(ground, stage, operator.child, seen, create_pools(api, wanted), missing)
            used = operator.usage
            stage.done(f"{done.seconds:.1f} s, {done.total} writes, CPU {used.cpu - cpu:.1f} s")
        services = len(await api.items(f"/api/v1/namespaces/{namespace}/services"))
        usage = Usage(used.cpu - cpu, used.resident, used.peak)
        return replace(done, objects=pods + services + len(wanted), usage=usage)
    finally:
        for watch in watches:
            watch.cancel()
        await operator.stop()


async def _filled(
    ground: Ground,
    stage: Stage,
    child: ChildProcess,
    seen: Watched,
    create: Coroutine[Any, Any, None],
    missing: Callable[[], str | None],
) -> Run:
    """The user creates until nothing is missing; what is written after that, until nothing changes, counts, too."""
    before, events = await ground.counted(), await ground.events()
    began = time.monotonic()
    creating = asyncio.create_task(create)
    while (text := missing()) is not None:
        stage.update(text)
        if time.monotonic() > began + _TIMEOUT:
            raise TimeoutError(f"{stage.title} did not finish: {text}")
        await seen.wait(child)
    seconds = seen.last - began
    await creating
    await _quiet(seen)
    return Run(seconds, await ground.counted() - before, await ground.events() - events, len(seen.pods))


def _unfinished(seen: Watched, wanted: Sequence[Manifest], pods: int) -> str | None:
    told = sum(
        found.get("status", {}).get("replicas") == found["spec"]["replicas"]
        and found["status"].get("observedGeneration") == found["metadata"]["generation"]
        and sum(record["pods"] for record in found["status"].get("instances", [])) == pods // len(wanted)
        for found in seen.pools.values()
    )
    if len(seen.pods) == pods and told == len(wanted):
        return None
    return f"{len(seen.pods)} of {pods} pods, {told} of {len(wanted)} statuses"


async def _quiet(seen: Watched, seconds: float = 2.0) -> None:
    async def still() -> bool:
        return time.monotonic() > seen.last + seconds

    await eventually(still, what="nothing changes any more", timeout=_TIMEOUT)


async def bare_loop(ground: Ground, namespace: str, done: Run, wanted: Sequence[Manifest]) -> Run:
    """The same objects and as many writes of each kind, again with no logic, in a namespace of its own."""
    api = ground.api
    old = wanted[0]["metadata"]["namespace"]
    pods = _by_pool(await api.items(f"/api/v1/namespaces/{old}/pods"))
    services = _by_pool(await api.items(f"/api/v1/namespaces/{old}/services"))
    statuses = {p["metadata"]["name"]: p["status"] for p in await api.items(f"{GROUP}/namespaces/{old}/{POOLS}")}
    releases = done.writes["APPLY", "pods", ""] - sum(map(len, pods.values())) > 0
    status_writes = max(1, round(done.writes["APPLY", POOLS, "status"] / len(wanted)))

    async def one(manifest: Manifest) -> None:
        name = manifest["metadata"]["name"]
        own = {**manifest, "metadata": {"name": name, "namespace": namespace}}
        made = await api.send("POST", f"{GROUP}/namespaces/{namespace}/{POOLS}", own)
        uid = made["metadata"]["uid"]
        for service in services[name]:
            await _apply(api, "services", _moved(service, namespace, uid))
        copies = [_moved(pod, namespace, uid) for pod in pods[name]]
        if releases:
            for copy in copies:
                gated = {**copy, "spec": {**copy["spec"], "schedulingGates": [{"name": "bench"}]}}
                await _apply(api, "pods", gated)
        for copy in copies:
            await _apply(api, "pods", copy)
        for number in range(status_writes):
            status = {**statuses[name], "hitRate": f"0.{number + 1}"} if number else statuses[name]
            body = {k: own[k] for k in ("apiVersion", "kind", "metadata")} | {"status": status}
            path = f"{GROUP}/namespaces/{namespace}/{POOLS}/{name}/status?fieldManager=bench-status&force=true"
            await api.send("PATCH", path, body, APPLY)

    with ground.stages.stage("bare asyncio loop") as stage:
        before = await ground.counted()
        began = time.monotonic()
        await many([lambda m=m: one(m) for m in wanted])  # type: ignore[misc]
        seconds = time.monotonic() - began
        made = await ground.counted() - before
        stage.done(f"{seconds:.1f} s, {sum(made.values())} writes")
    return Run(seconds, made, 0, done.objects)


def _by_pool(objects: Sequence[Manifest]) -> dict[str, list[Manifest]]:
    found: dict[str, list[Manifest]] = {}
    for object_ in objects:
        found.setdefault(object_["metadata"]["labels"]["retinue.dev/pool"], []).append(object_)
    return found


def _moved(object_: Manifest, namespace: str, uid: str) -> Manifest:
    """What would be applied to make this object again elsewhere."""
    meta = {k: v for k, v in object_["metadata"].items() if k not in _SERVER_FIELDS}
    owners = [{**owner, "uid": uid} for owner in meta.get("ownerReferences", [])]
    spec = {k: v for k, v in object_["spec"].items() if k not in ("clusterIPs", "nodeName", "schedulingGates")}
    # Volumes of service account tokens and tolerations come from admission again.
    return {
        "apiVersion": "v1",
        "kind": "Pod" if "containers" in spec else "Service",
        "metadata": {**meta, "namespace": namespace, "ownerReferences": owners},
        "spec": spec,
    }


async def _apply(api: Api, plural: str, manifest: Manifest) -> None:
    meta = manifest["metadata"]
    path = f"/api/v1/namespaces/{meta['namespace']}/{plural}/{meta['name']}?fieldManager=bench&force=true"
    await api.send("PATCH", path, manifest, APPLY)


def main(
    pools: Annotated[int, typer.Option(help="Number of pools.", min=1)] = 500,
    instances: Annotated[int, typer.Option(help="Instances per pool.", min=1)] = 4,
    pods: Annotated[int, typer.Option(help="Pods per instance.", min=1)] = 1,
    lws: Annotated[bool, typer.Option("--lws/--no-lws", help="Run LeaderWorkerSet beside it.")] = True,
    lws_sets: Annotated[int | None, typer.Option(help="Number of LeaderWorkerSets. Default: as many as pools.")] = None,
    profile: Annotated[Path | None, typer.Option(help="Run the operator under cProfile; statistics go here.")] = None,
    out: Out = None,
    strict: Strict = False,
) -> None:
    """Time and writes of many pools from nothing, against a bare loop and against LeaderWorkerSet on the same cluster.

    The scheduler is stopped: what is measured is how fast a controller writes its objects.
    """
    report = Report("pools", {"pools": pools, "instances": instances, "pods per instance": pods})
    asyncio.run(_main(report, pools, instances, pods, (lws_sets or pools) if lws else 0, profile))
    report.finish(out, strict)


async def _main(report: Report, pools: int, instances: int, pods: int, sets: int, profile: Path | None) -> None:
    progress = stages()
    total = pools * instances * pods
    devices = PER_NODE if pods > 1 else PER_NODE // 4
    async with Ground.open(progress) as ground:
        await ground.cluster.stop_component(SCHEDULER)
        await ground.nodes(total * devices // PER_NODE)
        for namespace in ("bench", "bare", "lws"):
            await ground.namespace(namespace)
        wanted = [pool("bench", f"pool-{n:04d}", instances, pods, devices) for n in range(pools)]
        done = await retinue(ground, wanted, total, profile)
        bare = await bare_loop(ground, "bare", done, wanted)
        report.facts |= {"operator writes": describe(done.writes), "bare writes": describe(bare.writes)}
        report.facts |= {"operator events": done.events, "kind": POOL_KIND}
        loop = "bare asyncio loop, same writes"
        report.add(Figure("all pods and statuses", done.seconds, "s", None, None, loop, bare.seconds))
        report.add(Figure("time over bare loop", done.seconds / bare.seconds, "ratio", most=1.5))
        # What the user created is no write of the operator, but it is an object that it looks after.
        own = done.total - done.writes["POST", POOLS, ""]
        report.add(Figure("writes per object", own / done.objects, "writes", most=1.5))
        report.add(Figure("events per object", done.events / done.objects, "writes"))
        if done.usage is not None:
            report.add(Figure("operator CPU", done.usage.cpu, "s"))
            report.add(Figure("operator resident at its peak", done.usage.peak / 2**20, "MiB"))
        if sets:
            other = await _lws(ground, sets, instances, pods)
            per_pod, theirs = done.seconds / total, other.seconds / (sets * instances * pods)
            report.facts["lws writes"] = describe(other.writes)
            report.facts["lws sets"] = sets
            name = "LeaderWorkerSet v0.9.0, same cluster"
            report.add(Figure("time per pod", per_pod * 1000, "ms", None, None, name, theirs * 1000))
            report.add(Figure("times faster than LeaderWorkerSet", theirs / per_pod, "ratio", least=5))
            ours = own / total
            wrote = other.total - other.writes["POST", "leaderworkersets", ""]
            per = wrote / (sets * instances * pods)
            report.add(Figure("writes per pod", ours, "writes", None, None, name, per))
            report.add(Figure("share of LeaderWorkerSet's writes", ours / per, "ratio", most=0.2))


async def _lws(ground: Ground, sets: int, instances: int, pods: int) -> Run:
    total = sets * instances * pods

    def missing() -> str | None:
        return f"{len(seen.pods)} of {total} pods" if len(seen.pods) < total else None

    async with LeaderWorkerSets.running(ground) as manager:
        seen = Watched(set(), {}, asyncio.Event())
        watch = asyncio.create_task(ground.api.watch("/api/v1/namespaces/lws/pods", seen.pod))
        try:
            with ground.stages.stage("LeaderWorkerSet") as stage:
                await asyncio.sleep(2)
                creating = manager.create("lws", sets, instances, pods)
                done = await _filled(ground, stage, manager.child, seen, creating, missing)
                stage.done(f"{done.seconds:.1f} s, {done.total} writes")
            return done
        finally:
            watch.cancel()


if __name__ == "__main__":
    command(main)
