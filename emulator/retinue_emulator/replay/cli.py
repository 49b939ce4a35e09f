"""``retinue-emulator replay``: run a trace against a gateway, show what is in one, generate the reference session."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.live import Live

from retinue_emulator.replay import agentic, data
from retinue_emulator.replay.events import Trace, TraceError
from retinue_emulator.replay.generator import reference_trace
from retinue_emulator.replay.load import Format, load
from retinue_emulator.replay.oracle import expected_hit
from retinue_emulator.replay.records import RequestRecord
from retinue_emulator.replay.rows import TraceFormatError
from retinue_emulator.replay.runner import Replay, ReplayOptions, ReplayResult
from retinue_emulator.replay.tables import progress_table, session_table, summary_table, trace_table

app = typer.Typer(help="Replay recorded and generated agent sessions.", no_args_is_help=True)

_REFRESH_SECONDS = 0.5


def open_trace(source: str, format_name: Format | None = None) -> Trace:
    """A trace by file path, or packaged: ``demo``, ``sessions-64``, ``trace_0712``, ``mooncake``, ``reference``.

    Ends the command with one clear line if it cannot be read.
    """
    packaged = {
        "demo": data.DEMO_SESSIONS,
        "sessions-64": data.SESSIONS_64,
        "trace_0712": data.TRACE_0712,
        "mooncake": data.MOONCAKE_CONVERSATION,
    }
    try:
        if source == "reference":
            return reference_trace()
        return load(data.path(packaged[source]) if source in packaged else Path(source), format_name)
    except (TraceFormatError, TraceError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


FormatOption = Annotated[Format | None, typer.Option("--format", help="Format of the file; default: by its content.")]
SourceArgument = Annotated[
    str, typer.Argument(help="A trace file, or one of demo, sessions-64, trace_0712, mooncake, reference.")
]


@app.command()
def show(
    source: SourceArgument,
    format_name: FormatOption = None,
    sessions: Annotated[int, typer.Option(help="How many sessions to list.", min=0)] = 20,
) -> None:
    """Statistics of a trace and its first sessions."""
    trace = open_trace(source, format_name)
    console = Console()
    console.print(trace_table(trace, expected_hit(trace)))
    if sessions:
        console.print(session_table(trace, sessions))


@app.command()
def generate(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; - for standard output.")] = Path("-"),
    count: Annotated[int, typer.Option(help="Number of reference sessions.", min=1)] = 1,
    ramp: Annotated[float, typer.Option(help="Seconds over which they start.", min=0)] = 0.0,
    compact: Annotated[bool, typer.Option(help="Write block ids as [first, count] runs (smaller).")] = False,
) -> None:
    """Write the reference session as agentic-Mooncake rows (JSON Lines)."""
    lines = agentic.dump(reference_trace(count, ramp=ramp), compact=compact)
    if output == Path("-"):
        sys.stdout.writelines(lines)
    else:
        output.write_text("".join(lines), encoding="utf-8")


@app.command()
def run(
    source: SourceArgument,
    url: Annotated[str, typer.Option(help="Base URL of the gateway.")],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Namespace of the AgentPool.")] = "default",
    agent_pool: Annotated[str, typer.Option(help="Name of the AgentPool.")] = "coder",
    speed: Annotated[float, typer.Option(help="Speed of the emulator: divides all gaps.", min=0.001)] = 1.0,
    ramp: Annotated[
        float | None, typer.Option(help="Start the sessions over so many model seconds; default: as recorded.")
    ] = None,
    max_gap: Annotated[float | None, typer.Option(help="Cut longer gaps to so many model seconds.")] = None,
    main_role: Annotated[str, typer.Option(help="AgentPool role for main agents.")] = "primary",
    subagent_role: Annotated[str, typer.Option(help="AgentPool role for sub-agents.")] = "explorer",
    timeout: Annotated[float | None, typer.Option(help="Stop after so many wall seconds.")] = None,
    records: Annotated[Path | None, typer.Option(help="Write one JSON line per request to this file.")] = None,
    summary: Annotated[Path | None, typer.Option(help="Write the summary as JSON to this file.")] = None,
    format_name: FormatOption = None,
) -> None:
    """Replay a trace closed-loop through a gateway; exits 1 if a session failed."""
    trace = open_trace(source, format_name)
    if ramp is not None:
        trace = trace.staggered(ramp)
    options = ReplayOptions(
        base_url=url,
        namespace=namespace,
        agent_pool=agent_pool,
        speed=speed,
        main_model=main_role,
        subagent_model=subagent_role,
        max_gap=max_gap,
        run_timeout=timeout,
    )
    console = Console(stderr=True)
    with ExitStack() as stack:
        sink = stack.enter_context(records.open("w", encoding="utf-8")) if records is not None else None
        result = asyncio.run(_run(trace, options, sink, console))
    report = result.summary()
    if summary is not None:
        summary.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    Console().print(summary_table(report, expected_hit(trace)))
    for failed in report.failed_sessions:
        typer.echo(f"session {failed.id}: {failed.error}", err=True)
    if report.failed_sessions:
        raise typer.Exit(1)


async def _run(trace: Trace, options: ReplayOptions, sink: TextIO | None, console: Console) -> ReplayResult:
    def write(record: RequestRecord) -> None:
        if sink is not None:
            sink.write(record.as_json(options.speed) + "\n")

    replay = Replay(trace, options, on_record=write)
    task = asyncio.create_task(replay.run())
    with Live(progress_table(replay.progress), console=console, auto_refresh=False, transient=True) as live:
        while not task.done():
            await asyncio.wait([task], timeout=_REFRESH_SECONDS)
            live.update(progress_table(replay.progress), refresh=True)
    return task.result()
