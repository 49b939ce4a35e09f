"""What an engine needs to know to be launched, and which engine types this version can launch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retinue.api.pool import EngineSpec, EngineType, KVTransfer, ModelSpec, Parallelism
from retinue.engines import simulated


@dataclass(frozen=True)
class TierServer:
    """A tier that runs servers, as an engine reaches it."""

    name: str
    address: str


@dataclass(frozen=True)
class Launch:
    """One engine instance to be launched. `role` is prefill, decode or aggregated; sizes in bytes."""

    role: str
    model: ModelSpec
    engine: EngineSpec
    parallelism: Parallelism
    kv_transfer: KVTransfer
    preset: str | None
    device_overrides: Mapping[str, Any]
    host_cache_bytes: int
    tier_servers: tuple[TierServer, ...]
    port: int


@dataclass(frozen=True)
class Command:
    """The container's image, command and arguments."""

    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]


_LAUNCHERS: Mapping[EngineType, str] = {EngineType.SIMULATED: "Simulated"}


def unsupported(engine: EngineSpec) -> str | None:
    """Why this engine type cannot be launched, or None when it can."""
    if engine.type in _LAUNCHERS:
        return None
    return (
        f"spec.engine.type: {engine.type} cannot be launched by this version; it launches "
        f"{', '.join(sorted(_LAUNCHERS))}. Set type to one of these"
    )


def unknown_option(engine: EngineSpec) -> str | None:
    """Which of the engine's arguments it does not have, in words; None where all are known or nobody can tell."""
    return simulated.unknown_option(engine.args) if engine.type == EngineType.SIMULATED else None


def command(launch: Launch) -> Command:
    """The command line of an engine.

    Raises:
        ValueError: an engine type for which `unsupported` gives a reason.
    """
    reason = unsupported(launch.engine)
    if reason is not None:
        raise ValueError(reason)
    return Command(
        image=launch.engine.image or simulated.DEFAULT_IMAGE,
        command=simulated.ENGINE_COMMAND,
        args=simulated.engine_args(
            role=launch.role,
            model=launch.model,
            parallelism=launch.parallelism,
            connector=launch.kv_transfer.connector,
            preset=launch.preset,
            device_overrides=launch.device_overrides,
            host_cache_bytes=launch.host_cache_bytes,
            tiers=tuple((tier.name, tier.address) for tier in launch.tier_servers),
            port=launch.port,
            extra=tuple(launch.engine.args),
        ),
    )
