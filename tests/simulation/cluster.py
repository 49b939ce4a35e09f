"""What a cluster does by itself: nodes, a scheduler, kubelets that start and end pods, engines with requests."""

import random
from dataclasses import dataclass, field
from typing import Any

from retinue.api import labels
from retinue.api.types import Toleration
from retinue.conditions import timestamp
from retinue.nodeclass.nodes import holds_from, node_from, tolerated
from retinue.plan import Manifest
from retinue_operator.resources import identity

from .api import MemoryApi, Name

GPU = "nvidia.com/gpu"
RACK = "topology.kubernetes.io/rack"
CLIQUE = "nvidia.com/gpu.clique"
NAMESPACE = "agents"
# The node lifecycle controller waits this long before it evicts, and the collector removes pods of lost nodes.
EVICTION_SECONDS = 30.0


def gpu_node(name: str, product: str, rack: str, gpus: int = 4) -> Manifest:
    """A Ready node with devices, in one rack and one NVLink clique of the same name."""
    tags = {"gpu": product, RACK: rack, CLIQUE: f"c-{rack}", "kubernetes.io/hostname": name}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": tags},
        "spec": {},
        "status": {
            "allocatable": {GPU: str(gpus), "memory": "1Ti", "cpu": "64"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        },
    }


@dataclass
class Cluster:
    """The world around the API server. `tick` lets it do what is due at `now` (seconds since the epoch)."""

    api: MemoryApi
    chance: random.Random
    now: float
    ready_at: dict[str, float] = field(default_factory=dict)
    gone_at: dict[str, float] = field(default_factory=dict)
    lost_at: dict[str, float] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    """Requests in flight by pod uid."""
    crashing: set[str] = field(default_factory=set)
    """Pools whose engines exit instead of becoming ready."""

    def copy(self, api: MemoryApi, chance: random.Random) -> "Cluster":
        """The same cluster in front of another server."""
        other = Cluster(api, chance, self.now)
        for state in ("ready_at", "gone_at", "lost_at", "requests"):
            setattr(other, state, dict(getattr(self, state)))
        return other

    def pods(self) -> list[Manifest]:
        """All pods."""
        return self.api.all("Pod")

    def tick(self) -> None:
        """Everything that is due, once."""
        for pod in self.pods():
            self._end(pod)
        for node, since in list(self.lost_at.items()):
            if self.now >= since + EVICTION_SECONDS:
                self._evict(node)
        for pod in self.pods():
            self._schedule(pod)
        for pod in self.pods():
            self._start(pod)
        for uid in list(self.requests):
            self.requests[uid] = max(0, self.requests[uid] - self.chance.randint(0, 2))
        self.api.collect_orphans()

    def busy(self) -> bool:
        """Whether something will still happen by itself."""
        uids = {pod["metadata"]["uid"] for pod in self.pods()}
        waits = any(uid in uids and at > self.now - 1 for uid, at in (*self.ready_at.items(), *self.gone_at.items()))
        return waits or bool(self.lost_at)

    # --- what goes wrong

    def fail(self, pod: Manifest) -> None:
        """The engine exits."""
        ended = {"name": "engine", "restartCount": 0, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}
        self._status(pod, "kubelet", phase="Failed", containerStatuses=[ended], ready="False")

    def lose(self, node: str) -> None:
        """The kubelet stops: the node is NotReady, its pods are too, and after a while they are evicted."""
        found = self.api.find("Node", "", node)
        if found is None:
            return
        self._node(found, "False")
        self.lost_at[node] = self.now
        for pod in self.pods():
            if pod["spec"].get("nodeName") == node:
                self._status(pod, "node-controller", ready="False")

    def bring_back(self, node: str) -> None:
        """The kubelet is there again."""
        found = self.api.find("Node", "", node)
        if found is not None:
            self._node(found, "True")
        self.lost_at.pop(node, None)
        for pod in self.pods():
            if pod["spec"].get("nodeName") == node and pod["metadata"]["uid"] in self.ready_at:
                self.ready_at[pod["metadata"]["uid"]] = self.now

    # --- what a cluster does

    def _end(self, pod: Manifest) -> None:
        meta = pod["metadata"]
        if not meta.get("deletionTimestamp"):
            return
        due = self.gone_at.setdefault(meta["uid"], self.now + self.chance.choice((0.5, 2.0, 5.0)))
        if self.now >= due and pod["spec"]["nodeName"] not in self.lost_at:
            self.api.remove(identity(pod), "kubelet")

    def _evict(self, node: str) -> None:
        for pod in self.pods():
            if pod["spec"].get("nodeName") == node:
                self.api.remove(identity(pod), "pod-collector")
        if self.api.find("Node", "", node) is not None:
            self.api.remove(("Node", "", node), "cloud")
        self.lost_at.pop(node)

    def _schedule(self, pod: Manifest) -> None:
        spec = pod["spec"]
        if spec.get("nodeName") or spec.get("schedulingGates") or pod["metadata"].get("deletionTimestamp"):
            return
        node = next((n for n in self.api.all("Node") if self._fits(pod, n)), None)
        if node is None:
            return
        name = node["metadata"]["name"]
        self.api.edit(identity(pod), "scheduler", spec={"nodeName": name})
        bound = self.api.find(*identity(pod))
        assert bound is not None
        self._condition(bound, "scheduler", "PodScheduled", "True")
        self.ready_at[pod["metadata"]["uid"]] = self.now + self.chance.choice((1.0, 4.0, 9.0))

    def _fits(self, pod: Manifest, manifest: Manifest) -> bool:
        node, spec = node_from(manifest), pod["spec"]
        affinity = spec.get("affinity", {}).get("nodeAffinity", {})
        required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
        terms = (required or {}).get("nodeSelectorTerms") or [{"matchExpressions": []}]
        if not any(all(_matches(node.labels, e) for e in term["matchExpressions"]) for term in terms):
            return False
        if any(node.labels.get(key) != value for key, value in spec.get("nodeSelector", {}).items()):
            return False
        tolerations = [Toleration.model_validate(wire) for wire in spec.get("tolerations", [])]
        if not node.usable or not tolerated(node.taints, tolerations):
            return False
        used: dict[str, int] = {}
        for hold in holds_from(self.pods(), ()):
            if hold.node == node.name:
                for resource, amount in hold.requests.items():
                    used[resource] = used.get(resource, 0) + amount
        (wanted,) = holds_from([pod], ())
        return all(used.get(r, 0) + a <= node.allocatable.get(r, 0) for r, a in wanted.requests.items())

    def _start(self, pod: Manifest) -> None:
        meta, due = pod["metadata"], self.ready_at.get(pod["metadata"]["uid"])
        if due is None or meta.get("deletionTimestamp") or pod["status"].get("phase") in ("Failed", "Succeeded"):
            return
        if pod["spec"].get("nodeName") in self.lost_at:
            return
        if pod["status"].get("phase") != "Running":
            number = int(meta["uid"].rpartition("-")[2])
            address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            running = {"name": "engine", "restartCount": 0, "state": {"running": {"startedAt": timestamp(self.now)}}}
            self._status(pod, "kubelet", phase="Running", podIP=address, containerStatuses=[running])
        elif self.now >= due:
            if meta["labels"].get(labels.POOL) in self.crashing:
                self.fail(pod)
            else:
                self._condition(pod, "kubelet", "Ready", "True")

    def _status(self, pod: Manifest, by: str, ready: str = "", **fields: Any) -> None:
        name: Name = identity(pod)
        self.api.edit(name, by, status=fields)
        if ready:
            found = self.api.find(*name)
            assert found is not None
            self._condition(found, by, "Ready", ready)

    def _condition(self, pod: Manifest, by: str, type_: str, status: str) -> None:
        conditions = list(pod["status"].get("conditions") or [])
        old = next((c for c in conditions if c["type"] == type_), None)
        if old is not None and old["status"] == status:
            return
        kept = [c for c in conditions if c["type"] != type_]
        new = {"type": type_, "status": status, "lastTransitionTime": timestamp(self.now)}
        self.api.edit(identity(pod), by, status={"conditions": [*kept, new]})

    def _node(self, node: Manifest, ready: str) -> None:
        condition = {"type": "Ready", "status": ready, "lastTransitionTime": timestamp(self.now)}
        taints = [] if ready == "True" else [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
        self.api.edit(identity(node), "kubelet", status={"conditions": [condition]}, spec={"taints": taints})


def _matches(tags: dict[str, str], expression: Manifest) -> bool:
    key = expression["key"]
    if expression["operator"] == "In":
        return tags.get(key) in expression["values"]
    assert expression["operator"] == "DoesNotExist", expression
    return key not in tags
