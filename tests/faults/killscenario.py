"""What a user does while operators die, and what must be left when all has calmed down."""

import random
import time
from typing import Any

from retinue.api import labels
from retinue.plan import Manifest
from retinue_emulator.loopback import eventually
from retinue_operator.client import KubeClient
from retinue_operator.errors import NotFound
from retinue_operator.resources import OWN_KINDS, WATCHED

from ..component.manifests import SMALL_MODEL
from .outsideview import DRAIN_SECONDS, OutsideView

INVENTORY = """
apiVersion: emulator.retinue.dev/v1alpha1
kind: Inventory
cluster: killing
zone: local-k
racks:
- name: k1
  nodeGroups:
  - {name: kgpu, count: 8, preset: b200, cpu: 224, memory: 4Ti, labels: {node-role: kill-gpu}}
  - name: kstore
    count: 2
    preset: x86-cpu
    cpu: 64
    memory: 1Ti
    ephemeralStorage: 10Ti
    labels: {node-role: kill-store}
"""
SPEED = 60.0
_CLASSES: dict[str, Manifest] = {
    "kill-gpu": {"family": "GPU", "preset": "b200", "nodeSelector": {"node-role": "kill-gpu"}},
    "kill-store": {"family": "CPU", "nodeSelector": {"node-role": "kill-store"}},
}
STEADY = "steady"
_USER = "user"
_KINDS = {"steady": 2, "busy": 2, "wide": 1}


def node_classes() -> list[Manifest]:
    """Classes of the emulated nodes of this test alone."""
    notes = {"annotations": {"retinue.dev/time-scale": f"{SPEED:g}"}}
    return [_object("NodeClass", "", name, spec, **notes) for name, spec in _CLASSES.items()]


class User:
    """Edits pools, tiers and AgentPools of one namespace as a seed says."""

    def __init__(self, client: KubeClient, namespace: str, chance: random.Random, view: OutsideView) -> None:
        self._client = client
        self._namespace = namespace
        self._chance = chance
        self._view = view
        self._made = 0
        self._doomed: str | None = None
        self._agents: str | None = None
        self._arguments = 64
        self._replicas = dict(_KINDS)
        self.done: list[str] = []

    async def furnish(self) -> None:
        """What is there before anybody is killed."""
        for name in _KINDS:
            await self._pool(name)
        await self._tier(1)

    async def act(self) -> None:
        """One edit."""
        action = self._chance.choice(
            (self._scale, self._scale, self._scale, self._roll, self._resize, self._doom, self._employ)
        )
        self.done.append(await action())

    async def _scale(self) -> str:
        name = self._chance.choice(("busy", "busy", "wide"))
        self._replicas[name] = self._chance.randint(0, 4 if name == "busy" else 2)
        await self._pool(name)
        return f"scale {name} to {self._replicas[name]}"

    async def _roll(self) -> str:
        self._arguments += 1
        await self._pool("busy")
        return "roll busy"

    async def _resize(self) -> str:
        size = self._chance.randint(1, 3)
        await self._tier(size)
        return f"resize the tier to {size}"

    async def _doom(self) -> str:
        """Makes a pool, or deletes the one that was made."""
        if self._doomed is not None:
            name, self._doomed = self._doomed, None
            self._view.gone(name)
            await self._client.delete("DecodePool", self._namespace, name)
            return f"delete {name}"
        self._made += 1
        self._doomed = f"doomed-{self._made}"
        self._replicas[self._doomed] = 1
        await self._pool(self._doomed)
        return f"make {self._doomed}"

    async def _employ(self) -> str:
        """Makes an AgentPool, or deletes the one that was made."""
        if self._agents is not None:
            name, self._agents = self._agents, None
            self._view.gone(f"{name}-primary")
            await self._client.delete("AgentPool", self._namespace, name)
            return f"delete agents {name}"
        self._made += 1
        self._agents = f"agents-{self._made}"
        role = {
            "name": "primary",
            "type": "Primary",
            "model": SMALL_MODEL,
            "engine": {"type": "Simulated"},
            "decode": {"nodeClasses": ["kill-gpu"], "replicas": {"min": 1, "max": 2}, "drain": _DRAIN},
            "kvCacheTiers": ["warm"],
        }
        tiers = [{"name": "warm", "spec": {"medium": "HostMemory", "capacityPerMember": "8Gi"}}]
        spec = {"roles": [role], "tiers": tiers, "autoscaling": {"mode": "Off"}}
        await self._client.apply(_object("AgentPool", self._namespace, self._agents, spec), _USER)
        return f"make agents {self._agents}"

    async def _pool(self, name: str) -> None:
        spec: dict[str, Any] = {
            "serves": "PrefillAndDecode",
            "model": SMALL_MODEL,
            "engine": {"type": "Simulated"},
            "nodeClasses": ["kill-gpu"],
            "replicas": self._replicas[name],
            "rollout": {"maxSurge": 1, "maxUnavailable": 0},
            "drain": _DRAIN,
        }
        if name == "wide":
            spec |= {"parallelism": {"tensor": 8, "data": 2}, "topology": {"pack": "rack"}}
        if name == "busy":
            spec["engine"] = {"type": "Simulated", "args": [f"--max-num-seqs={self._arguments}"]}
        await self._client.apply(_object("DecodePool", self._namespace, name, spec), _USER)

    async def _tier(self, size: int) -> None:
        spec = {
            "medium": "ContextStorage",
            "backend": "Simulated",
            "capacityPerMember": "64Gi",
            "nodeClass": "kill-store",
            "replicas": size,
        }
        await self._client.apply(_object("KVCacheTier", self._namespace, "cold", spec), _USER)


_DRAIN = {"timeout": f"{DRAIN_SECONDS:g}s"}


async def unfinished(client: KubeClient, namespace: str) -> list[str]:
    """What is not as the specs want it, in words; empty once the cluster has converged."""
    objects = {
        resource.kind: (await client.list(resource.kind, namespace if resource.namespaced else "")).items
        for resource in WATCHED
    }
    found = []
    uids = {made["metadata"]["uid"] for made_of_kind in objects.values() for made in made_of_kind}
    for resource in WATCHED:
        for child in objects[resource.kind]:
            owners = child["metadata"].get("ownerReferences") or []
            if resource.namespaced and owners and not any(owner["uid"] in uids for owner in owners):
                found.append(f"{resource.kind} {child['metadata']['name']} is an orphan")
    for kind in ("AgentPool", "DecodePool", "KVCacheTier"):
        found += [text for pool in objects[kind] for text in _complaints(pool, objects["Pod"])]
    return found


def _complaints(wire: Manifest, pods: tuple[Manifest, ...]) -> list[str]:
    kind, name, spec, status = wire["kind"], wire["metadata"]["name"], wire["spec"], wire.get("status") or {}
    if status.get("observedGeneration") != wire["metadata"]["generation"]:
        return [f"{kind} {name}: the status is of generation {status.get('observedGeneration')}"]
    wanted = spec.get("replicas", 1)
    ready = {c["type"]: c for c in status["conditions"]}["Ready"]
    if ready["status"] != "True" and not (kind == "DecodePool" and wanted == 0):
        return [f"{kind} {name} is not Ready: {ready['reason']} {ready['message']}"]
    if kind == "AgentPool" or spec.get("medium") == "HostMemory":
        return []
    tag = labels.TIER if kind == "KVCacheTier" else labels.POOL
    own = [pod for pod in pods if pod["metadata"]["labels"].get(tag) == name]
    instances = {pod["metadata"]["labels"].get(labels.INSTANCE, pod["metadata"]["name"]) for pod in own}
    leaving = [pod["metadata"]["name"] for pod in own if pod["metadata"].get("deletionTimestamp")]
    if len(instances) != wanted or leaving:
        return [f"{kind} {name} has {sorted(instances)}, wanted {wanted}; leaving: {leaving}"]
    if kind == "DecodePool":
        old = [pod for pod in own if pod["metadata"]["labels"].get(labels.REVISION) != status["revision"]]
        bound = [pod for pod in own if pod["metadata"]["labels"].get(labels.ROUTABLE) != "true"]
        return [f"{kind} {name}: {pod['metadata']['name']} is old or not routable" for pod in (*old, *bound)]
    return []


async def converged(client: KubeClient, namespace: str, timeout: float = 120.0) -> float:
    """Waits until everything is as specified; the seconds that took."""
    began = time.monotonic()
    last: list[str] = []

    async def probe() -> bool:
        nonlocal last
        last = await unfinished(client, namespace)
        assert not last, last
        return True

    await eventually(probe, what="everything is as specified", timeout=timeout, interval=0.3)
    return time.monotonic() - began


async def all_gone(client: KubeClient, namespace: str) -> None:
    """Deletes what the user made; returns when nothing of Retinue's is left in the namespace."""
    for resource in OWN_KINDS:
        if resource.namespaced:
            for made in (await client.list(resource.kind, namespace)).items:
                if not made["metadata"].get("ownerReferences"):
                    try:
                        await client.delete(resource.kind, namespace, made["metadata"]["name"])
                    except NotFound:
                        continue

    async def probe() -> bool:
        kinds = [resource for resource in WATCHED if resource.namespaced]
        left = [made for resource in kinds for made in (await client.list(resource.kind, namespace)).items]
        assert not left, [f"{made['kind']} {made['metadata']['name']}" for made in left]
        return True

    await eventually(probe, what="nothing is left", timeout=90.0, interval=0.5)


def _object(kind: str, namespace: str, name: str, spec: Manifest, **metadata: Any) -> Manifest:
    place = {"namespace": namespace} if namespace else {}
    return {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, **place, **metadata},
        "spec": spec,
    }
