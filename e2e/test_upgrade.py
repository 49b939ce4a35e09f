"""The chart upgraded from the previous version: engines and streams go on, CRDs and statuses become the new ones."""

from __future__ import annotations

import asyncio
import time

import pytest
import yaml

from retinue_emulator.kind.release import Release

from .clients import begin, client
from .manifests import decode_pool, engine, pool_of
from .previous import REPOSITORY, provide, unpack, values_for
from .world import Object, World, condition, uids

pytestmark = pytest.mark.alone
STREAMS = 20
# At this pace a stream outlasts the gateway that began it.
SLOW, TOKENS = 0.02, 300


@pytest.fixture
def previous(world: World) -> Release:
    """The previous version in the place of this one, its images in the nodes; undone when the test ends."""
    if world.kind is None:
        pytest.skip("the images of the previous version are made for a kind cluster of ours only")
    source = unpack(world.release.access.scratch)
    provide(source, world.kind, world.kind.workers[0])
    return Release(world.access, world.release.helm, source.chart, world.release.name, world.release.namespace)


async def test_an_upgrade_from_the_previous_version_restarts_no_engine_and_cuts_no_stream(
    world: World, namespace: str, previous: Release
) -> None:
    old = values_for(previous.chart, world.values)
    # The images of the previous version are in one node only.
    old["operator"] = {"nodeSelector": {"kubernetes.io/hostname": world.machine().workers[0]}}
    # Devices stay under the present emulator: only the product changes.
    old["emulator"]["image"] = {"tag": _version(world.release)}
    image = f"retinue/emulator:{_version(world.release)}"
    slow = engine(SLOW, image=image)
    upgrade: asyncio.Task[str] | None = None
    try:
        await asyncio.to_thread(previous.install, old)
        assert _images(world) == {f"retinue/{name}:{_version(previous)}" for name in ("operator", "gateway")}
        assert not _crds_are_current(world)
        world.apply(
            decode_pool(namespace, "busy", 2, engine=slow),
            decode_pool(namespace, "idle", 1, engine=engine(image=image)),
            pool_of(namespace, "busy"),
        )
        await world.replicas(namespace, "dp", "busy", 2)
        await world.replicas(namespace, "dp", "idle", 1)
        await world.ready(namespace, "agentpool", "solo")
        before = world.pods(namespace)

        async with client(world.base_url(namespace, "solo")) as agents:
            running = await begin(agents, STREAMS, tokens=TOKENS)
            gateways = uids(world.system_pods("gateway"))
            began = time.monotonic()
            upgrade = asyncio.create_task(asyncio.to_thread(world.release.install, world.values))
            await world.until(lambda: _replaced(world, gateways), "the gateway is replaced", timeout=180)
            assert not any(task.done() for task in running), "streams are to outlast the gateway that began them"
            await upgrade
            world.figure("helm upgrade from 0.1.0", time.monotonic() - began, "s", f"{STREAMS} streams running")
            ended = [await task for task in running]
        assert {(s.tokens, s.finished, s.error) for s in ended} == {(TOKENS, True, None)}
        assert len({s.instance for s in ended}) == 2
    finally:
        if upgrade is not None:
            await asyncio.wait({upgrade})
        if upgrade is None or upgrade.exception() is not None:
            await asyncio.to_thread(world.release.install, world.values)

    assert _images(world) == {f"retinue/{name}:{_version(world.release)}" for name in ("operator", "gateway")}
    assert _crds_are_current(world)
    # The new operator looks after what the old one made: a status follows the spec, and nothing else moves.
    world.kubectl("scale", "dp", "idle", "-n", namespace, "--replicas=2")
    await world.replicas(namespace, "dp", "idle", 2)
    await world.ready(namespace, "agentpool", "solo")
    after = world.pods(namespace)
    assert uids(before) <= uids(after)
    assert len(after) == len(before) + 1
    restarts = [s["restartCount"] for pod in after.values() for s in pod["status"]["containerStatuses"]]
    assert set(restarts) == {0}


async def _replaced(world: World, gateways: set[str]) -> bool:
    """Whether another gateway is Ready and the former are going."""
    now = world.system_pods("gateway")
    ready = all(condition(pod, "Ready").get("status") == "True" for pod in now.values())
    return bool(now) and ready and not gateways & uids(now)


def _version(release: Release) -> str:
    """The version of a release's chart."""
    return str(yaml.safe_load((release.chart / "Chart.yaml").read_text(encoding="utf-8"))["appVersion"])


def _crds_are_current(world: World) -> bool:
    """Whether the cluster's CRDs have the schemas of this version."""
    served = {crd["metadata"]["name"]: crd["spec"]["versions"] for crd in world.get("crds")["items"]}
    files = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "crds").glob("*.yaml"))
    wanted = {crd["metadata"]["name"]: crd["spec"]["versions"] for crd in files}
    return {name: _schemas(served[name]) for name in wanted} == {name: _schemas(v) for name, v in wanted.items()}


def _schemas(versions: list[Object]) -> list[Object]:
    return [version["schema"] for version in versions]


def _images(world: World) -> set[str]:
    """The images that operator and gateway run."""
    pods = (pod for component in ("operator", "gateway") for pod in world.system_pods(component).values())
    return {container["image"].removeprefix("docker.io/") for pod in pods for container in pod["spec"]["containers"]}
