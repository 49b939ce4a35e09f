"""Real kubelets have devices that do not exist: nodes as in the inventory, containers with devices of their own."""

from retinue_emulator.kubeletplugin.nodemarks import discovery_labels

from .clients import begin, client
from .devices import GPU, NIC, distinct, holders, offered, reported, seen, when
from .manifests import decode_pool, pool_of
from .world import World

_SLOW = {"type": "Simulated", "args": ["--speed=0.2", "--cold-start-seconds=0.1"]}
_WITH_NIC = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {NIC: "1"}}}]}}


def test_nodes_have_the_labels_and_the_capacity_of_the_inventory(world: World) -> None:
    nodes = {node["metadata"]["name"]: node for node in world.get("nodes")["items"]}
    for name, here in offered(world).items():
        labels = nodes[name]["metadata"]["labels"]
        assert discovery_labels(here.facts, here.cluster).items() <= labels.items(), name
        capacity = nodes[name]["status"]["capacity"]
        claimed = here.facts.labels.get("emulator.retinue.dev/devices-by") == "dra"
        for resource in {device.resource for device in here.devices}:
            plugged = 0 if claimed and resource == GPU else len(here.by_id(resource))
            assert int(capacity.get(resource, 0)) == plugged, (name, resource)
    gpu_node = next(node for node in nodes.values() if "nvidia.com/gpu.product" in node["metadata"]["labels"])
    assert {"nvidia.com/gpu.memory", "topology.kubernetes.io/rack"} <= gpu_node["metadata"]["labels"].keys()


async def test_engines_have_devices_of_their_own_and_their_load_shows_on_these(world: World, namespace: str) -> None:
    spec = {"parallelism": {"tensor": 2}, "engine": _SLOW, "podTemplate": _WITH_NIC}
    world.apply(decode_pool(namespace, "sharded", 2, **spec), pool_of(namespace, "sharded"))
    await world.replicas(namespace, "dp", "sharded", 2)
    views = [seen(world, namespace, pod) for pod in world.pods(namespace)]
    assert distinct(views)
    assert distinct(views, NIC)
    nodes = offered(world)
    for view in views:
        here = nodes[view.node]
        gpus, nics = here.by_id(GPU), here.by_id(NIC)
        assert (len(view.ids()), len(view.ids(NIC))) == (2, 1)
        assert view.ids() == view.ids(GPU)
        assert set(view.ids()) <= gpus.keys()
        assert set(view.ids(NIC)) <= nics.keys()
        # Mounted by the kubelet: a description of each device.
        assert {fact["id"] for fact in view.facts} == {*view.ids(), *view.ids(NIC)}
        assert all(fact["node"] == view.node for fact in view.facts)
        # Injected by containerd from the CDI names: a variable for each device.
        injected = {name: value for name, value in view.env.items() if name.startswith("RETINUE_DEVICE_NVIDIA_COM_GPU")}
        assert injected == {f"RETINUE_DEVICE_NVIDIA_COM_GPU_{gpus[id].index}": id for id in view.ids()}
        assert [view.env[f"RETINUE_DEVICE_RDMA_IB_{nics[id].index}"] for id in view.ids(NIC)] == list(view.ids(NIC))
        told = reported(world.get("pod", view.pod, "-n", namespace))
        assert told == {GPU: dict.fromkeys(view.ids(), "Healthy"), NIC: dict.fromkeys(view.ids(NIC), "Healthy")}

    wanted = {id: view.pod for view in views for id in view.ids()}
    await world.until(when(lambda: holders(world, namespace) == wanted), "the metrics name who holds which GPU")
    assert all(value > 0 for value in _values(world, namespace, "DCGM_FI_DEV_FB_USED").values())
    idle = sum(_values(world, namespace, "DCGM_FI_DEV_POWER_USAGE").values())
    await world.ready(namespace, "agentpool", "solo")
    async with client(world.base_url(namespace, "solo")) as agents:
        streams = await begin(agents, 2, tokens=1500)
        await world.until(
            when(lambda: _busiest(world, namespace) >= 50),
            "GPUs are busy under load",
        )
        assert sum(_values(world, namespace, "DCGM_FI_DEV_POWER_USAGE").values()) > idle
        assert {(await stream).error for stream in streams} == {None}
    await world.until(when(lambda: _busiest(world, namespace) == 0), "GPUs are idle afterwards")
    world.kubectl("scale", "dp", "sharded", "-n", namespace, "--replicas=0")
    await world.until(when(lambda: not holders(world, namespace)), "the metrics name no holder any more")


def _values(world: World, namespace: str, metric: str) -> dict[str, float]:
    return {labels["UUID"]: value for labels, value in world.query(f'{metric}{{namespace="{namespace}"}}')}


def _busiest(world: World, namespace: str) -> float:
    return max(_values(world, namespace, "DCGM_FI_DEV_GPU_UTIL").values())
