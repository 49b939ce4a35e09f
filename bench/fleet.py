"""A cluster of 5,000 pods: what it costs at rest, how soon the operator reacts, starts and takes over, its memory."""

import asyncio
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import aiohttp
import typer

from bench.apiserver import Api, writes
from bench.ground import Ground, Operator, create_pools, describe
from bench.kubelet import BulkKubelet
from bench.objects import GROUP, PER_NODE, POOLS, pool
from bench.reaction import bare, failures, spec_changes
from bench.report import Figure, Out, Report, Strict, command, quantile, stages
from retinue_emulator.loopback.components import SCHEDULER
from retinue_emulator.loopback.health import raise_if_ended
from retinue_emulator.stages import Stage

_NAMESPACE = "bench"
_BUILD_SECONDS = 600.0
_CALM_SECONDS = 8.0
_ACCOUNT = "system:serviceaccount:retinue-system:retinue-operator"
MIB = 2**20


@dataclass(frozen=True)
class Size:
    """What is built and how long it is watched."""

    pools: int
    replicas: int
    nodes: int
    quiet: float
    churn: float
    samples: int
    parts: frozenset[str]

    @property
    def pods(self) -> int:
        return self.pools * self.replicas


PARTS = ("start", "quiet", "reaction", "churn", "takeover")


def main(
    pools: Annotated[int, typer.Option(help="Number of pools.", min=1)] = 500,
    replicas: Annotated[int, typer.Option(help="Instances of one pod per pool.", min=2)] = 10,
    nodes: Annotated[int | None, typer.Option(help="Nodes. Default: one for four pods, and some to spare.")] = None,
    quiet: Annotated[float, typer.Option(help="Seconds for which the quiet cluster is watched.", min=5)] = 120.0,
    churn: Annotated[float, typer.Option(help="Seconds of churn for the memory's growth; 3600 for a soak.")] = 120.0,
    samples: Annotated[int, typer.Option(help="Pod failures, and pools whose spec changes.", min=2)] = 100,
    only: Annotated[str, typer.Option(help=f"Parts to run, of {','.join(PARTS)}.")] = ",".join(PARTS),
    out: Out = None,
    strict: Strict = False,
) -> None:
    """Builds the cluster with a bulk scheduler and kubelet, lets the operator fill it, and measures the parts."""
    parts = frozenset(only.split(","))
    if unknown := parts - set(PARTS):
        raise typer.BadParameter(f"there is no part {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    count = nodes or (pools * replicas + 3) // 4 + pools // 8 + 4
    size = Size(pools, replicas, count, quiet, churn, samples, parts)
    report = Report("fleet", {"pools": pools, "pods": size.pods, "nodes": count, "quiet seconds": quiet})
    asyncio.run(_main(report, size))
    report.finish(out, strict)


async def _main(report: Report, size: Size) -> None:
    progress = stages()
    async with Ground.open(progress, audit=True) as ground, aiohttp.ClientSession() as http:
        await ground.cluster.stop_component(SCHEDULER)
        await ground.nodes(size.nodes)
        await ground.namespace(_NAMESPACE)
        async with BulkKubelet.running(ground.api, size.nodes) as kubelet:
            bench = _Bench(report, size, ground, http, kubelet)
            operator = await bench.build()
            try:
                operator = await bench.run(operator)
            finally:
                await operator.stop()


@dataclass
class _Bench:
    report: Report
    size: Size
    ground: Ground
    http: aiohttp.ClientSession
    kubelet: BulkKubelet

    @property
    def api(self) -> Api:
        return self.ground.api

    async def build(self) -> Operator:
        """The operator makes all pods, the kubelet makes them run."""
        size = self.size
        wanted = [pool(_NAMESPACE, f"pool-{n:04d}", size.replicas, 1, PER_NODE // 4) for n in range(size.pools)]
        operator = await self.ground.operator("--lease-duration", "10")
        with self.ground.stages.stage(f"{size.pods} pods") as stage:
            before = await self.ground.counted()
            creating = asyncio.create_task(create_pools(self.api, wanted))
            await self._wait(stage, operator, self._built)
            await creating
            made = await self.ground.counted() - before
            seconds = stage.seconds
            stage.done(f"{size.pods / seconds:.0f} pods/s until Ready")
        await self._settle(operator)
        # From nothing to Ready, statuses included; bindings, kubelet and user apart.
        own = sum(count for (verb, _, _), count in made.items() if verb in ("APPLY", "DELETE"))
        objects = 2 * size.pools + size.pods
        self.report.add(Figure("operator writes per object until all pods are Ready", own / objects, "writes"))
        self.report.facts["writes of the build"] = describe(made)
        return operator

    async def run(self, operator: Operator) -> Operator:
        """Each part that was asked for, in an order in which none disturbs the next; the operator that runs then."""
        parts = self.size.parts
        if "start" in parts:
            await operator.stop()
            operator = await self._start()
        if "quiet" in parts:
            await self._quiet(operator)
        if "reaction" in parts:
            await self._reaction(operator)
        if "churn" in parts:
            await self._churn(operator)
        if "takeover" in parts:
            operator = await self._takeover(operator)
        return operator

    async def _start(self) -> Operator:
        with self.ground.stages.stage("start of the operator") as stage:
            operator = await self.ground.operator()
            await self._wait(stage, operator, lambda: self._idle(operator))
            seconds = time.monotonic() - operator.started
            stage.done(f"{seconds:.1f} s")
        name = "listing the same objects, no logic"
        self.report.add(Figure("process start to nothing to do", seconds, "s", 15.0, None, name, await self._list()))
        self.report.add(Figure("resident after the start", operator.usage.resident / MIB, "MiB", most=250))
        self.report.add(Figure("resident at most in the start", operator.usage.peak / MIB, "MiB"))
        return operator

    async def _list(self) -> float:
        began = time.monotonic()
        for path in ("/api/v1/pods", "/api/v1/nodes", "/api/v1/services", f"{GROUP}/{POOLS}"):
            await self.api.items(path)
        return time.monotonic() - began

    async def _quiet(self, operator: Operator) -> None:
        await self._settle(operator)
        with self.ground.stages.stage("quiet cluster") as stage:
            cpu, before, began = operator.usage.cpu, await self.api.requests(), time.monotonic()
            asked = Counter(self._asked())
            while stage.seconds < self.size.quiet:
                stage.update("nobody does anything")
                await asyncio.sleep(min(1.0, self.size.quiet))
            seconds = time.monotonic() - began
            used = operator.usage
            busy = (used.cpu - cpu) / seconds
            wrote = writes(await self.api.requests() - before)
            # Events were written long ago; of leases there are others', too.
            foreign = sum(n for (_, resource, _), n in wrote.items() if resource != "leases")
            own = Counter(self._asked()) - asked
            stage.done(f"CPU {busy:.1%} of a core")
        named = {" ".join(filter(None, key)): count for key, count in sorted(own.items())}
        self.report.facts["operator's requests while quiet"] = named
        others = sum(n for (verb, resource), n in own.items() if resource != "leases" and verb != "watch")
        self.report.add(Figure("writes of the whole cluster but leases", foreign, "writes", most=0))
        self.report.add(Figure("operator's requests but lease and watches", others, "requests", most=0))
        self.report.add(
            Figure("operator's lease requests", sum(n for k, n in own.items() if k[1] == "leases"), "requests")
        )
        self.report.add(Figure("operator CPU at rest", busy * 100, "% of a core", most=2))
        self.report.add(Figure("operator resident at rest", used.resident / MIB, "MiB", most=250))

    def _asked(self) -> list[tuple[str, str]]:
        events = self.ground.cluster.audit_events(reads=True)
        return [(event.verb, event.resource or event.path) for event in events if event.user == _ACCOUNT]

    async def _reaction(self, operator: Operator) -> None:
        rate = 10.0
        template = next(iter(self.kubelet.pods.values()))
        with self.ground.stages.stage("reactions") as stage:
            directly = await bare(self.api, self.kubelet, template, min(50, self.size.samples))
            failed = await failures(self.api, self.kubelet, self.size.samples, rate, random.Random(1))
            stage.update("failures done")
            await self._settle(operator)
            pools = await self.api.items(f"{GROUP}/namespaces/{_NAMESPACE}/{POOLS}")
            changed = await spec_changes(self.api, self.kubelet, pools, self.size.samples, rate, random.Random(2))
            stage.done(f"{len(failed)} failures, {len(changed)} changes")
        name = "delete and create with no logic"
        for share, most in ((0.5, None), (0.99, 1.0)):
            mine, beside = quantile(failed, share), quantile(directly, share)
            title = f"pod failure to replacement created, p{share * 100:.0f}"
            self.report.add(Figure(title, mine, "s", most, None, name, beside))
        for share, most in ((0.5, None), (0.99, 0.5)):
            title = f"spec change to first write, p{share * 100:.0f}"
            self.report.add(Figure(title, quantile(changed, share), "s", most))
        await self._settle(operator)

    async def _churn(self, operator: Operator) -> None:
        """The same again and again; memory at the end against that after the first tenth."""
        with self.ground.stages.stage("churn") as stage:
            resident: list[int] = []
            rounds, chance = 0, random.Random(3)
            while stage.seconds < self.size.churn or len(resident) < 4:
                await failures(self.api, self.kubelet, min(50, self.size.pods // 4), 10.0, chance)
                pools = await self.api.items(f"{GROUP}/namespaces/{_NAMESPACE}/{POOLS}")
                await spec_changes(self.api, self.kubelet, pools, 25, 10.0, chance)
                rounds += 1
                resident.append(operator.usage.resident)
                stage.update(f"round {rounds}, {resident[-1] / MIB:.1f} MiB")
            stage.done(f"{rounds} rounds")
        first = resident[max(1, len(resident) // 10)]
        growth = (resident[-1] - first) / first * 100
        self.report.add(Figure(f"growth of memory over {stage.seconds:.0f} s of churn", growth, "%", most=2))
        self.report.add(Figure("resident after churn", resident[-1] / MIB, "MiB", most=250))

    async def _takeover(self, operator: Operator) -> Operator:
        with self.ground.stages.stage("takeover") as stage:
            standby = await self.ground.operator(name="standby")
            # It has seen the lease.
            await asyncio.sleep(3)
            operator.child.send(signal.SIGKILL)
            await operator.child.wait()
            killed = time.monotonic()
            await self._wait(stage, standby, lambda: self._idle(standby))
            seconds = time.monotonic() - killed
            stage.done(f"{seconds:.1f} s")
        self.report.add(Figure("kill of the leader to nothing to do for the standby", seconds, "s", most=15))
        return standby

    # --- waiting

    async def _built(self) -> str | None:
        ready = self.kubelet.ready
        return None if ready == self.size.pods else f"{len(self.kubelet.pods)} pods, {ready} Ready"

    async def _idle(self, operator: Operator) -> str | None:
        """What is still to do: all pods known, everything looked at once, nothing queued."""
        try:
            told = await operator.metrics(self.http)
        except aiohttp.ClientError:
            return "its metrics do not answer"
        pods = told.get(("retinue_operator_cache_objects", "Pod"), 0)
        looked = sum(n for (name, _), n in told.items() if name == "retinue_operator_reconciles_total")
        waits = told.get(("retinue_operator_queue_depth", ""), 0) + told.get(("retinue_operator_workers_busy", ""), 0)
        if pods < self.size.pods or looked < self.size.pools or waits:
            return f"{pods:.0f} pods known, {looked:.0f} reconciles, {waits:.0f} to do"
        return None

    async def _settle(self, operator: Operator) -> None:
        """Until nothing was written for some seconds."""
        with self.ground.stages.stage("settling") as stage:
            last, since = await self.ground.counted(), time.monotonic()
            while time.monotonic() - since < _CALM_SECONDS:
                await asyncio.sleep(1)
                raise_if_ended(operator.child)
                now = await self.ground.counted()
                if now != last:
                    stage.update(str(describe(now - last)))
                    last, since = now, time.monotonic()

    async def _wait(self, stage: Stage, operator: Operator, missing: object) -> None:
        while (text := await missing()) is not None:  # type: ignore[operator]
            raise_if_ended(operator.child)
            stage.update(text)
            if stage.seconds > _BUILD_SECONDS:
                raise TimeoutError(f"{stage.title} took more than {_BUILD_SECONDS:g} s: {text}")
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    command(main)
