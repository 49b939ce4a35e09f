"""Emulated nodes of one test, beside the test cluster, from an inventory of its own."""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from retinue.plan import Manifest
from retinue_emulator.loopback import ClusterAccess
from retinue_emulator.loopback.process import ChildProcess

from ..component.operatorprocess import LEASE
from ..component.product import REPOSITORY


@asynccontextmanager
async def emulated_nodes(
    cluster: ClusterAccess, folder: Path, inventory: str, speed: float, classes: Sequence[Manifest]
) -> AsyncIterator[None]:
    """A node plugin and NodeClasses until the block ends; the shipped rights are installed, and nobody holds the
    operator's lease."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "deploy"))
    cluster.kubectl("delete", *LEASE, "--ignore-not-found")
    (folder / "inventory.yaml").write_text(inventory)
    kubeconfig = cluster.service_account_kubeconfig("retinue-system", "retinue-emulator")
    plugin = ChildProcess.spawn(
        "node-plugin",
        [
            *(sys.executable, "-m", "retinue_emulator", "node-plugin"),
            *("--inventory", str(folder / "inventory.yaml"), "--speed", f"{speed:g}"),
            *("--kubeconfig", str(kubeconfig)),
        ],
        log=folder / "node-plugin.log",
    )
    try:
        cluster.apply(*classes)
        try:
            yield
        finally:
            names = (made["metadata"]["name"] for made in classes)
            cluster.kubectl("delete", "nodeclass", *names, "--ignore-not-found")
    finally:
        await plugin.stop(10)
