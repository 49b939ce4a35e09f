"""What a DRA driver tells the kubelet about the health of its devices, which appears in the status of pods."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

from .faults import KubeletFaults
from .nodedevices import PluginDevice
from .proto import drahealth_v1_pb2 as health
from .rpc import WATCH_HEALTH, Context, Handler

_REPEAT_SECONDS = 10.0
# The kubelet takes a device for unknown when it has heard nothing for this long.
_TIMEOUT_SECONDS = 60


class HealthReports:
    """The service DRAResourceHealth of one node's driver: a report at once, on each change, and every ten seconds."""

    def __init__(self, node: str, devices: Sequence[PluginDevice]) -> None:
        self._node = node
        self._devices = tuple(devices)
        self._faults = KubeletFaults()
        self._changed: set[asyncio.Event] = set()

    def set_faults(self, faults: KubeletFaults) -> None:
        """Replaces the faults; open streams hear of it at once."""
        self._faults = faults
        for event in self._changed:
            event.set()

    def handlers(self) -> list[Handler]:
        """The methods for a server."""
        return [WATCH_HEALTH.serve_stream(self._watch)]

    async def _watch(
        self, _: health.NodeWatchResourcesRequest, __: Context
    ) -> AsyncIterator[health.NodeWatchResourcesResponse]:
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            while True:
                changed.clear()
                yield health.NodeWatchResourcesResponse(devices=[self._report(device) for device in self._devices])
                try:
                    await asyncio.wait_for(changed.wait(), _REPEAT_SECONDS)
                except TimeoutError:
                    continue
        finally:
            self._changed.discard(changed)

    def _report(self, device: PluginDevice) -> health.DeviceHealth:
        works = self._faults.healthy(device)
        return health.DeviceHealth(
            device=health.DeviceIdentifier(pool_name=self._node, device_name=device.name),
            health=health.HEALTHY if works else health.UNHEALTHY,
            last_updated_time=int(time.time()),
            health_check_timeout_seconds=_TIMEOUT_SECONDS,
            message="" if works else f"{device.id} has fallen off the bus",
        )
