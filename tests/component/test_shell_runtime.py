"""The shell on a real API server under its own service account: what it writes, leaves alone, and survives."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.api.labels import MANAGED_BY, RETINUE, SPEC_HASH, TIER
from retinue.plan import Apply, Delete, Event, EventType, Key, Manifest, Plan
from retinue_emulator.loopback import ClusterAccess, ControlPlane, eventually
from retinue_operator.controller import World
from retinue_operator.preflight import Exit
from retinue_operator.runtime import Runtime
from retinue_operator.settings import Settings
from retinue_operator.source import Source

pytestmark = pytest.mark.component

RBAC = Path(__file__).resolve().parents[2] / "deploy" / "rbac-operator.yaml"
CRDS = Path(__file__).resolve().parents[2] / "crds"
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


def prepare(access: ClusterAccess) -> Path:
    """Installs the shipped rights and returns a kubeconfig of the operator's own service account."""
    access.kubectl("apply", "--server-side", "-f", str(RBAC))
    return access.service_account_kubeconfig("retinue-system", "retinue-operator")


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
async def running(access: ClusterAccess, namespace: str, toy: Toy, **settings: Any) -> AsyncIterator[Running]:
    kubeconfig = await asyncio.to_thread(prepare, access)
    quick = {"sweep_interval": 3600.0, "max_backoff": 1.0, "leader_election": False, "stop_grace": 5.0, **settings}
    runtime = Runtime(
        Settings(kubeconfig=kubeconfig, namespaces=(namespace,), http_host="127.0.0.1", http_port=0, **quick), [toy]
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


async def test_an_object_gets_its_children_and_status_and_then_several_sweeps_write_nothing(
    cluster: ClusterAccess, namespace: str
) -> None:
    toy = Toy()
    async with running(cluster, namespace, toy, sweep_interval=0.3) as op:
        await op.apply(tier(namespace))
        await op.settled()
        # The scheduler's verdict on the pods comes some moments later and is looked at too.
        await op.sweeps(2)
        before, reconciles = op.writes(), toy.reconciles
        await op.sweeps(4)

        async def looked_at() -> bool:
            # A sweep counts as done before the reconciles that it asked for are.
            return toy.reconciles >= reconciles + 4

        await eventually(looked_at, what="four more reconciles")
        assert op.writes() == before
        if isinstance(cluster, ControlPlane):
            users = {event.user for event in cluster.audit_events() if event.namespace == namespace}
            assert "system:serviceaccount:retinue-system:retinue-operator" in users


async def test_scaling_follows_the_spec_both_ways(cluster: ClusterAccess, namespace: str) -> None:
    async with running(cluster, namespace, Toy()) as op:
        await op.apply(tier(namespace, replicas=1))
        await op.settled(replicas=1)
        await op.kubectl("scale", "kvt/warm", "--replicas=3")
        await op.settled(replicas=3)
        await op.kubectl("scale", "kvt/warm", "--replicas=1")
        await op.settled(replicas=1)
        pods = await op.get("pods")
        assert [pod["metadata"]["name"] for pod in pods["items"] if "deletionTimestamp" not in pod["metadata"]] == [
            "warm-0"
        ]


async def test_a_foreign_edit_of_a_planned_field_is_repaired_and_additions_are_left_alone(
    cluster: ClusterAccess, namespace: str
) -> None:
    async with running(cluster, namespace, Toy()) as op:
        await op.apply(tier(namespace))
        await op.settled()
        await op.kubectl("label", "pod/warm-0", f"{MANAGED_BY}-by-me=yes", "mine=1")
        await op.kubectl("label", "service/warm", f"{TIER}=other", "--overwrite")
        edit = json.dumps({"spec": {"selector": {TIER: "other"}}})
        await op.kubectl("patch", "service/warm", "--type=merge", "-p", edit)

        async def repaired() -> bool:
            service = await op.get("service", "warm")
            return bool(service["metadata"]["labels"][TIER] == "warm" and service["spec"]["selector"] == {TIER: "warm"})

        await eventually(repaired, what="the service is as planned again")
        pod = await op.get("pod", "warm-0")
        assert pod["metadata"]["labels"]["mine"] == "1"


async def test_kopf_leaves_no_annotation_and_no_finalizer_anywhere(cluster: ClusterAccess, namespace: str) -> None:
    async with running(cluster, namespace, Toy()) as op:
        await op.apply(tier(namespace))
        await op.settled()
        found = await op.get("kvt,pods,services")
        assert {item["kind"] for item in found["items"]} == {"KVCacheTier", "Pod", "Service"}
        for item in found["items"]:
            annotations = set(item["metadata"].get("annotations", {}))
            assert annotations <= {SPEC_HASH, "kubectl.kubernetes.io/last-applied-configuration"}, item["metadata"]
            assert not item["metadata"].get("finalizers")
        managers = {
            entry["manager"]
            for item in json.loads(await op.kubectl("get", "kvt,pods,services", "-o", "json", "--show-managed-fields"))[
                "items"
            ]
            for entry in item["metadata"]["managedFields"]
        }
        assert {"retinue", "retinue-status"} <= managers
        assert not any("kopf" in manager for manager in managers)


async def test_an_object_deleted_while_no_watch_works_is_noticed_by_the_sweep(
    cluster: ClusterAccess, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(_: Source) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Source, "run", silent)
    async with running(cluster, namespace, Toy(), sweep_interval=0.5) as op:
        await op.apply(tier(namespace))
        await op.settled()
        first = (await op.get("pod", "warm-1"))["metadata"]["uid"]
        await op.kubectl("delete", "pod/warm-1", "--wait=false")

        async def made_again() -> bool:
            uid: str = (await op.get("pod", "warm-1"))["metadata"]["uid"]
            return bool(uid != first)

        await eventually(made_again, what="the pod exists again")


async def test_only_our_own_pods_come_through_the_watch(cluster: ClusterAccess, namespace: str) -> None:
    async with running(cluster, namespace, Toy()) as op:
        await op.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stranger"}, "spec": POD_SPEC},
        )
        await op.apply(tier(namespace))
        await op.settled()
        assert [pod["metadata"]["name"] for pod in op.runtime.cache.select("Pod")] == ["warm-0", "warm-1"]


async def test_cluster_scoped_objects_come_through_even_when_the_operator_looks_after_one_namespace(
    cluster: ClusterAccess, namespace: str
) -> None:
    async with running(cluster, namespace, Toy()) as op:
        name = f"node-{namespace}"[:60].rstrip("-")
        await op.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        try:

            async def seen() -> bool:
                return op.runtime.cache.get("Node", "", name) is not None

            await eventually(seen, what="the node is in the cache")
        finally:
            await op.kubectl("delete", "node", name)

        async def gone() -> bool:
            return op.runtime.cache.get("Node", "", name) is None

        await eventually(gone, what="the node is not in the cache any more")


async def test_a_refused_object_shows_in_condition_and_event_and_is_not_tried_for_ever(
    cluster: ClusterAccess, namespace: str
) -> None:
    toy = Toy({"containers": [{"name": "Not A Name", "image": "none"}]})
    async with running(cluster, namespace, toy) as op:
        await op.apply(tier(namespace))

        async def degraded() -> dict[str, Any]:
            conditions = (await op.get("kvt", "warm")).get("status", {}).get("conditions", [])
            return next((condition for condition in conditions if condition["type"] == "Degraded"), {})

        condition = await eventually(degraded, what="the condition Degraded")
        assert condition["status"] == "True"
        assert condition["reason"] == "InvalidObject"
        assert "spec.containers[0].name" in condition["message"]

        async def told() -> bool:
            events = await op.get("events.events.k8s.io")
            return any(
                event["reason"] == "InvalidObject" and event["regarding"]["name"] == "warm" for event in events["items"]
            )

        await eventually(told, what="the event")
        await quiet(toy)
        toy.pod_spec = POD_SPEC
        await op.kubectl("annotate", "kvt/warm", "look=again")
        found = await op.settled()
        assert [condition["type"] for condition in found["status"]["conditions"]] == ["Ready"]


async def quiet(toy: Toy) -> None:
    """Passes when no reconcile has happened for a second."""

    async def probe() -> bool:
        before = toy.reconciles
        await asyncio.sleep(1.0)
        return toy.reconciles == before

    await eventually(probe, what="no more reconciles")


async def test_a_name_taken_by_somebody_else_is_not_taken_over(cluster: ClusterAccess, namespace: str) -> None:
    async with running(cluster, namespace, Toy()) as op:
        foreign = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "warm", "labels": {"owner": "team"}},
            "spec": {"clusterIP": "None", "selector": {"app": "theirs"}, "ports": [{"name": "http", "port": 80}]},
        }
        await op.apply(foreign)
        await op.apply(tier(namespace))
        conflicts = op.runtime.metrics.writes.labels("Service", "apply", "NameTaken")._value.get

        async def refused() -> bool:
            return bool(conflicts() >= 2)

        await eventually(refused, what="conflicts")
        degraded = [
            entry for entry in (await op.get("kvt", "warm"))["status"]["conditions"] if entry["type"] == "Degraded"
        ]
        assert [entry["reason"] for entry in degraded] == ["NameTaken"]
        assert "not managed by Retinue has this name" in degraded[0]["message"]
        assert (await op.get("service", "warm"))["spec"]["selector"] == {"app": "theirs"}
        # The rest of the plan is carried out all the same.
        await op.settled()
        await op.kubectl("delete", "service/warm")

        async def ours() -> bool:
            return bool((await op.get("service", "warm"))["spec"]["selector"] == {TIER: "warm"})

        await eventually(ours, what="our service, once the name is free")


async def test_a_status_field_that_is_not_planned_any_more_disappears(cluster: ClusterAccess, namespace: str) -> None:
    toy = Toy()
    async with running(cluster, namespace, toy) as op:
        await op.apply(tier(namespace))
        assert (await op.settled())["status"]["members"] == 2
        toy.show_members = False
        await op.kubectl("annotate", "kvt/warm", "look=again")

        async def gone() -> bool:
            return "members" not in (await op.get("kvt", "warm"))["status"]

        await eventually(gone, what="the field is gone")


async def test_a_stop_lets_the_running_reconcile_finish(cluster: ClusterAccess, namespace: str) -> None:
    toy = Toy()
    async with running(cluster, namespace, toy) as op:
        toy.gate.clear()
        await op.apply(tier(namespace))

        async def inside() -> bool:
            return toy.reconciles == 1

        await eventually(inside, what="the reconcile runs")
        op.runtime.stop()
        toy.gate.set()
    assert {item["kind"] for item in cluster.get("pods,services", f"--namespace={namespace}")["items"]} == {
        "Pod",
        "Service",
    }


async def test_probes_and_metrics_are_served(cluster: ClusterAccess, namespace: str) -> None:
    async with running(cluster, namespace, Toy()) as op, aiohttp.ClientSession() as http:
        await op.apply(tier(namespace))
        await op.settled()
        assert op.runtime.probes is not None
        base = f"http://127.0.0.1:{op.runtime.probes.port}"
        texts = {}
        for path in ("/livez", "/readyz", "/metrics"):
            async with http.get(base + path) as answer:
                assert answer.status == 200
                texts[path] = await answer.text()
        assert "[+] sync ok" in texts["/readyz"]
        assert 'retinue_operator_reconciles_total{kind="KVCacheTier",result="Done"}' in texts["/metrics"]
        assert 'retinue_operator_cache_objects{kind="Pod"} 2.0' in texts["/metrics"]


async def test_a_restart_of_the_api_server_is_survived() -> None:
    async with ControlPlane() as own:
        own.kubectl("apply", "--server-side", "-f", str(CRDS))
        own.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CRDS))
        own.kubectl("create", "namespace", "agents")
        # On a busy machine the API server may take longer to come back than the default deadline of the lease.
        patient = {"leader_election": True, "lease_duration": 90.0, "lease_renew_deadline": 60.0}
        async with running(own, "agents", Toy(), sweep_interval=1.0, **patient) as op:
            await op.apply(tier("agents"))
            await op.settled()
            own.kill("kube-apiserver")
            incomplete = op.runtime.metrics.sweeps.labels("incomplete")._value.get

            async def noticed() -> bool:
                return bool(incomplete() >= 1)

            await eventually(noticed, what="a sweep fails")
            await own.start_component("kube-apiserver")
            await op.kubectl("scale", "kvt/warm", "--replicas=3")
            await op.settled(replicas=3)
