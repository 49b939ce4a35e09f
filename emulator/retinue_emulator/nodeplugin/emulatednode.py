"""One emulated machine: on or off, with its devices, its pods and its heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from functools import partial

from retinue.api.labels import FAULT

from .apiserver import ApiError, JsonObject, is_transient
from .containerstate import timestamp
from .eventrecorder import node_reference
from .faults import FaultError, NodeFaults, parse_node_faults
from .nodeobject import NodeHealth
from .noderegistration import NodeRegistration, renew_pause
from .podworker import PodHost, PodWorker

_LOGGER = logging.getLogger(__name__)
# A kubelet repeats an unchanged status every five minutes.
_REPORT_SECONDS = 300.0
_RETRY_SECONDS = 1.0


class EmulatedNode:
    """A node of the inventory while the plugin runs.

    pods: gives all pods that are bound to this node now.
    """

    def __init__(
        self, host: PodHost, registration: NodeRegistration, pods: Callable[[], Iterable[JsonObject]], fault: str | None
    ) -> None:
        self.host = host
        self.registration = registration
        self.faults = self._parse(fault or "") or NodeFaults()
        self.lease_renewals = 0
        self._pods = pods
        self._known: JsonObject | None = None
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._powered = False
        self._removed = False

    @property
    def name(self) -> str:
        """The node's name."""
        return self.host.node

    @property
    def pod_count(self) -> int:
        """Pods that are looked after."""
        return len(self._workers)

    async def register(self) -> None:
        """Makes the Node known; pods are not looked after before `run`."""
        self.host.ledger.set_unhealthy(self.faults.unhealthy)
        self._known = await self.registration.register(self.host.ledger.allocatable(), self._health())
        self._take_faults(self._known)

    async def run(self) -> None:
        """Keeps the node alive and its pods in step with the faults until cancelled."""
        renewing = asyncio.create_task(self._renew(), name=f"lease-{self.name}")
        try:
            while not self._removed:
                self._changed.clear()
                await self._apply_faults()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_REPORT_SECONDS):
                        await self._changed.wait()
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await self._power_off()

    def node_seen(self, node: JsonObject | None) -> None:
        """The Node object changed; None: somebody deleted it, which takes the machine out of the cluster."""
        if node is None:
            _LOGGER.warning("node %s was deleted; it comes back when the plugin is started again", self.name)
            self._removed = True
            self._changed.set()
            return
        self._known = node
        self._take_faults(node)

    def pod_seen(self, pod: JsonObject) -> None:
        """A pod bound to this node is new or changed."""
        uid = pod["metadata"]["uid"]
        if not self._powered:
            return
        if worker := self._workers.get(uid):
            worker.update(pod)
            return
        worker = PodWorker(pod, self.host)
        task = asyncio.create_task(worker.run(), name=f"pod-{uid}")
        self._workers[uid] = worker
        self._tasks[uid] = task
        task.add_done_callback(_log_failure)

    def pod_gone(self, uid: str) -> None:
        """The pod object was removed; whatever still runs of it is killed."""
        self._workers.pop(uid, None)
        if task := self._tasks.pop(uid, None):
            task.cancel()

    def _take_faults(self, node: JsonObject) -> None:
        faults = self._parse(node["metadata"].get("annotations", {}).get(FAULT, ""))
        if faults is not None and faults != self.faults:
            self.faults = faults
            self._changed.set()

    def _parse(self, text: str) -> NodeFaults | None:
        try:
            return parse_node_faults(text)
        except FaultError as error:
            self._warn("InvalidFault", str(error))
            return None

    async def _apply_faults(self) -> None:
        self.host.ledger.set_unhealthy(self.faults.unhealthy)
        if self.faults.off:
            if self._powered:
                self._warn("NodePoweredOff", "the node is off because of its fault annotation")
            await self._power_off()
        else:
            self._power_on()
        if not self.faults.silent:
            await self._persist(self._report)
        if self.faults.down:
            for pod in list(self._pods()):
                await self._persist(partial(self._mark_not_ready, pod))

    def _power_on(self) -> None:
        if self._powered:
            return
        self._powered = True
        self.registration.boot()
        for pod in list(self._pods()):
            self.pod_seen(pod)

    async def _power_off(self) -> None:
        self._powered = False
        tasks = list(self._tasks.values())
        self._workers.clear()
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.host.images.stop_downloads()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(renew_pause())
            if not self.faults.off:
                await self._persist(self.registration.renew_lease)
                self.lease_renewals += 1

    async def _report(self) -> None:
        await self.registration.report(self.host.ledger.allocatable(), self._health(), self._known)

    async def _mark_not_ready(self, pod: JsonObject) -> None:
        """What the node-lifecycle controller does to the pods of a node that it has lost."""
        metadata = pod["metadata"]
        condition = {"type": "Ready", "status": "False", "lastTransitionTime": timestamp(datetime.now(UTC))}
        if any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", [])):
            path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
            await self.host.api.patch(
                path, {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}}
            )

    async def _persist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Repeats a write until the API server takes it, or says that the object is gone."""
        while True:
            try:
                await write()
                return
            except Exception as error:
                if isinstance(error, ApiError) and (error.gone or error.conflict):
                    return
                if not is_transient(error):
                    raise
            await asyncio.sleep(_RETRY_SECONDS)

    def _health(self) -> NodeHealth:
        return NodeHealth.UNKNOWN if self.faults.down else NodeHealth.READY

    def _warn(self, reason: str, message: str) -> None:
        self.host.events.emit(node_reference(self.name), self.name, "Warning", reason, message)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        _LOGGER.error("%s failed", task.get_name(), exc_info=error)
