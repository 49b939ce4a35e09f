"""`retinue-emulator kind`: a kind cluster with the product on it, brought up and taken away."""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from retinue_emulator.checkout import find_checkout
from retinue_emulator.loopback import LoopbackError
from retinue_emulator.loopback.toolset import PROMETHEUS_VERSION
from retinue_emulator.stages import Stages

from . import bringup
from .cluster import KindCluster
from .images import build_images
from .layout import TESTS, values
from .machine import find_machine

app = typer.Typer(help="A kind cluster with Retinue on it.", no_args_is_help=True)

Name = Annotated[str, typer.Option(help="Name of the cluster.")]
State = Annotated[Path | None, typer.Option(help="Folder for kubeconfig and audit log; default: one per name.")]


@app.command()
def up(
    name: Name = "retinue",
    state: State = None,
    speed: Annotated[float, typer.Option(min=1, help="How many times faster than real engines run.")] = 12.0,
    install: Annotated[bool, typer.Option(help="Install the chart; otherwise only cluster and images.")] = True,
) -> None:
    """Build images, make the cluster, load them and install the chart; prints the line that makes kubectl use it."""
    stages = Stages(Console(stderr=True))

    async def work() -> KindCluster:
        cluster = await bringup.bring_up(name, state or state_folder(name), stages)
        if install:
            await bringup.install(cluster, values(name, speed=speed, prometheus_tag=PROMETHEUS_VERSION), stages)
        return cluster

    try:
        cluster = asyncio.run(work())
    except LoopbackError as error:
        raise _failed(error) from error
    typer.echo(f"export KUBECONFIG={shlex.quote(str(cluster.access.kubeconfig))}")
    typer.echo(f"gateway: {cluster.gateway_url}", err=True)


@app.command()
def images() -> None:
    """Build the images only, as `up` does before it makes the cluster, so that a later `up` finds them made."""
    try:
        machine = find_machine()
        typer.echo(build_images(find_checkout().root, machine, Path(sys.executable)), nl=False)
    except LoopbackError as error:
        raise _failed(error) from error


@app.command()
def down(name: Name = "retinue", state: State = None) -> None:
    """Delete the cluster."""
    try:
        folder = state or state_folder(name)
        KindCluster(name, find_machine(), folder, Path("kubectl")).delete()
    except LoopbackError as error:
        raise _failed(error) from error


@app.command(name="inventory")
def show_inventory(name: Name = "retinue") -> None:
    """Print the inventory of the cluster's nodes, for the chart's emulator.inventory."""
    typer.echo(TESTS.inventory(name), nl=False)


def state_folder(name: str) -> Path:
    """The folder of a cluster that was made without naming one."""
    return Path(tempfile.gettempdir()) / f"retinue-kind-{name}"


def _failed(error: LoopbackError) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(1)
