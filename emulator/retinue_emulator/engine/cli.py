"""`retinue-emulator engine` and `retinue-emulator tier`: one engine or tier server as a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence

from retinue_emulator.engine.clock import Clock
from retinue_emulator.engine.config import ConfigError, engine_parser, parse_engine, parse_tier, tier_parser
from retinue_emulator.engine.engine import SimulatedEngine
from retinue_emulator.engine.tier import TierServer

DRAIN_GRACE_SECONDS = 3600.0
"""Longer than any termination grace period: it is the kubelet that cuts, not the engine."""


def engine_main(argv: Sequence[str] | None = None) -> int:
    """Run a simulated engine until SIGTERM or SIGINT; then drain. Returns the exit code: 2 for bad arguments."""
    args = sys.argv[1:] if argv is None else list(argv)
    return _run(lambda: _engine(args))


def tier_main(argv: Sequence[str] | None = None) -> int:
    """Run a simulated tier server until SIGTERM or SIGINT. Returns the exit code: 2 for bad arguments."""
    args = sys.argv[1:] if argv is None else list(argv)
    return _run(lambda: _tier(args))


def _engine(args: list[str]) -> SimulatedEngine:
    config = parse_engine(args, os.environ)
    options = engine_parser().parse_args(args)
    # What listens on every address is known to others by the pod's.
    return SimulatedEngine(config, Clock(config.speed), options.host, advertise=os.environ.get("POD_IP"))


def _tier(args: list[str]) -> TierServer:
    options = tier_parser().parse_args(args)
    return TierServer(parse_tier(args), Clock(options.speed), options.host)


def _run(build: Callable[[], SimulatedEngine | TierServer]) -> int:
    async def serve() -> None:
        server = build()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await server.start()
        print(f"listening on {server.address}:{server.port}", flush=True)
        await stop.wait()
        await server.drain(DRAIN_GRACE_SECONDS)

    try:
        asyncio.run(serve())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot listen: {error}", file=sys.stderr)
        return 1
    return 0
