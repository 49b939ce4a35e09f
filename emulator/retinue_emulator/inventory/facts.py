"""What the inventory says about one node, with every default filled in; both modes of the node plugin read these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retinue.catalog.facts import Family


@dataclass(frozen=True)
class DeviceSlot:
    """One accelerator of a node; `id` is what a device plugin would report, unique in the cluster."""

    index: int
    id: str
    resource: str


@dataclass(frozen=True)
class Taint:
    """A taint as a Node carries it."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True)
class NodeFacts:
    """One node of the inventory. `memory_bytes` and `cpu_millis` are the node's capacity.

    domain: name of the fast fabric that the node's devices share with other nodes, None when it ends at the node.
    resources: extended resources that are counted but have no identity here (RDMA and the like), by name.
    fault: the value of the annotation `retinue.dev/fault` that the node starts with, None for a healthy node.
    """

    name: str
    group: str
    rack: str
    preset: str
    family: Family
    cpu_millis: int
    memory_bytes: int
    ephemeral_storage_bytes: int
    max_pods: int
    architecture: str
    devices: tuple[DeviceSlot, ...]
    domain: str | None
    resources: Mapping[str, int]
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    fault: str | None = None

    def device_resources(self) -> dict[str, int]:
        """Number of devices by extended resource name."""
        counted: dict[str, int] = {}
        for device in self.devices:
            counted[device.resource] = counted.get(device.resource, 0) + 1
        return counted
