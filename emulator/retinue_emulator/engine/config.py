"""What a simulated engine is told to be: the arguments and environment of its container, parsed once.

The same parser serves the command line (`retinue-emulator engine ...` in a real container) and API mode, where the node
plugin reads command, args and env of a pod.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

from retinue.catalog.load import UnknownModel, UnknownPreset, device_with, model_with
from retinue.economics.costmodel import DoesNotFit, EngineShape, StepTimes, kv_capacity_tokens, pull_seconds

BLOCK_TOKENS = 64


class EngineRole(StrEnum):
    """The engine's part in serving."""

    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"


class ConfigError(ValueError):
    """The engine cannot run with these arguments; the message says what to change."""


@dataclass(frozen=True)
class TierAddress:
    """One server of a remote tier; servers with the same name share the tier's blocks by scope."""

    name: str
    url: str


@dataclass(frozen=True)
class EngineConfig:
    """A simulated engine, complete. Sizes are bytes, times model seconds."""

    role: EngineRole
    shape: EngineShape
    served_model_name: str
    context_window: int
    kv_blocks: int
    host_cache_bytes: int = 0
    tiers: tuple[TierAddress, ...] = ()
    kv_connector: str = "NIXL"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 16384
    port: int = 8000
    cold_start_seconds: float | None = None
    """None: weights / load bandwidth + a fixed part."""
    instance: str = "engine"
    rank: int = 0
    world_size: int = 1
    speed: float = 1.0


class _Parser(argparse.ArgumentParser):
    """Raises instead of exiting: in API mode a bad pod must not end the emulator."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _size(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def _facts(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return value


def _tier(text: str) -> TierAddress:
    name, separator, url = text.partition("=")
    if not separator or not name or not url.startswith("http://"):
        raise argparse.ArgumentTypeError(f"must be NAME=http://host:port, got {text!r}")
    return TierAddress(name, url.rstrip("/"))


def engine_parser() -> argparse.ArgumentParser:
    """The parser of `retinue-emulator engine`."""
    parser = _Parser(prog="retinue-emulator engine", description="A simulated inference engine.", allow_abbrev=False)
    add = parser.add_argument
    add("--role", choices=[r.value for r in EngineRole], required=True)
    add("--model", required=True, help="catalogue name")
    add("--model-facts", type=_facts, default={}, help="JSON in the shape of a catalogue entry, overriding it")
    add("--served-model-name", help="name in the API and in metrics (default: --model)")
    add("--precision", default="FP8")
    add("--kv-precision", default="FP8")
    add("--context-window", type=_positive, help="tokens of prompt and output (default: the model's)")
    for axis in ("tensor", "pipeline", "data", "expert", "context"):
        add(f"--{axis}", type=_positive, default=1, help=f"{axis} parallelism")
    add("--device", required=True, help="preset name of the device")
    add("--device-facts", type=_facts, default={}, help="JSON in the shape of NodeClass spec.device, overriding it")
    add("--devices", type=_size, default=0, help="devices of the whole instance (default: what the layout needs)")
    add("--host-cache-bytes", type=_size, default=0, help="KV cache in host memory; 0: none")
    add("--tier", type=_tier, action="append", default=[], help="NAME=http://host:port, in chain order")
    add("--kv-connector", default="NIXL")
    add("--max-num-seqs", type=_positive, default=256)
    add("--max-num-batched-tokens", type=_positive, default=16384)
    add("--num-gpu-blocks-override", type=_positive, help=f"KV blocks of {BLOCK_TOKENS} tokens in device memory")
    add("--cold-start-seconds", type=float, help="model seconds until ready (default: from the weights' size)")
    add("--port", type=_size, default=8000)
    add("--host", default="0.0.0.0", help="address to listen on (command line only)")
    add("--speed", type=float, default=1.0, help="divides all times")
    return parser


def parse_engine(args: Sequence[str], env: Mapping[str, str]) -> EngineConfig:
    """Arguments after `retinue-emulator engine`, and the container's environment -> config.

    Raises:
        ConfigError: bad arguments, an unknown model or device, or a model that does not fit the devices.
    """
    options = engine_parser().parse_args(list(args))
    try:
        shape = EngineShape(
            model=model_with(options.model, options.model_facts),
            precision=options.precision,
            kv_precision=options.kv_precision,
            device=device_with(options.device, options.device_facts),
            tensor=options.tensor,
            pipeline=options.pipeline,
            data=options.data,
            expert=options.expert,
            context=options.context,
            devices=options.devices,
        )
        # A model or device that lacks a fact must fail here, not at the first request.
        StepTimes(shape).mixed([(1, 0)], 1, 1)
        pull_seconds(shape, 1)
        blocks = options.num_gpu_blocks_override or kv_capacity_tokens(shape) // BLOCK_TOKENS
    except (UnknownModel, UnknownPreset, DoesNotFit, ValueError, LookupError) as error:
        raise ConfigError(str(error)) from error
    window = options.context_window or shape.model.max_context
    if window > blocks * BLOCK_TOKENS:
        raise ConfigError(
            f"a context window of {window} tokens does not fit the KV cache of {blocks * BLOCK_TOKENS} tokens; lower "
            f"--context-window, use more devices, or a narrower KV precision"
        )
    return EngineConfig(
        role=EngineRole(options.role),
        shape=shape,
        served_model_name=options.served_model_name or options.model,
        context_window=window,
        kv_blocks=blocks,
        host_cache_bytes=options.host_cache_bytes,
        tiers=tuple(options.tier),
        kv_connector=options.kv_connector,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        port=options.port,
        cold_start_seconds=options.cold_start_seconds,
        instance=env.get("RETINUE_INSTANCE", "engine"),
        rank=_env_int(env, "RETINUE_RANK", 0),
        world_size=_env_int(env, "RETINUE_WORLD_SIZE", 1),
        speed=options.speed,
    )


@dataclass(frozen=True)
class TierConfig:
    """A simulated tier server. Bandwidth is bytes per model second, shared by all readers."""

    capacity_bytes: int
    bytes_per_second: float
    bytes_per_token: float | None = None
    latency_seconds: float = 0.0
    port: int = 8000


# A BlueField-4 moves 800 Gb/s (NVIDIA Hot Chips 2026 decks); one simulated server stands for one of them.
DEFAULT_TIER_GBPS = 100.0
# Assumption: no latency of a context store is published; a millisecond is an NVMe read behind one network hop.
DEFAULT_TIER_LATENCY_SECONDS = 1e-3


def tier_parser() -> argparse.ArgumentParser:
    """The parser of `retinue-emulator tier`."""
    parser = _Parser(prog="retinue-emulator tier", description="A simulated KV cache tier.", allow_abbrev=False)
    add = parser.add_argument
    add("--capacity-bytes", type=_size, required=True)
    add("--bytes-per-token", type=float, help="default: what put requests say")
    add("--bandwidth-gbps", type=float, default=DEFAULT_TIER_GBPS, help="GB/s, shared by all readers")
    add("--latency-seconds", type=float, default=DEFAULT_TIER_LATENCY_SECONDS)
    add("--port", type=_size, default=8000)
    add("--host", default="0.0.0.0", help="address to listen on (command line only)")
    add("--speed", type=float, default=1.0, help="divides all times")
    return parser


def parse_tier(args: Sequence[str]) -> TierConfig:
    """Arguments after `retinue-emulator tier` -> config.

    Raises:
        ConfigError: bad arguments.
    """
    options = tier_parser().parse_args(list(args))
    if options.bandwidth_gbps <= 0:
        raise ConfigError(f"--bandwidth-gbps must be above 0, got {options.bandwidth_gbps}")
    return TierConfig(
        capacity_bytes=options.capacity_bytes,
        bytes_per_second=options.bandwidth_gbps * 1e9,
        bytes_per_token=options.bytes_per_token,
        latency_seconds=options.latency_seconds,
        port=options.port,
    )


def _env_int(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise ConfigError(f"{name} must be a number, got {text!r}") from None
