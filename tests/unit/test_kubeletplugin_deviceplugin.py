"""The device plugin's contract with a kubelet, over real unix sockets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from retinue_emulator.kubeletplugin.deviceplugin import DevicePlugin
from retinue_emulator.kubeletplugin.faults import KubeletFaults, parse_kubelet_faults
from retinue_emulator.kubeletplugin.nodedevices import by_resource, node_devices
from retinue_emulator.kubeletplugin.paths import NodePaths
from retinue_emulator.kubeletplugin.plugin import find_node
from retinue_emulator.kubeletplugin.pluginsocket import PluginSocket
from retinue_emulator.kubeletplugin.rpc import SocketPathTooLong, socket_identity

from .kubeletplugin_stubs import FAST, GPU, LPU, NIC, StubKubelet, inventory, node_paths, running, until


class Plugged:
    """The plugins of one node, and a kubelet that knows them."""

    def __init__(self, node: str, paths: NodePaths) -> None:
        devices = node_devices(find_node(inventory(), node), "kind")
        self.ids = {resource: [d.id for d in group] for resource, group in by_resource(devices).items()}
        self.plugins = {
            resource: DevicePlugin(group, facts=paths.device_facts, cdi=True)
            for resource, group in by_resource(devices).items()
        }
        self.sockets = {name: PluginSocket(plugin, paths, FAST) for name, plugin in self.plugins.items()}
        self.kubelet = StubKubelet(paths)

    def set_faults(self, text: str) -> None:
        for plugin in self.plugins.values():
            plugin.set_faults(parse_kubelet_faults(text))

    def known(self) -> bool:
        return all(self.kubelet.devices.get(name, {}).keys() == set(ids) for name, ids in self.ids.items())

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for socket in self.sockets.values():
                tasks.create_task(socket.run())


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name leaves room for sockets below it, unlike one that is named after the test."""
    return tmp_path_factory.mktemp("node")


@asynccontextmanager
async def plugged(folder: Path, node: str = "kind-gpu") -> AsyncIterator[Plugged]:
    world = Plugged(node, node_paths(folder))
    async with world.kubelet, running(world.run()):
        await until(world.known, "the kubelet knows all devices")
        yield world


async def test_each_resource_of_a_node_is_registered_and_listed_once(folder: Path) -> None:
    async with plugged(folder) as world:
        assert sorted(world.kubelet.registered) == [GPU, NIC]
        assert {len(devices) for devices in world.kubelet.devices.values()} == {8}
        assert {health for devices in world.kubelet.devices.values() for health in devices.values()} == {"Healthy"}
        assert all(options.get_preferred_allocation_available for options in world.kubelet.options.values())
        assert all(socket.ready for socket in world.sockets.values())


async def test_lpus_are_offered_as_their_own_resource(folder: Path) -> None:
    async with plugged(folder, "kind-lpx") as world:
        assert len(world.kubelet.devices[LPU]) == 8


async def test_a_plugin_that_starts_before_its_kubelet_registers_when_the_kubelet_comes(folder: Path) -> None:
    world = Plugged("kind-gpu", node_paths(folder))
    async with running(world.run()):
        gpu = world.sockets[GPU]
        await until(lambda: any(folder.glob("kubelet/device-plugins/retinue-*.sock")), "served")
        assert not gpu.ready
        async with world.kubelet:
            await until(world.known, "the kubelet knows all devices")


async def test_a_kubelet_that_refuses_at_first_is_asked_again(folder: Path) -> None:
    world = Plugged("kind-lpx", node_paths(folder))
    world.kubelet.refuse = True
    async with world.kubelet, running(world.run()):
        await until(lambda: any(folder.glob("kubelet/device-plugins/retinue-*.sock")), "served")
        assert world.sockets[LPU].registrations == 0
        world.kubelet.refuse = False
        await until(world.known, "registered in the end")


async def test_a_restarted_kubelet_that_emptied_its_folder_gets_the_devices_again(folder: Path) -> None:
    async with plugged(folder) as world:
        for _ in range(2):
            await world.kubelet.restart()
            await until(world.known, "the new kubelet knows all devices")
        assert world.sockets[GPU].registrations == 3
        answer = await world.kubelet.allocate(GPU, world.ids[GPU][:1])
        assert len(answer.container_responses) == 1


async def test_a_plugin_socket_that_somebody_removed_is_made_again(folder: Path) -> None:
    async with plugged(folder) as world:
        path = world.kubelet.paths.device_plugins / world.kubelet.endpoints[GPU]
        before = socket_identity(path)
        path.unlink()
        await until(lambda: socket_identity(path) not in (None, before), "a new socket")
        await until(lambda: world.sockets[GPU].ready and world.known(), "registered again")


async def test_a_kubelet_that_stopped_watching_is_registered_with_again(folder: Path) -> None:
    async with plugged(folder) as world:
        world.kubelet.stop_watching()
        await until(lambda: world.sockets[GPU].registrations == 2, "registered again")
        await until(lambda: world.sockets[GPU].ready, "watched again")


async def test_an_ended_plugin_leaves_no_socket(folder: Path) -> None:
    async with plugged(folder) as world:
        paths = world.kubelet.paths
        assert len(list(paths.device_plugins.glob("retinue-*.sock"))) == 2
    assert list(paths.device_plugins.glob("retinue-*.sock")) == []


async def test_a_folder_too_deep_for_a_socket_is_refused_in_words(folder: Path) -> None:
    paths = node_paths(folder / ("d" * 60) / ("e" * 60))
    with pytest.raises(SocketPathTooLong, match="shorter folder names"):
        await Plugged("kind-lpx", paths).sockets[LPU].run()


async def test_a_fault_reaches_the_kubelet_and_goes_again(folder: Path) -> None:
    async with plugged(folder) as world:
        third = world.ids[GPU][3]
        world.set_faults("device-unhealthy=3")
        await until(lambda: world.kubelet.devices[GPU][third] == "Unhealthy", "unhealthy")
        assert sum(health == "Unhealthy" for health in world.kubelet.devices[GPU].values()) == 1
        assert set(world.kubelet.devices[NIC].values()) == {"Healthy"}
        world.set_faults("nic-down=0")
        await until(lambda: world.kubelet.devices[NIC][world.ids[NIC][0]] == "Unhealthy", "a NIC is down")
        await until(lambda: world.kubelet.devices[GPU][third] == "Healthy", "healthy again")


async def test_a_container_learns_which_devices_it_has(folder: Path) -> None:
    async with plugged(folder) as world:
        ids = world.ids[GPU]
        answer = await world.kubelet.allocate(GPU, [ids[2], ids[1]], [ids[5]])
        first, second = answer.container_responses
        assert first.envs["RETINUE_DEVICE_IDS"] == f"{ids[1]},{ids[2]}"
        assert second.envs["RETINUE_DEVICE_IDS_NVIDIA_COM_GPU"] == ids[5]
        assert [device.name for device in second.cdi_devices] == [f"retinue.dev/nvidia-com-gpu={ids[5]}"]
        assert [(m.container_path, m.read_only) for m in second.mounts] == [("/run/retinue/devices/gpu-5.json", True)]


async def test_a_nic_does_not_hide_the_accelerators_of_its_container(folder: Path) -> None:
    async with plugged(folder) as world:
        answer = await world.kubelet.allocate(NIC, world.ids[NIC][:1])
        assert dict(answer.container_responses[0].envs) == {"RETINUE_DEVICE_IDS_RDMA_IB": world.ids[NIC][0]}


@pytest.mark.parametrize("ids", [["GPU-unknown"], ["", "GPU-0"]])
async def test_an_unknown_device_is_never_given(folder: Path, ids: list[str]) -> None:
    async with plugged(folder) as world:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.kubelet.allocate(GPU, [world.ids[GPU][0]], ids)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(grpc.aio.AioRpcError) as foreign:
            await world.kubelet.allocate(GPU, world.ids[NIC][:1])
        assert foreign.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_device_is_not_given_twice_in_one_container(folder: Path) -> None:
    async with plugged(folder) as world:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.kubelet.allocate(GPU, [world.ids[GPU][0]] * 2)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_kubelet_is_told_to_keep_link_groups_together(folder: Path) -> None:
    async with plugged(folder) as world:
        ids = world.ids[GPU]
        # The first group has one free device less, so two devices fit there and leave the second whole.
        assert await world.kubelet.preferred(GPU, ids[1:], [], 2) == [ids[1], ids[2]]
        assert await world.kubelet.preferred(GPU, ids[1:], [], 4) == ids[4:]
        assert await world.kubelet.preferred(GPU, ids, [ids[6]], 3) == [ids[4], ids[5], ids[6]]
        world.set_faults("link-down=5")
        assert ids[5] not in await world.kubelet.preferred(GPU, ids, [ids[6]], 3)


async def test_a_container_does_not_start_on_a_broken_device(folder: Path) -> None:
    async with plugged(folder) as world:
        await world.kubelet.pre_start(GPU, world.ids[GPU][:2])
        world.set_faults("device-unhealthy=1")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.kubelet.pre_start(GPU, world.ids[GPU][:2])
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_slow_preparation_delays_the_start_of_a_container(folder: Path) -> None:
    async with plugged(folder) as world:
        for plugin in world.plugins.values():
            plugin.set_faults(KubeletFaults(prepare_seconds=0.2))
        began = asyncio.get_running_loop().time()
        await world.kubelet.pre_start(GPU, world.ids[GPU][:1])
        assert asyncio.get_running_loop().time() - began >= 0.2
