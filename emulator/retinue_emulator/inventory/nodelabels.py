"""Node labels as GPU feature discovery, topograph and Kubernetes write them.

Keys: NVIDIA k8s-device-plugin v0.20 (gpu-feature-discovery), Topograph v1.0, Kubernetes well-known labels. The clique
label exists only where the fabric manager has completed: never on HGX and DGX nodes, whose NVLink ends at the node.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from retinue.catalog.facts import Family, Preset

HOSTNAME = "kubernetes.io/hostname"
ARCH = "kubernetes.io/arch"
OS = "kubernetes.io/os"
REGION = "topology.kubernetes.io/region"
ZONE = "topology.kubernetes.io/zone"
RACK = "topology.kubernetes.io/rack"
CLIQUE = "nvidia.com/gpu.clique"
ACCELERATOR_DOMAIN = "accelerator.topograph.run/domain"
FABRIC_NEAREST = "fabric.topograph.run/tier-0"
FABRIC_NEXT = "fabric.topograph.run/tier-1"

_NAMESPACE = uuid.UUID("6f1c1d0e-4d7b-5f8e-9d43-52b4e1a8a7c1")
_DRIVER = "580.95.05"
_CUDA = "13.0"


@dataclass(frozen=True)
class _Silicon:
    """What gpu-feature-discovery reads from the driver about one kind of GPU."""

    family: str
    compute_major: str
    compute_minor: str
    machine: str


_SILICON: Mapping[str, _Silicon] = {
    "h100": _Silicon("hopper", "9", "0", "HGX-H100"),
    "h200": _Silicon("hopper", "9", "0", "HGX-H200"),
    "b200": _Silicon("blackwell", "10", "0", "HGX-B200"),
    "b300": _Silicon("blackwell", "10", "3", "HGX-B300"),
    "gb200": _Silicon("blackwell", "10", "0", "GB200-NVL72"),
    "gb300": _Silicon("blackwell", "10", "3", "GB300-NVL72"),
}
# Grace and Vera hosts.
_ARM64 = frozenset({"gb200", "gb300", "vr200", "vera-cpu"})


def architecture(preset: Preset) -> str:
    """The value of kubernetes.io/arch for nodes of the preset."""
    return "arm64" if preset.name in _ARM64 else "amd64"


def stable_uuid(*parts: str) -> str:
    """A UUID that is the same for the same names, so that a restarted plugin reports the same devices."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(parts)))


def node_labels(
    *,
    name: str,
    preset: Preset,
    devices: int,
    device_memory_bytes: int,
    cluster: str,
    rack: str,
    region: str | None,
    zone: str | None,
    block: str | None,
    domain: str | None,
) -> dict[str, str]:
    """All labels of a node except those that the inventory adds itself."""
    labels = {
        HOSTNAME: name,
        ARCH: architecture(preset),
        OS: "linux",
        RACK: rack,
        FABRIC_NEAREST: rack,
        **preset.node_selector,
    }
    optional = {REGION: region, ZONE: zone, FABRIC_NEXT: block, ACCELERATOR_DOMAIN: domain}
    labels |= {key: value for key, value in optional.items() if value is not None}
    if preset.family is Family.GPU and devices > 0:
        labels |= _gpu_labels(preset, devices, device_memory_bytes)
        if domain is not None:
            # <ClusterUUID>.<CliqueID>; the UUID names the NVLink fabric, the clique its only partition here.
            labels[CLIQUE] = f"{stable_uuid(cluster, 'nvlink', domain)}.0"
    return labels


def _gpu_labels(preset: Preset, devices: int, device_memory_bytes: int) -> dict[str, str]:
    labels = {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.count": str(devices),
        "nvidia.com/gpu.memory": str(device_memory_bytes // 2**20),
        "nvidia.com/gpu.replicas": "1",
        "nvidia.com/gpu.sharing-strategy": "none",
        "nvidia.com/gpu.mode": "compute",
        "nvidia.com/mig.strategy": "none",
        "nvidia.com/cuda.driver-version.full": _DRIVER,
        "nvidia.com/cuda.runtime-version.full": _CUDA,
    }
    # No driver has described a Rubin GPU in public, so nothing is said about it.
    if silicon := _SILICON.get(preset.name):
        labels |= {
            "nvidia.com/gpu.family": silicon.family,
            "nvidia.com/gpu.compute.major": silicon.compute_major,
            "nvidia.com/gpu.compute.minor": silicon.compute_minor,
            "nvidia.com/gpu.machine": silicon.machine,
        }
    return labels
