"""From nothing to a kind cluster that has every image, and to the release on it, with progress."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retinue_emulator.checkout import find_checkout
from retinue_emulator.loopback import ensure_tools
from retinue_emulator.stages import Stages

from .cluster import KindCluster
from .images import build_images, build_prometheus, own_images
from .layout import TESTS, Nodes
from .machine import find_machine
from .release import Release


async def bring_up(name: str, state: Path, stages: Stages, nodes: Nodes = TESTS) -> KindCluster:
    """Builds binaries and images, makes the cluster `name` with its files in `state`, and loads the images.

    What is there already is not built again. Raises LoopbackError with what to do; a cluster that was begun is deleted.
    """
    root = find_checkout().root
    with stages.stage("Binaries") as stage:
        tools = await ensure_tools(("kubectl", "prometheus", "helm4"))
        stage.done(str(tools["kubectl"].parent))
    with stages.stage("Container engine, kind, node image", spinner=False) as stage:
        machine = await asyncio.to_thread(find_machine)
        stage.done(machine.node_image or "kind's own node image")
    with stages.stage("Images", spinner=False) as stage:
        built = await asyncio.to_thread(build_images, root, machine, Path(sys.executable))
        prometheus = await asyncio.to_thread(build_prometheus, tools["prometheus"], machine)
        stage.done(", ".join(line for line in built.splitlines() if line.endswith(" MB")))
    cluster = KindCluster(name, machine, state, tools["kubectl"])
    try:
        with stages.stage("Cluster") as stage:
            stage.update("kind create cluster")
            await asyncio.to_thread(cluster.create, nodes)
            stage.done(f"{len(cluster.nodes)} nodes")
        with stages.stage("Images into the nodes") as stage:
            stage.update("kind load docker-image")
            await asyncio.to_thread(cluster.load, *own_images(root), prometheus)
            stage.done("loaded")
    except BaseException:
        await asyncio.to_thread(cluster.delete)
        raise
    return cluster


async def install(cluster: KindCluster, wanted: Mapping[str, Any], stages: Stages) -> Release:
    """Installs this checkout's chart with these values on a cluster that was brought up. Raises LoopbackError."""
    tools = await ensure_tools(("helm4",))
    release = Release(cluster.access, tools["helm4"], find_checkout().root / "charts" / "retinue")
    with stages.stage("helm install") as stage:
        stage.update("waiting until all of it is Ready")
        await asyncio.to_thread(release.install, wanted)
        stage.done(f"release {release.name} in {release.namespace}")
    return release
