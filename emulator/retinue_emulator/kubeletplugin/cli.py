"""The command `kubelet-plugin`: gives the kubelet of this node the devices that the inventory says, until SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer
from kubernetes.aio.config import ConfigException

from retinue_emulator.inventory import InventoryError, example_inventory, example_names, load_inventory
from retinue_emulator.nodeplugin.apiserver import ApiError, ApiServer

_EXPECTED = (ApiError, ConfigException, aiohttp.ClientError, TimeoutError, LookupError, ValueError, OSError)


def kubelet_plugin(
    node: Annotated[str, typer.Option(envvar="NODE_NAME", help="Name of this node, as the kubelet registered it.")],
    inventory: Annotated[
        str, typer.Option(help=f"An inventory file, or one of the examples {', '.join(example_names())}.")
    ] = "demo",
    kubeconfig: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Default: the pod's service account.")
    ] = None,
    devices_by: Annotated[
        str, typer.Option(help="How accelerators reach pods: device-plugin (extended resources) or dra (claims).")
    ] = "device-plugin",
    kubelet_dir: Annotated[Path, typer.Option(help="The kubelet's root folder.")] = Path("/var/lib/kubelet"),
    cdi_dir: Annotated[Path, typer.Option(help="Where the container runtime reads CDI files.")] = Path("/var/run/cdi"),
    cdi: Annotated[bool, typer.Option(help="Name CDI devices in device plugin answers.")] = True,
    metrics_host: Annotated[str, typer.Option(help="Address of /metrics, /livez and /readyz.")] = "0.0.0.0",
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="Their port; 0: any.")] = 9400,
    cleanup: Annotated[
        bool, typer.Option("--cleanup", help="Remove slices, labels, taints and CDI files at the end.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log more.")] = False,
) -> None:
    """Give the kubelet of this node emulated devices until SIGTERM; run it as a DaemonSet."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    # Imported here: the other commands run without grpcio.
    from .paths import NodePaths
    from .plugin import KubeletPlugin, KubeletPluginSettings, OfferedBy, find_node
    from .statusserver import StatusServer

    async def run() -> None:
        found = example_inventory(inventory) if inventory in example_names() else load_inventory(Path(inventory))
        settings = KubeletPluginSettings(
            offered_by=OfferedBy(devices_by), paths=NodePaths(kubelet_dir, cdi_dir), cdi=cdi, cleanup=cleanup
        )
        async with await ApiServer.connect(kubeconfig) as api:
            plugin = KubeletPlugin(find_node(found, node), found.cluster, api, settings)
            async with StatusServer(plugin, lambda: plugin.ready, host=metrics_host, port=metrics_port) as server:
                print(f"{len(plugin.devices)} devices; {server.address[0]}:{server.address[1]}/metrics", flush=True)
                await _until_signal(plugin.run())

    try:
        asyncio.run(run())
    except InventoryError as error:
        raise _failed("\n".join(f"{error.source}: {problem}" for problem in error.problems)) from error
    except _EXPECTED as error:
        raise _failed(str(error) or type(error).__name__) from error
    except BaseExceptionGroup as group:
        # The plugin's tasks run side by side; the first refusal says it all.
        expected, other = group.split(_EXPECTED)
        if other is not None or expected is None:
            raise
        raise _failed(_first(expected)) from group


async def _until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Runs until SIGINT or SIGTERM, or until the work fails."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else str(error) or type(error).__name__


def _failed(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(1)
