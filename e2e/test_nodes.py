"""Nodes that are drained, lose their kubelet, or die: instances move, streams end as they may, and nodes come back."""

import asyncio
import time
from functools import partial

import pytest

from .clients import Stream, begin, client, stream
from .manifests import Object, decode_pool, pool_of
from .world import World, condition

pytestmark = pytest.mark.alone

SLOW = {"type": "Simulated", "args": ["--speed=0.1", "--cold-start-seconds=0.1"]}


async def test_a_drained_node_gives_its_instances_away_without_cutting_a_stream(world: World, namespace: str) -> None:
    world.apply(decode_pool(namespace, "guest", 2, engine=SLOW), pool_of(namespace, "guest"))
    await world.ready(namespace, "agentpool", "solo")
    await world.replicas(namespace, "dp", "guest", 2)
    node = _node(world, namespace, "guest")
    try:
        async with client(world.base_url(namespace, "solo")) as agents:
            running = await begin(agents, 6, tokens=500)
            began = time.monotonic()
            flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=150s")
            drain = asyncio.create_task(asyncio.to_thread(lambda: world.kubectl("drain", node, *flags, timeout=160)))
            await world.until(lambda: _served_elsewhere(world, namespace, "guest", 2, node), "others serve elsewhere")
            world.figure("kubectl drain to all instances serving elsewhere", time.monotonic() - began, "s")
            late = await stream(agents, "late", tokens=5)
            assert (late.finished, late.error) == (True, None)
            ended = [await task for task in running]
            await drain
        assert {(s.tokens, s.finished, s.error) for s in ended} == {(500, True, None)}

        world.kubectl("scale", "dp", "guest", "-n", namespace, "--replicas=3")
        await world.replicas(namespace, "dp", "guest", 3)
        assert node not in _nodes(world, namespace, "guest")
    finally:
        world.kubectl("uncordon", node)
        await world.settled()
    await _usable_again(world, namespace, node)


async def test_a_dead_kubelet_and_a_dead_node_are_replaced_and_come_back_clean(world: World, namespace: str) -> None:
    # Where the kubelet stops, the engine runs on; a node that is gone takes it along. Only one node has class b200.
    world.apply(
        decode_pool(namespace, "orphan", 1, engine=SLOW),
        decode_pool(namespace, "victim", 1, engine=SLOW, nodeClasses=["b200", "h200"]),
        pool_of(namespace, "orphan", "left"),
        pool_of(namespace, "victim", "lost"),
    )
    for name in ("left", "lost"):
        await world.ready(namespace, "agentpool", name)
    orphaned, killed = _node(world, namespace, "orphan"), _node(world, namespace, "victim")
    machine = world.machine()
    try:
        async with client(world.base_url(namespace, "left")) as left, client(world.base_url(namespace, "lost")) as lost:
            kept = await begin(left, 4, tokens=600)
            cut = await begin(lost, 2, tokens=3000, prefix="v")
            began = time.monotonic()
            machine.in_node(orphaned, "systemctl", "stop", "kubelet")
            machine.engine("kill", killed)
            for pool, node in (("orphan", orphaned), ("victim", killed)):
                await world.until(
                    partial(_served_elsewhere, world, namespace, pool, 1, node),
                    f"{pool} is served by another node",
                    timeout=150,
                )
                how = "kubelet stopped" if pool == "orphan" else "node killed"
                figure = f"{how} to its instance serving elsewhere"
                world.figure(figure, time.monotonic() - began, "s", "NotReady after 20 s, replaced 30 s later")
                events = world.events(namespace, "DecodePool", pool)
                assert f"InstanceFailed replacing {pool}-decode-0: node {node} is NotReady for" in events
            assert {(s.tokens, s.finished, s.error) for s in [await task for task in kept]} == {(600, True, None)}
            # Nobody said that the connection was gone; the gateway found out.
            broken: list[Stream] = [await task for task in cut]
            assert all(s.error is not None and not s.finished for s in broken)
            again = await stream(lost, "v0", tokens=5)
            assert (again.finished, again.error) == (True, None)
        ready = world.get("nodeclass", "b200")
        assert (ready["status"]["nodes"], ready["status"]["readyNodes"]) == (1, 0)
        assert condition(ready, "Ready")["reason"] == "NoReadyNodes"
    finally:
        machine.in_node(orphaned, "systemctl", "start", "kubelet")
        machine.engine("start", killed)
        await world.settled()

    async def clean() -> bool:
        return not any("deletionTimestamp" in pod["metadata"] for pod in _all_pods(world, namespace))

    await world.until(clean, "no stale pod is left", timeout=60)
    for pool in ("orphan", "victim"):
        await world.replicas(namespace, "dp", pool, 1)
    await world.conditioned("", "nodeclass", "b200", "Ready", "True")
    await _usable_again(world, namespace, orphaned)
    await _usable_again(world, namespace, killed, "b200")


async def _usable_again(world: World, namespace: str, node: str, node_class: str = "h200") -> None:
    """An instance that may run nowhere else becomes Ready on the node."""
    pinned = {"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}}
    name = f"again-{node.rsplit('-', 1)[-1]}"
    world.apply(decode_pool(namespace, name, 1, nodeClasses=[node_class], podTemplate=pinned))
    await world.replicas(namespace, "dp", name, 1)
    assert _nodes(world, namespace, name) == {node}


async def _served_elsewhere(world: World, namespace: str, pool: str, count: int, node: str) -> bool:
    live = world.pods(namespace, f"retinue.dev/pool={pool}").values()
    ready = [pod for pod in live if condition(pod, "Ready").get("status") == "True"]
    return len(ready) == count and all(pod["spec"]["nodeName"] != node for pod in ready)


def _all_pods(world: World, namespace: str) -> list[Object]:
    return list(world.get("pods", "-n", namespace)["items"])


def _nodes(world: World, namespace: str, pool: str) -> set[str]:
    pods = world.pods(namespace, f"retinue.dev/pool={pool}").values()
    return {pod["spec"].get("nodeName", "") for pod in pods}


def _node(world: World, namespace: str, pool: str) -> str:
    return sorted(_nodes(world, namespace, pool))[0]
