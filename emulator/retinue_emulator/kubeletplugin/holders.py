"""Which container holds which device, as the kubelet itself says it: never a guess from pod specs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .dradriver import driver_name
from .nodedevices import PluginDevice
from .proto import podresources_v1_pb2 as podresources
from .rpc import LIST_PODS, channel

_SECONDS = 5.0


@dataclass(frozen=True, order=True)
class Holder:
    """A container that holds a device."""

    namespace: str
    pod: str
    container: str


async def read_holders(socket: Path, devices: Iterable[PluginDevice]) -> dict[str, Holder]:
    """Holders by device id, asked of the kubelet at its pod-resources socket.

    Raises:
        grpc.aio.AioRpcError: the kubelet does not answer.
    """
    async with channel(socket) as connection:
        answer = await LIST_PODS.call(connection)(podresources.ListPodResourcesRequest(), timeout=_SECONDS)
    return device_holders(answer, devices)


def device_holders(answer: podresources.ListPodResourcesResponse, devices: Iterable[PluginDevice]) -> dict[str, Holder]:
    """Holders by device id; devices come by device plugin (by id) or by claim (by driver and name)."""
    known = {device.id: device for device in devices}
    by_claim = {(driver_name(device.resource), device.name): device.id for device in known.values()}
    found: dict[str, Holder] = {}
    for pod in answer.pod_resources:
        for container in pod.containers:
            holder = Holder(pod.namespace, pod.name, container.name)
            for plugged in container.devices:
                found.update(
                    (id, holder)
                    for id in plugged.device_ids
                    if id in known and known[id].resource == plugged.resource_name
                )
            for claim in container.dynamic_resources:
                for item in claim.claim_resources:
                    if id := by_claim.get((item.driver_name, item.device_name)):
                        found[id] = holder
    return found
