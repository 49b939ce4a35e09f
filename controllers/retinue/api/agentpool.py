"""AgentPool: the agents of one kind of work, their roles, cache goals, latency goals, autoscaling and budget."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.decodepool import AttentionFFN, SpeculativeDecoding
from retinue.api.kvcachetier import KVCacheTierSpec
from retinue.api.markers import Cel, Column, JsonObject, KindInfo, ListMap, ListSet, PreserveUnknown
from retinue.api.pool import Drain, EngineSpec, KVTransfer, ModelSpec, Parallelism, Rollout, Topology
from retinue.api.types import (
    Condition,
    Decimal,
    Duration,
    Metadata,
    Model,
    Name,
    ObjectRef,
    Quantity,
    Ratio,
    ShortName,
    TokenCount,
)


class RoleType(StrEnum):
    PRIMARY = "Primary"
    SUB_AGENT = "SubAgent"


class AutoscalingMode(StrEnum):
    OFF = "Off"
    DRY_RUN = "DryRun"
    AUTO = "Auto"


class OnMissingUp(StrEnum):
    LAST_GOOD = "LastGood"
    HOLD = "Hold"


class OnMissingDown(StrEnum):
    HOLD = "Hold"


class StateScope(StrEnum):
    SESSION = "Session"
    POOL = "Pool"


class ReplicaBounds(Model):
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel("self.min <= self.max", "min must not be greater than max: lower min or raise max", field_path=".min"),
    )
    min: Annotated[int, Field(ge=0, le=1000)] = 1
    max: Annotated[int, Field(ge=1, le=1000)] = 1


class PoolTemplate(Model):
    """A pool that the AgentPool makes for a role."""

    node_classes: Annotated[list[Name], ListSet(), Field(min_length=1, max_length=8)]
    parallelism: Parallelism = Field(default_factory=Parallelism)
    replicas: ReplicaBounds = Field(default_factory=ReplicaBounds)
    topology: Topology = Field(default_factory=Topology)
    kv_transfer: KVTransfer = Field(default_factory=KVTransfer)
    rollout: Rollout = Field(default_factory=Rollout)
    drain: Drain = Field(default_factory=Drain)
    pod_template: Annotated[JsonObject, PreserveUnknown()] | None = None


class DecodeTemplate(PoolTemplate):
    speculative_decoding: SpeculativeDecoding | None = None
    attention_ffn: Annotated[AttentionFFN | None, Field(alias="attentionFFN")] = None


class Role(Model):
    """One kind of agent: its model, its prefix and the pools that serve it."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "has(self.servedBy) || (has(self.decode) != has(self.decodePoolRef))",
            "set exactly one of decode (a pool made for the role), decodePoolRef (an existing pool) and"
            " servedBy (another role's pools)",
        ),
        Cel(
            "!has(self.servedBy) || !(has(self.decode) || has(self.decodePoolRef) || has(self.prefill) ||"
            " has(self.prefillPoolRef) || has(self.model) || has(self.engine))",
            "servedBy shares another role's model, engine and pools: remove model, engine, prefill, decode and the pool"
            " references from this role",
            field_path=".servedBy",
        ),
        Cel(
            "!(has(self.prefill) && has(self.prefillPoolRef))",
            "set at most one of prefill (a pool made for the role) and prefillPoolRef (an existing pool)",
            field_path=".prefillPoolRef",
        ),
        Cel(
            "!(has(self.prefill) || has(self.decode)) || (has(self.model) && has(self.engine))",
            "model and engine are required for a role whose pools are made from prefill or decode",
        ),
        Cel(
            "!has(self.servedBy) || self.servedBy != self.name",
            "servedBy must name another role",
            field_path=".servedBy",
        ),
    )
    name: ShortName
    type: RoleType
    model: ModelSpec | None = None
    engine: EngineSpec | None = None
    prefill: PoolTemplate | None = None
    decode: DecodeTemplate | None = None
    prefill_pool_ref: ObjectRef | None = None
    decode_pool_ref: ObjectRef | None = None
    served_by: ShortName | None = None
    kv_cache_tiers: Annotated[list[Name], ListSet(), Field(max_length=4)] = Field(default_factory=list)
    max_parallel: Annotated[int, Field(ge=1, le=1024)] | None = None
    prefix_tokens: Annotated[int, Field(ge=0, le=1048576)] | None = None


class TierTemplate(Model):
    """A KV cache tier that the AgentPool makes and owns, named <agent pool>-<name>."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "!has(self.replicas) || self.spec.medium == 'ContextStorage'",
            "replicas bounds the server pods of a tier, which only medium ContextStorage runs: remove replicas",
            field_path=".replicas",
        ),
    )
    name: ShortName
    replicas: ReplicaBounds | None = None
    spec: KVCacheTierSpec


class Compaction(Model):
    """When the harness compacts a session's context, as a fraction of the window, and down to how much."""

    trigger: Ratio = "0.75"
    target: TokenCount = "20k"


class CachePolicy(Model):
    target_hit_rate: Ratio = "0.95"
    compaction: Compaction = Field(default_factory=Compaction)
    hit_discount: Ratio = "0.9"
    write_premium: Decimal = "1.0"


class Warm(Model):
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel("self.min <= self.max", "min must not be greater than max: lower min or raise max", field_path=".min"),
    )
    min: Annotated[int, Field(ge=0, le=10000)] = 0
    max: Annotated[int, Field(ge=1, le=10000)] = 1


class StateVolume(Model):
    size: Quantity
    scope: StateScope = StateScope.SESSION


class Tools(Model):
    """Sandboxes for the tools that agents call."""

    node_class: Name
    pod_template: Annotated[JsonObject, PreserveUnknown()] | None = None
    warm: Warm = Field(default_factory=Warm)
    state_volume: StateVolume | None = None


class LatencyTarget(Model):
    quantile: Ratio = "0.95"
    target: Duration


class SLO(Model):
    ttft: LatencyTarget = Field(default_factory=lambda: LatencyTarget(target="2s"))
    itl: LatencyTarget = Field(default_factory=lambda: LatencyTarget(target="50ms"))
    attainment: Ratio = "0.99"


class OnMissingMetrics(Model):
    """What may happen while a signal is missing or older than maxAge. Nothing ever shrinks on ignorance."""

    scale_up: OnMissingUp = OnMissingUp.LAST_GOOD
    scale_down: OnMissingDown = OnMissingDown.HOLD
    max_age: Duration = "2m"


class ScaleDown(Model):
    """Late and one instance at a time: a shrink throws warm cache away."""

    stabilization: Duration = "5m"
    interval: Duration = "2m"


class Autoscaling(Model):
    mode: AutoscalingMode = AutoscalingMode.AUTO
    evaluation_interval: Duration = "15s"
    metrics_window: Duration = "1m"
    startup_estimate: Duration = "3m"
    scale_down: ScaleDown = Field(default_factory=ScaleDown)
    on_missing_metrics: OnMissingMetrics = Field(default_factory=OnMissingMetrics)


class Budget(Model):
    max_cost_per_hour: Decimal


class AgentPoolSpec(Model):
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "self.roles.exists_one(r, r.type == 'Primary')",
            "roles must contain exactly one role of type Primary: the others are SubAgent",
            field_path=".roles",
        ),
        Cel(
            "self.roles.all(r, !has(r.servedBy) || self.roles.exists(o, o.name == r.servedBy && !has(o.servedBy)))",
            "servedBy must name a role of this AgentPool that has pools of its own",
            field_path=".roles",
        ),
    )
    roles: Annotated[list[Role], ListMap(), Field(min_length=1, max_length=8)]
    tiers: Annotated[list[TierTemplate], ListMap(), Field(max_length=4)] = Field(default_factory=list)
    cache: CachePolicy = Field(default_factory=CachePolicy)
    tools: Tools | None = None
    slo: SLO = Field(default_factory=SLO)
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    budget: Budget | None = None


class RoleStatus(Model):
    """Who serves a role: what a gateway needs to route."""

    name: Annotated[str, Field(max_length=40)]
    type: RoleType
    model: Annotated[str, Field(max_length=128)] | None = None
    served_by: Annotated[str, Field(max_length=40)] | None = None
    prefill_pool: Annotated[str, Field(max_length=63)] | None = None
    decode_pool: Annotated[str, Field(max_length=63)] | None = None
    ready: bool = False
    hit_rate: Ratio | None = None
    prefill_replicas: int | None = None
    decode_replicas: int | None = None


class Endpoint(Model):
    role: Annotated[str, Field(max_length=40)]
    url: Annotated[str, Field(max_length=512)]
    model: Annotated[str, Field(max_length=128)]


class SessionsStatus(Model):
    open: int | None = None
    context_tokens: int | None = None


class DecisionInput(Model):
    """One number that the decision read: its value as text and its age in seconds; absent value = missing."""

    name: Annotated[str, Field(max_length=128)]
    value: Annotated[str, Field(max_length=64)] | None = None
    age_seconds: Annotated[str, Field(max_length=16)] | None = None


class DecisionTarget(Model):
    """What the decision says of one pool or tier."""

    name: Annotated[str, Field(max_length=128)]
    current: int
    desired: int
    reason: Annotated[str, Field(max_length=64)]
    message: Annotated[str, Field(max_length=512)] = ""
    clamps: Annotated[list[Annotated[str, Field(max_length=128)]], Field(max_length=8)] = Field(default_factory=list)


class LastDecision(Model):
    time: Annotated[str, Field(max_length=40)]
    mode: AutoscalingMode
    reason: Annotated[str, Field(max_length=64)]
    message: Annotated[str, Field(max_length=1024)] = ""
    targets: Annotated[list[DecisionTarget], ListMap(), Field(max_length=32)] = Field(default_factory=list)
    inputs: Annotated[list[DecisionInput], ListMap(), Field(max_length=128)] = Field(default_factory=list)


class AgentPoolStatus(Model):
    observed_generation: int | None = None
    roles: Annotated[list[RoleStatus], ListMap(), Field(max_length=8)] = Field(default_factory=list)
    roles_ready: Annotated[str, Field(max_length=16)] | None = None
    sessions: SessionsStatus = Field(default_factory=SessionsStatus)
    hit_rate: Ratio | None = None
    input_cost_ratio: Annotated[str, Field(max_length=16)] | None = None
    cost_per_hour: Annotated[str, Field(max_length=24)] | None = None
    ttft_p95: Annotated[Duration | None, Field(alias="ttftP95")] = None
    itl_p95: Annotated[Duration | None, Field(alias="itlP95")] = None
    endpoints: Annotated[list[Endpoint], ListMap(("role",)), Field(max_length=8)] = Field(default_factory=list)
    last_decision: LastDecision | None = None
    conditions: Annotated[list[Condition], ListMap(("type",)), Field(max_length=16)] = Field(default_factory=list)


class AgentPool(Model):
    """The agents of one kind of work: roles, cache, latency, autoscaling, budget."""

    kind_info: ClassVar[KindInfo] = KindInfo(
        kind="AgentPool",
        plural="agentpools",
        short_names=("ap",),
        namespaced=True,
        columns=(
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Roles", ".status.rolesReady"),
            Column("Sessions", ".status.sessions.open", "integer"),
            Column("Hit-Rate", ".status.hitRate"),
            Column("Input-Cost", ".status.inputCostRatio", description="relative to no cache"),
            Column("TTFT-P95", ".status.ttftP95"),
            Column("ITL-P95", ".status.itlP95"),
            Column("Cost/h", ".status.costPerHour"),
            Column("Mode", ".spec.autoscaling.mode", priority=1),
            Column("Decision", ".status.lastDecision.reason", priority=1),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
        root_rules=(
            Cel(
                "size(self.metadata.name) <= 30",
                "metadata.name must be at most 30 characters, so that pod names fit",
                field_path=".metadata.name",
            ),
            Cel(
                "self.spec.roles.all(r, size(self.metadata.name) + size(r.name) <= 39)",
                "metadata.name and a role's name together must be at most 39 characters, so that pod names fit",
                field_path=".metadata.name",
            ),
            Cel(
                "self.spec.tiers.all(t, size(self.metadata.name) + size(t.name) <= 39)",
                "metadata.name and a tier's name together must be at most 39 characters, so that pod names fit",
                field_path=".metadata.name",
            ),
        ),
    )
    metadata: Metadata
    spec: AgentPoolSpec
    status: AgentPoolStatus = Field(default_factory=AgentPoolStatus)


__all__ = [
    "SLO",
    "AgentPool",
    "AgentPoolSpec",
    "AgentPoolStatus",
    "Autoscaling",
    "AutoscalingMode",
    "DecodeTemplate",
    "PoolTemplate",
    "ReplicaBounds",
    "Role",
    "RoleType",
    "TierTemplate",
]
