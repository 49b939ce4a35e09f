"""Which pod holds which devices of a node: never two pods on one device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from retinue_emulator.inventory import DeviceSlot

Assignment = Mapping[str, tuple[DeviceSlot, ...]]
"""Devices by resource name."""

DEVICES_ANNOTATION = "retinue.dev/devices"


class NotEnoughDevices(Exception):
    """A pod was bound to a node that cannot give it what it asks for; a kubelet refuses such a pod."""


class DeviceLedger:
    """The devices of one node, their health and their holders (by pod uid)."""

    def __init__(self, devices: Iterable[DeviceSlot]) -> None:
        self._devices = {(device.resource, device.index): device for device in devices}
        self._holder: dict[tuple[str, int], str] = {}
        self._unhealthy: frozenset[int] = frozenset()

    @property
    def resources(self) -> frozenset[str]:
        """Names of the resources that have devices here."""
        return frozenset(resource for resource, _ in self._devices)

    def set_unhealthy(self, indexes: Iterable[int]) -> None:
        """Declares exactly these device indexes unhealthy; holders keep them."""
        self._unhealthy = frozenset(indexes)

    def is_healthy(self, device: DeviceSlot) -> bool:
        """Whether the device works."""
        return device.index not in self._unhealthy

    def capacity(self) -> dict[str, int]:
        """Number of devices by resource."""
        return self._count(include_unhealthy=True)

    def allocatable(self) -> dict[str, int]:
        """Number of healthy devices by resource."""
        return self._count(include_unhealthy=False)

    def holders(self) -> dict[str, tuple[DeviceSlot, ...]]:
        """Devices by pod uid."""
        held: dict[str, tuple[DeviceSlot, ...]] = {}
        for key, uid in sorted(self._holder.items()):
            held[uid] = (*held.get(uid, ()), self._devices[key])
        return held

    def assign(self, uid: str, wanted: Mapping[str, int], remembered: Mapping[str, tuple[int, ...]]) -> Assignment:
        """Gives pod `uid` the numbers of devices in `wanted`; a pod that holds devices already keeps them.

        remembered: indexes that the pod held before a restart of the plugin; used if they are still free.

        Raises:
            NotEnoughDevices: too few free healthy devices. The pod then holds nothing.
        """
        held = {device.resource for device in self.holders().get(uid, ())}
        chosen: dict[str, tuple[DeviceSlot, ...]] = {}
        for resource, count in wanted.items():
            if resource not in self.resources or count == 0:
                continue
            if resource in held:
                chosen[resource] = tuple(d for d in self.holders()[uid] if d.resource == resource)
            else:
                chosen[resource] = self._choose(resource, count, remembered.get(resource, ()))
        for resource, devices in chosen.items():
            for device in devices:
                self._holder[resource, device.index] = uid
        return chosen

    def release(self, uid: str) -> None:
        """Takes back everything that pod `uid` holds."""
        self._holder = {key: holder for key, holder in self._holder.items() if holder != uid}

    def _choose(self, resource: str, count: int, remembered: tuple[int, ...]) -> tuple[DeviceSlot, ...]:
        # Devices that a pod already worked on are its own even if one of them broke meanwhile.
        if len(set(remembered)) == len(remembered) == count and all(
            (resource, index) in self._devices and (resource, index) not in self._holder for index in remembered
        ):
            return tuple(self._devices[resource, index] for index in remembered)
        free = [
            device
            for key, device in sorted(self._devices.items())
            if key[0] == resource and key not in self._holder and self.is_healthy(device)
        ]
        if len(free) < count:
            raise NotEnoughDevices(
                f"Allocate failed due to requested number of devices unavailable for {resource}. "
                f"Requested: {count}, Available: {len(free)}"
            )
        return tuple(free[:count])

    def _count(self, *, include_unhealthy: bool) -> dict[str, int]:
        counts = dict.fromkeys(sorted(self.resources), 0)
        for device in self._devices.values():
            counts[device.resource] += int(include_unhealthy or self.is_healthy(device))
        return counts


def split_assignment(
    assignment: Assignment, requests: Mapping[str, Mapping[str, int]]
) -> dict[str, tuple[DeviceSlot, ...]]:
    """Divides a pod's devices among its containers; `requests` has number by resource by container name."""
    rest = {resource: list(devices) for resource, devices in assignment.items()}
    split: dict[str, tuple[DeviceSlot, ...]] = {}
    for container, wanted in requests.items():
        mine: list[DeviceSlot] = []
        for resource, count in wanted.items():
            mine += rest.get(resource, [])[:count]
            rest[resource] = rest.get(resource, [])[count:]
        split[container] = tuple(mine)
    return split


def encode_assignment(assignment: Assignment) -> str:
    """The value of the annotation retinue.dev/devices: `nvidia.com/gpu=0,1;rdma/ib=0`."""
    return ";".join(
        f"{resource}={','.join(str(device.index) for device in devices)}"
        for resource, devices in sorted(assignment.items())
    )


def decode_assignment(text: str) -> dict[str, tuple[int, ...]]:
    """Indexes by resource from an annotation; what cannot be read is left out, since users can write annotations."""
    decoded: dict[str, tuple[int, ...]] = {}
    for part in text.split(";"):
        resource, _, indexes = part.partition("=")
        items = indexes.split(",")
        if resource and all(item.isdigit() for item in items):
            decoded[resource] = tuple(int(item) for item in items)
    return decoded
