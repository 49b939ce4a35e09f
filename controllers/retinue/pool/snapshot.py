"""Everything that planning one pool reads, as plain values."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from retinue.api import DecodePool, KVCacheTier, PrefillPool, labels
from retinue.api.decodepool import Serves
from retinue.conditions import epoch, epoch_or_none
from retinue.nodeclass.claims import ClaimTemplate, template_names
from retinue.nodeclass.nodes import Hold, Node, is_gated
from retinue.nodeclass.resolve import ResolvedClass
from retinue.plan import Manifest
from retinue.pool.containers import Obstacle, failure, obstacle

Pool = PrefillPool | DecodePool
WORLD_SIZE = "RETINUE_WORLD_SIZE"
"""The variable that tells an engine how many pods its instance has."""
_POD_NAME = re.compile(rf"(?P<instance>.+-({labels.POOL_KIND_PREFILL}|{labels.POOL_KIND_DECODE})-\d+)-(?P<rank>\d+)")


class PoolKind(StrEnum):
    PREFILL = labels.POOL_KIND_PREFILL
    DECODE = labels.POOL_KIND_DECODE


@dataclass(frozen=True)
class PodView:
    """One pod of a pool. `created` and `unschedulable_since` in seconds since the epoch.

    drain_started: the same, and infinite where the annotation is there but tells no time.
    unhealthy: which of its devices the kubelet reports as broken, in words; empty where it reports none.
    obstacle: what keeps its containers from being started. unready_since: when it stopped being ready, None for one
    that is ready or never was. world_size: the number of pods of its instance when it was made, 0 if it does not say.
    """

    name: str
    uid: str
    instance: str
    rank: int
    revision: str
    node_class: str
    domain: str | None
    phase: str
    ready: bool
    deleting: bool
    gated: bool
    node: str | None
    drain_started: float | None
    routable: bool
    created: float
    unschedulable_since: float | None = None
    message: str = ""
    template: str = ""
    unhealthy: str = ""
    obstacle: Obstacle | None = None
    unready_since: float | None = None
    claim_templates: tuple[str, ...] = ()
    world_size: int = 0


@dataclass(frozen=True)
class PoolMetrics:
    """What Prometheus says of a pool; None is missing, never zero. Seconds and ratios."""

    hit_rate: float | None = None
    ttft_p95: float | None = None
    itl_p95: float | None = None
    sessions: Mapping[str, int] = field(default_factory=dict)
    cached_tokens: Mapping[str, int] = field(default_factory=dict)
    age: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class PoolSnapshot:
    """One pool, its pods, and the part of the world that its plan depends on.

    `in_flight` holds the running and waiting requests of draining instances, None where the engine did not answer.
    `claim_templates` are those that the pool owns.
    `metrics` is None when no Prometheus is configured.
    """

    kind: PoolKind
    pool: Pool
    pods: tuple[PodView, ...]
    classes: Mapping[str, ResolvedClass]
    class_errors: Mapping[str, str]
    nodes: tuple[Node, ...]
    holds: Collection[Hold]
    tiers: Mapping[str, KVCacheTier]
    in_flight: Mapping[str, int | None]
    metrics: PoolMetrics | None
    claim_templates: tuple[ClaimTemplate, ...] = ()

    @property
    def engine_role(self) -> str:
        """prefill, decode or aggregated."""
        if isinstance(self.pool, PrefillPool):
            return "prefill"
        return "aggregated" if self.pool.spec.serves == Serves.PREFILL_AND_DECODE else "decode"


def pod_view(manifest: Manifest) -> PodView:
    """A PodView from the wire; instance and rank by its name, because its labels may have been changed by others."""
    meta, spec, status = manifest["metadata"], manifest.get("spec", {}), manifest.get("status", {})
    tags, notes = meta.get("labels", {}), meta.get("annotations", {})
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    scheduled = conditions.get("PodScheduled", {})
    waiting = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    since = scheduled.get("lastTransitionTime")
    named = _POD_NAME.fullmatch(meta["name"])
    return PodView(
        name=meta["name"],
        uid=meta.get("uid", ""),
        instance=named["instance"] if named else tags.get(labels.INSTANCE, ""),
        rank=int(named["rank"]) if named else 0,
        revision=tags.get(labels.REVISION, ""),
        node_class=tags.get(labels.NODE_CLASS, ""),
        domain=notes.get(labels.DOMAIN),
        phase=status.get("phase", "Pending"),
        ready=conditions.get("Ready", {}).get("status") == "True",
        deleting=meta.get("deletionTimestamp") is not None,
        gated=is_gated(spec),
        node=spec.get("nodeName"),
        drain_started=_drain_started(notes.get(labels.DRAIN_STARTED)),
        routable=tags.get(labels.ROUTABLE) == "true",
        created=epoch(meta["creationTimestamp"]) if meta.get("creationTimestamp") else 0.0,
        unschedulable_since=epoch(since) if waiting and since else None,
        message=failure(status),
        obstacle=obstacle(status),
        unready_since=_unready_since(conditions.get("Ready", {}), status),
        template=notes.get(labels.TEMPLATE, ""),
        unhealthy=_unhealthy(status),
        claim_templates=template_names(spec),
        world_size=_world_size(spec),
    )


def _world_size(spec: Manifest) -> int:
    for container in spec.get("containers", []):
        for variable in container.get("env", []):
            if variable["name"] == WORLD_SIZE and variable.get("value", "").isdecimal():
                return int(variable["value"])
    return 0


def drains(manifest: Manifest) -> bool:
    """Whether a pod is marked as draining: it has the annotation, and not an empty one."""
    return bool((manifest["metadata"].get("annotations") or {}).get(labels.DRAIN_STARTED))


def _drain_started(note: str | None) -> float | None:
    if not note:
        return None
    started = epoch_or_none(note)
    return math.inf if started is None else started


def _unready_since(ready: Manifest, status: Manifest) -> float | None:
    """The condition turns False at first before the containers start, and later only for one that was ready."""
    turned = ready.get("lastTransitionTime")
    running = [c.get("state", {}).get("running") for c in status.get("containerStatuses", [])]
    if ready.get("status") == "True" or not turned or not running:
        return None
    if not all(container and container.get("startedAt") for container in running):
        return None
    started = max(epoch(container["startedAt"]) for container in running if container)
    return epoch(turned) if epoch(turned) > started else None


def _unhealthy(status: Manifest) -> str:
    """The broken devices that a pod holds. Kubelets tell of them with the feature ResourceHealthStatus (on since 1.36);
    "Unknown" says that nobody watches, not that a device is broken.
    """
    broken = [
        f"{resource['name']} {device['resourceID']}"
        for container in status.get("containerStatuses", [])
        for resource in container.get("allocatedResourcesStatus", [])
        for device in resource.get("resources", [])
        if device.get("health") == "Unhealthy"
    ]
    return ", ".join(sorted(broken))
