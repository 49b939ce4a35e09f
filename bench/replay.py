"""Recorded sessions replayed side by side through gateway and emulated engines, many times faster than real time."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.machine import usage
from bench.objects import is_ready
from bench.report import Figure, Out, Report, Strict, command, quantile, stages
from retinue_emulator.demo import scenario
from retinue_emulator.demo.parts import GATEWAY, NODE_PLUGIN, OPERATOR
from retinue_emulator.demo.stack import Stack
from retinue_emulator.replay import data
from retinue_emulator.replay.events import Session, Trace, make_trace
from retinue_emulator.replay.load import load
from retinue_emulator.replay.runner import Replay, ReplayOptions
from retinue_emulator.stages import Stages

# What the demo's models take: the primary's window, less a margin for the answer.
_WINDOWS = {True: 190_000, False: 125_000}
_READY_SECONDS = 180.0


def fitting(trace: Trace) -> list[tuple[Session, ...]]:
    """Families that fit into the windows of the demo's models, the longest first: they stay open."""
    families = trace.families().values()
    kept = [f for f in families if all(s.peak_tokens <= _WINDOWS[s.parent is None] for s in f)]
    return sorted(kept, key=_length, reverse=True)


def _length(family: tuple[Session, ...]) -> float:
    return max(request.t for session in family for request in session.requests)


def repeated(families: list[tuple[Session, ...]], count: int) -> Trace:
    """`count` families: the recorded ones, again under other names when there are too few."""
    return make_trace("bench", "weka", (s for n in range(count) for s in _copy(families[n % len(families)], n)))


def _copy(family: tuple[Session, ...], number: int) -> Iterator[Session]:
    def name(text: str | None) -> str | None:
        return None if text is None else f"{text}~{number}"

    for session in family:
        requests = tuple(
            replace(
                r,
                id=f"{r.id}~{number}",
                session=f"{r.session}~{number}",
                parent=name(r.parent),
                scope=f"{r.scope}~{number}",
                wait_for=tuple(f"{other}~{number}" for other in r.wait_for),
            )
            for r in session.requests
        )
        yield replace(session, id=f"{session.id}~{number}", parent=name(session.parent), requests=requests)


def main(
    sessions: Annotated[int, typer.Option(help="Sessions with their sub-agents.", min=1)] = 80,
    speed: Annotated[float, typer.Option(help="Times real time.", min=1)] = 30.0,
    seconds: Annotated[float, typer.Option(help="Wall seconds of the replay.", min=5)] = 90.0,
    trace: Annotated[Path | None, typer.Option(help="Trace of recorded sessions. Default: the packaged 64.")] = None,
    out: Out = None,
    strict: Strict = False,
) -> None:
    """Whether the whole stack keeps up with at least 64 recorded sessions at once at 30 times real time.

    The sessions run closed-loop, so what keeps up is told by the emulator (is it behind its own clock?) and by how late
    the client sends what is due.
    """
    report = Report("replay", {"sessions": sessions, "speed": speed, "wall seconds": seconds})
    asyncio.run(_main(report, sessions, speed, seconds, trace))
    report.finish(out, strict)


async def _main(report: Report, sessions: int, speed: float, seconds: float, source: Path | None) -> None:
    progress = stages()
    families = fitting(load(source or data.path(data.SESSIONS_64)))
    trace = repeated(families, sessions).staggered(60.0)
    report.facts |= {"recorded families used": min(sessions, len(families)), "trace": trace.format}
    async with Stack(speed=speed, stages=progress) as stack:
        await _apply(stack, progress, speed)
        replay = Replay(
            trace,
            ReplayOptions(
                base_url=stack.gateway_url,
                namespace=scenario.NAMESPACE,
                agent_pool=scenario.AGENT_POOL,
                speed=speed,
                run_timeout=seconds,
            ),
        )
        pids = {name: stack.child(name).pid for name in (GATEWAY, NODE_PLUGIN, OPERATOR)}
        before = {name: usage(pid).cpu for name, pid in pids.items()}
        opened: list[int] = []
        with progress.stage("replay") as stage:
            running = asyncio.create_task(replay.run())
            while not running.done():
                await asyncio.wait([running], timeout=0.5)
                opened.append(replay.progress.open_sessions)
                stage.update(f"{opened[-1]} sessions open, {replay.progress.answered} requests answered")
            result = running.result()
            stage.done(f"{len(result.records)} requests")
        behind = await stack.behind()
        used = {name: usage(pid).cpu - before[name] for name, pid in pids.items()}
    # The first seconds fill up: sessions start over a minute of model time.
    steady = opened[len(opened) // 10 :]
    failed = [record for record in result.records if record.error is not None]
    late = quantile([record.started - record.due for record in result.records], 0.95)
    report.facts |= {"behind": behind or "no", "errors": sorted({str(record.error)[:120] for record in failed})[:5]}
    report.add(Figure("sessions open at once, least after the start", min(steady), "sessions", least=64))
    report.add(Figure("requests answered", len(result.records) - len(failed), "requests"))
    report.add(Figure("requests failed", len(failed), "requests", most=0))
    report.add(Figure("emulator behind its clock", float(behind is not None), "0 or 1", most=0))
    # In model time, beside the time that an answer takes.
    took = quantile([record.duration for record in result.records], 0.5)
    report.add(
        Figure("client late by, p95", late * speed, "model s", None, None, "median answer", took * speed),
    )
    summary = result.summary()
    report.add(Figure("hit rate", summary.all.hit_rate, "ratio"))
    for name, cpu in used.items():
        report.add(Figure(f"CPU of {name}", cpu / result.duration, "cores"))


async def _apply(stack: Stack, progress: Stages, speed: float) -> None:
    with progress.stage("pools become Ready") as stage:
        listed = scenario.as_list(scenario.objects(speed))
        await asyncio.to_thread(stack.access.kubectl, "apply", "--server-side", "-f", "-", stdin=listed)
        while True:
            pools = await asyncio.to_thread(
                stack.access.get, "prefillpools,decodepools,kvcachetiers", "-n", scenario.NAMESPACE
            )
            waiting = [item["metadata"]["name"] for item in pools["items"] if not is_ready(item)]
            if len(pools["items"]) >= 5 and not waiting:
                break
            if stage.seconds > _READY_SECONDS:
                raise TimeoutError(f"not Ready after {_READY_SECONDS:g} s: {', '.join(waiting)}")
            stage.update(f"waiting for {', '.join(waiting) or 'the pools to be made'}")
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    command(main)
