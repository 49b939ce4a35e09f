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
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "(self.method == 'DraftModel' || self.method == 'EAGLE3') == has(self.draftModel)",
            "draftModel is required for methods DraftModel and EAGLE3 and refused for MTP and NGram",
            field_path=".draftModel",
        ),
    )
    method: SpeculativeMethod
    draft_tokens: Annotated[int, Field(ge=1, le=32)] = 3
    draft_model: Annotated[str, Field(min_length=1, max_length=512)] | None = None


class AttentionFFN(Model):
    """Attention on the pool's own devices, FFN on another node class (AFD)."""

    ffn_node_class: Annotated[Name, Field(alias="ffnNodeClass")]
    attention_to_ffn: Annotated[
        str,
        Field(alias="attentionToFFN", max_length=8),
        Pattern(r"^[1-9][0-9]{0,2}:[1-9][0-9]{0,2}$", "must be a ratio of instances such as 2:1"),
    ] = "1:1"
    microbatches: Annotated[int, Field(ge=1, le=16)] = 3
    fallback: Fallback = Fallback.GPU_ONLY


_SERVES_IS_IMMUTABLE = immutable("serves", "create another DecodePool, because the two modes start different engines")


class DecodePoolSpec(PoolSpec):
    serves: Annotated[Serves, _SERVES_IS_IMMUTABLE] = Serves.DECODE
    speculative_decoding: SpeculativeDecoding | None = None
    attention_ffn: Annotated[AttentionFFN | None, Field(alias="attentionFFN")] = None


class DecodePool(Model):
    """Engines that generate tokens."""

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
