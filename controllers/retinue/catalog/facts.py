"""What the catalogue knows about a model, a device and a preset, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class AttentionKind(StrEnum):
    """How a model attends to its context; decides how the KV cache shards and what attention costs."""

    GQA = "GQA"
    """Grouped-query attention; MHA and MQA are its two ends."""
    SLIDING_WINDOW_GQA = "SlidingWindowGQA"
    """GQA where some layers look back a fixed window only."""
    MLA = "MLA"
    """Multi-head latent attention: one latent vector per token and layer, replicated under tensor parallelism."""
    HYBRID = "Hybrid"
    """Few attention layers among linear-attention or state-space layers with constant state."""


class Family(StrEnum):
    """The kind of processor that a node class offers."""

    GPU = "GPU"
    LPX = "LPX"
    CPU = "CPU"


@dataclass(frozen=True)
class AttentionFacts:
    """Shape of one attention layer; a field that the source does not state is None."""

    kind: AttentionKind
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    latent: int | None = None
    rope: int | None = None
    sparse_top_k: int | None = None
    """Tokens that a query attends to at most (DSA), when attention is sparse."""


@dataclass(frozen=True)
class ExpertFacts:
    """The routed experts of a mixture-of-experts model."""

    routed: int
    top_k: int
    shared: int
    params: float | None = None
    """Parameters of one expert in one layer."""


@dataclass(frozen=True)
class ModelFacts:
    """A model as the cost model and the KV sizing see it. Parameters are counts, not billions."""

    name: str
    source: str
    params_total: float
    params_active: float | None
    layers: int
    moe_layers: int
    kv_layers: int
    hidden: int
    attention: AttentionFacts
    kv_elements_per_token: int
    max_context: int
    experts: ExpertFacts | None = None
    kv_extra_bytes_per_token: int = 0
    window_elements_per_sequence: int = 0
    state_bytes_per_sequence: int = 0

    def expert_params_per_layer(self) -> float:
        """Parameters of one routed expert in one MoE layer.

        Where the source gives no expert size it follows from the totals: all experts minus the active ones are what
        separates total from active parameters (the input embedding, left out of `active`, makes this a slight
        over-estimate). 0 for a dense model.

        Raises:
            MissingFact: neither the expert size nor the active parameters are known.
        """
        if self.experts is None or self.moe_layers == 0:
            return 0.0
        if self.experts.params is not None:
            return self.experts.params
        idle = self.experts.routed - self.experts.top_k
        return (self.params_total - self.require_active()) / idle / self.moe_layers

    def require_active(self) -> float:
        """Parameters that one token passes through.

        Raises:
            MissingFact: the catalogue has no published figure.
        """
        if self.params_active is None:
            raise MissingFact(self.name, "params.active")
        return self.params_active

    def dense_params(self) -> float:
        """Parameters outside the routed experts: attention, embeddings, shared experts, dense layers."""
        experts = self.experts
        if experts is None:
            return self.params_total
        return self.params_total - experts.routed * self.moe_layers * self.expert_params_per_layer()


@dataclass(frozen=True)
class DeviceFacts:
    """One accelerator (or CPU). Bytes, bytes/s per direction and dense FLOP/s by data type (BF16, FP8, FP4)."""

    name: str
    memory_bytes: int
    memory_bytes_per_second: float
    flops: Mapping[str, float] = field(default_factory=dict)
    scale_up_bytes_per_second: float | None = None
    scale_out_bytes_per_second: float | None = None
    host_link_bytes_per_second: float | None = None
    domain_devices: int | None = None


@dataclass(frozen=True)
class TopologyLevel:
    """One level of the fabric; per node the first label key that it carries counts."""

    level: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class FactSource:
    """Where one fact of a preset was read, and what to know about it."""

    source: str
    note: str = ""


@dataclass(frozen=True)
class Preset:
    """A node class as the catalogue offers it; explicit fields of a NodeClass win over these."""

    name: str
    family: Family
    preliminary: bool
    device: DeviceFacts | None
    extended_resource: str | None
    devices_per_node: int | None
    node_selector: Mapping[str, str]
    topology: tuple[TopologyLevel, ...]
    host_memory_bytes: int | None
    sources: Mapping[str, FactSource]


class MissingFact(LookupError):
    """A computation needs a fact that no source states."""

    def __init__(self, subject: str, fact: str) -> None:
        super().__init__(f"{subject}: {fact} is not published; give it explicitly to use this computation")
        self.subject = subject
        self.fact = fact
