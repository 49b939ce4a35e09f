"""AgentPool: the agents of one kind of work, their roles, cache goals, latency goals, autoscaling and budget."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.agentgoals import SLO, Autoscaling, Budget, CachePolicy
from retinue.api.agentpoolstatus import AgentPoolStatus
from retinue.api.agentrole import Role, TierTemplate
from retinue.api.markers import NAME_WITHOUT_DOTS, Cel, Column, JsonObject, KindInfo, ListMap, PreserveUnknown
from retinue.api.types import Metadata, Model, Name, Quantity


class StateScope(StrEnum):
    SESSION = "Session"
    POOL = "Pool"


class Warm(Model):
    """How many idle sandboxes wait for a tool call."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel("self.min <= self.max", "min must not be greater than max: lower min or raise max", field_path=".min"),
    )
    min: Annotated[int, Field(ge=0, le=10000)] = 0
    """The fewest idle sandboxes. Not acted on by this version."""
    max: Annotated[int, Field(ge=1, le=10000)] = 1
    """The most idle sandboxes. Not acted on by this version."""


class StateVolume(Model):
    """A volume that keeps what tools write."""

    size: Quantity
    """Size of the volume in bytes. Not acted on by this version."""
    scope: StateScope = StateScope.SESSION
    """Session gives each session its own volume, Pool shares one. Not acted on by this version."""


class Tools(Model):
    """Sandboxes for the tools that agents call. This version stores the block and runs no sandboxes."""

    node_class: Name
    """NodeClass of the sandboxes, usually of family CPU. Not acted on by this version."""
    pod_template: Annotated[JsonObject, PreserveUnknown()] | None = None
    """Pod template (metadata and spec) of a sandbox. Not acted on by this version."""
    warm: Warm = Field(default_factory=Warm)
    """How many idle sandboxes wait. Not acted on by this version."""
    state_volume: StateVolume | None = None
    """A volume that keeps what tools write. Not acted on by this version."""


class AgentPoolSpec(Model):
    """Roles and their goals. Only you write it; the operator makes and sizes the pools and tiers from it."""

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
    """The kinds of agents: exactly one Primary and any SubAgents."""
    tiers: Annotated[list[TierTemplate], ListMap(), Field(max_length=4)] = Field(default_factory=list)
    """KV cache tiers to make and own. Existing KVCacheTiers are named in a role's kvCacheTiers instead."""
    cache: CachePolicy = Field(default_factory=CachePolicy)
    """What a cached token is worth, and how many are wanted."""
    tools: Tools | None = None
    """Sandboxes for the tools that agents call. This version stores the block and runs no sandboxes: condition Degraded
    says ToolsNotManaged."""
    slo: SLO = Field(default_factory=SLO)
    """Latency goals (service level objectives)."""
    autoscaling: Autoscaling = Field(default_factory=Autoscaling)
    """How sizes follow the load."""
    budget: Budget | None = None
    """What it may cost. Without it there is no limit but the maximums of replicas."""


class AgentPool(Model):
    """The agents of one kind of work, such as a coding agent and its sub-agents. From its roles the operator makes
    prefill and decode pools and KV cache tiers, and sizes them together by load, cache, latency and budget."""

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
            NAME_WITHOUT_DOTS,
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
