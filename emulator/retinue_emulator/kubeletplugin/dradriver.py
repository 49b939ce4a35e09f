"""The DRA driver's service: prepares the devices of claims for containers, and takes them back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

from retinue_emulator.nodeplugin.apiserver import ApiError, JsonObject, is_transient

from .checkpoint import Checkpoint, PreparedClaim, PreparedDevice
from .containerview import claim_cdi_names, remove_claim_spec, write_claim_spec
from .driverhealth import HealthReports
from .faults import KubeletFaults
from .nodedevices import PluginDevice
from .paths import NodePaths
from .proto import dra_v1_pb2 as dra
from .rpc import PREPARE, UNPREPARE, Context, Handler

_LOGGER = logging.getLogger(__name__)


class ClaimReader(Protocol):
    """Where claims are read; the API server's client is one."""

    async def get(self, path: str, **params: str) -> JsonObject:
        """The object at a path of the API."""
        ...


class CannotPrepare(Exception):
    """A claim that cannot be prepared now; the message reaches the pod's events through the kubelet."""


def driver_name(resource: str) -> str:
    """The driver of a resource's devices: gpu.nvidia.com for nvidia.com/gpu."""
    domain, _, kind = resource.rpartition("/")
    return f"{kind}.{domain}".lower()


class DraDriver:
    """Prepares and unprepares claims on the devices of one node; both calls are idempotent, also over restarts."""

    def __init__(self, node: str, devices: Sequence[PluginDevice], claims: ClaimReader, paths: NodePaths) -> None:
        self.name = driver_name(devices[0].resource)
        self._faults = KubeletFaults()
        self._health = HealthReports(node, devices)
        self._node = node
        self._devices = {device.name: device for device in devices}
        self._claims = claims
        self._paths = paths
        self._checkpoint = Checkpoint(paths.driver(self.name) / "checkpoint.json")
        # One lock per claim: a repeated call waits for the first, claims do not wait for each other. A lock lives as
        # long as a call holds it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def faults(self) -> KubeletFaults:
        """What is broken now."""
        return self._faults

    @faults.setter
    def faults(self, faults: KubeletFaults) -> None:
        self._faults = faults
        self._health.set_faults(faults)

    @property
    def prepared(self) -> tuple[PreparedClaim, ...]:
        """The claims that are prepared now."""
        return tuple(self._checkpoint)

    def restore(self) -> None:
        """Writes the CDI files of prepared claims again; they are gone after a reboot of the node."""
        for claim in self._checkpoint:
            self._describe(claim)

    def handlers(self) -> list[Handler]:
        """The methods for a server."""
        return [PREPARE.serve(self._prepare_all), UNPREPARE.serve(self._unprepare_all), *self._health.handlers()]

    async def _prepare_all(
        self, request: dra.NodePrepareResourcesRequest, _: Context
    ) -> dra.NodePrepareResourcesResponse:
        answers = await asyncio.gather(*(self._prepare(claim) for claim in request.claims))
        uids = (claim.uid for claim in request.claims)
        return dra.NodePrepareResourcesResponse(claims=dict(zip(uids, answers, strict=True)))

    async def _unprepare_all(
        self, request: dra.NodeUnprepareResourcesRequest, _: Context
    ) -> dra.NodeUnprepareResourcesResponse:
        answers = await asyncio.gather(*(self._unprepare(claim) for claim in request.claims))
        uids = (claim.uid for claim in request.claims)
        return dra.NodeUnprepareResourcesResponse(claims=dict(zip(uids, answers, strict=True)))

    async def _prepare(self, claim: dra.Claim) -> dra.NodePrepareResourceResponse:
        async with self._locks.setdefault(claim.uid, asyncio.Lock()):
            try:
                prepared = self._checkpoint.get(claim.uid) or await self._prepare_new(claim)
                self._describe(prepared)
            except (CannotPrepare, OSError) as error:
                _LOGGER.warning("claim %s/%s is not prepared: %s", claim.namespace, claim.name, error)
                return dra.NodePrepareResourceResponse(error=str(error))
        return dra.NodePrepareResourceResponse(devices=[self._answer(prepared.uid, item) for item in prepared.devices])

    async def _prepare_new(self, claim: dra.Claim) -> PreparedClaim:
        path = f"/apis/resource.k8s.io/v1/namespaces/{claim.namespace}/resourceclaims/{claim.name}"
        try:
            found = await self._claims.get(path)
        except Exception as error:
            if not isinstance(error, ApiError) and not is_transient(error):
                raise
            raise CannotPrepare(f"the claim cannot be read: {error}") from error
        if found["metadata"]["uid"] != claim.uid:
            raise CannotPrepare(f"claim {claim.namespace}/{claim.name} has been replaced by another of its name")
        allocation: dict[str, Any] = found.get("status", {}).get("allocation", {})
        results = [item for item in allocation.get("devices", {}).get("results", []) if item["driver"] == self.name]
        if not results:
            raise CannotPrepare(f"the claim has no allocation of driver {self.name}; the scheduler makes one")
        await asyncio.sleep(self.faults.prepare_seconds)
        # From here to `put` nothing is awaited, so no other claim can come in between.
        devices = tuple(self._take(claim.uid, result) for result in results)
        prepared = PreparedClaim(claim.namespace, claim.name, claim.uid, devices)
        self._checkpoint.put(prepared)
        return prepared

    def _take(self, uid: str, result: JsonObject) -> PreparedDevice:
        name, pool, admin = result["device"], result["pool"], bool(result.get("adminAccess", False))
        device = self._devices.get(name)
        if device is None or pool != self._node:
            raise CannotPrepare(f"device {pool}/{name} is not on node {self._node}")
        if not self.faults.healthy(device):
            raise CannotPrepare(f"device {pool}/{name} ({device.id}) is unhealthy")
        for other in self._checkpoint:
            if not admin and other.uid != uid and any(d.device == name and not d.admin for d in other.devices):
                raise CannotPrepare(f"device {pool}/{name} is still in use by claim {other.namespace}/{other.name}")
        return PreparedDevice(result["request"], pool, name, result.get("shareID"), admin)

    async def _unprepare(self, claim: dra.Claim) -> dra.NodeUnprepareResourceResponse:
        async with self._locks.setdefault(claim.uid, asyncio.Lock()):
            try:
                remove_claim_spec(claim.uid, self._paths.cdi)
                self._checkpoint.remove(claim.uid)
            except OSError as error:
                return dra.NodeUnprepareResourceResponse(error=str(error))
        return dra.NodeUnprepareResourceResponse()

    def _describe(self, claim: PreparedClaim) -> None:
        by_request: dict[str, list[PluginDevice]] = {}
        for item in claim.devices:
            # A device that a changed inventory no longer has: its container keeps running without it.
            if device := self._devices.get(item.device):
                by_request.setdefault(item.request, []).append(device)
        write_claim_spec(claim.uid, by_request, self._paths.cdi, self._paths.device_facts)

    def _answer(self, uid: str, item: PreparedDevice) -> dra.Device:
        device = self._devices.get(item.device)
        return dra.Device(
            # The kubelet knows requests by their first part, also when a sub-request was chosen.
            request_names=[item.request.partition("/")[0]],
            pool_name=item.pool,
            device_name=item.device,
            cdi_device_ids=claim_cdi_names(uid, item.request, device) if device is not None else (),
            share_id=item.share,
        )
