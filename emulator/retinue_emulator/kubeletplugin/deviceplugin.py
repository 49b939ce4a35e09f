"""The device plugin service of one resource: what it tells the kubelet, and what it gives containers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import grpc

from .containerview import cdi_name, facts_mount, ids_env
from .faults import KubeletFaults
from .links import preferred
from .nodedevices import PluginDevice
from .proto import deviceplugin_v1beta1_pb2 as dp
from .rpc import ALLOCATE, LIST_AND_WATCH, OPTIONS, PRE_START, PREFERRED, Context, Handler

_LOGGER = logging.getLogger(__name__)

API_VERSION = "v1beta1"
HEALTHY, UNHEALTHY = "Healthy", "Unhealthy"


class DevicePlugin:
    """Devices of one resource, their health, and the five methods of v1beta1.DevicePlugin.

    streams: number of kubelets that watch the list now; 0 means that no kubelet knows about the devices.
    """

    def __init__(self, devices: Sequence[PluginDevice], *, facts: Path, cdi: bool) -> None:
        self.resource = devices[0].resource
        self.streams = 0
        self._devices = {device.id: device for device in devices}
        self._facts = facts
        self._cdi = cdi
        self._faults = KubeletFaults()
        self._changed: set[asyncio.Event] = set()

    @property
    def options(self) -> dp.DevicePluginOptions:
        """What the kubelet should ask for: a preferred choice, and a call before each container start."""
        return dp.DevicePluginOptions(pre_start_required=True, get_preferred_allocation_available=True)

    def set_faults(self, faults: KubeletFaults) -> None:
        """Replaces the faults; open lists hear of changed health at once."""
        before = self._health()
        self._faults = faults
        if self._health() != before:
            for event in self._changed:
                event.set()

    def handlers(self) -> list[Handler]:
        """The methods for a server."""
        return [
            OPTIONS.serve(self._get_options),
            LIST_AND_WATCH.serve_stream(self._list_and_watch),
            PREFERRED.serve(self._preferred),
            ALLOCATE.serve(self._allocate),
            PRE_START.serve(self._pre_start),
        ]

    async def _get_options(self, _: dp.Empty, __: Context) -> dp.DevicePluginOptions:
        return self.options

    async def _list_and_watch(self, _: dp.Empty, __: Context) -> AsyncIterator[dp.ListAndWatchResponse]:
        changed = asyncio.Event()
        self._changed.add(changed)
        self.streams += 1
        try:
            while True:
                changed.clear()
                yield self._list()
                await changed.wait()
        finally:
            self.streams -= 1
            self._changed.discard(changed)

    async def _preferred(self, request: dp.PreferredAllocationRequest, _: Context) -> dp.PreferredAllocationResponse:
        cut = {device.id for device in self._devices.values() if not self._faults.linked(device)}
        return dp.PreferredAllocationResponse(
            container_responses=[
                dp.ContainerPreferredAllocationResponse(
                    deviceIDs=preferred(
                        self._devices.values(),
                        available=set(container.available_deviceIDs),
                        must=set(container.must_include_deviceIDs),
                        size=container.allocation_size,
                        cut=cut,
                    )
                )
                for container in request.container_requests
            ]
        )

    async def _allocate(self, request: dp.AllocateRequest, context: Context) -> dp.AllocateResponse:
        # All containers are checked before any is answered: the kubelet takes the response as a whole.
        wanted = [await self._known(item.devices_ids, context) for item in request.container_requests]
        for devices in wanted:
            _LOGGER.info("%s: gives %s", self.resource, ", ".join(device.id for device in devices))
        return dp.AllocateResponse(container_responses=[self._view(devices) for devices in wanted])

    async def _pre_start(self, request: dp.PreStartContainerRequest, context: Context) -> dp.PreStartContainerResponse:
        devices = await self._known(request.devices_ids, context)
        if broken := [device.id for device in devices if not self._faults.healthy(device)]:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"unhealthy devices: {', '.join(broken)}")
        await asyncio.sleep(self._faults.prepare_seconds)
        return dp.PreStartContainerResponse()

    async def _known(self, ids: Iterable[str], context: Context) -> list[PluginDevice]:
        """The devices of the ids, in index order; ends the call when one is not of this resource."""
        asked = list(ids)
        if unknown := [id for id in asked if id not in self._devices]:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no such {self.resource} on this node: {', '.join(sorted(unknown))}"
            )
        if len(set(asked)) < len(asked):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{self.resource}: a device is asked for twice")
        return sorted((self._devices[id] for id in asked), key=lambda device: device.index)

    def _view(self, devices: list[PluginDevice]) -> dp.ContainerAllocateResponse:
        mounts = (facts_mount(device, self._facts) for device in devices)
        return dp.ContainerAllocateResponse(
            envs=ids_env(devices),
            mounts=[dp.Mount(container_path=inside, host_path=host, read_only=True) for inside, host in mounts],
            cdi_devices=[dp.CDIDevice(name=cdi_name(device)) for device in devices] if self._cdi else [],
        )

    def _health(self) -> dict[str, bool]:
        return {device.id: self._faults.healthy(device) for device in self._devices.values()}

    def _list(self) -> dp.ListAndWatchResponse:
        health = self._health()
        return dp.ListAndWatchResponse(
            devices=[
                dp.Device(
                    ID=device.id,
                    health=HEALTHY if health[device.id] else UNHEALTHY,
                    topology=dp.TopologyInfo(nodes=[dp.NUMANode(ID=device.group)]),
                )
                for device in self._devices.values()
            ]
        )
