"""What runs in a container of an emulated node: engine and tier in this process, anything else as a stand-in."""

from __future__ import annotations

import asyncio
from typing import Protocol

from prometheus_client import CollectorRegistry

from retinue_emulator.engine.clock import Clock
from retinue_emulator.engine.config import ConfigError, parse_engine, parse_tier
from retinue_emulator.engine.engine import SimulatedEngine
from retinue_emulator.engine.tier import TierServer

from .clusternames import ClusterNames
from .faults import PodFaults
from .haltingclock import HaltingClock
from .podspec import CommandLine

USAGE_EXIT = 2
"""Exit code of a command that refuses its arguments."""


class LaunchError(Exception):
    """The process cannot start; `exit_code` is what the real command would end with."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Process(Protocol):
    """A running command. All methods are called from the event loop that called `start`."""

    @property
    def ready(self) -> bool:
        """Whether it would answer its readiness probe."""
        ...

    async def start(self) -> None:
        """Starts it; it need not be ready yet.

        Raises:
            LaunchError: it cannot start.
        """
        ...

    async def wait(self) -> int:
        """Waits until it ends by itself; its exit code."""
        ...

    async def drain(self, grace_seconds: float) -> bool:
        """SIGTERM: ends in order, within `grace_seconds` on the wall. True when nothing had to be cut."""
        ...

    async def stop(self) -> None:
        """SIGKILL."""
        ...

    def suffer(self, faults: PodFaults) -> None:
        """Takes on exactly these faults, as far as they concern a running process."""
        ...


class InertProcess:
    """A command that this plugin does not know: it is ready and does nothing.

    `sleep N`, `true` and `false` behave as their names say, so that jobs and failing containers can be tried out.
    """

    def __init__(self, argv: tuple[str, ...], clock: Clock) -> None:
        self._argv = argv
        self._clock = clock
        self.ready = True

    async def start(self) -> None:
        """Nothing to start."""

    async def wait(self) -> int:
        """Ends only if the command is one that ends."""
        match self._argv:
            case ("sleep", duration) if duration.replace(".", "", 1).isdigit():
                await self._clock.sleep(float(duration))
                return 0
            case ("true",):
                return 0
            case ("false",):
                return 1
        await asyncio.Event().wait()
        return 0

    async def drain(self, grace_seconds: float) -> bool:
        """Ends at once."""
        del grace_seconds
        return True

    async def stop(self) -> None:
        """Nothing to stop."""

    def suffer(self, faults: PodFaults) -> None:
        """A hanging stand-in is not ready."""
        self.ready = not faults.hang


class ServerProcess:
    """A simulated engine or tier server in this process, on a clock of its own that a fault can halt."""

    def __init__(self, server: SimulatedEngine | TierServer, clock: HaltingClock) -> None:
        self._server = server
        self._clock = clock
        self._started = False
        self._holder = server.metrics if isinstance(server, SimulatedEngine) else server
        self._registry = self._holder.registry

    @property
    def ready(self) -> bool:
        """What GET /health says, and False while it hangs."""
        if not self._started or self._clock.halted:
            return False
        return not isinstance(self._server, SimulatedEngine) or self._server.ready.is_set()

    async def start(self) -> None:
        """Listens on the pod's address; an engine is ready after its cold start.

        Raises:
            LaunchError: the address is in use.
        """
        try:
            await self._server.start()
        except OSError as error:
            raise LaunchError(f"cannot listen on {self._server.address}:{self._server.port}: {error}") from error
        self._started = True

    async def wait(self) -> int:
        """Servers never end by themselves."""
        await asyncio.Event().wait()
        return 0

    async def drain(self, grace_seconds: float) -> bool:
        """Lets running requests end."""
        self._started = False
        return await self._server.drain(grace_seconds)

    async def stop(self) -> None:
        """Cuts everything."""
        self._started = False
        await self._server.stop()

    def suffer(self, faults: PodFaults) -> None:
        """hang: it takes requests and produces nothing; metrics-gone: /metrics has no series."""
        self._clock.halt(faults.hang)
        self._holder.registry = CollectorRegistry() if faults.metrics_gone else self._registry


def launch(command: CommandLine, address: str, clock: Clock, names: ClusterNames) -> Process:
    """The process for a container's command line, not started yet.

    Raises:
        LaunchError: an engine or tier with arguments that it would refuse.
    """
    own = HaltingClock(clock)
    try:
        match command.argv:
            case ("retinue-emulator", "engine", *args):
                config = parse_engine(args, command.env)
                return ServerProcess(SimulatedEngine(config, own, address, resolve=names.answer), own)
            case ("retinue-emulator", "tier", *args):
                return ServerProcess(TierServer(parse_tier(args), own, address), own)
    except ConfigError as error:
        raise LaunchError(str(error), USAGE_EXIT) from error
    return InertProcess(command.argv, clock)
