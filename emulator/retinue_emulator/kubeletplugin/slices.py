"""ResourceSlices of one node's driver: which devices there are, what they are and how much they hold.

Limits and rules: k8s.io/api v0.37 resource/v1 types.go. The scheduler takes the first devices that fit, slices in the
order of their names and devices in the order of the list, so devices of one link group are listed together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from retinue.api.units import quantity
from retinue_emulator.inventory import NodeFacts
from retinue_emulator.inventory.nodelabels import ACCELERATOR_DOMAIN, CLIQUE, RACK
from retinue_emulator.nodeplugin.apiserver import JsonObject

from .faults import KubeletFaults
from .nodedevices import PluginDevice

DEVICES_PER_SLICE = 128

_ATTRIBUTE_LENGTH = 64
# Attribute by the node label that states it, as the drivers of the vendor and gpu-feature-discovery name them.
_FROM_LABELS: Mapping[str, str] = {
    "productName": "nvidia.com/gpu.product",
    "architecture": "nvidia.com/gpu.family",
    "clique": CLIQUE,
    "nvlinkDomain": ACCELERATOR_DOMAIN,
    "rack": RACK,
}
_VERSIONS_FROM_LABELS: Mapping[str, str] = {
    "driverVersion": "nvidia.com/cuda.driver-version.full",
    "cudaDriverVersion": "nvidia.com/cuda.runtime-version.full",
}


def published_devices(
    facts: NodeFacts, devices: Sequence[PluginDevice], faults: KubeletFaults
) -> tuple[JsonObject, ...]:
    """The devices that can be allocated, in the order in which the scheduler should take them.

    An unhealthy device is not among them: device taints would say more, but clusters before 1.36 ignore them.
    """
    working = [device for device in devices if faults.healthy(device)]
    ordered = sorted(working, key=lambda device: (not faults.linked(device), device.group, device.index))
    return tuple(_device(facts, device, linked=faults.linked(device)) for device in ordered)


def build_slices(
    *,
    driver: str,
    node: str,
    node_uid: str,
    devices: Sequence[JsonObject],
    generation: int,
) -> tuple[JsonObject, ...]:
    """The pool of a node as ResourceSlices, in name order; one without devices when there are none.

    An empty pool is published too: it says that the driver is there and has nothing, and keeps the generation.
    """
    chunks = [devices[start : start + DEVICES_PER_SLICE] for start in range(0, len(devices), DEVICES_PER_SLICE)] or [()]
    return tuple(
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceSlice",
            "metadata": {
                "name": f"{node}-{driver}-{number:03d}",
                # Deleting the Node removes its slices, also when no plugin is left to do it.
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": True}
                ],
            },
            "spec": {
                "driver": driver,
                "nodeName": node,
                "pool": {"name": node, "generation": generation, "resourceSliceCount": len(chunks)},
                "devices": list(chunk),
            },
        }
        for number, chunk in enumerate(chunks)
    )


def same_content(wanted: JsonObject, found: JsonObject) -> bool:
    """Whether a slice of the API server says what is wanted; the pool's generation does not count."""
    return _content(wanted) == _content(found)


def _content(item: JsonObject) -> object:
    spec = item["spec"]
    return (
        item["metadata"]["name"],
        spec["driver"],
        spec.get("nodeName"),
        spec["pool"]["name"],
        spec["pool"]["resourceSliceCount"],
        [_device_content(device) for device in spec.get("devices") or ()],
    )


def _device_content(device: JsonObject) -> object:
    # The API server writes quantities in its own way.
    capacity = {name: quantity(item["value"]) for name, item in device.get("capacity", {}).items()}
    return device["name"], device.get("attributes", {}), capacity


def _device(facts: NodeFacts, device: PluginDevice, *, linked: bool) -> JsonObject:
    attributes: dict[str, Any] = {
        "type": {"string": device.kind},
        "index": {"int": device.index},
        "uuid": {"string": device.id},
        # A device without links shares a group with nobody, so that matchAttribute keeps it out.
        "linkGroup": {"string": f"{facts.name}.{device.group}" if linked else f"{facts.name}.{device.name}"},
        "linked": {"bool": linked},
        "numaNode": {"int": device.group},
        "family": {"string": str(facts.family)},
    }
    for name, label in _FROM_LABELS.items():
        if value := facts.labels.get(label):
            attributes[name] = {"string": value[:_ATTRIBUTE_LENGTH]}
    for name, label in _VERSIONS_FROM_LABELS.items():
        if value := facts.labels.get(label):
            attributes[name] = {"version": _semantic_version(value)}
    major, minor = (facts.labels.get(f"nvidia.com/gpu.compute.{part}") for part in ("major", "minor"))
    if major and minor:
        attributes["cudaComputeCapability"] = {"version": _semantic_version(f"{major}.{minor}")}
    # Cut at the length of an attribute, a long node name could make two groups equal.
    attributes["linkGroup"]["string"] = attributes["linkGroup"]["string"][-_ATTRIBUTE_LENGTH:]
    entry: JsonObject = {"name": device.name, "attributes": attributes}
    if device.memory_bytes:
        entry["capacity"] = {"memory": {"value": str(device.memory_bytes)}}
    return entry


def _semantic_version(text: str) -> str:
    """Three numbers without leading zeros: 580.95.5 for 580.95.05."""
    numbers = [str(int(number)) for number in re.findall(r"\d+", text)[:3]]
    return ".".join([*numbers, "0", "0", "0"][:3])
