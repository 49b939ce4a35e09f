"""A compact performance model of one engine: memory, prefill, decode and KV movement from catalogue facts.

The form and the four constants come from a calibration on 872 published measurements of H200 and B200 engines
(median absolute error 12.8 %; 10.5 % on 241 held-out rows of H100 and B300; aggregated serving, TP/DP layouts up to 8
GPUs). Expect +-15 % on calibrated model families (DeepSeek, Kimi, MiniMax, Llama, gpt-oss) and +-40 % elsewhere; CPU
and LPX devices are outside the calibration. All times are seconds, all sizes bytes, all rates per second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from retinue.catalog.facts import AttentionKind, DeviceFacts, MissingFact, ModelFacts

MEMORY_EFFICIENCY = 0.73
"""Share of the device's memory bandwidth that a decode step reaches (calibrated)."""
COMPUTE_EFFICIENCY = 0.49
"""Share of the dense FLOP/s that a prefill reaches (calibrated)."""
STEP_OVERHEAD_SECONDS = 1.9e-3
"""Fixed time of one engine step (calibrated)."""
COLLECTIVE_SECONDS = 22e-6
"""Latency of one collective; two per layer under tensor parallelism (calibrated)."""
LINK_EFFICIENCY = 0.8
"""Share of a link's bandwidth that large KV blocks reach; an H100 host link of 64 GB/s was measured at about 50."""
LINK_SETUP_SECONDS = 10e-6
"""Time to start one point-to-point transfer (aiconfigurator)."""
RESERVED_BYTES_PER_DEVICE = round(3.88 * 2**30)
"""Memory that an engine keeps for itself: 3.5 GiB and up to 0.38 GiB of NCCL buffers (aiconfigurator)."""

_EXPERT_BYTES = {"BF16": 2.0, "FP16": 2.0, "FP8": 1.0, "NVFP4": 0.5625, "MXFP4": 0.53}
# Quantised checkpoints keep attention and dense layers wider than the experts: 8 bits beside FP8 and NVFP4 experts,
# 16 bits in the MXFP4 releases.
_DENSE_BYTES = {"BF16": 2.0, "FP16": 2.0, "FP8": 1.0, "NVFP4": 1.0, "MXFP4": 2.0}
_KV_BYTES = {"BF16": 2.0, "FP16": 2.0, "FP8": 1.0, "NVFP4": 0.5625}
# MXFP4 weights meet 8-bit activations.
_COMPUTE_TYPES = {
    "BF16": ("BF16",),
    "FP16": ("BF16",),
    "FP8": ("FP8", "BF16"),
    "MXFP4": ("FP8", "BF16"),
    "NVFP4": ("FP4", "FP8", "BF16"),
}


class DoesNotFit(ValueError):
    """The weights leave no room for a KV cache on these devices."""

    def __init__(self, shape: EngineShape, need: float, have: float) -> None:
        super().__init__(
            f"{shape.model.name} in {shape.precision} needs {need / 2**30:.1f} GiB per {shape.device.name} on "
            f"{shape.devices} device(s), {have / 2**30:.1f} GiB are usable; use more devices per instance, a device "
            f"with more memory, or a narrower precision"
        )
        self.need_bytes = need
        self.have_bytes = have


@dataclass(frozen=True)
class EngineShape:
    """One engine instance: a model in a precision, laid out over `devices` equal devices.

    `tensor` x `pipeline` x `context` devices hold one attention replica; what remains of `devices` is data parallel.
    `expert` only says how routed experts are spread; their weights divide by all devices either way.

    Raises:
        ValueError: an unknown precision, or devices that the layout does not divide.
    """

    model: ModelFacts
    precision: str
    kv_precision: str
    device: DeviceFacts
    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1
    context: int = 1
    devices: int = 0
    """0: what the layout needs."""

    def __post_init__(self) -> None:
        _lookup("precision", self.precision, _EXPERT_BYTES)
        _lookup("KV precision", self.kv_precision, _KV_BYTES)
        replica = self.tensor * self.pipeline * self.context
        if self.devices == 0:
            object.__setattr__(self, "devices", max(replica * self.data, self.expert))
        if replica < 1 or self.devices % replica or self.devices < replica * self.data:
            raise ValueError(
                f"{self.devices} devices cannot hold tensor={self.tensor} x pipeline={self.pipeline} x "
                f"context={self.context} x data={self.data}"
            )

    @property
    def replicas(self) -> int:
        """Data-parallel attention replicas."""
        return self.devices // (self.tensor * self.pipeline * self.context)

    @cached_property
    def expert_bytes(self) -> float:
        """Bytes of all routed experts."""
        experts = self.model.experts
        if experts is None:
            return 0.0
        each = self.model.expert_params_per_layer() * _EXPERT_BYTES[self.precision]
        return each * experts.routed * self.model.moe_layers

    @cached_property
    def dense_bytes(self) -> float:
        """Bytes of all weights outside the routed experts."""
        return self.model.dense_params() * _DENSE_BYTES[self.precision]

    @property
    def kv_shards(self) -> int:
        """Devices over which the KV of one token and layer divides; tensor parallelism replicates MLA's latent."""
        kv_heads = self.model.attention.kv_heads
        per_replica = 1 if kv_heads is None else min(self.tensor, kv_heads)
        return per_replica * self.context

    @cached_property
    def flops(self) -> float:
        """Effective FLOP/s of all devices together."""
        for dtype in _COMPUTE_TYPES[self.precision]:
            if dtype in self.device.flops:
                return self.devices * self.device.flops[dtype] * COMPUTE_EFFICIENCY
        raise MissingFact(self.device.name, f"tflops for {self.precision}")

    @property
    def bandwidth(self) -> float:
        """Effective memory bytes/s of one device."""
        return self.device.memory_bytes_per_second * MEMORY_EFFICIENCY


def weights_bytes(shape: EngineShape) -> float:
    """Bytes of one copy of the weights."""
    return shape.dense_bytes + shape.expert_bytes


def weights_bytes_per_device(shape: EngineShape) -> float:
    """Bytes of weights on one device: dense layers per attention replica, experts over all devices."""
    return shape.dense_bytes / (shape.tensor * shape.pipeline) + shape.expert_bytes / shape.devices


def kv_bytes_per_token(shape: EngineShape) -> float:
    """Bytes of KV cache that one more token of context takes, summed over layers, one copy."""
    return kv_bytes(shape.model, shape.kv_precision)


def kv_bytes(model: ModelFacts, kv_precision: str) -> float:
    """Bytes of KV cache per token of a model: elements x dtype bytes, and what sparse attention adds.

    Raises:
        ValueError: unknown precision.
    """
    width = _lookup("KV precision", kv_precision, _KV_BYTES)
    return model.kv_elements_per_token * width + model.kv_extra_bytes_per_token


def sequence_bytes(shape: EngineShape) -> float:
    """Constant bytes per running sequence: sliding windows and recurrent state."""
    window = shape.model.window_elements_per_sequence * _KV_BYTES[shape.kv_precision]
    return window + shape.model.state_bytes_per_sequence


def kv_capacity_tokens(shape: EngineShape, reserve: int = RESERVED_BYTES_PER_DEVICE) -> int:
    """Tokens of KV cache that the instance holds in device memory, over all its replicas.

    Args:
        shape: the engine.
        reserve: bytes per device kept free of weights and KV.

    Raises:
        DoesNotFit: the weights do not leave room for one token; carries both numbers.
    """
    have = shape.device.memory_bytes - reserve
    need = weights_bytes_per_device(shape)
    per_device = kv_bytes_per_token(shape) / (shape.kv_shards * shape.pipeline)
    tokens = math.floor((have - need) / per_device) * shape.replicas
    if tokens < 1:
        raise DoesNotFit(shape, need, have)
    return tokens


def prefill_seconds(shape: EngineShape, new_tokens: float, cached_tokens: float) -> float:
    """Time of a prefill step over `new_tokens` that attend to themselves and to `cached_tokens` before them.

    Attention grows with (new + cached)^2 - cached^2. The weights are read at least once. 0 for no new tokens.
    """
    if new_tokens <= 0:
        return 0.0
    return StepTimes(shape).prefill([(new_tokens, cached_tokens)])


def decode_step_seconds(shape: EngineShape, batch: float, mean_context: float) -> float:
    """Time of one decode step that gives each of `batch` sequences of `mean_context` tokens its next token.

    With pipeline stages the batch runs as one micro-batch per stage, and a step is one full cycle. 0 for no batch.
    """
    if batch <= 0:
        return 0.0
    return StepTimes(shape).decode(batch, batch * mean_context)


class StepTimes:
    """The time of one engine step as a function of what it computes, with the constant parts computed once."""

    def __init__(self, shape: EngineShape) -> None:
        """Raises MissingFact when a needed fact is not published."""
        model, stages = shape.model, shape.pipeline
        self._shape = shape
        self._kv_per_token = kv_bytes_per_token(shape) / (shape.replicas * shape.kv_shards * stages)
        self._state = sequence_bytes(shape) / (shape.replicas * shape.kv_shards * stages)
        self._dense = shape.dense_bytes / shape.tensor
        self._experts = shape.expert_bytes * stages / shape.devices
        self._flops_per_sequence = 2 * model.require_active()
        self._flops_per_context_token = _decode_attention_flops(shape)
        self._sweep = weights_bytes_per_device(shape) / shape.bandwidth

    def prefill(self, chunks: Sequence[tuple[float, float]]) -> float:
        """Seconds of a step over prompt chunks of (new tokens, tokens before them); reads the weights once."""
        new = sum(chunk[0] for chunk in chunks)
        work = new * self._flops_per_sequence
        for tokens, before in chunks:
            work += _prefill_attention_flops(self._shape, tokens, before)
        compute = max(work / self._shape.flops, self._sweep)
        return STEP_OVERHEAD_SECONDS + compute + _communication(self._shape, new / self._shape.replicas)

    def mixed(self, chunks: Sequence[tuple[float, float]], batch: float, context_tokens: float) -> float:
        """Seconds of a step that prefills chunks and decodes a batch: both parts, one step overhead."""
        if not chunks:
            return self.decode(batch, context_tokens)
        if batch <= 0:
            return self.prefill(chunks)
        return self.prefill(chunks) + self.decode(batch, context_tokens) - STEP_OVERHEAD_SECONDS

    def decode(self, batch: float, context_tokens: float) -> float:
        """Seconds of a step over `batch` sequences (> 0) with `context_tokens` tokens of context in all."""
        shape = self._shape
        weights = self._dense + self._experts * self._experts_hit(batch / shape.pipeline)
        attended = context_tokens
        cap = shape.model.attention.sparse_top_k
        if cap is not None:
            attended = min(attended, batch * cap)
        memory = (weights + attended * self._kv_per_token + batch * self._state) / shape.bandwidth
        work = batch * self._flops_per_sequence + attended * self._flops_per_context_token
        return STEP_OVERHEAD_SECONDS + max(memory, work / shape.flops) + _communication(shape, batch / shape.replicas)

    def _experts_hit(self, batch: float) -> float:
        """Share of the experts that a batch touches: E (1 - (1 - k/E)^B) of E, for independent uniform routing."""
        experts = self._shape.model.experts
        if experts is None:
            return 0.0
        return float(1 - (1 - experts.top_k / experts.routed) ** batch)


def transfer_seconds(
    size: float,
    link_bytes_per_second: float,
    *,
    links: int = 1,
    efficiency: float = LINK_EFFICIENCY,
    setup_seconds: float = LINK_SETUP_SECONDS,
) -> float:
    """Time to move `size` bytes of KV over `links` equal links: size / (links x bandwidth x efficiency) + set-up."""
    if size <= 0:
        return 0.0
    return size / (links * link_bytes_per_second * efficiency) + setup_seconds


def pull_seconds(shape: EngineShape, tokens: int) -> float:
    """Model time to bring the KV of `tokens` tokens to an engine of this shape over its scale-out network.

    Each device of the replica pulls its own shard over its own NIC.
    """
    link = shape.device.scale_out_bytes_per_second or shape.device.scale_up_bytes_per_second
    if link is None:
        raise MissingFact(shape.device.name, "scaleOut")
    return transfer_seconds(tokens * kv_bytes_per_token(shape), link, links=shape.kv_shards * shape.pipeline)


def restore_seconds(size: float, tier_bytes_per_second: float, latency_seconds: float = 0.0) -> float:
    """Time to bring `size` bytes of KV back from a tier: latency + size / bandwidth. 0 for nothing."""
    return 0.0 if size <= 0 else latency_seconds + size / tier_bytes_per_second


def _communication(shape: EngineShape, tokens: float) -> float:
    """Two all-reduces per layer under tensor parallelism, for `tokens` tokens of one replica."""
    if shape.tensor <= 1:
        return 0.0
    link = shape.device.scale_up_bytes_per_second
    if link is None:
        raise MissingFact(shape.device.name, "scaleUp")
    share = (shape.tensor - 1) / shape.tensor
    return 2 * shape.model.layers * (COLLECTIVE_SECONDS + 4 * tokens * shape.model.hidden * share / link)


def _heads(model: ModelFacts) -> int:
    """Query heads; where the source does not say, as if heads were 128 wide."""
    return model.attention.heads or model.hidden // 128


def _head_width(model: ModelFacts) -> int:
    return model.attention.head_dim or model.hidden // _heads(model)


def _prefill_attention_flops(shape: EngineShape, new: float, cached: float) -> float:
    """FLOPs of causal attention over one prompt (aiconfigurator's speed-of-light terms), summed over layers."""
    model = shape.model
    pairs = (new + cached) ** 2 - cached**2
    cap = model.attention.sparse_top_k
    if cap is not None:
        pairs = min(pairs, 2 * cap * new)
    heads = _heads(model)
    per_pair = heads * (192 + 128) if model.attention.latent is not None else 2 * heads * _head_width(model)
    windowed = 0.0
    if model.attention.kind is AttentionKind.SLIDING_WINDOW_GQA:
        windowed = per_pair * 2 * new * _window_tokens(model) * (model.layers - model.kv_layers)
    return per_pair * pairs * model.kv_layers + windowed


def _decode_attention_flops(shape: EngineShape) -> float:
    """FLOPs per sequence and token of its context in one decode step, summed over layers."""
    model = shape.model
    heads = _heads(model)
    per_token = 2 * heads * 1088 if model.attention.latent is not None else 4 * heads * _head_width(model)
    return float(per_token * model.kv_layers)


def _window_tokens(model: ModelFacts) -> float:
    kv_heads, width = model.attention.kv_heads or 1, model.attention.head_dim or 1
    return model.window_elements_per_sequence / (2 * kv_heads * width * (model.layers - model.kv_layers))


def _lookup(what: str, name: str, table: dict[str, float]) -> float:
    try:
        return table[name]
    except KeyError:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(table)}") from None
