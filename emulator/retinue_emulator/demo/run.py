"""The demo from beginning to end: set up, apply, wait, replay, watch the pools shrink, judge, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from retinue_emulator.loopback import LoopbackError
from retinue_emulator.replay.events import Trace
from retinue_emulator.replay.oracle import expected_hit
from retinue_emulator.replay.runner import Replay, ReplayOptions, ReplayResult
from retinue_emulator.stages import Stages

from . import scenario
from .ground import Ground
from .live import live_view
from .outcome import Outcome, checks
from .report import RunRecord, write_report
from .stack import Stack
from .summary import keep_text, kubeconfig_line, print_summary
from .timeline import Sample, size_changes
from .watch import Watcher

_READY_SECONDS = 120.0
_SHRINK_MODEL_SECONDS = 900.0
_REFRESH_SECONDS = 1.0

T = TypeVar("T")


class ClusterKind(StrEnum):
    """Where the demo runs: a control plane with emulated nodes as processes, or a kind cluster with real kubelets."""

    LOOPBACK = "loopback"
    KIND = "kind"


_WHERE = {
    ClusterKind.LOOPBACK: "a real control plane",
    ClusterKind.KIND: "a kind cluster with real kubelets and containers",
}


@dataclass(frozen=True)
class DemoOptions:
    """What the user asked for. `timeout` is wall seconds for the replay; `sessions` counts recorded sessions."""

    speed: float = 12.0
    sessions: int = scenario.RECORDED_SESSIONS
    report: Path = Path("demo-report")
    state: Path | None = None
    keep: bool = False
    timeout: float = 420.0
    cluster: ClusterKind = ClusterKind.LOOPBACK


class NotReady(LoopbackError):
    """A pool or tier did not become ready in time."""


class Demo:
    """One run. `exit_code` is what the command should end with, also when the user ends a kept cluster."""

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self.options = options
        self.exit_code: int | None = None
        self._console = console
        self._stages = Stages(console)
        self._began = time.monotonic()

    async def run(self) -> int:
        """0 when all checks passed, 1 otherwise. Raises LoopbackError when the run could not be finished."""
        where = _WHERE[self.options.cluster]
        self._line(f"Retinue demo: {where}, emulated accelerators at {self.options.speed:g} times real speed")
        stack = self._ground()
        try:
            async with stack:
                await guarded(stack, self._use(stack))
        except Exception:
            if stack.logs_kept:
                self._line(f"logs are kept in {stack.logs}")
            raise
        return self.exit_code or 0

    def _ground(self) -> Ground:
        if self.options.cluster is ClusterKind.KIND:
            # Imported here: the loopback demo needs nothing of it.
            from .kindground import KindGround

            return KindGround(speed=self.options.speed, state=self.options.state, stages=self._stages)
        return Stack(
            speed=self.options.speed,
            state=self.options.state,
            stages=self._stages,
            # A demo's lease should not outlive an operator that was killed.
            operator_args=("--lease-duration", "6", "--lease-renew-deadline", "4", "--lease-retry-period", "1"),
        )

    async def _use(self, stack: Ground) -> None:
        window = scenario.MODEL_SECONDS["metricsWindow"] / self.options.speed
        async with Watcher(stack.api, stack.prometheus, scenario.NAMESPACE, scenario.AGENT_POOL, window) as watcher:
            await self._apply(stack)
            await self._wait_ready(watcher)
            ready_after = time.monotonic() - self._began
            self._line(f"   To look at it meanwhile: {kubeconfig_line(stack.access.kubeconfig)}")
            trace = scenario.sessions(self.options.sessions)
            result = await self._replay(stack, watcher, trace)
            await self._wait_shrunk(watcher)
            behind = await stack.behind()
        watcher.take_decisions(await stack.decisions())
        outcome = Outcome(
            summary=result.summary(),
            expected=expected_hit(trace),
            changes=size_changes(watcher.timeline),
            behind=behind,
            must_scale=self._must_scale(),
        )
        verdicts = checks(outcome)
        record = RunRecord(
            speed=self.options.speed,
            load=scenario.describe(trace),
            outcome=outcome,
            checks=verdicts,
            records=result.records,
            timeline=watcher.timeline,
            reference=scenario.REFERENCE_SESSION,
            ttft_goal=scenario.MODEL_SECONDS["ttft"],
            itl_goal=scenario.MODEL_SECONDS["itl"],
            setup_seconds=ready_after,
            wall_seconds=time.monotonic() - self._began,
        )
        with self._stages.stage("Report") as stage:
            path = await asyncio.to_thread(write_report, record, self.options.report)
            stage.done(str(path))
        print_summary(self._console, record)
        self.exit_code = 0 if all(check.passed for check in verdicts) else 1
        if self.options.keep:
            self._line(keep_text(stack.access.kubeconfig, stack.access.kubectl_path))
            await asyncio.Event().wait()

    async def _apply(self, stack: Ground) -> None:
        with self._stages.stage("Apply AgentPool and node classes") as stage:
            objects = scenario.objects(self.options.speed, stack.engine_args)
            await asyncio.to_thread(
                stack.access.kubectl, "apply", "--server-side", "-f", "-", stdin=scenario.as_list(objects)
            )
            classes = ", ".join(item["metadata"]["name"] for item in objects if item["kind"] == "NodeClass")
            stage.done(f"AgentPool {scenario.NAMESPACE}/{scenario.AGENT_POOL}; node classes {classes}")

    async def _wait_ready(self, watcher: Watcher) -> None:
        with self._stages.stage("Pools become Ready") as stage:
            while True:
                sample = await watcher.observe()
                stage.update(_readiness(sample))
                if sample.all_ready and sample.roles and all(role.ready for role in sample.roles):
                    break
                if stage.seconds > _READY_SECONDS:
                    raise NotReady(f"not Ready after {_READY_SECONDS:.0f} s", _missing(sample))
                await asyncio.sleep(0.5)
            stage.done(_readiness(sample))

    async def _replay(self, stack: Ground, watcher: Watcher, trace: Trace) -> ReplayResult:
        speed = self.options.speed
        self._line(f"   Replay {scenario.describe(trace)}; all times below are model time (wall time x {speed:g})")
        options = ReplayOptions(
            base_url=stack.gateway_url,
            namespace=scenario.NAMESPACE,
            agent_pool=scenario.AGENT_POOL,
            speed=speed,
            run_timeout=self.options.timeout,
        )
        replay = Replay(trace, options)
        with (
            self._stages.stage("Replay", spinner=False) as stage,
            live_view(self._console, speed, replay.progress) as view,
        ):
            watcher.start_clock()
            running = asyncio.create_task(replay.run())
            try:
                while not running.done():
                    await asyncio.wait([running], timeout=_REFRESH_SECONDS)
                    await watcher.observe()
                    view.show(watcher.timeline)
                result = await running
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            stage.done(f"{len(result.records):,} requests in {result.duration * speed / 60:.1f} minutes of model time")
        return result

    async def _wait_shrunk(self, watcher: Watcher) -> None:
        with self._stages.stage("Load has ended, pools shrink") as stage:
            limit = _SHRINK_MODEL_SECONDS / self.options.speed
            while stage.seconds < limit:
                sample = await watcher.observe()
                changes = size_changes(watcher.timeline)
                stage.update(", ".join(f"{change.key} {change.last}" for change in changes))
                draining = any(pool.draining for pool in sample.pools)
                if not draining and all(change.last <= change.first for change in changes):
                    break
                await asyncio.sleep(_REFRESH_SECONDS)
            stage.done(", ".join(f"{c.key} {c.first} -> {c.peak} -> {c.last}" for c in size_changes(watcher.timeline)))

    def _must_scale(self) -> tuple[str, ...]:
        if self.options.sessions < scenario.SESSIONS_THAT_GROW:
            return ()
        return tuple(f"{kind}/{scenario.AGENT_POOL}-primary" for kind in ("prefill", "decode"))

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


async def guarded(stack: Ground, work: Coroutine[None, None, T]) -> T:
    """The result of `work`; raises LoopbackError as soon as a process of the stack ends by itself."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(stack.run_until_failure())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        await watching
        raise AssertionError("run_until_failure returned")
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def _readiness(sample: Sample) -> str:
    parts = [f"{pool.key} {pool.ready}/{pool.desired}" for pool in sample.pools]
    parts += [f"{tier.key} {tier.members}" for tier in sample.tiers]
    return ", ".join(parts) or "waiting for the operator"


def _missing(sample: Sample) -> str:
    parts = [f"{pool.key} {pool.why}" for pool in sample.pools if not pool.is_ready]
    parts += [f"{tier.key} has {tier.members} of {tier.desired} members" for tier in sample.tiers if not tier.is_ready]
    return "; ".join(parts) or "the AgentPool has no pools: see the operator's log"
