"""The kubelet-mode plugin of one node: devices, sockets, slices, labels, faults and metrics, held together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp
import grpc
from prometheus_client.core import Metric

from retinue.api.labels import FAULT
from retinue_emulator.inventory import Inventory, NodeFacts, expand
from retinue_emulator.nodeplugin.apiserver import ApiError, ApiServer, JsonObject
from retinue_emulator.nodeplugin.faults import FaultError
from retinue_emulator.nodeplugin.reflector import Reflector

from .containerview import write_cdi_spec, write_facts
from .dcgm import DeviceMetrics, plugin_counters
from .deviceplugin import DevicePlugin
from .dradriver import DraDriver, driver_name
from .driversocket import DriverSocket
from .engineload import LoadWindow, scrape
from .faults import Crash, KubeletFaults, parse_kubelet_faults
from .holders import read_holders
from .nodedevices import PluginDevice, by_resource, node_devices
from .nodemarks import mark_node, unmark_node
from .paths import NodePaths
from .pluginsocket import Pace, PluginSocket
from .slicepublisher import SlicePublisher
from .slices import published_devices

_LOGGER = logging.getLogger(__name__)

OFFERED_BY = "emulator.retinue.dev/devices-by"
"""Label of a node group in the inventory: how its accelerators are offered, against the default of the command."""


class OfferedBy(StrEnum):
    """How accelerators reach pods. Never both ways at once: each side would give out what the other has given."""

    DEVICE_PLUGIN = "device-plugin"
    DRA = "dra"


class NotInInventory(LookupError):
    """The inventory has no node of this name."""


@dataclass(frozen=True)
class KubeletPluginSettings:
    """How the plugin runs. sample_seconds: between looks at the engines' metrics. cleanup: undo all writes at the end.

    cdi: whether Allocate names CDI devices; a runtime without CDI cannot start such containers.
    """

    offered_by: OfferedBy = OfferedBy.DEVICE_PLUGIN
    paths: NodePaths = field(default_factory=NodePaths)
    pace: Pace = field(default_factory=Pace)
    cdi: bool = True
    sample_seconds: float = 3.0
    cleanup: bool = False


def find_node(inventory: Inventory, name: str) -> NodeFacts:
    """The facts of the node `name`.

    Raises:
        NotInInventory: no group has it.
    """
    nodes = {facts.name: facts for facts in expand(inventory)}
    if name not in nodes:
        raise NotInInventory(f"the inventory has no node {name}; list it under nodeNames of a node group")
    return nodes[name]


class KubeletPlugin:
    """Everything of one node. `run` it until cancelled."""

    def __init__(self, facts: NodeFacts, cluster: str, api: ApiServer, settings: KubeletPluginSettings) -> None:
        self._facts = facts
        self._cluster = cluster
        self._api = api
        self._settings = settings
        self.devices = node_devices(facts, cluster)
        self.faults = KubeletFaults()
        self._faults_changed = asyncio.Event()
        offered_by = OfferedBy(facts.labels.get(OFFERED_BY, settings.offered_by))
        claimed, plugged = self._divide(offered_by)
        self.plugins = tuple(
            DevicePlugin(group, facts=settings.paths.device_facts, cdi=settings.cdi)
            for group in by_resource(plugged).values()
        )
        self.plugin_sockets = tuple(PluginSocket(plugin, settings.paths, settings.pace) for plugin in self.plugins)
        self._claimed = by_resource(claimed)
        self.drivers: tuple[DraDriver, ...] = ()
        self.driver_sockets: tuple[DriverSocket, ...] = ()
        self.publishers: dict[str, SlicePublisher] = {}
        self._pods = Reflector(api, "/api/v1/pods", lambda *_: None, fieldSelector=f"spec.nodeName={facts.name}")
        self._load = LoadWindow()
        self._device_metrics = DeviceMetrics(facts, self.devices)

    @property
    def ready(self) -> bool:
        """Every resource and driver is known to the kubelet."""
        sockets: tuple[PluginSocket | DriverSocket, ...] = (*self.plugin_sockets, *self.driver_sockets)
        served = len(self.plugins) + len(self._claimed) == len(sockets)
        return served and all(socket.ready for socket in sockets)

    async def run(self) -> None:
        """Serves the kubelet and writes to the API server until cancelled.

        Raises:
            ApiError: the API server refuses for a reason that time does not change.
            SocketPathTooLong: the kubelet's folder has too long a path.
        """
        node = await self._prepare()
        watch = Reflector(self._api, "/api/v1/nodes", self._node_changed, fieldSelector=f"metadata.name={node}")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watch.run())
                tasks.create_task(self._pods.run())
                tasks.create_task(self._sample_forever())
                for publisher in self.publishers.values():
                    tasks.create_task(publisher.run())
                tasks.create_task(self._serve_unless_crashed())
        finally:
            if self._settings.cleanup:
                await self.clean_up()

    async def clean_up(self) -> None:
        """Takes back slices, labels, taints and CDI files; for the end of the emulation, not for a restart."""
        for publisher in self.publishers.values():
            await publisher.remove()
        await unmark_node(self._api, self._facts)
        for path in self._settings.paths.cdi.glob("retinue.dev-*.json"):
            path.unlink(missing_ok=True)

    def set_faults(self, faults: KubeletFaults) -> None:
        """Replaces the faults; everything that shows them follows at once."""
        if faults == self.faults:
            return
        _LOGGER.warning("faults are now %s", faults)
        self.faults = faults
        for plugin in self.plugins:
            plugin.set_faults(faults)
        for driver in self.drivers:
            driver.faults = faults
        self._publish()
        self._faults_changed.set()

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering reads no values."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metrics of devices and plugin (prometheus_client calls this at each scrape)."""
        yield from self._device_metrics.collect()
        registrations = {p.resource: s.registrations for p, s in zip(self.plugins, self.plugin_sockets, strict=True)}
        registrations |= {d.name: s.registrations for d, s in zip(self.drivers, self.driver_sockets, strict=True)}
        yield from plugin_counters(registrations, sum(p.writes for p in self.publishers.values()))

    def _divide(self, offered_by: OfferedBy) -> tuple[list[PluginDevice], list[PluginDevice]]:
        """(devices for claims, devices for the device plugin); NICs and the like are always plugged."""
        claimed = [d for d in self.devices if d.accelerator and offered_by is OfferedBy.DRA]
        return claimed, [d for d in self.devices if d not in claimed]

    async def _prepare(self) -> str:
        """Writes files and labels, and makes the drivers; returns the node's name."""
        paths, facts = self._settings.paths, self._facts
        paths.make()
        about = {"node": facts.name, "preset": facts.preset, "rack": facts.rack, "domain": facts.domain}
        write_facts(self.devices, paths.device_facts, about)
        if self._settings.cdi:
            for resource, group in by_resource(self.devices).items():
                write_cdi_spec(resource, group, paths.cdi)
        node = await mark_node(self._api, facts, self._cluster)
        uid = node["metadata"]["uid"]
        self.drivers = tuple(DraDriver(facts.name, group, self._api, paths) for group in self._claimed.values())
        self.driver_sockets = tuple(DriverSocket(driver, paths, self._settings.pace) for driver in self.drivers)
        for driver in self.drivers:
            driver.restore()
            driver.faults = self.faults
        self.publishers = {
            driver.name: SlicePublisher(self._api, driver=driver.name, node=facts.name, node_uid=uid)
            for driver in self.drivers
        }
        await self._remove_slices_of_earlier_runs(uid)
        # Before anything is served, so that nobody sees a broken device as a working one.
        self._node_changed(None, node)
        self._publish()
        return facts.name

    async def _remove_slices_of_earlier_runs(self, uid: str) -> None:
        """What a device plugin offers now must not be allocated by claims any more."""
        for name in {driver_name(device.resource) for device in self.devices} - self.publishers.keys():
            try:
                await SlicePublisher(self._api, driver=name, node=self._facts.name, node_uid=uid).remove()
            except ApiError as error:
                # A cluster before 1.34 has no resource.k8s.io/v1, and device plugins work there too.
                if not error.gone:
                    raise

    def _publish(self) -> None:
        for resource, group in self._claimed.items():
            publisher = self.publishers.get(driver_name(resource))
            if publisher is None:
                continue
            if self.faults.crash is None:
                publisher.publish(published_devices(self._facts, group, self.faults))
            else:
                publisher.pause()

    async def _serve_unless_crashed(self) -> None:
        sockets: tuple[PluginSocket | DriverSocket, ...] = (*self.plugin_sockets, *self.driver_sockets)
        while True:
            self._faults_changed.clear()
            crash = self.faults.crash
            if crash is Crash.WIPED:
                for publisher in self.publishers.values():
                    await publisher.remove()
            async with _running(*(socket.run() for socket in (sockets if crash is None else ()))):
                while self.faults.crash is crash:
                    await self._faults_changed.wait()
                    self._faults_changed.clear()

    def _node_changed(self, _: JsonObject | None, node: JsonObject | None) -> None:
        if node is None:
            return
        text = node["metadata"].get("annotations", {}).get(FAULT, "")
        try:
            self.set_faults(parse_kubelet_faults(text))
        except FaultError as error:
            # The annotation is a user's: the plugin says what is wrong with it and goes on as it was.
            _LOGGER.warning("annotation %s of node %s is not used: %s", FAULT, self._facts.name, error)

    async def _sample_forever(self) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    holders = await read_holders(self._settings.paths.pod_resources, self.devices)
                except grpc.aio.AioRpcError as error:
                    _LOGGER.info("the kubelet does not say who holds devices: %s", error.details())
                    holders = {}
                self._load.take(await scrape(session, self._pods.objects.values(), holders.values()))
                now = loop.time()
                self._device_metrics.update(holders, self._load.load, self.faults, now - last)
                last = now
                await asyncio.sleep(self._settings.sample_seconds)


@asynccontextmanager
async def _running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs coroutines beside the body and cancels them at its end; their errors end the body."""
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(item) for item in work]
        yield
        for task in started:
            task.cancel()
