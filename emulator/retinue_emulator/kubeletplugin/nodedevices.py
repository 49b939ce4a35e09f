"""The devices of one node as its kubelet gets to know them: accelerators and the counted devices (NICs) beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from retinue.catalog.load import preset
from retinue_emulator.inventory import NodeFacts
from retinue_emulator.inventory.nodelabels import stable_uuid

LINK_GROUPS = "emulator.retinue.dev/link-groups"
"""Label of a node group in the inventory: into how many groups of closest links the devices of a node fall."""

# HGX boards hang four of their eight GPUs on each CPU socket, and the trays of NVL72 racks two on each Grace.
_SOCKETS = 2
_SMALLEST_DIVIDED = 4


class LinkGroupsError(ValueError):
    """The inventory divides the devices of a node into an impossible number of link groups."""


@dataclass(frozen=True)
class PluginDevice:
    """One device. `id` is unique in the cluster and stays the same over restarts; at most 63 characters.

    index: position among the node's devices of this resource.
    group: number of the link group, which is also the NUMA node of the device.
    accelerator: an accelerator of the node class, as opposed to a NIC or the like beside it.
    memory_bytes: 0 when unknown.
    """

    resource: str
    index: int
    id: str
    group: int
    accelerator: bool
    memory_bytes: int = 0

    @property
    def kind(self) -> str:
        """The resource without its domain: `gpu` of nvidia.com/gpu."""
        return self.resource.rpartition("/")[2]

    @property
    def name(self) -> str:
        """Name within a ResourceSlice pool, a DNS label such as `gpu-0`."""
        return f"{self.kind}-{self.index}".lower().replace("_", "-").replace(".", "-")


def node_devices(facts: NodeFacts, cluster: str) -> tuple[PluginDevice, ...]:
    """All devices of a node of the inventory `cluster`, accelerators first, each resource in index order.

    Raises:
        LinkGroupsError: the label LINK_GROUPS is not a number from 1 to the number of devices.
    """
    memory = _memory_bytes(facts)
    count = len(facts.devices)
    accelerators = [
        PluginDevice(slot.resource, slot.index, slot.id, _group(facts, slot.index, count), True, memory)
        for slot in facts.devices
    ]
    beside = [
        PluginDevice(
            resource,
            index,
            f"NIC-{stable_uuid(cluster, facts.name, resource, str(index))}",
            # NIC i sits below the same PCIe switch as accelerator i.
            _group(facts, index, amount),
            False,
        )
        for resource, amount in sorted(facts.resources.items())
        for index in range(amount)
    ]
    return (*accelerators, *beside)


def by_resource(devices: Iterable[PluginDevice]) -> dict[str, tuple[PluginDevice, ...]]:
    """The devices of each resource, resources in the order in which they first appear."""
    found: dict[str, tuple[PluginDevice, ...]] = {}
    for device in devices:
        found[device.resource] = (*found.get(device.resource, ()), device)
    return found


def _group(facts: NodeFacts, index: int, count: int) -> int:
    return index * min(count, _groups(facts, len(facts.devices))) // count


def _groups(facts: NodeFacts, count: int) -> int:
    text = facts.labels.get(LINK_GROUPS)
    if text is None:
        return _SOCKETS if count >= _SMALLEST_DIVIDED else 1
    if not text.isdigit() or not 1 <= int(text) <= max(1, count):
        raise LinkGroupsError(
            f"label {LINK_GROUPS} of node {facts.name} is {text!r}; use a number from 1 to {max(1, count)}"
        )
    return int(text)


def _memory_bytes(facts: NodeFacts) -> int:
    # The label carries what the inventory overrides; only GPU nodes have it.
    if label := facts.labels.get("nvidia.com/gpu.memory"):
        return int(label) * 2**20
    device = preset(facts.preset).device
    return device.memory_bytes if device is not None else 0
