"""The life of one container: start, readiness, exit, back-off, faults and orderly end."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from retinue_emulator.engine.clock import Clock
from retinue_emulator.nodeplugin.backoff import RestartBackoff
from retinue_emulator.nodeplugin.containerrunner import ContainerRunner, Surroundings
from retinue_emulator.nodeplugin.containerstate import ContainerState, Running, Terminated, Waiting
from retinue_emulator.nodeplugin.faults import PodFaults
from retinue_emulator.nodeplugin.haltingclock import HaltingClock
from retinue_emulator.nodeplugin.imagestore import ImageStore
from retinue_emulator.nodeplugin.podspec import UnsupportedEnv
from retinue_emulator.nodeplugin.podstatus import RestartPolicy
from retinue_emulator.nodeplugin.process import InertProcess, LaunchError, Process


class FakeProcess:
    """A process that a test drives."""

    def __init__(self, *, ready: bool = False, drain_seconds: float = 0.0) -> None:
        self.ready = ready
        self.faults = PodFaults()
        self.started = self.stopped = False
        self._drain_seconds = drain_seconds
        self._exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        self.started = True

    async def wait(self) -> int:
        return await asyncio.shield(self._exit)

    def exit(self, code: int) -> None:
        self._exit.set_result(code)

    async def drain(self, grace_seconds: float) -> bool:
        await asyncio.sleep(min(grace_seconds, self._drain_seconds))
        return self._drain_seconds <= grace_seconds

    async def stop(self) -> None:
        self.stopped = True

    def suffer(self, faults: PodFaults) -> None:
        self.faults = faults


@dataclass
class World:
    """What surrounds the container in a test. The clock runs a thousand times as fast as the wall."""

    policy: RestartPolicy = RestartPolicy.ALWAYS
    launches: Callable[[], Process] = lambda: FakeProcess(ready=True)
    faults: PodFaults = field(default_factory=PodFaults)
    broken: str | None = None
    events: list[tuple[str, str]] = field(default_factory=list)
    history: list[ContainerState] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=lambda: {"name": "c", "image": "i"})
    state: ContainerState = field(default_factory=lambda: ContainerState("c", "i"))
    clock: Clock = field(default_factory=lambda: Clock(1000.0))

    def launch(self, _: dict[str, Any]) -> Process:
        self.processes.append(self.launches())
        return self.processes[-1]

    async def pull(self, _: dict[str, Any]) -> None:
        await asyncio.sleep(0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ContainerRunner]:
        def changed() -> None:
            self.history.append(runner.state)

        around = Surroundings(
            clock=self.clock,
            policy=self.policy,
            pull=self.pull,
            launch=self.launch,
            emit=lambda _, reason, message: self.events.append((reason, message)),
            changed=changed,
            faults=lambda: self.faults,
            broken_device=lambda _: self.broken,
        )
        runner = ContainerRunner(self.spec, self.state, around)
        task = asyncio.create_task(runner.run())
        self.task = task
        try:
            yield runner
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await runner.cut()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for a condition; fails with `what` after five seconds."""
    deadline = asyncio.get_running_loop().time() + 5
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"still not so after 5 s: {what}")
        await asyncio.sleep(0.005)


async def test_a_container_is_running_before_it_is_ready() -> None:
    process = FakeProcess()
    world = World(launches=lambda: process)
    async with world.running() as runner:
        await until(lambda: isinstance(runner.state.now, Running), "running")
        assert not runner.state.ready
        process.ready = True
        await until(lambda: runner.state.ready, "ready")
    assert ("Started", "Started container c") in world.events


async def test_a_container_that_keeps_failing_is_restarted_with_growing_back_off() -> None:
    world = World(launches=lambda: InertProcess(("false",), world.clock))
    async with world.running() as runner:
        await until(lambda: runner.state.restarts >= 3, "three restarts")
    waits = [s.now.message for s in world.history if isinstance(s.now, Waiting) and s.now.reason == "CrashLoopBackOff"]
    assert waits[:2] == [
        "back-off 10s restarting failed container=c",
        "back-off 20s restarting failed container=c",
    ]
    assert runner.state.last is not None
    assert runner.state.last.exit_code == 1


def test_back_off_doubles_up_to_five_minutes_and_starts_over_after_a_long_run() -> None:
    backoff = RestartBackoff()
    assert [backoff.after_run(1) for _ in range(8)] == [0, 10, 20, 40, 80, 160, 300, 300]
    assert backoff.after_run(601) == 0


async def test_a_container_that_must_not_restart_ends_with_its_exit_code() -> None:
    process = FakeProcess(ready=True)
    world = World(policy=RestartPolicy.NEVER, launches=lambda: process)
    async with world.running() as runner:
        await until(lambda: runner.state.ready, "ready")
        process.exit(7)
        await until(world.task.done, "the end")
    assert isinstance(runner.state.now, Terminated)
    assert (runner.state.now.exit_code, runner.state.ready, runner.state.restarts) == (7, False, 0)
    assert process.stopped


async def test_on_failure_restarts_failures_only() -> None:
    codes = iter([1, 0])

    def launch() -> Process:
        process = FakeProcess(ready=True)
        process.exit(next(codes))
        return process

    world = World(policy=RestartPolicy.ON_FAILURE, launches=launch)
    async with world.running() as runner:
        await until(world.task.done, "the end")
    assert runner.state.succeeded
    assert runner.state.restarts == 1


async def test_bad_arguments_end_the_container_with_their_message() -> None:
    def refuse() -> Process:
        raise LaunchError("unknown model 'x'", 2)

    world = World(policy=RestartPolicy.NEVER, launches=refuse)
    async with world.running() as runner:
        await until(world.task.done, "the end")
    assert isinstance(runner.state.now, Terminated)
    assert (runner.state.now.exit_code, runner.state.now.message) == (2, "unknown model 'x'")


async def test_an_environment_that_cannot_be_read_is_shown_as_a_config_error() -> None:
    def refuse() -> Process:
        raise UnsupportedEnv("variable X comes from secretKeyRef")

    world = World(launches=refuse)
    async with world.running() as runner:
        shown = Waiting("CreateContainerConfigError", "variable X comes from secretKeyRef")
        await until(lambda: runner.state.now == shown, "the error")
    assert ("Failed", "variable X comes from secretKeyRef") in world.events


async def test_orderly_end_within_the_grace_exits_with_0() -> None:
    process = FakeProcess(ready=True, drain_seconds=0.01)
    world = World(launches=lambda: process)
    async with world.running() as runner:
        await until(lambda: runner.state.ready, "ready")
        world.task.cancel()
        await runner.terminate(5)
    assert isinstance(runner.state.now, Terminated)
    assert (runner.state.now.exit_code, process.stopped) == (0, True)
    assert ("Killing", "Stopping container c") in world.events


async def test_a_process_that_outlives_the_grace_is_cut_with_137() -> None:
    process = FakeProcess(ready=True, drain_seconds=60)
    world = World(launches=lambda: process)
    async with world.running() as runner:
        await until(lambda: runner.state.ready, "ready")
        world.task.cancel()
        await runner.terminate(0.05)
    assert isinstance(runner.state.now, Terminated)
    assert (runner.state.now.exit_code, process.stopped) == (137, True)


async def test_a_container_that_never_ran_is_accounted_for_when_its_pod_goes() -> None:
    world = World(faults=PodFaults(image_pull=True))
    async with world.running() as runner:
        await until(lambda: isinstance(runner.state.now, Waiting) and "Err" in runner.state.now.reason, "pull error")
        world.task.cancel()
        await runner.terminate(5)
    assert isinstance(runner.state.now, Terminated)
    assert (runner.state.now.exit_code, runner.state.now.reason) == (137, "ContainerStatusUnknown")


async def test_fault_crash_ends_the_process_once() -> None:
    world = World()
    async with world.running() as runner:
        await until(lambda: runner.state.ready, "ready")
        runner.crash("crashed by the fault crash")
        await until(lambda: runner.state.restarts == 1 and runner.state.ready, "the restart")
    assert runner.state.last is not None
    assert runner.state.last.message == "crashed by the fault crash"


async def test_fault_crash_loop_ends_every_run_until_it_is_healed() -> None:
    world = World(faults=PodFaults(crash_loop=True))
    async with world.running() as runner:
        await until(lambda: runner.state.restarts >= 2, "two restarts")
        world.faults = PodFaults()
        await until(lambda: runner.state.ready, "ready after healing")


async def test_fault_slow_start_delays_the_process() -> None:
    world = World(faults=PodFaults(slow_start_seconds=300))
    async with world.running() as runner:
        await until(lambda: isinstance(runner.state.now, Running), "running")
        assert not runner.state.ready
        before = world.clock.now()
        await until(lambda: runner.state.ready, "ready")
        assert world.clock.now() - before > 200


async def test_fault_image_pull_waits_until_it_is_healed() -> None:
    world = World(faults=PodFaults(image_pull=True))
    async with world.running() as runner:
        await until(
            lambda: isinstance(runner.state.now, Waiting) and runner.state.now.reason == "ImagePullBackOff", "back-off"
        )
        world.faults = PodFaults()
        await until(lambda: runner.state.ready, "ready after healing")


async def test_a_broken_device_fails_the_container_with_its_name() -> None:
    world = World(policy=RestartPolicy.NEVER)
    async with world.running() as runner:
        await until(lambda: runner.state.ready, "ready")
        world.broken = "device 3 of h100-0 is unhealthy"
        await until(world.task.done, "the end")
    assert isinstance(runner.state.now, Terminated)
    assert (runner.state.now.exit_code, runner.state.now.message) == (1, "device 3 of h100-0 is unhealthy")


async def test_readiness_is_lost_only_after_the_failure_threshold() -> None:
    process = FakeProcess(ready=True)
    world = World(launches=lambda: process, clock=Clock(20.0))
    world.spec["readinessProbe"] = {"periodSeconds": 2, "failureThreshold": 3}
    async with world.running() as runner:
        await until(lambda: runner.state.ready, "ready")
        process.ready = False
        lost_from = world.clock.now()
        await until(lambda: not runner.state.ready, "unready")
        assert world.clock.now() - lost_from >= 4
        assert isinstance(runner.state.now, Running)


async def test_a_failing_liveness_probe_restarts_the_container() -> None:
    processes: list[FakeProcess] = []

    def launch() -> Process:
        processes.append(FakeProcess(ready=True))
        return processes[-1]

    world = World(launches=launch)
    world.spec["livenessProbe"] = {"periodSeconds": 1, "failureThreshold": 2}
    async with world.running() as runner:
        await until(lambda: runner.state.ready, "ready")
        processes[0].ready = False
        await until(lambda: runner.state.restarts == 1 and runner.state.ready, "the restart")
    assert runner.state.last is not None
    assert runner.state.last.exit_code == 137


@pytest.mark.parametrize(("argv", "code"), [(("sleep", "5"), 0), (("true",), 0), (("false",), 1)])
async def test_commands_that_end_do_so(argv: tuple[str, ...], code: int) -> None:
    assert await asyncio.wait_for(InertProcess(argv, Clock(1000.0)).wait(), 5) == code


async def test_pods_that_need_an_image_at_the_same_time_share_one_download() -> None:
    wall = 0.0
    clock = Clock(1.0, lambda: wall)
    store = ImageStore(clock, 0.05)
    first, second = asyncio.create_task(store.pull("i")), asyncio.create_task(store.pull("i"))
    first.cancel()
    await asyncio.wait_for(second, 5)
    assert store.has("i")
    assert not store.has("other")


async def test_a_halted_clock_stands_still_and_goes_on_where_it_stood() -> None:
    wall = 100.0
    parent = Clock(10.0, lambda: wall)
    clock = HaltingClock(parent)
    wall += 1
    assert clock.now() == pytest.approx(10)
    clock.halt(True)
    wall += 5
    assert clock.now() == pytest.approx(10)
    clock.halt(False)
    wall += 1
    assert clock.now() == pytest.approx(20)
    assert clock.watch is parent.watch


async def test_a_sleep_on_a_halted_clock_does_not_end() -> None:
    clock = HaltingClock(Clock(1000.0))
    clock.halt(True)
    sleeping = asyncio.create_task(clock.sleep(1))
    done, _ = await asyncio.wait({sleeping}, timeout=0.1)
    assert not done
    clock.halt(False)
    await asyncio.wait_for(sleeping, 5)
