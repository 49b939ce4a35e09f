"""What PrefillPool and DecodePool share: model, engine, shape, placement, rollout, drain, and their status."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.markers import Cel, Column, JsonObject, ListMap, ListSet, PreserveUnknown
from retinue.api.types import Condition, Duration, EnvVar, LevelName, Model, Name, Ratio, Text


class Precision(StrEnum):
    BF16 = "BF16"
    FP8 = "FP8"
    NVFP4 = "NVFP4"
    MXFP4 = "MXFP4"


class KVPrecision(StrEnum):
    BF16 = "BF16"
    FP8 = "FP8"
    NVFP4 = "NVFP4"


class EngineType(StrEnum):
    VLLM = "VLLM"
    SGLANG = "SGLang"
    TENSORRT_LLM = "TensorRTLLM"
    SIMULATED = "Simulated"


class Connector(StrEnum):
    NIXL = "NIXL"
    MOONCAKE = "Mooncake"
    LMCACHE = "LMCache"


class PackMode(StrEnum):
    REQUIRED = "Required"
    PREFERRED = "Preferred"


class InstancePhase(StrEnum):
    PENDING = "Pending"
    STARTING = "Starting"
    READY = "Ready"
    DRAINING = "Draining"
    GONE = "Gone"


class ModelSpec(Model):
    """Which model, in which precision. Facts of well-known names come from the catalogue."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    source: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    precision: Precision = Precision.FP8
    kv_precision: KVPrecision = KVPrecision.FP8
    context_window: Annotated[int, Field(ge=1024, le=16777216)] = 131072


class EngineSpec(Model):
    """Which engine program serves the model."""

    type: EngineType
    image: Text | None = None
    args: Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=64)] = Field(
        default_factory=list
    )
    env: Annotated[list[EnvVar], ListMap(), Field(max_length=64)] = Field(default_factory=list)


class Parallelism(Model):
    """How one instance spreads over devices: tensor x pipeline x data x context of them."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "self.expert <= self.tensor * self.data && (self.tensor * self.data) % self.expert == 0",
            "expert must divide tensor x data: experts are spread over the ranks that tensor and data make",
            field_path=".expert",
        ),
    )
    tensor: Annotated[int, Field(ge=1, le=256)] = 1
    pipeline: Annotated[int, Field(ge=1, le=64)] = 1
    data: Annotated[int, Field(ge=1, le=256)] = 1
    expert: Annotated[int, Field(ge=1, le=1024)] = 1
    context: Annotated[int, Field(ge=1, le=64)] = 1

    @property
    def devices(self) -> int:
        """Devices that one instance takes."""
        return self.tensor * self.pipeline * self.data * self.context


class Topology(Model):
    """Which fabric level holds one instance together, and over what the instances are spread."""

    pack: LevelName | None = None
    mode: PackMode = PackMode.REQUIRED
    spread: LevelName | None = None


class KVTransfer(Model):
    connector: Connector = Connector.NIXL


class Rollout(Model):
    """How many instances may be above and below the wanted number while a new revision comes in."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "self.maxSurge + self.maxUnavailable > 0",
            "maxSurge and maxUnavailable must not both be 0: nothing could move",
        ),
    )
    max_surge: Annotated[int, Field(ge=0, le=64)] = 1
    max_unavailable: Annotated[int, Field(ge=0, le=64)] = 0


class Drain(Model):
    """How long an instance may take to finish what it serves before it is deleted."""

    timeout: Duration = "10m"


class PoolSpec(Model):
    """The fields that both pool kinds have."""

    model: ModelSpec
    engine: EngineSpec
    node_classes: Annotated[list[Name], ListSet(), Field(min_length=1, max_length=8)]
    parallelism: Parallelism = Field(default_factory=Parallelism)
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    topology: Topology = Field(default_factory=Topology)
    kv_cache_tiers: Annotated[list[Name], ListSet(), Field(max_length=4)] = Field(default_factory=list)
    kv_transfer: KVTransfer = Field(default_factory=KVTransfer)
    rollout: Rollout = Field(default_factory=Rollout)
    drain: Drain = Field(default_factory=Drain)
    pod_template: Annotated[JsonObject, PreserveUnknown()] | None = None


class InstanceStatus(Model):
    """One instance as the operator sees it; what must survive a restart (restarts, back-off) is kept here."""

    name: Annotated[str, Field(max_length=63)]
    phase: InstancePhase
    revision: Annotated[str, Field(max_length=16)] = ""
    node_class: Annotated[str, Field(max_length=63)] | None = None
    domain: Annotated[str, Field(max_length=128)] | None = None
    pods: int = 0
    ready_pods: int = 0
    restarts: int = 0
    last_restart: Annotated[str, Field(max_length=40)] | None = None
    sessions: int | None = None
    message: Annotated[str, Field(max_length=512)] | None = None


class PoolStatus(Model):
    observed_generation: int | None = None
    replicas: int | None = None
    ready_replicas: int | None = None
    starting_replicas: int | None = None
    draining_replicas: int | None = None
    updated_replicas: int | None = None
    selector: Annotated[str, Field(max_length=512)] | None = None
    revision: Annotated[str, Field(max_length=16)] | None = None
    devices_per_instance: int | None = None
    kv_capacity_tokens: int | None = None
    instances: Annotated[list[InstanceStatus], ListMap(), Field(max_length=1024)] = Field(default_factory=list)
    hit_rate: Ratio | None = None
    ttft_p95: Annotated[Duration | None, Field(alias="ttftP95")] = None
    itl_p95: Annotated[Duration | None, Field(alias="itlP95")] = None
    conditions: Annotated[list[Condition], ListMap(("type",)), Field(max_length=16)] = Field(default_factory=list)


POOL_COLUMNS = (
    Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
    Column("Desired", ".spec.replicas", "integer"),
    Column("Replicas", ".status.replicas", "integer"),
    Column("Ready-Replicas", ".status.readyReplicas", "integer"),
    Column("Draining", ".status.drainingReplicas", "integer"),
    Column("Hit-Rate", ".status.hitRate"),
    Column("TTFT-P95", ".status.ttftP95"),
    Column("ITL-P95", ".status.itlP95"),
    Column("Model", ".spec.model.name", priority=1),
    Column("Updated", ".status.updatedReplicas", "integer", priority=1),
    Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
    Column("Age", ".metadata.creationTimestamp", "date"),
)
POOL_ROOT_RULES = (
    Cel(
        "size(self.metadata.name) <= 40",
        "metadata.name must be at most 40 characters, so that pod names fit",
        field_path=".metadata.name",
    ),
)
