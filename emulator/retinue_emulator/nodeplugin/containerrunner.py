"""Runs one container of a pod: pull, start, probe, exit, restart with back-off, orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from retinue_emulator.engine.clock import Clock

from .backoff import RestartBackoff
from .containerstate import ContainerState, JsonObject, Running, Terminated, Waiting
from .faults import PodFaults
from .podspec import Probe, UnsupportedEnv, probe
from .podstatus import RestartPolicy
from .process import LaunchError, Process

_LOGGER = logging.getLogger(__name__)
KILLED_EXIT = 137
# Between looks at a process that is not ready yet, on the wall: short, so that readiness is seen almost at once.
_STARTING_POLL_SECONDS = 0.1
_SHORTEST_POLL_SECONDS = 0.05
# What an engine needs beyond its own grace to close sockets before it is cut.
_CUT_AFTER_SECONDS = 2.0
_CRASH_LOOP_LIFE_SECONDS = 1.0


@dataclass(frozen=True)
class Surroundings:
    """What a container needs from the node that runs it.

    pull: makes an image present (waits for its download); launch: makes the process; emit: (kind, reason, message) of
    an event; changed: the state is new; broken_device: why the container cannot work on its devices, None if it can.
    """

    clock: Clock
    policy: RestartPolicy
    pull: Callable[[JsonObject], Awaitable[None]]
    launch: Callable[[JsonObject], Process]
    emit: Callable[[str, str, str], None]
    changed: Callable[[], None]
    faults: Callable[[], PodFaults]
    broken_device: Callable[[JsonObject], str | None]


class ContainerRunner:
    """One container. `run` ends when the container has ended for good; `state` is always what the status should say."""

    def __init__(self, container: JsonObject, state: ContainerState, around: Surroundings) -> None:
        self._container = container
        self._around = around
        self._backoff = RestartBackoff()
        self._process: Process | None = None
        self._crash: asyncio.Future[str] | None = None
        self.state = state

    @property
    def name(self) -> str:
        """The container's name."""
        return self.state.name

    async def run(self) -> None:
        """Runs the container until its restart policy lets it rest."""
        around = self._around
        while True:
            now = self.state.now
            if isinstance(now, Terminated):
                if not around.policy.restarts(now.exit_code):
                    return
                await self._back_off(now)
            await self._pull()
            ended = await self._run_once()
            self._set(replace(self.state, now=ended, ready=False))

    def crash(self, message: str) -> None:
        """Makes a running process exit with 1."""
        if self._crash is not None and not self._crash.done():
            self._crash.set_result(message)

    def suffer(self, faults: PodFaults) -> None:
        """Passes faults on to the running process."""
        if self._process is not None:
            self._process.suffer(faults)

    async def terminate(self, grace_seconds: float) -> None:
        """Ends a running process in order, by force after the grace. The task of `run` must be cancelled before."""
        process, self._process = self._process, None
        now = self.state.now
        started = now.since if isinstance(now, Running) else _now()
        if process is None:
            if not isinstance(now, Terminated):
                # A kubelet accounts for every container of a pod that goes, also for one that never ran or was between
                # two runs.
                lost = Terminated(KILLED_EXIT, "ContainerStatusUnknown", "", started, _now())
                last = self.state.last if isinstance(now, Waiting) else None
                self._set(replace(self.state, now=last or lost, ready=False))
            return
        self._around.emit("Normal", "Killing", f"Stopping container {self.name}")
        clean, failed = False, False
        try:
            async with asyncio.timeout(grace_seconds + _CUT_AFTER_SECONDS):
                clean = await process.drain(grace_seconds)
        except TimeoutError:
            clean = False
        except Exception:
            _LOGGER.exception("container %s failed while it was stopped", self.name)
            failed = True
        await process.stop()
        code = 1 if failed else 0 if clean else KILLED_EXIT
        reason = "Completed" if clean else "Error"
        self._set(replace(self.state, now=Terminated(code, reason, "", started, _now()), ready=False))

    async def cut(self) -> None:
        """Ends the process at once and without a trace in the status: the machine went off."""
        process, self._process = self._process, None
        if process is not None:
            await process.stop()

    async def _back_off(self, ended: Terminated) -> None:
        around = self._around
        delay = self._backoff.after_run((ended.finished - ended.started).total_seconds() * around.clock.speed)
        if delay == 0:
            self._set(replace(self.state, last=ended))
            return
        message = f"back-off {delay:.0f}s restarting failed container={self.name}"
        self._set(replace(self.state, now=Waiting("CrashLoopBackOff", message), last=ended))
        around.emit("Warning", "BackOff", f"Back-off restarting failed container {self.name}")
        await around.clock.sleep(delay)

    async def _pull(self) -> None:
        around, image = self._around, self.state.image
        reported = False
        while around.faults().image_pull:
            reason = "ImagePullBackOff" if reported else "ErrImagePull"
            message = f'failed to pull image "{image}": the fault image-pull is set on the pod'
            self._set(replace(self.state, now=Waiting(reason, message)))
            if not reported:
                around.emit("Warning", "Failed", f'Failed to pull image "{image}"')
            reported = True
            await around.clock.sleep(10.0)
        await around.pull(self._container)

    async def _run_once(self) -> Terminated:
        """One run of the process from start to exit."""
        around = self._around
        began = _now()
        restarts = self.state.restarts + (1 if self.state.last is not None else 0)
        faults = around.faults()
        try:
            process = around.launch(self._container)
        except UnsupportedEnv as error:
            self._set(replace(self.state, now=Waiting("CreateContainerConfigError", str(error))))
            around.emit("Warning", "Failed", str(error))
            await asyncio.Event().wait()
            raise
        except LaunchError as error:
            return self._ended(began, error.exit_code, str(error), restarts)
        around.emit("Normal", "Created", f"Created container: {self.name}")
        self._crash = asyncio.get_running_loop().create_future()
        if broken := around.broken_device(self._container):
            return self._ended(began, 1, broken, restarts)
        if faults.slow_start_seconds:
            self._set(replace(self.state, now=Running(began), restarts=restarts, ready=False))
            await around.clock.sleep(faults.slow_start_seconds)
        self._process = process
        try:
            await process.start()
        except LaunchError as error:
            self._process = None
            return self._ended(began, error.exit_code, str(error), restarts)
        process.suffer(faults)
        around.emit("Normal", "Started", f"Started container {self.name}")
        self._set(replace(self.state, now=Running(began), restarts=restarts, ready=False))
        exit_code, message = await self._until_exit(process)
        self._process = None
        await process.stop()
        return self._ended(began, exit_code, message, restarts)

    def _ended(self, began: datetime, exit_code: int, message: str, restarts: int) -> Terminated:
        self.state = replace(self.state, restarts=restarts)
        return Terminated(exit_code, "Completed" if exit_code == 0 else "Error", message, began, _now())

    async def _until_exit(self, process: Process) -> tuple[int, str]:
        """Probes the process until it ends; (exit code, message)."""
        around = self._around
        crash = self._crash
        assert crash is not None
        waiting = asyncio.ensure_future(process.wait())
        either: set[asyncio.Future[Any]] = {waiting, crash}
        life = _Life(probe(self._container, "readinessProbe"), probe(self._container, "livenessProbe"))
        begun = around.clock.now()
        try:
            while True:
                if broken := around.broken_device(self._container):
                    return 1, broken
                if around.faults().crash_loop and around.clock.now() - begun >= _CRASH_LOOP_LIFE_SECONDS:
                    return 1, "crashed by the fault crash-loop"
                pause = life.look(process.ready, around.clock)
                if life.ready != self.state.ready:
                    self._set(replace(self.state, ready=life.ready))
                if life.dead:
                    around.emit("Warning", "Unhealthy", f"Liveness probe of container {self.name} failed")
                    return KILLED_EXIT, "the liveness probe failed"
                await asyncio.wait(either, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    return waiting.result(), ""
                if crash.done():
                    return 1, crash.result()
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting

    def _set(self, state: ContainerState) -> None:
        if state != self.state:
            self.state = state
            self._around.changed()


class _Life:
    """Readiness and liveness over time, counted in looks as probes count their failures."""

    def __init__(self, readiness: Probe | None, liveness: Probe | None) -> None:
        self._readiness = readiness or Probe(10.0, 3)
        self._liveness = liveness
        self._failed_since: float | None = None
        self._was_ready = False
        self.ready = False
        self.dead = False

    def look(self, answers: bool, clock: Clock) -> float:
        """Takes note of one look; the wall seconds until the next one is due."""
        if answers:
            self._failed_since = None
            self.ready = self._was_ready = True
        elif self._was_ready:
            if self._failed_since is None:
                self._failed_since = clock.now()
            failing = clock.now() - self._failed_since
            if failing >= self._readiness.period_seconds * (self._readiness.failure_threshold - 1):
                self.ready = False
            if self._liveness and failing >= self._liveness.period_seconds * self._liveness.failure_threshold:
                self.dead = True
        if not self._was_ready:
            return _STARTING_POLL_SECONDS
        period = min(p.period_seconds for p in (self._readiness, self._liveness) if p is not None)
        return max(_SHORTEST_POLL_SECONDS, clock.wall(min(period, 1.0)))


def _now() -> datetime:
    return datetime.now(UTC)
