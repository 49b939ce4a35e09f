"""The shell on a real API server under its own service account: what it writes, leaves alone, and survives."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.api.labels import MANAGED_BY, SPEC_HASH, TIER
from retinue_emulator.loopback import ClusterAccess, ControlPlane, eventually
from retinue_operator.source import Source

from .toy import POD_SPEC, Toy, running, still, tier

pytestmark = pytest.mark.component

CRDS = Path(__file__).resolve().parents[2] / "crds"


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
        await still(lambda: toy.reconciles, what="no more reconciles")
        toy.pod_spec = POD_SPEC
        await op.kubectl("annotate", "kvt/warm", "look=again")
        found = await op.settled()
        assert [condition["type"] for condition in found["status"]["conditions"]] == ["Ready"]


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
