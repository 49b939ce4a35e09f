"""What a container gets to see of its devices: variables, mounted facts and names of the Container Device Interface.

Facts about CDI (cncf-tags/container-device-interface, SPEC.md): a kind is vendor/class, a qualified name is
vendor/class=device, and runtimes read every JSON file in /etc/cdi and /var/run/cdi.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .nodedevices import PluginDevice
from .paths import replace_file

DEVICE_IDS = "RETINUE_DEVICE_IDS"
"""Ids of a container's accelerators, comma-separated; with a suffix, those of one resource."""

_CONTAINER_FACTS = "/run/retinue/devices"
_CDI_VERSION = "0.6.0"
_VENDOR = "retinue.dev"
_CLAIM = f"{_VENDOR}/claim"


def ids_env(devices: Sequence[PluginDevice]) -> dict[str, str]:
    """Variables that name devices: RETINUE_DEVICE_IDS for accelerators, RETINUE_DEVICE_IDS_RDMA_IB and so on for each
    resource. The kubelet keeps only one value when two resources of a container set the same variable.
    """
    found: dict[str, list[str]] = {}
    for device in devices:
        if device.accelerator:
            found.setdefault(DEVICE_IDS, []).append(device.id)
        found.setdefault(f"{DEVICE_IDS}_{_upper(device.resource)}", []).append(device.id)
    return {name: ",".join(ids) for name, ids in found.items()}


def cdi_name(device: PluginDevice) -> str:
    """The qualified CDI name of a device."""
    return f"{_kind(device.resource)}={device.id}"


def facts_mount(device: PluginDevice, folder: Path) -> tuple[str, str]:
    """(path in the container, path on the host) of the file that describes the device."""
    return f"{_CONTAINER_FACTS}/{device.name}.json", str(folder / f"{device.id}.json")


def write_facts(devices: Iterable[PluginDevice], folder: Path, about: Mapping[str, object]) -> None:
    """Writes the files that containers find their devices described in; `about` is the same for all."""
    for device in devices:
        facts = {
            "id": device.id,
            "resource": device.resource,
            "index": device.index,
            "linkGroup": device.group,
            "memoryBytes": device.memory_bytes,
            **about,
        }
        replace_file(folder / f"{device.id}.json", json.dumps(facts, sort_keys=True) + "\n")


def write_cdi_spec(resource: str, devices: Sequence[PluginDevice], folder: Path) -> Path:
    """Describes the devices of a resource to the container runtime; returns the file."""
    path = _spec_file(folder, _kind(resource))
    entries = [{"name": device.id, "containerEdits": {"env": [_one_env(device)]}} for device in devices]
    _write_spec(path, _kind(resource), entries)
    return path


def claim_cdi_names(uid: str, request: str, device: PluginDevice) -> tuple[str, str]:
    """The CDI names of one device of a claim: the device itself, and the request that it belongs to."""
    stem = f"{uid}-{_safe(request)}"
    return f"{_CLAIM}={stem}-{device.name}", f"{_CLAIM}={stem}"


def write_claim_spec(uid: str, by_request: Mapping[str, Sequence[PluginDevice]], folder: Path, facts: Path) -> None:
    """Describes a prepared claim to the container runtime, one entry per request and one per device in it."""
    entries: list[dict[str, Any]] = []
    for request, devices in by_request.items():
        variables = [f"{name}={value}" for name, value in ids_env(devices).items()]
        stem = f"{uid}-{_safe(request)}"
        entries.append({"name": stem, "containerEdits": {"env": variables}})
        for device in devices:
            inside, outside = facts_mount(device, facts)
            mount = {"containerPath": inside, "hostPath": outside, "options": ["ro", "bind"]}
            edits = {"env": [_one_env(device)], "mounts": [mount]}
            entries.append({"name": f"{stem}-{device.name}", "containerEdits": edits})
    _write_spec(_spec_file(folder, _CLAIM, uid), _CLAIM, entries)


def remove_claim_spec(uid: str, folder: Path) -> None:
    """Forgets a claim's description; one that is gone already is no error."""
    _spec_file(folder, _CLAIM, uid).unlink(missing_ok=True)


def _write_spec(path: Path, kind: str, entries: list[dict[str, Any]]) -> None:
    replace_file(path, json.dumps({"cdiVersion": _CDI_VERSION, "kind": kind, "devices": entries}, indent=1) + "\n")


def _spec_file(folder: Path, kind: str, instance: str = "") -> Path:
    return folder / f"{kind.replace('/', '-')}{f'-{instance}' if instance else ''}.json"


def _kind(resource: str) -> str:
    return f"{_VENDOR}/{re.sub(r'[^a-z0-9]', '-', resource.lower())}"


def _one_env(device: PluginDevice) -> str:
    return f"RETINUE_DEVICE_{_upper(device.resource)}_{device.index}={device.id}"


def _upper(resource: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", resource.upper())


def _safe(request: str) -> str:
    # A sub-request is named request/subrequest.
    return request.replace("/", ".")
