"""What the annotation `retinue.dev/fault` on a Node means to the plugin in kubelet mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from retinue.api.units import seconds
from retinue_emulator.nodeplugin.faults import FaultError

from .nodedevices import PluginDevice

KUBELET_FAULTS = (
    "device-unhealthy=<index>[+<index>...], nic-down=<index>[+...], link-down=<index>[+...], "
    "slow-prepare=<duration>, plugin-crash=stale|wiped"
)
_OF_THE_MACHINE = ("down", "silent")


class Crash(StrEnum):
    """What a crashed plugin leaves in the API server."""

    STALE = "stale"
    """Its slices, until the kubelet wipes them: pods still get bound to devices that nobody prepares."""
    WIPED = "wiped"
    """Nothing, as after the kubelet has wiped them."""


@dataclass(frozen=True)
class KubeletFaults:
    """Faults of a node and its plugin.

    unhealthy: indexes of broken accelerators; nics_down: indexes of broken counted devices (all resources of them).
    links_down: indexes of accelerators without links to their neighbours; they work, but alone.
    prepare_seconds: how much longer the start of a container with devices takes.
    crash: the plugin serves nothing until the fault goes.
    """

    unhealthy: frozenset[int] = frozenset()
    nics_down: frozenset[int] = frozenset()
    links_down: frozenset[int] = frozenset()
    prepare_seconds: float = 0.0
    crash: Crash | None = None

    def healthy(self, device: PluginDevice) -> bool:
        """Whether the device works."""
        return device.index not in (self.unhealthy if device.accelerator else self.nics_down)

    def linked(self, device: PluginDevice) -> bool:
        """Whether the device reaches the others of its group."""
        return not (device.accelerator and device.index in self.links_down)


def parse_kubelet_faults(text: str) -> KubeletFaults:
    """Reads a comma-separated list such as `device-unhealthy=3,slow-prepare=10s`; empty means none.

    Raises:
        FaultError: an unknown fault or a bad value.
    """
    faults = KubeletFaults()
    for item in (part.strip() for part in text.split(",") if part.strip()):
        name, _, value = item.partition("=")
        try:
            match name:
                case "device-unhealthy":
                    faults = replace(faults, unhealthy=faults.unhealthy | _indexes(value))
                case "nic-down":
                    faults = replace(faults, nics_down=faults.nics_down | _indexes(value))
                case "link-down":
                    faults = replace(faults, links_down=faults.links_down | _indexes(value))
                case "slow-prepare":
                    faults = replace(faults, prepare_seconds=seconds(value))
                case "plugin-crash":
                    faults = replace(faults, crash=Crash(value))
                case _ if name in _OF_THE_MACHINE:
                    raise FaultError(f"{item!r}: a plugin cannot switch a real machine off; stop its kubelet instead")
                case _:
                    raise FaultError(f"{item!r} is not a fault of a kubelet's node; use {KUBELET_FAULTS}")
        except FaultError:
            raise
        except ValueError as error:
            raise FaultError(f"{item!r}: {error}; use {KUBELET_FAULTS}") from error
    return faults


def _indexes(value: str) -> frozenset[int]:
    items = value.split("+")
    if not all(item.isdigit() for item in items):
        raise ValueError("needs device indexes such as 0 or 0+3")
    return frozenset(int(item) for item in items)
