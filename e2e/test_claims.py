"""Devices by DRA in place of extended resources: the node class alone decides, and pods claim their devices."""

import json
import time
from typing import Any

from .devices import GPU, Seen, distinct, holders, offered, seen, set_fault, when
from .manifests import decode_pool
from .world import World, uids

_DRIVER, _CLASS = "gpu.nvidia.com", "b300"


async def test_the_same_pool_on_a_class_with_claims_gets_devices_and_gives_them_back(
    world: World, namespace: str
) -> None:
    node = next(n for n, one in offered(world).items() if one.facts.preset == _CLASS)
    # Only the class differs from a pool on extended resources.
    world.apply(decode_pool(namespace, "claimed", 1, parallelism={"tensor": 2}))
    await world.replicas(namespace, "dp", "claimed", 1, 150)
    assert not _claims(world, namespace)
    world.kubectl(
        *("patch", "dp", "claimed", "-n", namespace, "--type=merge", "-p"),
        json.dumps({"spec": {"nodeClasses": [_CLASS], "replicas": 2}}),
    )
    await world.until(when(lambda: _nodes(world, namespace) == [node, node]), "the pool moves to the other class", 120)
    await world.replicas(namespace, "dp", "claimed", 2, 150)

    views = [seen(world, namespace, pod) for pod in world.pods(namespace)]
    assert distinct(views)
    claims = _claims(world, namespace)
    for view in views:
        _has_what_the_scheduler_allocated(world, namespace, view, claims)
    wanted = {id: view.pod for view in views for id in view.ids()}
    await world.until(when(lambda: holders(world, namespace) == wanted), "the metrics name who holds which GPU")
    try:
        await _faults_show_and_heal(world, namespace, node)
    finally:
        set_fault(world, node, "")

    await world.until(when(lambda: len(_slice_devices(world)) == 8), "all devices are published")
    world.kubectl("scale", "dp", "claimed", "-n", namespace, "--replicas=1")
    await world.replicas(namespace, "dp", "claimed", 1, 150)
    await world.until(when(lambda: len(_claims(world, namespace)) == 1), "claims are released at scale-down")
    world.kubectl("delete", "dp", "claimed", "-n", namespace)
    kinds = "pods,resourceclaims,resourceclaimtemplates"
    await world.until(when(lambda: not world.get(kinds, "-n", namespace)["items"]), "nothing is left")
    files = world.machine().in_node(node, "ls", "/var/run/cdi")
    assert not [name for name in files.split() if any(claim["metadata"]["uid"] in name for claim in claims.values())]


def _has_what_the_scheduler_allocated(
    world: World, namespace: str, view: Seen, claims: dict[str, dict[str, Any]]
) -> None:
    pod = world.get("pod", view.pod, "-n", namespace)
    (own,) = pod["status"]["resourceClaimStatuses"]
    results = claims[own["resourceClaimName"]]["status"]["allocation"]["devices"]["results"]
    assert {(result["driver"], result["pool"]) for result in results} == {(_DRIVER, view.node)}
    devices = [_slice_devices(world)[result["device"]] for result in results]
    assert sorted(view.ids()) == sorted(device["attributes"]["uuid"]["string"] for device in devices)
    known = offered(world)[view.node].by_id(GPU)
    for device in devices:
        attributes = device["attributes"]
        one = known[attributes["uuid"]["string"]]
        assert attributes["productName"]["string"] == "NVIDIA-B300-SXM6-AC"
        assert (attributes["index"]["int"], attributes["numaNode"]["int"]) == (one.index, one.group)
        assert device["capacity"]["memory"]["value"] == str(one.memory_bytes)
        # By the CDI ids of the prepared claim.
        assert view.env[f"RETINUE_DEVICE_NVIDIA_COM_GPU_{one.index}"] == one.id
    assert {fact["id"] for fact in view.facts} == set(view.ids())
    assert GPU not in pod["spec"]["containers"][0]["resources"].get("limits", {})


async def _faults_show_and_heal(world: World, namespace: str, node: str) -> None:
    set_fault(world, node, "slow-prepare=6s")
    began = time.monotonic()
    world.kubectl("scale", "dp", "claimed", "-n", namespace, "--replicas=3")
    await world.replicas(namespace, "dp", "claimed", 3, 150)
    assert time.monotonic() - began >= 6
    views = [seen(world, namespace, pod) for pod in world.pods(namespace)]
    assert distinct(views)

    victim = offered(world)[node].by_id(GPU)[views[0].ids()[0]]
    set_fault(world, node, f"device-unhealthy={victim.index}")
    await world.until(when(lambda: victim.name not in _slice_devices(world)), "the device is not published any more")
    await world.until(when(lambda: views[0].pod not in world.pods(namespace)), "the instance is replaced", 240)
    assert "is unhealthy" in world.events(namespace, "DecodePool", "claimed")
    await world.replicas(namespace, "dp", "claimed", 3, 150)
    engines = uids(world.pods(namespace))
    set_fault(world, node, "plugin-crash=stale")
    await world.until(when(lambda: _plugin_gone(world, node)), "the kubelet has no driver any more")
    assert len(_slice_devices(world)) == 7
    set_fault(world, node, "plugin-crash=wiped")
    await world.until(when(lambda: not _slice_devices(world)), "the slices are gone")
    set_fault(world, node, "")
    await world.until(when(lambda: len(_slice_devices(world)) == 8), "the slices are back")
    assert uids(world.pods(namespace)) == engines


def _claims(world: World, namespace: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in world.get("resourceclaims", "-n", namespace)["items"]}


def _nodes(world: World, namespace: str) -> list[str]:
    return [pod["spec"].get("nodeName", "") for pod in world.pods(namespace).values()]


def _slice_devices(world: World) -> dict[str, dict[str, Any]]:
    slices = world.get("resourceslices")["items"]
    return {
        device["name"]: device
        for item in slices
        if item["spec"]["driver"] == _DRIVER
        for device in item["spec"].get("devices") or []
    }


def _plugin_gone(world: World, node: str) -> bool:
    sockets = world.machine().in_node(node, "ls", "/var/lib/kubelet/plugins_registry")
    return f"{_DRIVER}-reg.sock" not in sockets
