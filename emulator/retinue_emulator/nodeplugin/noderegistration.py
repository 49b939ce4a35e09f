"""One Node object and its Lease in the API server: create or adopt, keep alive, report, remove."""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

from retinue.api.labels import FAULT
from retinue_emulator.inventory import NodeFacts

from .apiserver import MERGE_PATCH, ApiError, ApiServer, JsonObject
from .nodeobject import EMULATED, INVENTORY, NodeHealth, all_labels, new_node, node_status, taint_object

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
# A kubelet's defaults: a lease is good for 40 s and renewed at a quarter of that.
LEASE_SECONDS = 40
RENEW_SECONDS = 10.0


class ForeignNode(RuntimeError):
    """The cluster has a node of this name that is not an emulated one."""


class NodeRegistration:
    """The plugin's side of one Node."""

    def __init__(self, api: ApiServer, facts: NodeFacts, inventory: str, address: str) -> None:
        self._api = api
        self._facts = facts
        self._inventory = inventory
        self._address = address
        self._uid = ""
        self._boot = uuid.uuid4()
        self._has_lease = False

    @property
    def _path(self) -> str:
        return f"/api/v1/nodes/{self._facts.name}"

    async def register(self, allocatable: Mapping[str, int], health: NodeHealth) -> JsonObject:
        """Creates the Node, or takes over the one of an earlier run; returns it.

        Raises:
            ForeignNode: the name belongs to a node that no plugin with this inventory made.
        """
        status = self._status(allocatable, health, None)
        try:
            node = await self._api.create("/api/v1/nodes", new_node(self._facts, self._inventory, status))
        except ApiError as error:
            if not error.conflict:
                raise
            node = await self._adopt(allocatable, health)
        self._uid = node["metadata"]["uid"]
        await self.renew_lease()
        return node

    async def report(self, allocatable: Mapping[str, int], health: NodeHealth, known: JsonObject | None) -> None:
        """Writes the node's status. `known` is the Node as last seen."""
        await self._api.patch(f"{self._path}/status", {"status": self._status(allocatable, health, known)})

    async def renew_lease(self, *, retry: bool = True) -> None:
        """Says that the node is alive."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self._facts.name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        name = self._facts.name
        # The owner reference makes the garbage collector remove the lease with its node.
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": self._uid}
        metadata: JsonObject = {"name": name, "namespace": "kube-node-lease", "ownerReferences": [owner]}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        try:
            if self._has_lease:
                await self._api.patch(f"{_LEASES}/{name}", body, content_type=MERGE_PATCH)
            else:
                await self._api.create(_LEASES, body)
            self._has_lease = True
        except ApiError as error:
            # The lease of an earlier run is there, or somebody removed ours: the other way works.
            if not error.gone and not error.conflict:
                raise
            self._has_lease = not self._has_lease
            if retry:
                await self.renew_lease(retry=False)

    async def set_fault(self, text: str | None) -> None:
        """Writes the fault annotation; None removes it."""
        await self._api.patch(self._path, {"metadata": {"annotations": {FAULT: text}}}, content_type=MERGE_PATCH)

    async def remove(self) -> None:
        """Deletes the Node if it was registered; its lease follows."""
        if self._uid:
            await self._api.delete(self._path, uid=self._uid)

    def boot(self) -> None:
        """The machine was switched on again."""
        self._boot = uuid.uuid4()

    async def _adopt(self, allocatable: Mapping[str, int], health: NodeHealth) -> JsonObject:
        node = await self._api.get(self._path)
        labels = node["metadata"].get("labels", {})
        if labels.get(EMULATED) != "true" or labels.get(INVENTORY) != self._inventory:
            raise ForeignNode(
                f"node {self._facts.name} exists and is not part of the emulated cluster {self._inventory}; "
                "rename the node group in the inventory or delete the node"
            )
        own = [taint_object(taint) for taint in self._facts.taints]
        keys = {(taint["key"], taint["effect"]) for taint in own}
        others = [t for t in node["spec"].get("taints", []) if (t["key"], t["effect"]) not in keys]
        await self._api.patch(
            self._path,
            {
                "metadata": {"labels": all_labels(self._facts, self._inventory)},
                "spec": {"taints": own + others},
            },
            content_type=MERGE_PATCH,
        )
        await self.report(allocatable, health, node)
        return await self._api.get(self._path)

    def _status(self, allocatable: Mapping[str, int], health: NodeHealth, known: JsonObject | None) -> JsonObject:
        return node_status(
            self._facts,
            address=self._address,
            allocatable_devices=allocatable,
            health=health,
            boot=self._boot,
            known=known,
            now=datetime.now(UTC),
        )


def renew_pause() -> float:
    """Seconds to the next renewal; nodes spread out instead of renewing in step."""
    return RENEW_SECONDS * random.uniform(0.8, 1.0)
