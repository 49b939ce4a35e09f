"""Broken devices, NICs, links and plugins on real kubelets: what is offered falls, what runs moves, and all heals."""

import time

from .devices import (
    GPU,
    LPU,
    NIC,
    Offered,
    amount,
    distinct,
    offered,
    plain_pod,
    reported,
    running,
    seen,
    set_fault,
    when,
)
from .manifests import decode_pool
from .world import World, condition


async def test_an_engine_on_a_device_that_breaks_is_replaced_by_another(world: World, namespace: str) -> None:
    world.apply(decode_pool(namespace, "fragile", 1))
    await world.replicas(namespace, "dp", "fragile", 1)
    first = seen(world, namespace, "fragile-decode-0-0")
    device = offered(world)[first.node].by_id(GPU)[first.ids()[0]]
    before = amount(world, first.node, GPU)
    try:
        began = time.monotonic()
        set_fault(world, first.node, f"device-unhealthy={device.index}")
        await world.until(when(lambda: amount(world, first.node, GPU) == before - 1), "a device less is allocatable")
        world.figure("device fault to allocatable", time.monotonic() - began, "s", "annotation to Node status")
        await world.until(
            when(lambda: "DeviceUnhealthy" in world.events(namespace, "DecodePool", "fragile")), "the pool tells of it"
        )
        told = world.events(namespace, "DecodePool", "fragile")
        assert f"fragile-decode-0: {GPU} {device.id} on node {first.node} is unhealthy" in told
        await world.until(when(lambda: "fragile-decode-0-0" not in world.pods(namespace)), "the instance is replaced")
        world.figure("device fault to replaced engine", time.monotonic() - began, "s", "another instance, then drained")
        found = await world.replicas(namespace, "dp", "fragile", 1)
        assert condition(found, "Degraded")["status"] == "False"
        (pod,) = world.pods(namespace)
        assert seen(world, namespace, pod).ids() != first.ids()
        events = world.events(namespace, "DecodePool", "fragile")
        assert "InstanceRestarted" not in events
        broken = f'retinue_sim_device_healthy{{device="{device.id}"}}'
        assert [value for _, value in world.query(broken)] == [0]
        assert [value for _, value in world.query(f'DCGM_FI_DEV_XID_ERRORS{{UUID="{device.id}"}}')] == [79]
    finally:
        set_fault(world, first.node, "")
    await world.until(when(lambda: amount(world, first.node, GPU) == before), "the device is allocatable again")


async def test_linked_devices_go_together_and_nics_links_slow_starts_and_a_dead_plugin_show(
    world: World, namespace: str
) -> None:
    node, here = next((name, one) for name, one in offered(world).items() if one.by_id(LPU))
    lpus, nics = len(here.by_id(LPU)), len(here.by_id(NIC))
    # Nobody else uses these devices, so that what is free is known.
    await _pods_get_linked_devices_where_a_whole_group_is_free(world, namespace, node, here)
    try:
        await _a_broken_nic_is_told_in_the_pod_and_not_offered(world, namespace, node, nics)
        await _devices_without_links_are_given_last(world, namespace, node, here)
        await _a_slow_preparation_delays_the_start(world, namespace, node)
        for crash in ("stale", "wiped"):
            await _without_a_plugin_nothing_new_starts(world, namespace, node, lpus, crash)
    finally:
        set_fault(world, node, "")


async def _pods_get_linked_devices_where_a_whole_group_is_free(world: World, ns: str, node: str, here: Offered) -> None:
    names = ("pair", "four", "other")
    for name, count in zip(names, (2, 4, 2), strict=True):
        world.apply(plain_pod(world, ns, name, node, {LPU: count}))
        await running(world, ns, name)
    views = [seen(world, ns, name) for name in names]
    assert distinct(views)
    assert [len(view.ids()) for view in views] == [2, 4, 2]
    groups = [{here.by_id(LPU)[id].group for id in view.ids()} for view in views]
    # The two pairs share one group, so that the other one is whole for the four.
    assert [len(group) for group in groups] == [1, 1, 1]
    assert groups[0] == groups[2] != groups[1]
    world.kubectl("delete", "pod", *names, "-n", ns)


async def _a_broken_nic_is_told_in_the_pod_and_not_offered(world: World, ns: str, node: str, nics: int) -> None:
    world.apply(plain_pod(world, ns, "nic", node, {NIC: 1}))
    await running(world, ns, "nic")
    (id,) = seen(world, ns, "nic").ids(NIC)
    index = offered(world)[node].by_id(NIC)[id].index
    set_fault(world, node, f"nic-down={index}+{(index + 1) % nics}")
    await world.until(when(lambda: amount(world, node, NIC) == nics - 2), "two NICs less are allocatable")
    await world.until(
        when(lambda: reported(world.get("pod", "nic", "-n", ns))[NIC] == {id: "Unhealthy"}), "the pod tells of its NIC"
    )
    set_fault(world, node, "")
    await world.until(when(lambda: amount(world, node, NIC) == nics), "all NICs are allocatable again")
    await world.until(
        when(lambda: reported(world.get("pod", "nic", "-n", ns))[NIC] == {id: "Healthy"}), "the NIC is healthy again"
    )
    world.kubectl("delete", "pod", "nic", "-n", ns)


async def _devices_without_links_are_given_last(world: World, ns: str, node: str, here: Offered) -> None:
    first = min(device.group for device in here.by_id(LPU).values())
    cut = [str(d.index) for d in here.by_id(LPU).values() if d.group == first][:2]
    set_fault(world, node, f"link-down={'+'.join(cut)}")
    # Without the fault three would come from the first group. Links are no matter of health: all are still offered.
    await world.until(when(lambda: _logged(world, node, "links_down=frozenset({")), "the plugin has taken the fault")
    world.apply(plain_pod(world, ns, "linked", node, {LPU: 3}))
    await running(world, ns, "linked")
    assert {here.by_id(LPU)[id].group for id in seen(world, ns, "linked").ids()} == {first + 1}
    assert amount(world, node, LPU) == len(here.by_id(LPU))
    world.kubectl("delete", "pod", "linked", "-n", ns)
    set_fault(world, node, "")


async def _a_slow_preparation_delays_the_start(world: World, ns: str, node: str) -> None:
    set_fault(world, node, "slow-prepare=6s")
    await world.until(when(lambda: _logged(world, node, "prepare_seconds=6.0")), "the plugin has taken the fault")
    began = time.monotonic()
    world.apply(plain_pod(world, ns, "slow", node, {LPU: 1}))
    waiting = "ContainerCreating"
    await world.until(when(lambda: waiting in world.kubectl("get", "pod", "slow", "-n", ns)), "the pod says it waits")
    await running(world, ns, "slow")
    assert time.monotonic() - began >= 6
    world.kubectl("delete", "pod", "slow", "-n", ns)


async def _without_a_plugin_nothing_new_starts(world: World, ns: str, node: str, lpus: int, crash: str) -> None:
    held, late = f"held-{crash}", f"late-{crash}"
    world.apply(plain_pod(world, ns, held, node, {LPU: 2}))
    await running(world, ns, held)
    before = seen(world, ns, held).ids()
    set_fault(world, node, f"plugin-crash={crash}")
    await world.until(when(lambda: amount(world, node, LPU) == 0), "nothing is allocatable")
    assert amount(world, node, LPU, "capacity") == lpus
    world.apply(plain_pod(world, ns, late, node, {LPU: 2}))
    await world.until(
        when(lambda: f"Insufficient {LPU}" in world.events(ns, "Pod", late)), "the scheduler says what is missing"
    )
    # What runs keeps its devices, and an engine there would not be taken for broken.
    pod = world.get("pod", held, "-n", ns)
    assert pod["status"]["phase"] == "Running"
    assert set(reported(pod)[LPU].values()) == {"Healthy"}
    set_fault(world, node, "")
    await running(world, ns, late)
    assert amount(world, node, LPU) == lpus
    assert seen(world, ns, held).ids() == before
    assert not set(before) & set(seen(world, ns, late).ids())
    world.kubectl("delete", "pod", held, late, "-n", ns)


def _logged(world: World, node: str, text: str) -> bool:
    """Whether the last words of the node's plugin about faults have the text."""
    pods = world.system_pods("emulator").values()
    name = next(pod["metadata"]["name"] for pod in pods if pod["spec"]["nodeName"] == node)
    log = world.kubectl("logs", name, "-n", world.release.namespace, "--tail=200")
    told = [line for line in log.splitlines() if "faults are now" in line]
    return bool(told) and text in told[-1]
