"""KVCacheTier: a place for KV blocks below HBM, its size, eviction, retention and the tier below it."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.markers import Cel, Column, JsonObject, KindInfo, ListMap, PreserveUnknown, Scale, immutable
from retinue.api.types import Condition, Duration, Metadata, Model, Name, ObjectRef, Quantity, Ratio, Text


class Medium(StrEnum):
    HOST_MEMORY = "HostMemory"
    LOCAL_DISK = "LocalDisk"
    CONTEXT_STORAGE = "ContextStorage"
    OBJECT = "Object"


class Backend(StrEnum):
    ENGINE = "Engine"
    LMCACHE = "LMCache"
    MOONCAKE = "Mooncake"
    SIMULATED = "Simulated"


class Eviction(StrEnum):
    LRU = "LRU"
    LFU = "LFU"
    FIFO = "FIFO"
    ARC = "ARC"


class ObjectStore(Model):
    url: Annotated[str, Field(min_length=1, max_length=512)]
    secret_ref: ObjectRef | None = None


class Retention(Model):
    """How long a block is worth keeping after its last use, by the kind of gap it waits in."""

    tool_gap: Duration = "5m"
    sub_agent_wait: Duration = "10m"
    human_gap: Duration = "1h"
    role_prefix: Duration = "24h"


_TIER_SPEC_RULES = (
    Cel(
        "self.medium == 'Object' || has(self.capacityPerMember)",
        "capacityPerMember is required: say how much one member holds, such as 512Gi (a member is an engine instance"
        " for HostMemory and LocalDisk, a server pod for ContextStorage)",
        field_path=".capacityPerMember",
    ),
    Cel(
        "(self.medium == 'Object') == has(self.objectStore)",
        "objectStore is required for medium Object and refused for every other medium",
        field_path=".objectStore",
    ),
    Cel(
        "self.medium == 'ContextStorage' || self.replicas == 1",
        "replicas counts server pods, which only medium ContextStorage runs: leave it at 1",
        field_path=".replicas",
    ),
    Cel(
        "(self.medium == 'ContextStorage') == has(self.nodeClass)",
        "nodeClass says where server pods run: required for medium ContextStorage, refused for every other medium",
        field_path=".nodeClass",
    ),
    Cel(
        "self.medium != 'ContextStorage' || self.backend in ['LMCache', 'Mooncake', 'Simulated']",
        "medium ContextStorage runs servers: set backend to LMCache, Mooncake or Simulated",
        field_path=".backend",
    ),
    Cel(
        "self.medium != 'Object' || self.backend in ['LMCache', 'Mooncake']",
        "medium Object needs backend LMCache or Mooncake",
        field_path=".backend",
    ),
    Cel(
        "self.backend != 'Simulated' || self.medium == 'ContextStorage'",
        "backend Simulated is a server for medium ContextStorage; simulated engines offload with backend Engine",
        field_path=".backend",
    ),
    Cel(
        "self.backend != 'Engine' || self.eviction in ['LRU', 'ARC']",
        "backend Engine can evict by LRU or ARC",
        field_path=".eviction",
    ),
    Cel(
        "self.backend != 'LMCache' || self.eviction in ['LRU', 'LFU', 'FIFO']",
        "backend LMCache can evict by LRU, LFU or FIFO",
        field_path=".eviction",
    ),
    Cel(
        "self.backend != 'Mooncake' || self.eviction == 'LRU'",
        "backend Mooncake can evict by LRU",
        field_path=".eviction",
    ),
    Cel(
        "self.backend != 'Simulated' || self.eviction == 'LRU'",
        "backend Simulated can evict by LRU",
        field_path=".eviction",
    ),
)


class KVCacheTierSpec(Model):
    cel_rules: ClassVar[tuple[Cel, ...]] = _TIER_SPEC_RULES
    medium: Annotated[Medium, immutable("medium", "create another tier and name it in kvCacheTiers")]
    backend: Annotated[Backend, immutable("backend", "create another tier and name it in kvCacheTiers")] = (
        Backend.ENGINE
    )
    capacity_per_member: Quantity | None = None
    replicas: Annotated[int, Field(ge=0, le=256)] = 1
    node_class: Name | None = None
    image: Text | None = None
    object_store: ObjectStore | None = None
    eviction: Eviction = Eviction.LRU
    retention: Retention = Field(default_factory=Retention)
    next_tier: Name | None = None
    pod_template: Annotated[JsonObject, PreserveUnknown()] | None = None


class KVCacheTierStatus(Model):
    observed_generation: int | None = None
    replicas: int | None = None
    ready_replicas: int | None = None
    selector: Annotated[str, Field(max_length=512)] | None = None
    members: int | None = None
    capacity: Quantity | None = None
    used: Quantity | None = None
    fill: Ratio | None = None
    hit_rate: Ratio | None = None
    eviction_age: Duration | None = None
    endpoints: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=256)] = Field(
        default_factory=list
    )
    used_by: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=256)] = Field(default_factory=list)
    conditions: Annotated[list[Condition], ListMap(("type",)), Field(max_length=16)] = Field(default_factory=list)


class KVCacheTier(Model):
    """A place for KV blocks below HBM."""

    kind_info: ClassVar[KindInfo] = KindInfo(
        kind="KVCacheTier",
        plural="kvcachetiers",
        short_names=("kvt",),
        namespaced=True,
        scale=Scale(),
        columns=(
            Column("Medium", ".spec.medium"),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Members", ".status.members", "integer"),
            Column("Capacity", ".status.capacity"),
            Column("Used", ".status.used"),
            Column("Hit-Rate", ".status.hitRate"),
            Column("Eviction-Age", ".status.evictionAge"),
            Column("Backend", ".spec.backend", priority=1),
            Column("Next", ".spec.nextTier", priority=1),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        root_rules=(
            Cel(
                "!has(self.spec.nextTier) || self.spec.nextTier != self.metadata.name",
                "spec.nextTier must name another tier: a tier cannot evict into itself",
                field_path=".spec.nextTier",
            ),
            Cel(
                "size(self.metadata.name) <= 40",
                "metadata.name must be at most 40 characters, so that pod names fit",
                field_path=".metadata.name",
            ),
        ),
    )
    metadata: Metadata
    spec: KVCacheTierSpec
    status: KVCacheTierStatus = Field(default_factory=KVCacheTierStatus)
