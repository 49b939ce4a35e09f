"""The ground of cluster benchmarks: a loopback control plane with Retinue's kinds, fake nodes, the real operator."""

import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from bench.apiserver import MERGE, Api, Request, many, writes
from bench.machine import Usage, usage
from bench.objects import GROUP, POOLS, Manifest, node, node_class
from retinue_emulator.loopback import ControlPlane, eventually
from retinue_emulator.loopback.health import wait_healthy
from retinue_emulator.loopback.ports import pick_ports
from retinue_emulator.loopback.process import ChildProcess
from retinue_emulator.stages import Stages

REPOSITORY = Path(__file__).resolve().parents[1]
# Endpoints refuse loopback addresses; fake nodes renew no lease, so that nobody may call them lost.
_CONTROLLERS = (
    "--controllers=*,-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller"
    ",-node-lifecycle-controller"
)
# Written by everybody all the time and nobody's work on the objects measured.
_UNCOUNTED = frozenset({"leases", "events", "serviceaccounts", "configmaps", "namespaces"})
_STOP_SECONDS = 15.0


@dataclass
class Operator:
    """A running operator process."""

    child: ChildProcess
    url: str
    started: float
    """Monotonic seconds just before the process was started."""

    @property
    def usage(self) -> Usage:
        return usage(self.child.pid)

    async def metrics(self, http: aiohttp.ClientSession) -> dict[tuple[str, str], float]:
        """Its own metrics by name and kind label; other labels are summed up."""
        async with http.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        found: Counter[tuple[str, str]] = Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name, sample.labels.get("kind", "")] += sample.value  # type: ignore[assignment]
        return dict(found)

    async def stop(self) -> None:
        await self.child.stop(_STOP_SECONDS)


class Ground:
    """A control plane with Retinue's kinds, rights and class."""

    def __init__(self, cluster: ControlPlane, api: Api, stages: Stages) -> None:
        self.cluster = cluster
        self.api = api
        self.stages = stages

    @classmethod
    @asynccontextmanager
    async def open(cls, stages: Stages, *, audit: bool = False) -> AsyncIterator["Ground"]:
        """Everything of it ends with the block."""
        with stages.stage("control plane") as stage:
            plane = ControlPlane(
                audit=audit,
                audit_reads=("retinue-system",),
                extra_args={"kube-controller-manager": [_CONTROLLERS]},
            )
            await plane.start()
            stage.done(plane.server)
        try:
            plane.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds"))
            plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(REPOSITORY / "crds"))
            plane.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "deploy"))
            async with Api.open(plane) as api:
                await api.send("POST", f"{GROUP}/nodeclasses", node_class())
                yield cls(plane, api, stages)
        finally:
            await plane.stop(keep_logs=False)

    async def namespace(self, name: str) -> None:
        """A new namespace in which pods are admitted."""
        await self.api.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts"
        await eventually(lambda: self.api.items(account), what=f"{name} has its service account")

    async def nodes(self, count: int) -> None:
        """Adds `count` Ready nodes without the taint that admission gives to new ones."""

        async def add(number: int) -> None:
            made = await self.api.send("POST", "/api/v1/nodes", node(number))
            path = f"/api/v1/nodes/{made['metadata']['name']}"
            await self.api.send("PATCH", path, {"spec": {"taints": None}}, MERGE)

        with self.stages.stage(f"{count} nodes") as stage:
            await many([lambda n=n: add(n) for n in range(count)])  # type: ignore[misc]
            stage.done(f"{count / stage.seconds:.0f} nodes/s")

    async def operator(self, *flags: str, profile: Path | None = None, name: str = "operator") -> Operator:
        """Starts the operator as users do, and returns when it answers; it need not lead yet."""
        (port,) = pick_ports(1)
        kubeconfig = self.cluster.service_account_kubeconfig("retinue-system", "retinue-operator")
        profiler = ["-m", "cProfile", "-o", str(profile)] if profile is not None else []
        arguments = [
            *(sys.executable, *profiler, "-m", "retinue_operator", "run", "--kubeconfig", str(kubeconfig)),
            *("--http-host", "127.0.0.1", "--http-port", str(port), "--log-level", "warning", "--identity", name),
            *flags,
        ]
        started = time.monotonic()
        child = ChildProcess.spawn(name, arguments, log=self.cluster.logs / f"{name}.log")
        url = f"http://127.0.0.1:{port}"
        await wait_healthy(child, f"{url}/livez", timeout=60)
        return Operator(child, url, started)

    async def counted(self) -> Counter[Request]:
        """Writes of the whole cluster so far, without leases, events and bindings."""
        return Counter(
            {
                (verb, resource, sub): count
                for (verb, resource, sub), count in writes(await self.api.requests()).items()
                if resource not in _UNCOUNTED and sub != "binding"
            }
        )

    async def events(self) -> int:
        """How many Events were written so far, by whomever."""
        return sum(n for (_, resource, _), n in writes(await self.api.requests()).items() if resource == "events")


async def create_pools(api: Api, pools: Sequence[Manifest]) -> None:
    """Creates the pools as a user would, many at a time."""
    await many(
        [
            lambda p=p: api.send("POST", f"{GROUP}/namespaces/{p['metadata']['namespace']}/{POOLS}", p)  # type: ignore[misc]
            for p in pools
        ]
    )


def describe(counted: Counter[Request]) -> dict[str, int]:
    """Requests in words, for the JSON."""
    return {
        f"{verb} {'/'.join(filter(None, (resource, sub)))}": count
        for (verb, resource, sub), count in sorted(counted.items())
    }
