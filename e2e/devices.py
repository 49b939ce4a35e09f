"""What nodes have by the inventory; who holds which device as containers, kubelets and Prometheus tell it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from retinue_emulator.inventory import NodeFacts, expand, parse_inventory
from retinue_emulator.kubeletplugin.nodedevices import PluginDevice, node_devices

from .world import World

GPU, LPU, NIC = "nvidia.com/gpu", "nvidia.com/lpu", "rdma/ib"
FAULT = "retinue.dev/fault"
_LOOK = """
import glob, json, os
facts = [json.load(open(path)) for path in sorted(glob.glob("/run/retinue/devices/*.json"))]
print(json.dumps({"env": dict(os.environ), "facts": facts}))
"""


@dataclass(frozen=True)
class Offered:
    """One node of the inventory and its devices, as the plugin there should offer them."""

    facts: NodeFacts
    devices: tuple[PluginDevice, ...]
    cluster: str

    def by_id(self, resource: str) -> dict[str, PluginDevice]:
        """The devices of a resource by id."""
        return {device.id: device for device in self.devices if device.resource == resource}


def offered(world: World) -> dict[str, Offered]:
    """By node name, from the inventory that is installed."""
    found = world.get("configmap", f"{world.release.name}-inventory", "-n", world.release.namespace)
    inventory = parse_inventory(found["data"]["inventory.yaml"])
    return {
        facts.name: Offered(facts, node_devices(facts, inventory.cluster), inventory.cluster)
        for facts in expand(inventory)
    }


@dataclass(frozen=True)
class Seen:
    """What the first container of a pod sees: its environment and the descriptions of its devices."""

    pod: str
    node: str
    env: Mapping[str, str]
    facts: tuple[Mapping[str, Any], ...]

    def ids(self, resource: str = "") -> tuple[str, ...]:
        """Ids of the accelerators, or of a resource's devices."""
        suffix = f"_{resource.upper().replace('/', '_').replace('.', '_')}" if resource else ""
        return tuple(filter(None, self.env.get(f"RETINUE_DEVICE_IDS{suffix}", "").split(",")))


def seen(world: World, namespace: str, pod: str) -> Seen:
    """Looks from inside the container."""
    answer = json.loads(world.kubectl("exec", pod, "-n", namespace, "--", "python3", "-c", _LOOK))
    node = world.get("pod", pod, "-n", namespace)["spec"]["nodeName"]
    return Seen(pod, node, answer["env"], tuple(answer["facts"]))


def reported(pod: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What the kubelet reports in a pod's status: health by device id, by resource (or claim)."""
    return {
        resource["name"]: {item["resourceID"]: item.get("health", "Unknown") for item in resource["resources"]}
        for container in pod["status"].get("containerStatuses", [])
        for resource in container.get("allocatedResourcesStatus", [])
    }


def holders(world: World, namespace: str) -> dict[str, str]:
    """Pod by id of the GPU that it holds, from the device metrics in Prometheus."""
    series = world.query(f'DCGM_FI_DEV_GPU_UTIL{{namespace="{namespace}"}}')
    return {labels["UUID"]: labels["pod"] for labels, _ in series}


def amount(world: World, node: str, resource: str, kind: str = "allocatable") -> int:
    """How many devices of a resource the node has."""
    return int(world.get("node", node)["status"][kind].get(resource, 0))


def set_fault(world: World, node: str, fault: str) -> None:
    """Breaks something on a node; empty heals everything."""
    world.kubectl("annotate", "node", node, f"{FAULT}={fault}" if fault else f"{FAULT}-", "--overwrite")


def plain_pod(world: World, namespace: str, name: str, node: str, resources: Mapping[str, int]) -> dict[str, Any]:
    """A pod on a node that holds devices and does nothing, as a user without Retinue would write it."""
    emulator = world.get("daemonset", f"{world.release.name}-emulator", "-n", world.release.namespace)
    limits = {resource: str(count) for resource, count in resources.items()}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "main",
                    "image": emulator["spec"]["template"]["spec"]["containers"][0]["image"],
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "resources": {"limits": limits},
                }
            ],
        },
    }


async def running(world: World, namespace: str, name: str, timeout: float = 90) -> dict[str, Any]:
    """The pod once it runs."""

    async def probe() -> dict[str, Any] | None:
        found = world.get("pod", name, "-n", namespace)
        return found if found["status"].get("phase") == "Running" else None

    found: dict[str, Any] = await world.until(probe, f"pod {name} runs", timeout)
    return found


def distinct(views: Iterable[Seen], resource: str = "") -> bool:
    """Whether no device is seen by two pods."""
    ids = [id for view in views for id in view.ids(resource)]
    return len(ids) == len(set(ids))


def when(check: Callable[[], object]) -> Callable[[], Awaitable[bool]]:
    """A probe for `World.until` of a plain look at the cluster."""

    async def probe() -> bool:
        return bool(check())

    return probe
