"""A newer CRD with a field that this operator does not know: it goes on, engines stay, and the old CRD comes back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from retinue_emulator.kind.release import Release

from .manifests import decode_pool
from .world import World, uids

pytestmark = pytest.mark.alone
_CRD = Path("templates/crds/retinue.dev_decodepools.yaml")
_BEFORE = "              rollout:\n"
# With a default, so that the API server puts it into every object that is there already.
_FIELD = "              flavour: {type: string, maxLength: 16, default: plain}\n"


@pytest.fixture
def newer(world: World, tmp_path: Path) -> Release:
    """This version's chart with one more optional field in spec of a DecodePool."""
    chart = tmp_path / "retinue"
    shutil.copytree(world.release.chart, chart)
    text = (chart / _CRD).read_text(encoding="utf-8")
    assert text.count(_BEFORE) == 1
    (chart / _CRD).write_text(text.replace(_BEFORE, _FIELD + _BEFORE), encoding="utf-8")
    return Release(world.access, world.release.helm, chart, world.release.name, world.release.namespace)


async def test_a_field_added_to_a_crd_disturbs_neither_operator_nor_engines(
    world: World, namespace: str, newer: Release
) -> None:
    world.apply(decode_pool(namespace, "old", 1))
    await world.replicas(namespace, "dp", "old", 1)
    engines, product = uids(world.pods(namespace)), _product(world)
    try:
        await asyncio.to_thread(newer.install, world.values)
        assert world.get("dp", "old", "-n", namespace)["spec"]["flavour"] == "plain"

        world.apply(decode_pool(namespace, "new", 1, flavour="vanilla"))
        await world.replicas(namespace, "dp", "new", 1)
        world.kubectl("scale", "dp", "old", "-n", namespace, "--replicas=2")
        await world.replicas(namespace, "dp", "old", 2)
        assert world.get("dp", "new", "-n", namespace)["spec"]["flavour"] == "vanilla"
        assert engines < uids(world.pods(namespace))
        engines = uids(world.pods(namespace))
    finally:
        await asyncio.to_thread(world.release.install, world.values)

    # What the older CRD does not know is dropped; the engines have never heard of it.
    assert "flavour" not in world.get("dp", "new", "-n", namespace)["spec"]
    world.kubectl("scale", "dp", "old", "-n", namespace, "--replicas=1")
    await world.replicas(namespace, "dp", "old", 1)
    assert uids(world.pods(namespace)) < engines
    assert _product(world) == product


def _product(world: World) -> set[tuple[str, int]]:
    """Pods of operator and gateway, and how often their containers were started again."""
    return {
        (pod["metadata"]["uid"], status["restartCount"])
        for component in ("operator", "gateway")
        for pod in world.system_pods(component).values()
        for status in pod["status"]["containerStatuses"]
    }
