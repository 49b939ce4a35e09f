"""`retinue-emulator demo`: options, signals, exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from retinue_emulator.loopback import LoopbackError

from .scenario import RECORDED_SESSIONS

if TYPE_CHECKING:
    from .run import Demo


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster up after the run, until Ctrl-C.")] = False,
    speed: Annotated[
        float, typer.Option(min=1, max=100, help="How many times faster than real the emulated hardware runs.")
    ] = 12.0,
    sessions: Annotated[
        int, typer.Option(min=0, max=RECORDED_SESSIONS, help="Recorded sessions besides the reference session.")
    ] = RECORDED_SESSIONS,
    report: Annotated[Path, typer.Option(file_okay=False, help="Folder for the report.")] = Path("demo-report"),
    state: Annotated[
        Path | None, typer.Option(help="New folder for data, keys and logs, kept; default: a temporary one, removed.")
    ] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours and no live table.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Most wall seconds for the replay.")] = 420.0,
    cluster: Annotated[
        str, typer.Option(help="loopback (emulated nodes, no container engine) or kind (real kubelets and containers).")
    ] = "loopback",
) -> None:
    """Run the whole product on this machine: control plane, operator, gateway, emulated nodes, agent sessions.

    Ends by itself and exits with 1 if a session failed, a pool did not get Ready, the pools did not grow and shrink, or
    the emulator was behind its clock. Ctrl-C ends it at any time and leaves nothing behind.
    """
    # Imported here, because the other commands need nothing of it.
    from .run import ClusterKind, Demo, DemoOptions

    if cluster not in list(ClusterKind):
        raise typer.BadParameter(f"choose {' or '.join(ClusterKind)}", param_hint="--cluster")
    console = Console(no_color=no_color, force_terminal=False if no_color else None)
    options = DemoOptions(speed, sessions, report, state, keep, timeout, ClusterKind(cluster))
    raise typer.Exit(run_until_signal(Demo(options, console), console))


def run_until_signal(run: Demo, console: Console) -> int:
    """The exit code of the run. Ctrl-C and SIGTERM end it in order, a second one at once: its processes die with it."""
    received: list[signal.Signals] = []

    async def main() -> int:
        task = asyncio.current_task()
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            if received:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            received.append(number)
            console.print("stopping", highlight=False)
            if task is not None:
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        return await run.run()

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        # A cluster that was kept until now has served its purpose: the run's own result counts.
        return run.exit_code if run.exit_code is not None else 128 + (received[0] if received else signal.SIGINT)
    except LoopbackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
