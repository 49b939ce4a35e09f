"""The component tests, which run on a control plane of their own elsewhere, pass unchanged on this cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from .manifests import node_classes
from .session import REPOSITORY
from .world import World

pytestmark = pytest.mark.alone
# What needs the cluster; the others of tests/component start what they need themselves.
MODULES = (
    *("agent_cluster", "dra_cluster", "gateway_cluster", "nodeplugin_cluster"),
    *("rbac_denied", "shell_process", "shell_rights", "shell_runtime"),
)


@pytest.fixture
def bare(world: World) -> Iterator[World]:
    """The cluster without the release, for an operator that runs on this machine. Its own nodes take no pods: the
    engines of these tests live on emulated nodes, whose addresses only this machine reaches.
    """
    names = [node["metadata"]["name"] for node in world.get("nodes")["items"]]
    world.release.uninstall()
    world.kubectl("cordon", *names)
    try:
        yield world
    finally:
        # The tests leave the rights that they were given, under the names that the chart uses.
        world.kubectl("delete", "-f", str(REPOSITORY / "deploy"), "--ignore-not-found", timeout=180)
        world.kubectl("uncordon", *names)
        world.release.install(world.values)
        world.apply(*node_classes(world.speed))


def test_the_component_suite_passes_here(bare: World) -> None:
    modules = [f"tests/component/test_{name}.py" for name in MODULES]
    report = bare.artifacts / "component-suite.txt"
    began = time.monotonic()
    with report.open("w") as out:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *modules, "-q", "-p", "no:cacheprovider", "--durations=15"],
            cwd=REPOSITORY,
            env={**os.environ, "RETINUE_KUBECONFIG": str(bare.access.kubeconfig)},
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        )
    bare.figure("component suite on kind", time.monotonic() - began, "s", f"{len(MODULES)} modules")
    assert done.returncode == 0, "\n".join(report.read_text().splitlines()[-30:])
