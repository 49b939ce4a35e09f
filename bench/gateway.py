"""What the gateway adds to the first byte of a stream, and what an open session costs in memory."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import aiohttp
import typer

from bench.apiserver import many
from bench.machine import usage
from bench.report import Figure, Out, Report, Strict, command, quantile, stages
from retinue_emulator.loopback import eventually
from retinue_emulator.loopback.ports import pick_ports
from retinue_emulator.loopback.process import ChildProcess

_TOKENS = 20
_PACE_MS = 50
_PROMPT = "word " * 4000


def main(
    streams: Annotated[int, typer.Option(help="Streams through the gateway at once, and as many direct.", min=1)] = 100,
    seconds: Annotated[float, typer.Option(help="How long they run.", min=2)] = 30.0,
    sessions: Annotated[int, typer.Option(help="Open sessions for the memory.", min=1)] = 2000,
    out: Out = None,
    strict: Strict = False,
) -> None:
    """Added time to the first byte against the same requests made directly to the same upstream.

    The gateway has one core to itself; client and upstream share the other. Each worker sends the same request once
    directly and once through the gateway, so that each pair differs in nothing else; half of the workers begin with the
    one, half with the other, and as many streams are open on either side all the time.
    """
    report = Report("gateway", {"streams": streams, "seconds": seconds, "sessions": sessions, "tokens": _TOKENS})
    asyncio.run(_main(report, streams, seconds, sessions))
    report.finish(out, strict)


async def _main(report: Report, streams: int, seconds: float, sessions: int) -> None:
    progress = stages()
    cores = sorted(os.sched_getaffinity(0))
    own, other = cores[0], cores[-1]
    front, back = pick_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        upstream = _spawn(logs, "upstream", "--port", str(back), "--core", str(other))
        gateway = _spawn(logs, "frontdoor", "--port", str(front), "--upstream", str(back), "--core", str(own))
        os.sched_setaffinity(0, {other})
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(connector=connector) as http:
                direct, through = f"http://127.0.0.1:{back}/v1/chat/completions", _front(front)
                for url in (direct, through):
                    await eventually(lambda url=url: _answers(http, url), what=f"{url} answers")  # type: ignore[misc]
                began = usage(gateway.pid)
                with progress.stage(f"{sessions} sessions") as stage:
                    await many([_session(http, through, n) for n in range(sessions)], in_flight=64)
                    resident = usage(gateway.pid).resident
                    stage.done(f"{resident / 2**20:.0f} MiB")
                report.add(Figure(f"resident with {sessions} open sessions", resident / 2**20, "MiB", most=150))
                per = (resident - began.resident) / sessions / 1024
                report.add(Figure("memory per session", per, "KiB"))
                with progress.stage(f"{streams} streams on either side") as stage:
                    cpu, start = usage(gateway.pid).cpu, time.monotonic()
                    pairs = await _pairs(http, direct, through, streams, seconds)
                    busy = (usage(gateway.pid).cpu - cpu) / (time.monotonic() - start)
                    stage.done(f"{len(pairs)} pairs")
        finally:
            os.sched_setaffinity(0, set(cores))
            await gateway.stop(3)
            await upstream.stop(3)
    directly, gone = [a * 1000 for a, _ in pairs], [b * 1000 for _, b in pairs]
    added = [b - a for a, b in zip(directly, gone, strict=True)]
    report.facts |= {"pairs": len(pairs), "gateway's core busy": f"{busy:.0%}"}
    name = "direct, same requests"
    for share, most in ((0.5, 3.0), (0.99, 15.0)):
        title = f"p{share * 100:.0f}"
        report.add(Figure(f"added to first byte, {title}", quantile(added, share), "ms", most=most))
        mine, bare = quantile(gone, share), quantile(directly, share)
        report.add(Figure(f"first byte through the gateway, {title}", mine, "ms", None, None, name, bare))


def _front(port: int) -> str:
    return f"http://127.0.0.1:{port}/bench/coder/v1/chat/completions"


def _spawn(logs: Path, module: str, *arguments: str) -> ChildProcess:
    return ChildProcess.spawn(module, [sys.executable, "-m", f"bench.{module}", *arguments], log=logs / f"{module}.log")


def _body(**fields: object) -> dict[str, object]:
    return {"model": "primary", "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": _TOKENS, **fields}


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.post(url, json=_body()) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def _session(http: aiohttp.ClientSession, url: str, number: int) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        async with http.post(url, json=_body(), headers={"x-session-id": f"session-{number}"}) as answer:
            await answer.read()
            answer.raise_for_status()

    return call


async def _pairs(
    http: aiohttp.ClientSession, direct: str, through: str, streams: int, seconds: float
) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    end = time.monotonic() + seconds

    async def worker(number: int) -> None:
        # Spread over the length of a stream, or all would ask in the same moment.
        await asyncio.sleep(number / (2 * streams) * _TOKENS * _PACE_MS / 1000)
        headers = {"x-session-id": f"stream-{number}"}
        while time.monotonic() < end:
            if number % 2:
                first = await _first_byte(http, direct, headers)
                found.append((first, await _first_byte(http, through, headers)))
            else:
                second = await _first_byte(http, through, headers)
                found.append((await _first_byte(http, direct, headers), second))

    async with asyncio.TaskGroup() as group:
        for number in range(2 * streams):
            group.create_task(worker(number))
    return found


async def _first_byte(http: aiohttp.ClientSession, url: str, headers: dict[str, str]) -> float:
    """Seconds from the request to the first bytes of the body; reads the stream to its end."""
    body = _body(stream=True, pace_ms=_PACE_MS)
    began = time.monotonic()
    async with http.post(url, json=body, headers=headers) as answer:
        answer.raise_for_status()
        await answer.content.readany()
        first = time.monotonic() - began
        while await answer.content.readany():
            pass
    return first


if __name__ == "__main__":
    command(main)
