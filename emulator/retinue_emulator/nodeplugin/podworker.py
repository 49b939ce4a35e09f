"""The life of one pod on an emulated node, from its binding to its removal: what a kubelet's pod worker does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from retinue.api.labels import FAULT
from retinue_emulator.engine.clock import Clock
from retinue_emulator.inventory import DeviceSlot

from .addresses import AddressError, AddressPool
from .apiserver import ApiServer
from .clusternames import ClusterNames
from .containerrunner import ContainerRunner, Surroundings
from .containerstate import JsonObject, parse_timestamp, restored
from .devices import (
    DEVICES_ANNOTATION,
    Assignment,
    DeviceLedger,
    NotEnoughDevices,
    decode_assignment,
    encode_assignment,
    split_assignment,
)
from .eventrecorder import EventRecorder, pod_reference
from .faults import FaultError, PodFaults, parse_pod_faults
from .imagestore import ImageStore
from .podspec import command_line, grace_seconds, requested_devices
from .podstatus import Failure, PodView, phase_of, restart_policy
from .process import Process, launch
from .statuswriter import StatusWriter

_LOGGER = logging.getLogger(__name__)
_ADMISSION_SECONDS = 2.0
_ADMISSION_POLL_SECONDS = 0.05
DEVICE_IDS_ENV = "RETINUE_DEVICE_IDS"


@dataclass(frozen=True)
class PodHost:
    """What a node and its plugin give to their pods."""

    node: str
    address: str
    api: ApiServer
    clock: Clock
    addresses: AddressPool
    ledger: DeviceLedger
    images: ImageStore
    events: EventRecorder
    names: ClusterNames
    status_written: Callable[[], None]


class PodWorker:
    """Runs one pod. `run` ends when the pod object is gone, or when the task is cancelled because the node went off."""

    def __init__(self, pod: JsonObject, host: PodHost) -> None:
        self.pod = pod
        self._host = host
        self._news = asyncio.Event()
        self._faults = PodFaults()
        self._address: str | None = None
        self._holds_address = False
        self._assignment: Assignment = {}
        self._devices: dict[str, tuple[DeviceSlot, ...]] = {}
        self._failure: Failure | None = None
        self._ending = False
        now = datetime.now(UTC)
        status = pod.get("status", {})
        self._started = parse_timestamp(status.get("startTime"), now)
        self._init = [
            self._runner(container, status.get("initContainerStatuses", []), now)
            for container in pod["spec"].get("initContainers", [])
        ]
        self._containers = [
            self._runner(container, status.get("containerStatuses", []), now) for container in pod["spec"]["containers"]
        ]
        self._writer = StatusWriter(host.api, self._view, self._annotations, host.status_written)
        self._read_faults()

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return str(self.pod["metadata"]["uid"])

    def update(self, pod: JsonObject) -> None:
        """Takes the newest version of the pod object."""
        self.pod = pod
        self._read_faults()
        self._writer.wake()
        self._news.set()

    async def run(self) -> None:
        """The pod's life."""
        writing = asyncio.create_task(self._writer.run(), name=f"status-{self.uid}")
        life = asyncio.create_task(self._live(), name=f"life-{self.uid}")
        try:
            await self._until_deleted(life)
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            await self._end()
            # Before the API server lets the scheduler have the room.
            self._release()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            if await self._writer.write_last():
                await self._writer.remove_pod()
        finally:
            life.cancel()
            writing.cancel()
            await asyncio.gather(life, writing, return_exceptions=True)
            await asyncio.gather(*(runner.cut() for runner in (*self._init, *self._containers)))
            self._release()

    async def _live(self) -> None:
        """Admission, then init containers one after the other, then all containers, until all have ended for good."""
        if phase_of(self._view()).final:
            return
        if not await self._admit():
            return
        self._writer.wake()
        for runner in self._init:
            await runner.run()
            if not runner.state.succeeded:
                return
        await asyncio.gather(*(runner.run() for runner in self._containers))
        self._release()

    async def _until_deleted(self, life: asyncio.Task[None]) -> None:
        """Waits until the pod is deleted; a life that broke is an error of this program and is logged, not hidden."""
        reported = False
        while "deletionTimestamp" not in self.pod["metadata"]:
            self._news.clear()
            news = asyncio.ensure_future(self._news.wait())
            try:
                await asyncio.wait({news} if life.done() else {news, life}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
            if life.done() and not reported:
                reported = True
                if error := life.exception():
                    _LOGGER.error("pod %s broke", self.pod["metadata"]["name"], exc_info=error)
                    self._failure = Failure("NodePluginError", f"{type(error).__name__}: {error}")
                self._writer.wake()

    async def _end(self) -> None:
        self._ending = True
        metadata = self.pod["metadata"]
        # deletionTimestamp is when the grace is over, so a restarted plugin gives only what is left of it.
        now = datetime.now(UTC)
        left = (parse_timestamp(metadata["deletionTimestamp"], now) - now).total_seconds()
        grace = max(0.0, min(grace_seconds(self.pod), left + 1.0))
        await asyncio.gather(*(runner.terminate(grace) for runner in (*self._containers, *self._init)))

    async def _admit(self) -> bool:
        """Gives the pod its devices and its address; False when it has to fail, as a kubelet refuses a pod.

        A pod that was removed by force still ends in this process while the scheduler has given its devices away
        already, so missing devices are waited for a moment.
        """
        deadline = asyncio.get_running_loop().time() + _ADMISSION_SECONDS
        while (refusal := self._try_admit()) is not None:
            if asyncio.get_running_loop().time() >= deadline:
                self._failure = Failure("UnexpectedAdmissionError", f"Pod was rejected: {refusal}")
                self._emit("Warning", "UnexpectedAdmissionError", str(refusal))
                self._release()
                self._writer.wake()
                return False
            await asyncio.sleep(_ADMISSION_POLL_SECONDS)
        return True

    def _try_admit(self) -> Exception | None:
        """One attempt; why it failed."""
        host = self._host
        wanted: dict[str, int] = {}
        for container in self.pod["spec"]["containers"]:
            for resource, count in requested_devices(container).items():
                wanted[resource] = wanted.get(resource, 0) + count
        remembered = decode_assignment(self.pod["metadata"].get("annotations", {}).get(DEVICES_ANNOTATION, ""))
        try:
            self._assignment = host.ledger.assign(self.uid, wanted, remembered)
            self._address = host.addresses.take()
            self._holds_address = True
        except (NotEnoughDevices, AddressError) as error:
            return error
        requests = {c["name"]: requested_devices(c) for c in self.pod["spec"]["containers"]}
        self._devices = split_assignment(self._assignment, requests)
        return None

    def _release(self) -> None:
        """Gives devices and address back; the status keeps showing the address."""
        self._host.ledger.release(self.uid)
        if self._address is not None and self._holds_address:
            self._holds_address = False
            self._host.addresses.give_back(self._address)

    def _runner(self, container: JsonObject, statuses: list[JsonObject], now: datetime) -> ContainerRunner:
        host = self._host
        around = Surroundings(
            clock=host.clock,
            policy=restart_policy(self.pod),
            pull=self._pull,
            launch=self._launch,
            emit=self._emit,
            changed=lambda: self._writer.wake(),
            faults=lambda: self._faults,
            broken_device=self._broken_device,
        )
        return ContainerRunner(container, restored(container, statuses, now), around)

    async def _pull(self, container: JsonObject) -> None:
        image, images = container["image"], self._host.images
        if images.has(image):
            self._emit("Normal", "Pulled", f'Container image "{image}" already present on machine')
            return
        self._emit("Normal", "Pulling", f'Pulling image "{image}"')
        await images.pull(image)
        self._emit("Normal", "Pulled", f'Successfully pulled image "{image}"')

    def _launch(self, container: JsonObject) -> Process:
        host = self._host
        assert self._address is not None
        devices = self._devices.get(container["name"], ())
        command = command_line(
            self.pod,
            container,
            node=host.node,
            host_ip=host.address,
            pod_ip=self._address,
            extra={DEVICE_IDS_ENV: ",".join(device.id for device in devices)} if devices else {},
        )
        return launch(command, self._address, host.clock, host.names)

    def _broken_device(self, container: JsonObject) -> str | None:
        for device in self._devices.get(container["name"], ()):
            if not self._host.ledger.is_healthy(device):
                return f"device {device.index} ({device.id}) of {self._host.node} is unhealthy"
        return None

    def _read_faults(self) -> None:
        text = self.pod["metadata"].get("annotations", {}).get(FAULT, "")
        try:
            faults = parse_pod_faults(text)
        except FaultError as error:
            self._emit("Warning", "InvalidFault", str(error))
            return
        if faults == self._faults:
            return
        crash = faults.crash and not self._faults.crash
        self._faults = faults
        for runner in self._containers:
            runner.suffer(faults)
            if crash:
                runner.crash("crashed by the fault crash")

    def _view(self) -> PodView:
        return PodView(
            pod=self.pod,
            host_ip=self._host.address,
            pod_ip=self._address or self.pod.get("status", {}).get("podIP"),
            started=self._started,
            init=tuple(runner.state for runner in self._init),
            containers=tuple(runner.state for runner in self._containers),
            failure=self._failure,
            ending=self._ending,
        )

    def _annotations(self) -> dict[str, str]:
        return {DEVICES_ANNOTATION: encode_assignment(self._assignment)} if self._assignment else {}

    def _emit(self, kind: str, reason: str, message: str) -> None:
        self._host.events.emit(pod_reference(self.pod), self._host.node, kind, reason, message)
