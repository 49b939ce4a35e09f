"""The simulated engine and tier server: their command lines. They speak vLLM's API and metric names."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from retinue.api.pool import Connector, ModelSpec, Parallelism
from retinue.catalog.load import CUSTOM_DEVICE
from retinue.version import VERSION

DEFAULT_IMAGE = f"retinue/emulator:{VERSION}"
ENGINE_COMMAND = ("retinue-emulator", "engine")
TIER_COMMAND = ("retinue-emulator", "tier")
# What its parser knows; a test holds the two together.
ENGINE_OPTIONS = frozenset(
    f"--{name}"
    for name in (
        *("role", "model", "model-facts", "served-model-name", "precision", "kv-precision", "context-window"),
        *("tensor", "pipeline", "data", "expert", "context", "device", "device-facts", "devices"),
        *("host-cache-bytes", "tier", "kv-connector", "max-num-seqs", "max-num-batched-tokens"),
        *("num-gpu-blocks-override", "cold-start-seconds", "port", "host", "speed"),
    )
)


def engine_args(
    *,
    role: str,
    model: ModelSpec,
    parallelism: Parallelism,
    connector: Connector,
    preset: str | None,
    device_overrides: Mapping[str, Any],
    host_cache_bytes: int,
    tiers: tuple[tuple[str, str], ...],
    port: int,
    extra: tuple[str, ...],
) -> tuple[str, ...]:
    """The arguments of one engine; the user's own come last and win."""
    args = [
        f"--role={role}",
        f"--model={model.name}",
        f"--served-model-name={model.name}",
        f"--precision={model.precision}",
        f"--kv-precision={model.kv_precision}",
        f"--context-window={model.context_window}",
        f"--tensor={parallelism.tensor}",
        f"--pipeline={parallelism.pipeline}",
        f"--data={parallelism.data}",
        f"--expert={parallelism.expert}",
        f"--context={parallelism.context}",
        f"--devices={parallelism.devices}",
    ]
    args.append(f"--device={preset or CUSTOM_DEVICE}")
    if device_overrides:
        args.append(f"--device-facts={json.dumps(device_overrides, sort_keys=True, separators=(',', ':'))}")
    args.append(f"--host-cache-bytes={host_cache_bytes}")
    args.extend(f"--tier={name}={address}" for name, address in tiers)
    args.append(f"--kv-connector={connector}")
    args.append(f"--port={port}")
    return (*args, *extra)


def unknown_option(args: Sequence[str]) -> str | None:
    """The first argument that the engine would refuse to start with, in words; None if it knows them all."""
    for number, argument in enumerate(args):
        name = argument.partition("=")[0]
        if name in ENGINE_OPTIONS or not argument.startswith("--"):
            continue
        nearest = difflib.get_close_matches(name, ENGINE_OPTIONS, n=1)
        remedy = f"the nearest is {nearest[0]}" if nearest else f"it has {', '.join(sorted(ENGINE_OPTIONS))}"
        return f"spec.engine.args[{number}]: the simulated engine has no option {name}: {remedy}"
    return None


def tier_args(*, capacity_bytes: int, port: int) -> tuple[str, ...]:
    """The arguments of one tier server."""
    return (f"--capacity-bytes={capacity_bytes}", f"--port={port}")
