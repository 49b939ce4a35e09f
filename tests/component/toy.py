"""A controller as small as can be, and a real runtime around it in the event loop of the test."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from retinue.api.labels import MANAGED_BY, RETINUE, TIER
from retinue.plan import Apply, Delete, Event, EventType, Key, Manifest, Plan
from retinue_emulator.loopback import ClusterAccess, eventually
from retinue_operator.controller import World
from retinue_operator.preflight import Exit
from retinue_operator.runtime import Runtime
from retinue_operator.settings import Settings

from .operatorprocess import RBAC

POD_SPEC: Manifest = {
    "containers": [
        {"name": "tier", "image": "none", "resources": {"requests": {"cpu": "1000m", "memory": "1024Mi"}}},
    ],
    "tolerations": [{"key": "retinue.dev/toy", "operator": "Exists"}],
}


class Toy:
    """A controller as small as can be: a tier with N replicas has a Service and N pods."""

    kind = "KVCacheTier"

    def __init__(self, pod_spec: Manifest = POD_SPEC) -> None:
        self.pod_spec = pod_spec
        self.reconciles = 0
        self.show_members = True
        self.gate = asyncio.Event()
        self.gate.set()

    def keys_for(self, kind: str, obj: Manifest) -> Iterable[Key]:
        tier = (obj["metadata"].get("labels") or {}).get(TIER)
        if kind in ("Pod", "Service") and tier:
            yield Key(self.kind, obj["metadata"]["namespace"], tier)

    async def reconcile(self, key: Key, world: World) -> Plan | None:
        tier = world.cache.get(key.kind, key.namespace, key.name)
        if tier is None:
            return None
        self.reconciles += 1
        await self.gate.wait()
        meta = tier["metadata"]
        service = self._child(tier, "v1", "Service", key.name)
        service["spec"] = {"clusterIP": "None", "selector": {TIER: key.name}, "ports": [{"name": "http", "port": 8000}]}
        pods = [self._child(tier, "v1", "Pod", f"{key.name}-{index}") for index in range(tier["spec"]["replicas"])]
        wanted = {pod["metadata"]["name"] for pod in pods}
        have = world.cache.select("Pod", key.namespace, {TIER: key.name})
        status: Manifest = {
            "observedGeneration": meta["generation"],
            "replicas": len(have),
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if len(have) == len(wanted) else "False",
                    "reason": "AsDesired",
                    "message": "",
                    "observedGeneration": meta["generation"],
                    "lastTransitionTime": meta["creationTimestamp"],
                }
            ],
        }
        if self.show_members:
            status["members"] = len(have)
        return Plan(
            apply=(Apply(service), *(Apply({**pod, "spec": self.pod_spec}) for pod in pods)),
            delete=tuple(
                Delete("v1", "Pod", key.namespace, pod["metadata"]["name"], pod["metadata"]["uid"])
                for pod in have
                if pod["metadata"]["name"] not in wanted
            ),
            status=status,
            events=(Event(EventType.NORMAL, "Counted", f"{len(wanted)} wanted"),) if len(have) != len(wanted) else (),
        )

    @staticmethod
    def _child(tier: Manifest, api_version: str, kind: str, name: str) -> Manifest:
        meta = tier["metadata"]
        owner = {"apiVersion": tier["apiVersion"], "kind": tier["kind"], "name": meta["name"], "uid": meta["uid"]}
        return {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": meta["namespace"],
                "labels": {MANAGED_BY: RETINUE, TIER: meta["name"]},
                "ownerReferences": [{**owner, "controller": True}],
            },
        }


def prepare(access: ClusterAccess, server: str = "") -> Path:
    """Installs the shipped rights and returns a kubeconfig of the operator's own service account.

    server: the address of a proxy to go through.
    """
    access.kubectl("apply", "--server-side", "-f", str(RBAC))
    return access.service_account_kubeconfig("retinue-system", "retinue-operator", server=server)


def tier(namespace: str, name: str = "warm", replicas: int = 2) -> Manifest:
    spec = {"medium": "ContextStorage", "backend": "Mooncake", "capacityPerMember": "1Gi", "nodeClass": "storage"}
    metadata = {"name": name, "namespace": namespace}
    return {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": "KVCacheTier",
        "metadata": metadata,
        "spec": {**spec, "replicas": replicas},
    }


class Running:
    """A runtime in this test's event loop and the cluster it works on."""

    def __init__(self, access: ClusterAccess, runtime: Runtime, namespace: str) -> None:
        self.access = access
        self.runtime = runtime
        self.namespace = namespace

    async def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(self.access.kubectl, *arguments, f"--namespace={self.namespace}", stdin=stdin)

    async def apply(self, manifest: Manifest) -> None:
        await self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    async def get(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.kubectl("get", *arguments, "-o", "json"))
        return found

    async def settled(self, name: str = "warm", replicas: int = 2) -> dict[str, Any]:
        async def probe() -> dict[str, Any]:
            found = await self.get("kvt", name)
            status = found.get("status", {})
            fresh = status.get("observedGeneration") == found["metadata"]["generation"]
            return found if fresh and status.get("replicas") == replicas else {}

        return await eventually(probe, what=f"tier {name} shows {replicas} replicas")

    def writes(self) -> float:
        """Requests by this client that may change something, except those for the lease."""
        return sum(
            sample.value
            for family in self.runtime.metrics.requests.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and sample.labels["verb"] != "GET" and sample.labels["kind"] != "Lease"
        )

    async def sweeps(self, more: int) -> None:
        done = self.runtime.metrics.sweeps.labels("complete")._value.get
        start = done()

        async def probe() -> bool:
            return bool(done() >= start + more)

        await eventually(probe, what=f"{more} more sweeps")


@asynccontextmanager
async def running(
    access: ClusterAccess,
    namespace: str,
    toy: Toy,
    *,
    server: str = "",
    **settings: Any,
) -> AsyncIterator[Running]:
    """The operator, through the proxy at `server` if given, until the block ends; then it must stop in order."""
    kubeconfig = await asyncio.to_thread(prepare, access, server)
    quick = {"sweep_interval": 3600.0, "max_backoff": 1.0, "leader_election": False, "stop_grace": 5.0, **settings}
    runtime = Runtime(
        Settings(kubeconfig=kubeconfig, namespaces=(namespace,), http_host="127.0.0.1", http_port=0, **quick),
        [toy],
    )
    task = asyncio.create_task(runtime.run())
    try:

        async def synced() -> bool:
            if task.done():
                task.result()
            return runtime.sweeper is not None and runtime.sweeper.synced

        await eventually(synced, what="the first list")
        yield Running(access, runtime, namespace)
    finally:
        toy.gate.set()
        runtime.stop()
        assert await task == Exit.OK


async def still(count: Callable[[], float], *, what: str) -> None:
    """Returns once a count has not changed for a second."""

    async def probe() -> bool:
        before = count()
        await asyncio.sleep(1.0)
        return count() == before

    await eventually(probe, what=what)
