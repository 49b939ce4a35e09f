"""DecodePool: engines that generate tokens, alone (aggregated) or from KV that a prefill pool made."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.markers import Cel, Column, KindInfo, Pattern, Scale, immutable
from retinue.api.pool import POOL_COLUMNS, POOL_ROOT_RULES, PoolSpec, PoolStatus
from retinue.api.types import Metadata, Model, Name


class Serves(StrEnum):
    DECODE = "Decode"
    PREFILL_AND_DECODE = "PrefillAndDecode"


class SpeculativeMethod(StrEnum):
    MTP = "MTP"
    EAGLE3 = "EAGLE3"
    DRAFT_MODEL = "DraftModel"
    NGRAM = "NGram"


class Fallback(StrEnum):
    GPU_ONLY = "GPUOnly"
    WAIT = "Wait"


class SpeculativeDecoding(Model):
    """Drafts several tokens per step. Not available in this version: a pool that sets it is refused."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "(self.method == 'DraftModel' || self.method == 'EAGLE3') == has(self.draftModel)",
            "draftModel is required for methods DraftModel and EAGLE3 and refused for MTP and NGram",
            field_path=".draftModel",
        ),
    )
    method: SpeculativeMethod
    """Who drafts: the model's own heads (MTP), an EAGLE3 head, a smaller DraftModel, or NGram matches of the prompt."""
    draft_tokens: Annotated[int, Field(ge=1, le=32)] = 3
    """Tokens drafted per step."""
    draft_model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Where the draft weights are. Required for DraftModel and EAGLE3, refused for the others."""


class AttentionFFN(Model):
    """Attention on the pool's own devices, FFN on another node class (AFD). Not available in this version: a pool that
    sets it is refused."""

    ffn_node_class: Annotated[Name, Field(alias="ffnNodeClass")]
    """NodeClass that runs the FFN, such as one of family LPX."""
    attention_to_ffn: Annotated[
        str,
        Field(alias="attentionToFFN", max_length=8),
        Pattern(r"^[1-9][0-9]{0,2}:[1-9][0-9]{0,2}$", "must be a ratio of instances such as 2:1"),
    ] = "1:1"
    """Instances that run attention per instance that runs FFN."""
    microbatches: Annotated[int, Field(ge=1, le=16)] = 3
    """Batches in flight between the two sides, so that neither waits."""
    fallback: Fallback = Fallback.GPU_ONLY
    """What happens when the FFN side has no room: GPUOnly runs everything on the pool's own devices, Wait does not
    start."""


_SERVES_IS_IMMUTABLE = immutable("serves", "create another DecodePool, because the two modes start different engines")


class DecodePoolSpec(PoolSpec):
    """What the engines serve, on what, and how many."""

    serves: Annotated[Serves, _SERVES_IS_IMMUTABLE] = Serves.DECODE
    """Decode takes KV from a prefill pool. PrefillAndDecode prefills too (aggregated serving)."""
    speculative_decoding: SpeculativeDecoding | None = None
    """Drafts several tokens per step. Not available in this version: a pool that sets it is refused by condition Valid
    with reason NotSupported."""
    attention_ffn: Annotated[AttentionFFN | None, Field(alias="attentionFFN")] = None
    """Attention and FFN on different node classes (AFD). Not available in this version: a pool that sets it is refused
    by condition Valid with reason NotSupported."""


class DecodePool(Model):
    """Engines that generate tokens, alone (aggregated) or from the KV cache that a prefill pool made. Standalone, or
    owned by an AgentPool."""

    kind_info: ClassVar[KindInfo] = KindInfo(
        kind="DecodePool",
        plural="decodepools",
        short_names=("dp",),
        namespaced=True,
        scale=Scale(),
        columns=(*POOL_COLUMNS[:-1], Column("Serves", ".spec.serves", priority=1), POOL_COLUMNS[-1]),
        root_rules=POOL_ROOT_RULES,
    )
    metadata: Metadata
    spec: DecodePoolSpec
    status: PoolStatus = Field(default_factory=PoolStatus)
