"""The node plugin in API mode: emulated nodes in a real cluster, their pods run in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from retinue.api.labels import FAULT
from retinue_emulator.engine.clock import Clock
from retinue_emulator.inventory import Inventory, NodeFacts, expand

from .addresses import AddressClaim, AddressPool, claim_range
from .apiserver import MERGE_PATCH, TRANSIENT_ERRORS, ApiError, ApiServer, JsonObject
from .clusternames import ClusterNames
from .devices import DeviceLedger
from .emulatednode import EmulatedNode
from .eventrecorder import EventRecorder
from .faults import parse_node_faults, parse_pod_faults
from .imagestore import ImageStore
from .nodeobject import EMULATED, INVENTORY
from .noderegistration import NodeRegistration
from .podworker import PodHost
from .reflector import Reflector
from .statusserver import StatusServer

_LOGGER = logging.getLogger(__name__)
_SYNC_SECONDS = 60.0
_REGISTER_AT_ONCE = 16
_FLUSH_SECONDS = 2.0


@dataclass(frozen=True)
class PluginSettings:
    """How the plugin runs, beyond what the inventory says.

    speed: divides all times of engines, pulls and back-off. image_pull_seconds: model seconds of an image download.
    address_range: part of 127.0.0.0/8 for nodes and pods; None takes one that no other plugin uses.
    http_port: port for /healthz, /metrics, /behind and /faults; 0 picks a free one, None serves nothing.
    keep: leave the Node objects (and their pods) behind at the end.
    http_host: address of that port; faults are taken on loopback only.
    """

    speed: float = 1.0
    image_pull_seconds: float = 8.0
    address_range: str | None = None
    http_port: int | None = None
    keep: bool = False
    http_host: str = "127.0.0.1"


class NodePlugin:
    """`async with NodePlugin(inventory, kubeconfig=path):` runs the nodes; on return from `start` they are registered.

    kubeconfig: None means $KUBECONFIG, ~/.kube/config or the pod's service account.
    clock: shared model time, for programs that run more than this in one process; by default one of `settings.speed`.
    """

    def __init__(
        self,
        inventory: Inventory,
        *,
        kubeconfig: Path | None = None,
        settings: PluginSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings or PluginSettings()
        self.clock = clock or Clock(self.settings.speed)
        self.nodes: dict[str, EmulatedNode] = {}
        self.status_writes = 0
        self._inventory = inventory
        self._kubeconfig = kubeconfig
        self._api: ApiServer | None = None
        self._claim: AddressClaim | None = None
        self._addresses: AddressPool | None = None
        self._pods: Reflector | None = None
        self._events: EventRecorder | None = None
        self._server: StatusServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[None] | None = None

    @property
    def http_port(self) -> int | None:
        """The port of the plugin's own HTTP server, None when it has none."""
        return None if self._server is None else self._server.port

    @property
    def address_range(self) -> str | None:
        """The part of 127.0.0.0/8 that this plugin has claimed, None while it does not run."""
        return None if self._claim is None else str(self._claim.network)

    @property
    def behind(self) -> str | None:
        """Why the run's numbers are not to be trusted; None while the emulator keeps up with its clock."""
        return self.clock.watch.verdict

    @property
    def api(self) -> ApiServer:
        """The API server's client. Raises RuntimeError before `start`."""
        if self._api is None:
            raise RuntimeError("the node plugin is not started")
        return self._api

    @property
    def failure(self) -> BaseException | None:
        """What ended one of the plugin's tasks, None while all run."""
        done = self._failure is not None and self._failure.done() and not self._failure.cancelled()
        return self._failure.exception() if done and self._failure is not None else None

    async def start(self) -> None:
        """Registers all nodes and begins to run pods.

        Raises:
            AddressError, ForeignNode, ApiError, ConfigException, aiohttp.ClientError, TimeoutError: it cannot run, and
                nothing is left running.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends all engines at once, and removes nodes and their pods unless `keep`; a second call does nothing."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()
            self._server = None
        await self.clock.stop_watch()
        if self._api is not None:
            if not self.settings.keep:
                await self._remove_all()
            await self._api.close()
            self._api = None
        if self._claim is not None:
            self._claim.release()
            self._claim = None
        if self._failure is not None and self._failure.done() and not self._failure.cancelled():
            # Read, so that a failure nobody waited for is not reported a second time by asyncio.
            self._failure.exception()

    async def run_until_failure(self) -> None:
        """Returns never; raises what ended one of the plugin's tasks."""
        if self._failure is None:
            raise RuntimeError("the node plugin is not started")
        await asyncio.shield(self._failure)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def set_node_fault(self, node: str, text: str | None) -> None:
        """Writes (or with None removes) the fault annotation of one of the plugin's nodes.

        Raises:
            KeyError: no such node here. FaultError: an unknown fault. ApiError: the API server refuses.
        """
        parse_node_faults(text or "")
        await self.nodes[node].registration.set_fault(text)

    async def set_pod_fault(self, namespace: str, pod: str, text: str | None) -> None:
        """Writes (or with None removes) the fault annotation of a pod.

        Raises:
            FaultError: an unknown fault. ApiError: no such pod, or the API server refuses.
        """
        parse_pod_faults(text or "")
        # Through the status subresource, which takes annotations: the plugin has no right to change pods themselves.
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/status"
        await self.api.patch(path, {"metadata": {"annotations": {FAULT: text}}}, content_type=MERGE_PATCH)

    async def _start(self) -> None:
        self._failure = asyncio.get_running_loop().create_future()
        self._claim = claim_range(self.settings.address_range)
        self._addresses = AddressPool(self._claim.network)
        self._api = await ApiServer.connect(self._kubeconfig)
        self._events = EventRecorder(self._api)
        self.clock.start_watch()
        self._pods = Reflector(self._api, "/api/v1/pods", self._pod_event, fieldSelector="spec.nodeName!=")
        for facts in expand(self._inventory):
            self.nodes[facts.name] = self._make_node(facts, self._api, self._addresses, self._events)
        await self._register_all()
        selector = f"{EMULATED}=true,{INVENTORY}={self._inventory.cluster}"
        nodes = Reflector(self._api, "/api/v1/nodes", self._node_event, labelSelector=selector)
        self._spawn(self._events.run(), "events")
        await self._sync(self._pods, "pods")
        await self._sync(nodes, "nodes")
        for node in self.nodes.values():
            self._spawn(node.run(), f"node-{node.name}")
        if self.settings.http_port is not None:
            self._server = StatusServer(self, self.settings.http_host, self.settings.http_port)
            await self._server.start()

    def _make_node(
        self, facts: NodeFacts, api: ApiServer, addresses: AddressPool, events: EventRecorder
    ) -> EmulatedNode:
        address = addresses.node_address()
        host = PodHost(
            node=facts.name,
            address=address,
            api=api,
            clock=self.clock,
            addresses=addresses,
            ledger=DeviceLedger(facts.devices),
            images=ImageStore(self.clock, self.settings.image_pull_seconds),
            events=events,
            names=ClusterNames(self._known_pods),
            status_written=self._count_status_write,
        )
        registration = NodeRegistration(api, facts, self._inventory.cluster, address)
        return EmulatedNode(host, registration, lambda: self._pods_on(facts.name), facts.fault)

    async def _register_all(self) -> None:
        gate = asyncio.Semaphore(_REGISTER_AT_ONCE)

        async def register(node: EmulatedNode) -> None:
            async with gate:
                await node.register()

        async with asyncio.TaskGroup() as group:
            for node in self.nodes.values():
                group.create_task(register(node))

    async def _sync(self, reflector: Reflector, what: str) -> None:
        """Starts a reflector and waits for its first list.

        A reflector gives up only on errors that time does not heal, so its end while waiting is the error to show.
        """
        task = self._spawn(reflector.run(), f"watch-{what}")
        synced = asyncio.ensure_future(reflector.synced.wait())
        try:
            await asyncio.wait({task, synced}, timeout=_SYNC_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            synced.cancel()
        if task.done():
            await task
        if not reflector.synced.is_set():
            raise TimeoutError(f"the API server gave no list of {what} within {_SYNC_SECONDS:.0f} s")

    def _spawn(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        _LOGGER.error("%s failed", task.get_name(), exc_info=error)
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _pod_event(self, old: JsonObject | None, new: JsonObject | None) -> None:
        pod = new or old
        if pod is None or (node := self.nodes.get(pod["spec"].get("nodeName", ""))) is None:
            return
        if new is None:
            node.pod_gone(pod["metadata"]["uid"])
            return
        if old is None and self._addresses is not None and (address := new.get("status", {}).get("podIP")):
            self._addresses.skip(address)
        node.pod_seen(new)

    def _node_event(self, old: JsonObject | None, new: JsonObject | None) -> None:
        seen = new or old
        if seen is not None and (node := self.nodes.get(seen["metadata"]["name"])):
            node.node_seen(new)

    def _known_pods(self) -> Iterable[JsonObject]:
        return self._pods.objects.values() if self._pods is not None else ()

    def _pods_on(self, node: str) -> list[JsonObject]:
        return [pod for pod in self._known_pods() if pod["spec"].get("nodeName") == node]

    def _count_status_write(self) -> None:
        self.status_writes += 1

    async def _remove_all(self) -> None:
        """Takes nodes and their pods out of the cluster; what cannot be removed now is left to Kubernetes."""
        for node in self.nodes.values():
            try:
                await node.registration.remove()
                for pod in self._pods_on(node.name):
                    metadata = pod["metadata"]
                    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
                    await self.api.delete(path, uid=metadata["uid"], grace_seconds=0)
            except (ApiError, *TRANSIENT_ERRORS) as error:
                _LOGGER.warning("node %s was not removed: %s", node.name, error)
