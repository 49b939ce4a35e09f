"""The Node object of one emulated node, and its status."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from retinue.api.labels import FAULT
from retinue.version import VERSION
from retinue_emulator.inventory import NodeFacts, Taint

from .containerstate import JsonObject, timestamp

EMULATED = "retinue.dev/emulated"
INVENTORY = "retinue.dev/inventory"
KUBELET_VERSION = "v1.37.1+retinue"

_PRESSURES = (
    ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
)


class NodeHealth(StrEnum):
    """What a node's conditions say."""

    READY = "Ready"
    UNKNOWN = "Unknown"


def new_node(facts: NodeFacts, inventory: str, status: JsonObject) -> JsonObject:
    """The Node as it is created."""
    annotations = {FAULT: facts.fault} if facts.fault else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": facts.name, "labels": all_labels(facts, inventory), "annotations": annotations},
        "spec": {
            "providerID": f"retinue://{inventory}/{facts.name}",
            "taints": [taint_object(taint) for taint in facts.taints],
        },
        "status": status,
    }


def all_labels(facts: NodeFacts, inventory: str) -> dict[str, str]:
    """The node's labels: those of the inventory, and those by which plugins find their nodes."""
    return {**facts.labels, EMULATED: "true", INVENTORY: inventory}


def taint_object(taint: Taint) -> JsonObject:
    """A taint as the Node carries it."""
    return {"key": taint.key, "effect": taint.effect} | ({"value": taint.value} if taint.value else {})


def node_status(
    facts: NodeFacts,
    *,
    address: str,
    allocatable_devices: Mapping[str, int],
    health: NodeHealth,
    boot: uuid.UUID,
    known: JsonObject | None,
    now: datetime,
) -> JsonObject:
    """The whole status. `known` is the Node as last seen, whose transition times are kept."""
    plain = {
        "cpu": f"{facts.cpu_millis}m" if facts.cpu_millis % 1000 else str(facts.cpu_millis // 1000),
        "memory": f"{facts.memory_bytes // 1024}Ki",
        "ephemeral-storage": f"{facts.ephemeral_storage_bytes // 1024}Ki",
        "pods": str(facts.max_pods),
        **{name: str(count) for name, count in facts.resources.items()},
    }
    return {
        "capacity": plain | {name: str(count) for name, count in facts.device_resources().items()},
        "allocatable": plain | {name: str(count) for name, count in allocatable_devices.items()},
        "conditions": conditions(health, known, now),
        "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": facts.name}],
        "nodeInfo": {
            "architecture": facts.architecture,
            "bootID": str(boot),
            "containerRuntimeVersion": f"retinue://{VERSION}",
            "kernelVersion": "6.8.0-retinue",
            "kubeProxyVersion": "",
            "kubeletVersion": KUBELET_VERSION,
            "machineID": uuid.uuid5(uuid.NAMESPACE_DNS, facts.name).hex,
            "operatingSystem": "linux",
            "osImage": f"Retinue emulated node ({facts.preset})",
            "systemUUID": str(uuid.uuid5(uuid.NAMESPACE_DNS, facts.name)),
        },
    }


def conditions(health: NodeHealth, known: JsonObject | None, now: datetime) -> list[JsonObject]:
    """Ready and the three pressures. Unknown is worded as the node-lifecycle controller does."""
    before = {c["type"]: c for c in (known or {}).get("status", {}).get("conditions", [])}
    if health is NodeHealth.UNKNOWN:
        lost = "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status."
        entries = [("Ready", *lost), *((kind, *lost) for kind, _, _ in _PRESSURES)]
    else:
        entries = [("Ready", "True", "KubeletReady", "retinue node plugin is posting ready status")]
        entries += [(kind, "False", reason, message) for kind, reason, message in _PRESSURES]
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastHeartbeatTime": timestamp(now),
            "lastTransitionTime": before[kind]["lastTransitionTime"]
            if before.get(kind, {}).get("status") == status
            else timestamp(now),
        }
        for kind, status, reason, message in entries
    ]
