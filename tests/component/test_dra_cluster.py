"""Devices by DRA with a real scheduler: the node class alone decides whether pods claim or request their devices."""

import asyncio
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from retinue_emulator.inventory import Inventory, expand, parse_inventory
from retinue_emulator.kubeletplugin.dradriver import driver_name
from retinue_emulator.kubeletplugin.faults import KubeletFaults
from retinue_emulator.kubeletplugin.nodedevices import node_devices
from retinue_emulator.kubeletplugin.slices import build_slices, published_devices
from retinue_emulator.loopback import ClusterAccess, eventually
from retinue_emulator.loopback.ports import pick_ports
from retinue_emulator.loopback.process import ChildProcess

from .manifests import decode_pool
from .product import REPOSITORY, answers

pytestmark = pytest.mark.component

GPU = "nvidia.com/gpu"
DRIVER = driver_name(GPU)
SPEED = 40
Objects = dict[str, Any]


@dataclass(frozen=True)
class Fleet:
    """Two emulated nodes of eight GPUs each, whose DRA driver has published them, and an operator. All share a name."""

    cluster: ClusterAccess
    name: str

    def node_class(self) -> Objects:
        """The NodeClass of these nodes, with devices by DRA."""
        return {
            "apiVersion": "retinue.dev/v1alpha1",
            "kind": "NodeClass",
            "metadata": {"name": self.name},
            "spec": {
                "family": "GPU",
                "preset": "h100",
                "nodeSelector": {"test": self.name},
                "devices": {"deviceClass": self.device_class, "perNode": 8},
            },
        }

    @property
    def device_class(self) -> str:
        return f"{self.name}.example.com"

    def pool(self, namespace: str, replicas: int) -> Objects:
        """A pool of instances with four GPUs each."""
        shape = {"parallelism": {"tensor": 4}, "drain": {"timeout": "10s"}}
        return decode_pool(namespace, "small", replicas, nodeClasses=[self.name], **shape)

    def items(self, kinds: str, namespace: str) -> list[Objects]:
        """Objects of the namespace that are not being deleted."""
        found = self.cluster.get(kinds, "-n", namespace)["items"]
        return [item for item in found if "deletionTimestamp" not in item["metadata"]]

    def condition(self, namespace: str, type_: str) -> Objects:
        status = self.cluster.get("dp", "small", "-n", namespace).get("status", {})
        found = [c for c in status.get("conditions", []) if c["type"] == type_]
        return found[0] if found else {}

    async def replicas(self, namespace: str, wanted: int) -> None:
        """Waits until exactly `wanted` instances are ready and nothing starts or drains."""

        async def probe() -> bool:
            found = self.cluster.get("dp", "small", "-n", namespace)
            status = found.get("status", {})
            counts = (status.get("replicas"), status.get("readyReplicas"), status.get("drainingReplicas"))
            current = status.get("observedGeneration") == found["metadata"]["generation"]
            return current and counts == (wanted, wanted, 0)

        await eventually(probe, what=f"{wanted} instances are ready", timeout=60, interval=0.3)

    async def free(self, wanted: int) -> None:
        """Waits until the NodeClass says that so many devices are free."""

        async def probe() -> bool:
            status = self.cluster.get("nodeclass", self.name).get("status", {})
            return (status.get("devices"), status.get("freeDevices")) == (16, wanted)

        await eventually(probe, what=f"{wanted} of 16 devices are free", timeout=30, interval=0.3)

    async def none_left(self, kinds: str, namespace: str) -> None:
        async def probe() -> bool:
            return not self.cluster.get(kinds, "-n", namespace)["items"]

        await eventually(probe, what=f"there are no {kinds}", timeout=60, interval=0.3)


def inventory(name: str) -> Inventory:
    return parse_inventory(
        "apiVersion: emulator.retinue.dev/v1alpha1\n"
        "kind: Inventory\n"
        f"cluster: {name}\n"
        f"labels: {{test: {name}}}\n"
        f"racks: [{{name: {name}, nodeGroups: [{{name: {name}, count: 2, preset: h100, cpu: 96, memory: 2Ti}}]}}]\n"
    )


def publish(cluster: ClusterAccess, nodes: Inventory, device_class: str) -> None:
    """What the DRA drivers of the nodes publish when they have a kubelet, and a class of all of these devices."""
    selector = {"cel": {"expression": f"device.driver == '{DRIVER}'"}}
    objects: list[Objects] = [
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "DeviceClass",
            "metadata": {"name": device_class},
            "spec": {"selectors": [selector]},
        }
    ]
    for facts in expand(nodes):
        devices = published_devices(facts, node_devices(facts, nodes.cluster), KubeletFaults())
        uid = cluster.get("node", facts.name)["metadata"]["uid"]
        objects += build_slices(driver=DRIVER, node=facts.name, node_uid=uid, devices=devices, generation=1)
    cluster.apply(*objects)


@pytest.fixture(scope="module")
def fleet(cluster: ClusterAccess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The nodes, their slices and classes, and an operator with the rights that the project ships."""
    logs = tmp_path_factory.mktemp("dra")
    name = f"dra-{secrets.token_hex(3)}"
    running = Fleet(cluster, name)
    nodes = logs / "inventory.yaml"
    nodes.write_text(inventory(name).model_dump_json(by_alias=True, exclude_none=True))
    (port,) = pick_ports(1)
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "deploy"))

    def spawn(part: str, *arguments: str) -> ChildProcess:
        kubeconfig = cluster.service_account_kubeconfig("retinue-system", f"retinue-{part}")
        argv = [sys.executable, "-m", f"retinue_{part}", *arguments, "--kubeconfig", str(kubeconfig)]
        return ChildProcess.spawn(part, argv, log=logs / f"{part}.log")

    async def start() -> list[ChildProcess]:
        plugin = ("node-plugin", "--inventory", str(nodes), "--speed", str(SPEED))
        lease = ("--lease-duration", "8", "--lease-renew-deadline", "6", "--lease-retry-period", "1")
        children = [
            spawn("emulator", *plugin),
            spawn("operator", "run", "--http-host", "127.0.0.1", "--http-port", str(port), *lease),
        ]
        for node in inventory(name).racks[0].node_groups[0].names():
            cluster.kubectl("wait", "--for=create", "--timeout=60s", "node", node)
        publish(cluster, inventory(name), running.device_class)
        await eventually(lambda: answers(f"http://127.0.0.1:{port}/readyz"), what="the operator answers", timeout=60)
        return children

    async def stop(children: list[ChildProcess]) -> None:
        for child in reversed(children):
            await child.stop(10)
        cluster.kubectl("delete", "deviceclass", running.device_class, "--ignore-not-found")

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        children = runner.run(start())
        try:
            yield running
        finally:
            runner.run(stop(children))
            print(f"logs of operator and node plugin: {logs}")


@pytest.fixture
def by_dra(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet with its NodeClass by DRA, for one test."""
    fleet.cluster.apply(fleet.node_class())
    fleet.cluster.kubectl("wait", "nodeclass", fleet.name, "--for=condition=Ready", "--timeout=60s")
    yield fleet
    fleet.cluster.kubectl("delete", "nodeclass", fleet.name)


async def test_a_pool_claims_its_devices_and_leaves_nothing_behind(by_dra: Fleet, namespace: str) -> None:
    fleet = by_dra
    await fleet.free(16)
    fleet.cluster.apply(fleet.pool(namespace, 3))
    await fleet.replicas(namespace, 3)
    await fleet.free(4)

    (template,) = fleet.items("resourceclaimtemplates", namespace)
    pods = {pod["metadata"]["name"]: pod for pod in fleet.items("pods", namespace)}
    for pod in pods.values():
        (claim,) = pod["spec"]["resourceClaims"]
        assert claim == {"name": "devices", "resourceClaimTemplateName": template["metadata"]["name"]}
        resources = next(c["resources"] for c in pod["spec"]["containers"] if c["name"] == "engine")
        assert resources == {"claims": [{"name": "devices"}]}
    claims = fleet.items("resourceclaims", namespace)
    devices = []
    for claim in claims:
        (user,) = claim["status"]["reservedFor"]
        results = claim["status"]["allocation"]["devices"]["results"]
        assert [(r["request"], r["driver"]) for r in results] == [("devices", DRIVER)] * 4
        assert {r["pool"] for r in results} == {pods[user["name"]]["spec"]["nodeName"]}
        assert claim["metadata"]["labels"]["retinue.dev/pool"] == "small"
        devices += [(r["pool"], r["device"]) for r in results]
    assert len(claims) == 3
    assert len(set(devices)) == 12

    fleet.cluster.kubectl("scale", "dp", "small", "-n", namespace, "--replicas=1")
    await fleet.replicas(namespace, 1)

    async def released() -> bool:
        return len(fleet.cluster.get("resourceclaims", "-n", namespace)["items"]) == 1

    await eventually(released, what="the claims of removed instances are gone", timeout=60, interval=0.3)
    await fleet.free(12)

    fleet.cluster.kubectl("delete", "dp", "small", "-n", namespace)
    await fleet.none_left("pods,resourceclaims,resourceclaimtemplates", namespace)
    await fleet.free(16)


async def test_what_is_left_of_the_device_class_limits_a_pool(by_dra: Fleet, namespace: str) -> None:
    fleet = by_dra
    fleet.cluster.apply(fleet.pool(namespace, 5))

    async def full() -> bool:
        status = fleet.cluster.get("dp", "small", "-n", namespace).get("status", {})
        return status.get("readyReplicas") == 4 and fleet.condition(namespace, "Placed").get("reason") == "NoFit"

    await eventually(full, what="four instances run and the fifth finds no devices", timeout=60, interval=0.3)
    counted = f"deviceclass.resource.kubernetes.io/{fleet.device_class}"
    assert f"0 of their 16 {counted} are free" in fleet.condition(namespace, "Placed")["message"]
    assert sum(bool(pod["spec"].get("schedulingGates")) for pod in fleet.items("pods", namespace)) == 1


async def test_the_same_pool_goes_over_to_extended_resources_with_its_class(by_dra: Fleet, namespace: str) -> None:
    fleet = by_dra
    fleet.cluster.apply(fleet.pool(namespace, 1))
    await fleet.replicas(namespace, 1)
    before = {pod["metadata"]["uid"] for pod in fleet.items("pods", namespace)}
    devices = f'{{"spec": {{"devices": {{"deviceClass": null, "extendedResource": "{GPU}"}}}}}}'
    fleet.cluster.kubectl("patch", "nodeclass", fleet.name, "--type=merge", "-p", devices)
    fleet.cluster.kubectl("scale", "dp", "small", "-n", namespace, "--replicas=2")
    await fleet.replicas(namespace, 2)

    pods = fleet.items("pods", namespace)
    assert before < {pod["metadata"]["uid"] for pod in pods}
    (new,) = [pod for pod in pods if pod["metadata"]["uid"] not in before]
    assert "resourceClaims" not in new["spec"]
    assert new["spec"]["containers"][0]["resources"]["limits"] == {GPU: "4"}
    assert len(fleet.items("resourceclaimtemplates", namespace)) == 1, "the running pod's claim was made from it"

    fleet.cluster.kubectl("scale", "dp", "small", "-n", namespace, "--replicas=0")
    await fleet.none_left("pods,resourceclaims,resourceclaimtemplates", namespace)


async def test_a_template_of_somebody_else_is_left_alone_and_told(by_dra: Fleet, namespace: str) -> None:
    fleet = by_dra
    fleet.cluster.apply(fleet.pool(namespace, 0))

    async def made() -> list[Objects]:
        return fleet.items("resourceclaimtemplates", namespace)

    (ours,) = await eventually(made, what="the pool has its template", interval=0.2)
    name = ours["metadata"]["name"]
    fleet.cluster.kubectl("delete", "dp", "small", "-n", namespace)
    await fleet.none_left("resourceclaimtemplates", namespace)
    exactly = {"deviceClassName": fleet.device_class, "allocationMode": "ExactCount", "count": 1}
    foreign = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"spec": {"devices": {"requests": [{"name": "devices", "exactly": exactly}]}}},
    }
    fleet.cluster.apply(foreign)
    fleet.cluster.apply(fleet.pool(namespace, 0))

    async def told() -> bool:
        return "rename or remove it" in fleet.condition(namespace, "Degraded").get("message", "")

    await eventually(told, what="the pool tells whose template is in its way", timeout=60, interval=0.3)
    (left,) = fleet.items("resourceclaimtemplates", namespace)
    assert left["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"] == 1
    assert "labels" not in left["metadata"]

    fleet.cluster.kubectl("delete", "resourceclaimtemplate", name, "-n", namespace)

    async def ours_again() -> bool:
        return [t["metadata"]["labels"]["retinue.dev/pool"] for t in await made()] == ["small"]

    await eventually(ours_again, what="the pool has made its own", timeout=60, interval=0.3)
