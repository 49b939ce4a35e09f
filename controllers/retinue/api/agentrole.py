"""The roles of an AgentPool, and the pools and tiers that it makes for them."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.decodepool import AttentionFFN, SpeculativeDecoding
from retinue.api.kvcachetier import KVCacheTierSpec
from retinue.api.markers import Cel, JsonObject, ListSet, PreserveUnknown
from retinue.api.pool import Drain, EngineSpec, KVTransfer, ModelSpec, Parallelism, Rollout, Topology
from retinue.api.types import Model, Name, ObjectRef, ShortName


class RoleType(StrEnum):
    PRIMARY = "Primary"
    SUB_AGENT = "SubAgent"


class ReplicaBounds(Model):
    """How few and how many instances or servers there may be."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel("self.min <= self.max", "min must not be greater than max: lower min or raise max", field_path=".min"),
    )
    min: Annotated[int, Field(ge=0, le=1000)] = 1
    """The fewest, and the size at creation. Holds whatever metrics and budget say."""
    max: Annotated[int, Field(ge=1, le=1000)] = 1
    """The most that autoscaling may ask for. The default 1 means that nothing grows until you raise it."""


class PoolTemplate(Model):
    """A pool that the AgentPool makes and owns for a role, named <agent pool>-<role>."""

    node_classes: Annotated[list[Name], ListSet(), Field(min_length=1, max_length=8)]
    """Names of NodeClasses, in order of preference: the first with room takes a new instance."""
    parallelism: Parallelism = Field(default_factory=Parallelism)
    """How one instance spreads over devices. The default is one device."""
    replicas: ReplicaBounds = Field(default_factory=ReplicaBounds)
    """Between how few and how many instances autoscaling chooses."""
    topology: Topology = Field(default_factory=Topology)
    """Which fabric level holds an instance together, and over what the instances are spread."""
    kv_transfer: KVTransfer = Field(default_factory=KVTransfer)
    """How KV blocks travel from prefill to decode engines."""
    rollout: Rollout = Field(default_factory=Rollout)
    """How a change replaces the instances."""
    drain: Drain = Field(default_factory=Drain)
    """How an instance leaves."""
    pod_template: Annotated[JsonObject, PreserveUnknown()] | None = None
    """A pod template (metadata and spec) that is merged over each pod last; the engine's container is named engine.
    Maps merge, lists of named things merge by name, labels that Retinue sets stay."""


class DecodeTemplate(PoolTemplate):
    """The decode pool that the AgentPool makes for a role; aggregated engines when the role has no prefill."""

    speculative_decoding: SpeculativeDecoding | None = None
    """Drafts several tokens per step. Not available in this version: a pool that sets it is refused by condition Valid
    with reason NotSupported."""
    attention_ffn: Annotated[AttentionFFN | None, Field(alias="attentionFFN")] = None
    """Attention and FFN on different node classes (AFD). Not available in this version: a pool that sets it is refused
    by condition Valid with reason NotSupported."""


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
    """Name of the role. Clients ask the gateway for it as the model."""
    type: RoleType
    """Primary is the agent that a user talks to, exactly one per AgentPool. SubAgent roles are called by others."""
    model: ModelSpec | None = None
    """The model of the pools that are made for the role. Leave it out with servedBy and pool references."""
    engine: EngineSpec | None = None
    """The engine of the pools that are made for the role. Leave it out with servedBy and pool references."""
    prefill: PoolTemplate | None = None
    """The PrefillPool to make for the role. Without it and without prefillPoolRef the decode engines prefill too
    (aggregated serving)."""
    decode: DecodeTemplate | None = None
    """The DecodePool to make for the role."""
    prefill_pool_ref: ObjectRef | None = None
    """An existing PrefillPool of the namespace to use instead of prefill. The AgentPool does not size it."""
    decode_pool_ref: ObjectRef | None = None
    """An existing DecodePool of the namespace to use instead of decode. The AgentPool does not size it."""
    served_by: ShortName | None = None
    """Another role of this AgentPool whose model, engine and pools serve this one too."""
    kv_cache_tiers: Annotated[list[Name], ListSet(), Field(max_length=4)] = Field(default_factory=list)
    """Tiers of the role's pools, nearest first: names from spec.tiers, else existing KVCacheTiers of the namespace."""
    max_parallel: Annotated[int, Field(ge=1, le=1024)] | None = None
    """The most sub-agents of this role that one parent runs at once. Documents the harness; this version does not
    enforce it."""
    prefix_tokens: Annotated[int, Field(ge=0, le=1048576)] | None = None
    """Tokens of tools and system prompt that every session of the role starts with. Documents the harness; this version
    does not pin them, they stay cached by use."""


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
    """Name that the roles' kvCacheTiers use."""
    replicas: ReplicaBounds | None = None
    """Between how few and how many server pods autoscaling chooses. Without it the tier keeps
    spec.replicas. ContextStorage only."""
    spec: KVCacheTierSpec
    """The spec of the KVCacheTier. Its nextTier may name another tier of this list."""
