"""Commands of the node plugin: run it until Ctrl-C, and show what an inventory file stands for."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import aiohttp
import typer
from kubernetes.aio.config import ConfigException
from rich.console import Console
from rich.table import Table

from retinue_emulator.inventory import (
    Inventory,
    InventoryError,
    example_inventory,
    example_names,
    expand,
    load_inventory,
)

from .addresses import AddressError
from .apiserver import ApiError
from .noderegistration import ForeignNode
from .plugin import NodePlugin, PluginSettings

BEHIND_EXIT = 3
"""Exit code of a run in which the emulator could not keep up with its clock."""

_EXPECTED = (AddressError, ForeignNode, ApiError, ConfigException, aiohttp.ClientError, TimeoutError, OSError)

InventoryOption = Annotated[
    str, typer.Option("--inventory", help=f"An inventory file, or one of the examples {', '.join(example_names())}.")
]


def node_plugin(
    inventory: InventoryOption = "demo",
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Default: $KUBECONFIG, ~/.kube/config, or the pod's service account."
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option(min=0.001, envvar="RETINUE_SPEED", help="Divides all times of engines, pulls and back-off.")
    ] = 1.0,
    image_pull_seconds: Annotated[float, typer.Option(min=0, help="How long the download of an image takes.")] = 8.0,
    address_range: Annotated[
        str | None,
        typer.Option(
            help="Part of 127.0.0.0/8 for nodes and pods, such as 127.64.0.0/16; default: the first free one."
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address of /metrics, /healthz and /behind; on loopback also of /faults.")
    ] = "127.0.0.1",
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Their port; 0: any.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Leave nodes and pods behind at the end.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Run emulated nodes on a cluster until Ctrl-C; their pods run in this process."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    found = _read(inventory)
    settings = PluginSettings(speed, image_pull_seconds, address_range, metrics_port, keep, metrics_host)
    plugin = NodePlugin(found, kubeconfig=kubeconfig, settings=settings)
    try:
        asyncio.run(_run(plugin))
    except _EXPECTED as error:
        raise _failed(str(error) or type(error).__name__) from error
    except BaseExceptionGroup as group:
        # Nodes are registered side by side; the first refusal says it all.
        expected, other = group.split(_EXPECTED)
        if other is not None or expected is None:
            raise
        raise _failed(str(expected.exceptions[0])) from group
    if plugin.behind is not None:
        print(f"error: {plugin.behind}", file=sys.stderr)
        raise typer.Exit(BEHIND_EXIT)


def inventory(
    name: Annotated[str, typer.Argument(metavar="INVENTORY", help="A file or the name of an example.")],
) -> None:
    """Check an inventory file and show its nodes."""
    nodes = expand(_read(name))
    table = Table("node", "rack", "preset", "cpu", "memory", "devices", "domain", "taints", "fault")
    for node in nodes:
        devices = ", ".join(f"{count} {resource}" for resource, count in node.device_resources().items())
        taints = ", ".join(f"{taint.key}:{taint.effect}" for taint in node.taints)
        cells = (node.domain, taints, node.fault)
        memory = f"{node.memory_bytes / 2**30:.0f}Gi"
        cpu = f"{node.cpu_millis / 1000:g}"
        table.add_row(node.name, node.rack, node.preset, cpu, memory, devices or "-", *(cell or "-" for cell in cells))
    console = Console()
    console.print(table)
    totals = Counter(device.resource for node in nodes for device in node.devices)
    console.print(", ".join([f"{len(nodes)} nodes", *(f"{count} {name}" for name, count in sorted(totals.items()))]))


async def _run(plugin: NodePlugin) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with plugin:
        print(
            f"{len(plugin.nodes)} nodes at {plugin.address_range}, speed {plugin.clock.speed:g}; "
            f"http://{plugin.settings.http_host}:{plugin.http_port}/metrics; Ctrl-C stops",
            flush=True,
        )
        waiting = asyncio.create_task(stop.wait())
        failing = asyncio.create_task(plugin.run_until_failure())
        try:
            await asyncio.wait({waiting, failing}, return_when=asyncio.FIRST_COMPLETED)
            if failing.done():
                await failing
        finally:
            for task in (waiting, failing):
                task.cancel()
            await asyncio.gather(waiting, failing, return_exceptions=True)


def _read(name: str) -> Inventory:
    try:
        return example_inventory(name) if name in example_names() else load_inventory(Path(name))
    except InventoryError as error:
        print(f"error: {error.source} cannot be used:", *error.problems, sep="\n  ", file=sys.stderr)
        raise typer.Exit(2) from error


def _failed(message: str) -> typer.Exit:
    print(f"error: {message}", file=sys.stderr)
    return typer.Exit(1)
