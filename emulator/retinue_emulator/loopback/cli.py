"""Commands for the loopback control plane: build its binaries, run one until Ctrl-C, show where binaries come from."""

import asyncio
import shlex
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from .build import ensure_tools
from .controlplane import ControlPlane
from .errors import LoopbackError
from .locate import current_search, find
from .toolset import TOOLS

app = typer.Typer(
    name="loopback",
    help="A real Kubernetes control plane on 127.0.0.1, without containers.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def build(
    tools: Annotated[list[str] | None, typer.Argument(help="Tools to build; helm3 and helm4 only if named.")] = None,
) -> None:
    """Build the binaries that are found nowhere; does nothing when there is nothing to do."""
    _run(_build(tuple(tools or TOOLS)))


@app.command()
def up(
    state: Annotated[
        Path | None, typer.Option(help="Folder for data, keys and logs; kept, and continued by the next `up` on it.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder after the stop.")] = False,
    audit: Annotated[bool, typer.Option("--audit", help="Record who wrote what in logs/audit.log.")] = False,
) -> None:
    """Run a control plane until Ctrl-C and print the line that makes kubectl use it."""
    _run(_up(state, keep=keep, audit=audit))


@app.command()
def where() -> None:
    """Show the cache folder and where each binary comes from."""
    search = current_search()
    typer.echo(f"cache {search.cache}")
    try:
        for name, tool in TOOLS.items():
            location = find(tool, search)
            typer.echo(f"{name:24} " + (f"{location.source:18} {location.path}" if location else "missing"))
    except LoopbackError as error:
        raise _failed(error) from error


async def _build(names: tuple[str, ...]) -> None:
    paths = await ensure_tools(names)
    for name, path in paths.items():
        typer.echo(f"{name:24} {path}")


async def _up(state: Path | None, *, keep: bool, audit: bool) -> None:
    async with ControlPlane(state=state, keep=keep, audit=audit) as cluster:
        typer.echo(f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}")
        typer.echo(f"{cluster.server} is ready, logs are in {cluster.logs}; Ctrl-C stops it", err=True)
        await cluster.run_until_failure()


def _run(work: Coroutine[None, None, None]) -> None:
    """Runs a command; Ctrl-C and SIGTERM both end it in order, an expected failure is one line and status 1."""

    async def until_terminated() -> None:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work

    # A script's background job starts with SIGINT ignored, and Python then leaves it so: whoever sends it means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with suppress(asyncio.CancelledError):
            asyncio.run(until_terminated())
    except LoopbackError as error:
        raise _failed(error) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _failed(error: LoopbackError) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(1)
