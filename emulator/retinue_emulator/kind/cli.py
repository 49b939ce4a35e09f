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

from retinue_emulator.demo.checkout import find_checkout
from retinue_emulator.demo.stages import Stages
from retinue_emulator.loopback import LoopbackError, ensure_tools
from retinue_emulator.loopback.toolset import PROMETHEUS_VERSION

from .cluster import KindCluster
from .images import build_images, build_prometheus, own_images
from .layout import inventory, values
from .machine import find_machine
from .release import Release

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
    try:
        cluster = bring_up(name, state or state_folder(name), stages)
        if install:
            install_release(cluster, stages, speed)
    except LoopbackError as error:
        raise _failed(error) from error
    typer.echo(f"export KUBECONFIG={shlex.quote(str(cluster.access.kubeconfig))}")
    typer.echo(f"gateway: {cluster.gateway_url}", err=True)


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
    typer.echo(inventory(name), nl=False)


def state_folder(name: str) -> Path:
    """The folder of a cluster that was made without naming one."""
    return Path(tempfile.gettempdir()) / f"retinue-kind-{name}"


def bring_up(name: str, state: Path, stages: Stages) -> KindCluster:
    """A new cluster with all images in it, and nothing installed."""
    root = find_checkout().root
    with stages.stage("Binaries") as stage:
        tools = asyncio.run(ensure_tools(("kubectl", "prometheus", "helm4")))
        stage.done(str(tools["kubectl"].parent))
    with stages.stage("Container engine, kind, node image", spinner=False) as stage:
        machine = find_machine()
        stage.done(machine.node_image or "kind's own node image")
    with stages.stage("Images", spinner=False) as stage:
        built = build_images(root, machine, Path(sys.executable))
        prometheus = build_prometheus(tools["prometheus"], machine)
        stage.done(", ".join(line for line in built.splitlines() if line.endswith(" MB")))
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    cluster = KindCluster(name, machine, state, tools["kubectl"])
    with stages.stage("Cluster") as stage:
        stage.update("kind create cluster")
        cluster.create()
        stage.done(f"{len(cluster.nodes)} nodes")
    with stages.stage("Images into the nodes") as stage:
        cluster.load(*own_images(root), prometheus)
        stage.done("loaded")
    return cluster


def install_release(cluster: KindCluster, stages: Stages, speed: float) -> Release:
    """The chart of this checkout on the cluster, Ready."""
    tools = asyncio.run(ensure_tools(("helm4",)))
    release = Release(cluster.access, tools["helm4"], find_checkout().root / "charts" / "retinue")
    with stages.stage("helm install") as stage:
        release.install(values(cluster.name, speed=speed, prometheus_tag=PROMETHEUS_VERSION))
        stage.done(f"release {release.name} in {release.namespace}")
    return release


def _failed(error: LoopbackError) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(1)
