"""What PrefillPool and DecodePool share: model, engine, shape, placement, rollout, drain, and their status."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.markers import NAME_WITHOUT_DOTS, Cel, Column, JsonObject, ListMap, ListSet, PreserveUnknown
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
    """Which model, in which precision."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    """Name of the model in Retinue's catalogue, such as kimi-k2.5. Its sizes decide KV capacity and speed. A name that
    the catalogue lacks is refused by condition Valid, which names the nearest."""
    source: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Where the weights are, such as hf://moonshotai/Kimi-K2.5. Not used by this version: simulated engines load no
    weights."""
    precision: Precision = Precision.FP8
    """Number format of the weights: decides their memory and the speed of the arithmetic."""
    kv_precision: KVPrecision = KVPrecision.FP8
    """Number format of the KV cache: decides how many tokens fit."""
    context_window: Annotated[int, Field(ge=1024, le=16777216)] = 131072
    """Longest context in tokens, prompt and output together. An instance must be able to hold one such context."""


class EngineSpec(Model):
    """Which engine program serves the model."""

    type: EngineType
    """The engine program. This version launches Simulated only (the emulator's engine); a pool with VLLM, SGLang or
    TensorRTLLM is refused by condition Valid with reason NotSupported."""
    image: Text | None = None
    """Container image. Without it, the engine type's own default image."""
    args: Annotated[list[Annotated[str, Field(min_length=1, max_length=512)]], Field(max_length=64)] = Field(
        default_factory=list
    )
    """Further command-line arguments. They come last and win."""
    env: Annotated[list[EnvVar], ListMap(), Field(max_length=64)] = Field(default_factory=list)
    """Further environment variables of the engine's container."""


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
    """Tensor parallelism: devices that share each layer."""
    pipeline: Annotated[int, Field(ge=1, le=64)] = 1
    """Pipeline parallelism: stages that share the layers."""
    data: Annotated[int, Field(ge=1, le=256)] = 1
    """Data parallelism: attention replicas within the instance."""
    expert: Annotated[int, Field(ge=1, le=1024)] = 1
    """Expert parallelism: ranks that the experts are spread over. It takes no devices of its own; more than tensor is
    wide expert parallelism (WideEP) over nodes."""
    context: Annotated[int, Field(ge=1, le=64)] = 1
    """Context parallelism: devices that share one long prompt."""

    @property
    def devices(self) -> int:
        """Devices that one instance takes."""
        return self.tensor * self.pipeline * self.data * self.context


class Topology(Model):
    """Which fabric level holds one instance together, and over what the instances are spread."""

    pack: LevelName | None = None
    """Topology level of the NodeClass whose domain holds all pods of an instance, such as nvlinkDomain. Without it, an
    instance of several pods is packed into the nearest level, and one of a single pod goes wherever spread allows."""
    mode: PackMode = PackMode.REQUIRED
    """Required waits until one domain has room. Preferred takes any nodes of the class when none has."""
    spread: LevelName | None = None
    """Topology level over whose domains the instances are spread, such as rack. Without it they are packed tightly."""


class KVTransfer(Model):
    """How KV blocks travel from prefill to decode engines."""

    connector: Connector = Connector.NIXL
    """The engines' connector. Handed to the engine; the simulated engine behaves the same with each."""


class Rollout(Model):
    """How many instances may be above and below the wanted number while a new revision comes in."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "self.maxSurge + self.maxUnavailable > 0",
            "maxSurge and maxUnavailable must not both be 0: nothing could move",
        ),
    )
    max_surge: Annotated[int, Field(ge=0, le=64)] = 1
    """Instances above replicas that may exist while instances are replaced, draining ones included."""
    max_unavailable: Annotated[int, Field(ge=0, le=64)] = 0
    """Ready instances that may be missing from replicas while instances are replaced."""


class Drain(Model):
    """How long an instance may take to finish what it serves before it is deleted."""

    timeout: Duration = "10m"
    """Time for requests in flight. New ones go elsewhere at once; an idle instance goes within seconds, one that is
    still busy at the end is deleted anyway."""


class PoolSpec(Model):
    """The fields that both pool kinds have."""

    model: ModelSpec
    """The model that the engines serve."""
    engine: EngineSpec
    """The engine program that serves it."""
    node_classes: Annotated[list[Name], ListSet(), Field(min_length=1, max_length=8)]
    """Names of NodeClasses, in order of preference: the first with room takes a new instance."""
    parallelism: Parallelism = Field(default_factory=Parallelism)
    """How one instance spreads over devices. The default is one device."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Instances wanted. Written by you, kubectl scale, HPA or KEDA; by the autoscaler when an AgentPool with mode Auto
    owns the pool."""
    topology: Topology = Field(default_factory=Topology)
    """Which fabric level holds an instance together, and over what the instances are spread."""
    kv_cache_tiers: Annotated[list[Name], ListSet(), Field(max_length=4)] = Field(default_factory=list)
    """Names of KVCacheTiers of the namespace, nearest first. New instances wait until each of them is usable."""
    kv_transfer: KVTransfer = Field(default_factory=KVTransfer)
    """How KV blocks travel from prefill to decode engines."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How a change replaces the instances."""
    drain: Drain = Field(default_factory=Drain)
    """How an instance leaves."""
    pod_template: Annotated[JsonObject, PreserveUnknown()] | None = None
    """A pod template (metadata and spec) that is merged over each pod last; the engine's container is named engine.
    Maps merge, lists of named things merge by name, labels that Retinue sets stay."""


class InstanceStatus(Model):
    """One instance as the operator sees it; what must survive a restart (restarts, back-off) is kept here."""

    name: Annotated[str, Field(max_length=63)]
    """Name of the instance: pool, kind and index. Its pods add their rank."""
    phase: InstancePhase
    """Pending waits for its place, Starting for readiness, Ready serves, Draining finishes what it serves, Gone is
    deleted."""
    revision: Annotated[str, Field(max_length=16)] = ""
    """Hash of what it was built from."""
    node_class: Annotated[str, Field(max_length=63)] | None = None
    """NodeClass that it was made for."""
    domain: Annotated[str, Field(max_length=128)] | None = None
    """Topology domain that it is bound to. Absent when it may run on any nodes of its class."""
    pods: int = 0
    """Pods that exist."""
    ready_pods: int = 0
    """Pods that are ready."""
    restarts: int = 0
    """Restarts of the whole instance because a pod failed. Back to 0 after ten minutes in good health."""
    last_restart: Annotated[str, Field(max_length=40)] | None = None
    """When it was restarted last, RFC 3339 in UTC. The wait before the next start grows from nothing to five
    minutes."""
    sessions: int | None = None
    """Open sessions that it serves, as the gateway counts them. Absent without metrics."""
    message: Annotated[str, Field(max_length=512)] | None = None
    """Why it was restarted, what keeps it from starting, or which of its devices is broken."""


class PoolStatus(Model):
    """What the operator observes of a pool; only the operator writes it."""

    observed_generation: int | None = None
    """Generation of the spec that this status is about."""
    replicas: int | None = None
    """Instances that exist and do not drain."""
    ready_replicas: int | None = None
    """Instances that serve."""
    starting_replicas: int | None = None
    """Instances that do not serve yet."""
    draining_replicas: int | None = None
    """Instances that finish what they serve before they go."""
    updated_replicas: int | None = None
    """Instances of the current revision, without draining ones."""
    selector: Annotated[str, Field(max_length=512)] | None = None
    """Label selector of the instances' first pods, for the scale subresource."""
    revision: Annotated[str, Field(max_length=16)] | None = None
    """Hash of what a new instance is built from."""
    devices_per_instance: int | None = None
    """Devices that one instance takes on the first usable class. Absent while no class is usable."""
    kv_capacity_tokens: int | None = None
    """Tokens of KV cache that one instance holds in HBM on the first usable class. Absent while no class is usable."""
    instances: Annotated[list[InstanceStatus], ListMap(), Field(max_length=1024)] = Field(default_factory=list)
    """Every instance."""
    hit_rate: Ratio | None = None
    """Cached prompt tokens / prompt tokens at the engines. Absent without traffic or metrics, and for a DecodePool that
    does no prefill."""
    ttft_p95: Annotated[Duration | None, Field(alias="ttftP95")] = None
    """Time to first token at the engines, at the quantile of the AgentPool's slo.ttft, else 0.95. Absent without
    traffic or metrics."""
    itl_p95: Annotated[Duration | None, Field(alias="itlP95")] = None
    """Inter-token latency at the engines, at the quantile of the AgentPool's slo.itl, else 0.95. Absent without traffic
    or metrics."""
    conditions: Annotated[list[Condition], ListMap(("type",)), Field(max_length=16)] = Field(default_factory=list)
    """Ready, Valid, CacheConnected, Placed, Scaled, Progressing and Degraded, and MetricsFresh where there is a
    Prometheus. The reference says what types and reasons mean."""


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
    NAME_WITHOUT_DOTS,
    Cel(
        "size(self.metadata.name) <= 40",
        "metadata.name must be at most 40 characters, so that pod names fit",
        field_path=".metadata.name",
    ),
)
