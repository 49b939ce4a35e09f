"""Everything that planning one tier reads, as plain values."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from retinue.api import KVCacheTier, labels
from retinue.conditions import epoch
from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.resolve import ResolvedClass
from retinue.plan import Manifest


@dataclass(frozen=True)
class ServerView:
    """One server pod of a tier."""

    name: str
    uid: str
    index: int
    phase: str
    ready: bool
    deleting: bool
    node: str | None
    ip: str | None
    revision: str
    created: float
    message: str = ""


@dataclass(frozen=True)
class User:
    """A pool that names the tier, and how many of its instances are ready and wanted."""

    kind: str
    name: str
    ready: int
    wanted: int


@dataclass(frozen=True)
class TierMetrics:
    """What Prometheus says of a tier; None is missing. Bytes, ratio, seconds."""

    used: float | None = None
    hit_rate: float | None = None
    eviction_age: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class TierSnapshot:
    """One tier, its server pods, the pools that use it, and the other tiers of the namespace.

    `metrics` is None when no Prometheus is configured.
    """

    tier: KVCacheTier
    servers: tuple[ServerView, ...]
    users: tuple[User, ...]
    others: Mapping[str, KVCacheTier]
    node_class: ResolvedClass | None
    class_error: str | None
    nodes: tuple[Node, ...]
    holds: Collection[Hold]
    metrics: TierMetrics | None


def server_view(manifest: Manifest) -> ServerView:
    """A ServerView from the wire."""
    meta, status = manifest["metadata"], manifest.get("status", {})
    tail = meta["name"].removesuffix("-0").rsplit("-", 1)[-1]
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
    return ServerView(
        name=meta["name"],
        uid=meta.get("uid", ""),
        index=int(tail) if tail.isdigit() else 0,
        phase=status.get("phase", "Pending"),
        ready=ready,
        deleting=meta.get("deletionTimestamp") is not None,
        node=manifest.get("spec", {}).get("nodeName"),
        ip=status.get("podIP"),
        revision=meta.get("labels", {}).get(labels.REVISION, ""),
        created=epoch(meta["creationTimestamp"]) if meta.get("creationTimestamp") else 0.0,
        message=str(status.get("message") or status.get("reason") or ""),
    )
