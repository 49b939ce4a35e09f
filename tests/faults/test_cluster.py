"""What nodes, users and other controllers do to a running pool: it is put right, with few writes, and told."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue.api import labels
from retinue.plan import Manifest
from retinue_emulator.loopback import ClusterAccess, ControlPlane, eventually

from ..component.manifests import SMALL_MODEL, decode_pool
from ..component.operatorprocess import LEASE, UNHURRIED, Operator, operator
from ..component.traffic import stream
from .emulatednodes import emulated_nodes

pytestmark = pytest.mark.component

SPEED = 60.0
CLASS = "fault-gpu"
INVENTORY = """
apiVersion: emulator.retinue.dev/v1alpha1
kind: Inventory
cluster: faults
zone: local-f
racks:
- name: f1
  nodeGroups: [{name: fgpu-a, count: 2, preset: b200, cpu: 224, memory: 4Ti, labels: {node-role: fault-gpu}}]
- name: f2
  nodeGroups: [{name: fgpu-b, count: 2, preset: b200, cpu: 224, memory: 4Ti, labels: {node-role: fault-gpu}}]
"""
NODE_CLASS: Manifest = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "NodeClass",
    "metadata": {"name": CLASS, "annotations": {"retinue.dev/time-scale": f"{SPEED:g}"}},
    "spec": {"family": "GPU", "preset": "b200", "nodeSelector": {"node-role": "fault-gpu"}},
}
RACK = "topology.kubernetes.io/rack"
MOST_WRITES_WHILE_STUCK = 10
HOURS = 3600.0
TOKENS = 100_000


@pytest.fixture
async def nodes(cluster: ClusterAccess, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """Two racks of two nodes each."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("the API server of RETINUE_KUBECONFIG shows no audit log")
    async with emulated_nodes(cluster, tmp_path, INVENTORY, SPEED, [NODE_CLASS]):
        yield cluster


def pool(namespace: str, name: str, replicas: int, **spec: Any) -> Manifest:
    return decode_pool(namespace, name, replicas, **{"nodeClasses": [CLASS], "drain": {"timeout": "10s"}, **spec})


async def get(cluster: ClusterAccess, *arguments: str) -> Manifest:
    return await asyncio.to_thread(cluster.get, *arguments)


async def serving(cluster: ClusterAccess, namespace: str, name: str, count: int) -> list[Manifest]:
    """The pool's pods once so many instances are ready and the status says so."""

    async def probe() -> list[Manifest]:
        status = (await get(cluster, "dp", name, "-n", namespace)).get("status", {})
        assert (status.get("replicas"), status.get("readyReplicas")) == (count, count), status
        found = (await get(cluster, "pods", "-n", namespace, "-l", f"retinue.dev/pool={name}"))["items"]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    return await eventually(probe, what=f"{name} has {count} ready instances", timeout=90)


def writes(cluster: ControlPlane, namespace: str, leader: Operator) -> int:
    return sum(
        event.namespace == namespace and event.user_agent.endswith(f"({leader.name})")
        for event in cluster.audit_events()
    )


def complaints(leader: Operator) -> list[str]:
    """Lines of the log that tell of a defect."""
    return [line for line in leader.log if json.loads(line)["level"] in ("error", "critical")]


async def test_an_instance_whose_whole_rack_is_lost_goes_to_another_one(nodes: ControlPlane, namespace: str) -> None:
    shape = {"parallelism": {"tensor": 8, "data": 2}, "topology": {"pack": "rack"}}
    async with operator(nodes, "first", namespace, *UNHURRIED) as leader:
        await asyncio.to_thread(nodes.apply, pool(namespace, "wide", 1, **shape))
        before = await serving(nodes, namespace, "wide", 1)
        lost = {pod["spec"]["nodeName"] for pod in before}
        racks = {
            node["metadata"]["name"]: node["metadata"]["labels"][RACK]
            for node in (await get(nodes, "nodes", "-l", f"node-role={CLASS}"))["items"]
        }
        assert len({racks[name] for name in lost}) == 1
        assert len(lost) == 2
        await asyncio.to_thread(nodes.kubectl, "annotate", "node", *lost, "retinue.dev/fault=down")
        try:

            async def elsewhere() -> bool:
                after = await serving(nodes, namespace, "wide", 1)
                return {racks[pod["spec"]["nodeName"]] for pod in after}.isdisjoint(racks[name] for name in lost)

            await eventually(elsewhere, what="the instance serves in the other rack", timeout=120)
        finally:
            await asyncio.to_thread(nodes.kubectl, "annotate", "node", *lost, "retinue.dev/fault-")
        # With every node gone there is nowhere to go, and that is said; their return heals it.
        everything = sorted(racks)
        await asyncio.to_thread(nodes.kubectl, "annotate", "node", *everything, "--overwrite", "retinue.dev/fault=down")
        try:

            async def told() -> bool:
                found = (await get(nodes, "dp", "wide", "-n", namespace))["status"]["conditions"]
                conditions = {entry["type"]: entry for entry in found}
                return conditions["Ready"]["status"] == "False" and conditions["Placed"]["reason"] == "NoFit"

            await eventually(told, what="Placed=False with NoFit", timeout=120)
        finally:
            await asyncio.to_thread(nodes.kubectl, "annotate", "node", *everything, "retinue.dev/fault-")
        await serving(nodes, namespace, "wide", 1)
        assert complaints(leader) == []


async def test_evicted_deleted_and_stuck_pods_are_replaced_and_a_foreign_finalizer_is_left_alone(
    nodes: ControlPlane, namespace: str
) -> None:
    async with operator(nodes, "first", namespace, *UNHURRIED) as leader:
        await asyncio.to_thread(nodes.apply, pool(namespace, "small", 3))
        evicted, deleted, stuck = sorted(pod["metadata"]["name"] for pod in await serving(nodes, namespace, "small", 3))
        hold = json.dumps({"metadata": {"finalizers": ["example.com/mine"]}})
        await asyncio.to_thread(nodes.kubectl, "patch", "pod", stuck, "-n", namespace, "--type=merge", "-p", hold)
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": evicted, "namespace": namespace},
        }
        path = f"/api/v1/namespaces/{namespace}/pods/{evicted}/eviction"
        await asyncio.to_thread(nodes.kubectl, "create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        await asyncio.to_thread(nodes.kubectl, "delete", "pod", deleted, stuck, "-n", namespace, "--wait=false")
        after = {pod["metadata"]["name"] for pod in await serving(nodes, namespace, "small", 3)}
        assert stuck not in after
        # The stuck one stays, and nobody writes about it for ever.
        before = writes(nodes, namespace, leader)
        since = time.monotonic()

        async def later() -> bool:
            return time.monotonic() - since > 5

        await eventually(later, what="five seconds pass")
        assert writes(nodes, namespace, leader) - before <= MOST_WRITES_WHILE_STUCK
        left = await get(nodes, "pod", stuck, "-n", namespace)
        assert left["metadata"]["finalizers"] == ["example.com/mine"]
        free = json.dumps({"metadata": {"finalizers": None}})
        await asyncio.to_thread(nodes.kubectl, "patch", "pod", stuck, "-n", namespace, "--type=merge", "-p", free)

        async def alone() -> bool:
            pods = (await get(nodes, "pods", "-n", namespace))["items"]
            return {pod["metadata"]["name"] for pod in pods} == after

        await eventually(alone, what="three pods are left")
        assert complaints(leader) == []


async def test_a_namespace_deleted_in_the_middle_of_everything_goes_quietly_and_disturbs_no_other(
    nodes: ControlPlane, namespace: str
) -> None:
    doomed = f"{namespace[:50]}-doomed"
    async with operator(nodes, "first", f"{namespace},{doomed}", *UNHURRIED) as leader:
        await asyncio.to_thread(nodes.apply, pool(namespace, "stays", 1))
        kept = await serving(nodes, namespace, "stays", 1)
        await asyncio.to_thread(nodes.kubectl, "create", "namespace", doomed)
        await asyncio.to_thread(nodes.apply, *(pool(doomed, f"p{number}", 3) for number in range(4)))

        async def busy() -> bool:
            return writes(nodes, doomed, leader) >= 8

        await eventually(busy, what="pods are being made")
        # Waits until it is gone.
        await asyncio.to_thread(nodes.kubectl, "delete", "namespace", doomed, timeout=120)
        await asyncio.to_thread(nodes.kubectl, "scale", "dp/stays", "-n", namespace, "--replicas=2")
        now = await serving(nodes, namespace, "stays", 2)
        assert {pod["metadata"]["uid"] for pod in kept} <= {pod["metadata"]["uid"] for pod in now}
        before = writes(nodes, doomed, leader)
        since = time.monotonic()

        async def later() -> bool:
            return time.monotonic() - since > 3

        await eventually(later, what="three seconds pass")
        assert writes(nodes, doomed, leader) == before
        assert complaints(leader) == []


async def test_a_deleted_pool_with_a_foreign_finalizer_serves_on_untouched_until_that_is_gone(
    nodes: ControlPlane, namespace: str
) -> None:
    async with operator(nodes, "first", namespace, *UNHURRIED) as leader:
        held = pool(namespace, "held", 2)
        held["metadata"]["finalizers"] = ["example.com/mine"]
        await asyncio.to_thread(nodes.apply, held)
        before = {pod["metadata"]["uid"] for pod in await serving(nodes, namespace, "held", 2)}
        await asyncio.to_thread(nodes.kubectl, "delete", "dp", "held", "-n", namespace, "--wait=false")
        written = writes(nodes, namespace, leader)
        since = time.monotonic()

        async def later() -> bool:
            return time.monotonic() - since > 5

        await eventually(later, what="five seconds pass")
        # As with a Deployment: what it owns goes when it goes, by garbage collection.
        left = await get(nodes, "dp", "held", "-n", namespace)
        assert left["metadata"]["finalizers"] == ["example.com/mine"]
        assert {pod["metadata"]["uid"] for pod in await serving(nodes, namespace, "held", 2)} == before
        assert writes(nodes, namespace, leader) - written <= MOST_WRITES_WHILE_STUCK
        free = json.dumps({"metadata": {"finalizers": None}})
        await asyncio.to_thread(nodes.kubectl, "patch", "dp", "held", "-n", namespace, "--type=merge", "-p", free)

        async def gone() -> bool:
            return not (await get(nodes, "dp,pods", "-n", namespace))["items"]

        await eventually(gone, what="the pool and its pods are gone", timeout=60)
        assert complaints(leader) == []


async def test_a_clock_that_jumps_for_hours_neither_cuts_a_drain_nor_makes_one_wait_nor_moves_the_lease(
    nodes: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    (clock := tmp_path / "ahead").write_text("0")
    async with operator(nodes, "first", namespace, *UNHURRIED, clock=clock) as leader, aiohttp.ClientSession() as http:
        await asyncio.to_thread(nodes.apply, pool(namespace, "timed", 2, drain={"timeout": "60s"}))
        await leader.says('"running"')
        lease = await get(nodes, *LEASE)
        for jump in (5 * HOURS, -5 * HOURS):
            pods = await serving(nodes, namespace, "timed", 2)
            began = [asyncio.Event() for _ in pods]
            running = [
                asyncio.create_task(
                    stream(
                        http,
                        f"http://{pod['status']['podIP']}:{labels.HTTP_PORT}/v1",
                        f"{jump:g}",
                        model=str(SMALL_MODEL["name"]),
                        tokens=TOKENS,
                        started=event,
                    )
                )
                for pod, event in zip(pods, began, strict=True)
            ]
            await asyncio.wait_for(asyncio.gather(*(event.wait() for event in began)), 30)
            await asyncio.to_thread(nodes.kubectl, "scale", "dp/timed", "-n", namespace, "--replicas=1")

            async def draining() -> bool:
                return bool((await get(nodes, "dp", "timed", "-n", namespace))["status"].get("drainingReplicas") == 1)

            await eventually(draining, what="one instance drains", interval=0.1)
            clock.write_text(str(jump))
            assert not any(task.done() for task in running), "the streams are too short for this test"
            assert [(done.tokens, done.finished, done.error) for done in await asyncio.gather(*running)] == [
                (TOKENS, True, None)
            ] * 2
            await serving(nodes, namespace, "timed", 1)
            await asyncio.to_thread(nodes.kubectl, "scale", "dp/timed", "-n", namespace, "--replicas=2")
        await serving(nodes, namespace, "timed", 2)
        now = await get(nodes, *LEASE)
        assert now["spec"]["holderIdentity"] == lease["spec"]["holderIdentity"]
        assert now["spec"]["leaseTransitions"] == lease["spec"]["leaseTransitions"]
        assert complaints(leader) == []
