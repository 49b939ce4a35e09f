"""A kubelet or the device plugin starts anew: devices come back, and those that pods hold are given to nobody else."""

import time

import pytest

from .devices import GPU, NIC, Seen, amount, distinct, offered, seen, when
from .manifests import decode_pool
from .world import World, uids

pytestmark = pytest.mark.alone


async def test_engines_keep_their_devices_over_restarts_of_kubelet_and_plugin(world: World, namespace: str) -> None:
    machine = world.machine()
    world.apply(decode_pool(namespace, "steady", 2, parallelism={"tensor": 2}))
    await world.replicas(namespace, "dp", "steady", 2, 180)
    before = _views(world, namespace)
    engines = uids(world.pods(namespace))
    # Both engines and all later ones on the node that is disturbed, as long as it has room.
    node = before["steady-decode-0-0"].node
    devices = {resource: len(offered(world)[node].by_id(resource)) for resource in (GPU, NIC)}
    taken = _registrations(world, node)
    began = time.monotonic()
    try:
        machine.in_node(node, "systemctl", "restart", "kubelet")
        await world.until(when(lambda: _registrations(world, node) >= taken + 2), "the plugin registers both resources")
        await world.until(
            when(lambda: {resource: amount(world, node, resource) for resource in devices} == devices),
            "all devices are allocatable",
        )
        world.figure(
            "kubelet restart to devices back", time.monotonic() - began, "s", "systemctl restart to Node status"
        )
        await world.node_ready(node)
        await _grows_without_double_use(world, namespace, 4)

        (plugin,) = [name for name, pod in world.system_pods("emulator").items() if pod["spec"]["nodeName"] == node]
        world.kubectl("delete", "pod", plugin, "-n", world.release.namespace)
        await world.until(when(lambda: _plugin_ready(world, node, plugin)), "another plugin pod serves the node")
        await world.until(when(lambda: amount(world, node, GPU) == devices[GPU]), "all GPUs are allocatable")
        await _grows_without_double_use(world, namespace, 6)
    finally:
        machine.in_node(node, "systemctl", "start", "kubelet")
        await world.node_ready(node)
    after = _views(world, namespace)
    assert {name: (after[name].node, after[name].ids()) for name in before} == {
        name: (view.node, view.ids()) for name, view in before.items()
    }
    assert engines <= uids(world.pods(namespace))
    events = world.events(namespace, "DecodePool", "steady")
    assert "InstanceRestarted" not in events
    assert "DeviceUnhealthy" not in events


async def _grows_without_double_use(world: World, namespace: str, replicas: int) -> None:
    world.kubectl("scale", "dp", "steady", "-n", namespace, f"--replicas={replicas}")
    await world.replicas(namespace, "dp", "steady", replicas, 180)
    views = _views(world, namespace)
    assert sum(len(view.ids()) for view in views.values()) == 2 * replicas
    assert distinct(views.values())


def _views(world: World, namespace: str) -> dict[str, Seen]:
    return {pod: seen(world, namespace, pod) for pod in world.pods(namespace)}


def _registrations(world: World, node: str) -> float:
    """How often the kubelet of the node has taken the plugin."""
    pods = world.system_pods("emulator").items()
    pod = next(name for name, found in pods if found["spec"]["nodeName"] == node)
    return sum(value for _, value in world.query(f'retinue_kubeletplugin_registrations_total{{pod="{pod}"}}'))


def _plugin_ready(world: World, node: str, old: str) -> bool:
    return any(
        name != old
        and found["spec"]["nodeName"] == node
        and any(c["type"] == "Ready" and c["status"] == "True" for c in found["status"].get("conditions", []))
        for name, found in world.system_pods("emulator").items()
    )
