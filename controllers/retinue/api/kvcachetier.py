"""KVCacheTier: a place for KV blocks below HBM, its size, eviction, retention and the tier below it."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.markers import (
    NAME_WITHOUT_DOTS,
    Cel,
    Column,
    JsonObject,
    KindInfo,
    ListMap,
    PreserveUnknown,
    Scale,
    immutable,
)
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
    """An object store for medium Object, which this version does not run."""

    url: Annotated[str, Field(min_length=1, max_length=512)]
    """Bucket and prefix, such as s3://bucket/prefix. Not acted on by this version."""
    secret_ref: ObjectRef | None = None
    """Secret of the namespace with the credentials. Not acted on by this version."""


class Retention(Model):
    """How long a block is worth keeping after its last use, by the kind of gap it waits in."""

    tool_gap: Duration = "5m"
    """While a tool runs. A ContextStorage tier of an AgentPool that is full and evicts sooner than this grows."""
    sub_agent_wait: Duration = "10m"
    """While a parent waits for its sub-agents. A ContextStorage tier of an AgentPool that is full and evicts sooner
    than this grows."""
    human_gap: Duration = "1h"
    """While a human thinks. Not acted on by this version: such blocks stay as long as there is room."""
    role_prefix: Duration = "24h"
    """The tools and system prompt that all sessions of a role share. Not acted on by this version: they stay cached by
    use."""


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
    """What the tier is made of, how much it holds and what it keeps."""

    cel_rules: ClassVar[tuple[Cel, ...]] = _TIER_SPEC_RULES
    medium: Annotated[Medium, immutable("medium", "create another tier and name it in kvCacheTiers")]
    """What holds the blocks. HostMemory is memory beside each engine, ContextStorage is flash that server pods share.
    LocalDisk and Object are not run by this version: condition Valid says NotSupported."""
    backend: Annotated[Backend, immutable("backend", "create another tier and name it in kvCacheTiers")] = (
        Backend.ENGINE
    )
    """Who moves the blocks. Engine is the engine's own offloading, Simulated the emulator's server for ContextStorage.
    LMCache and Mooncake are not run by this version: condition Valid says NotSupported."""
    capacity_per_member: Quantity | None = None
    """Bytes that one member holds. A member is an engine instance for HostMemory and LocalDisk, a server pod for
    ContextStorage. HostMemory is requested from the node. Required for all media but Object."""
    replicas: Annotated[int, Field(ge=0, le=256)] = 1
    """Server pods wanted; only medium ContextStorage runs any. Written by you, kubectl scale, HPA or KEDA; by the
    autoscaler when an AgentPool with mode Auto owns the tier."""
    node_class: Name | None = None
    """NodeClass that server pods run on. Required for ContextStorage, refused for every other medium."""
    image: Text | None = None
    """Container image of the server pods. Without it, the backend's own default image."""
    object_store: ObjectStore | None = None
    """Where medium Object keeps its blocks."""
    eviction: Eviction = Eviction.LRU
    """Which blocks go first when the tier is full. What runs in this version evicts by LRU; another value that the
    backend could do is stored without effect."""
    retention: Retention = Field(default_factory=Retention)
    """How long blocks are worth keeping, by the kind of gap they wait in."""
    next_tier: Name | None = None
    """KVCacheTier of the namespace below this one. It must exist and lead into no cycle; this version moves no blocks
    along it, engines look into the tiers that their pool lists."""
    pod_template: Annotated[JsonObject, PreserveUnknown()] | None = None
    """A pod template (metadata and spec) that is merged over each server pod last; the container is named tier."""


class KVCacheTierStatus(Model):
    """What the operator observes of a tier; only the operator writes it."""

    observed_generation: int | None = None
    """Generation of the spec that this status is about."""
    replicas: int | None = None
    """Server pods that exist; 0 for media without servers."""
    ready_replicas: int | None = None
    """Server pods that serve."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the server pods, for the scale subresource."""
    members: int | None = None
    """Members that hold blocks now: ready servers, or ready instances of the pools that name the tier."""
    capacity: Quantity | None = None
    """Bytes that all members hold together."""
    used: Quantity | None = None
    """Bytes in use. Absent without metrics."""
    fill: Ratio | None = None
    """Share of the capacity that is in use. Absent without metrics."""
    hit_rate: Ratio | None = None
    """Tokens found in the tier / tokens looked up in servers, or / all prompt tokens for HostMemory. Absent without
    traffic or metrics."""
    eviction_age: Duration | None = None
    """Time since last use of the block that was evicted last, the shortest over all members. Absent without evictions
    or metrics."""
    endpoints: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=256)] = Field(
        default_factory=list
    )
    """URLs of the ready server pods."""
    used_by: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=256)] = Field(default_factory=list)
    """Pools that name the tier, as kind/name."""
    conditions: Annotated[list[Condition], ListMap(("type",)), Field(max_length=16)] = Field(default_factory=list)
    """Ready and Valid, MetricsFresh where there is a Prometheus, and Degraded when no node can hold a member. The
    reference says what types and reasons mean."""


class KVCacheTier(Model):
    """A place for KV blocks below HBM, which pools name in kvCacheTiers. Standalone, or owned by an AgentPool."""

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
            NAME_WITHOUT_DOTS,
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
