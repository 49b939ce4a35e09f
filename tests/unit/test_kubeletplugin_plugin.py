"""The whole plugin of one node between a stub kubelet and an API server: labels, faults, crashes, clean end."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from retinue_emulator.cli import build_app
from retinue_emulator.kubeletplugin.plugin import KubeletPlugin, KubeletPluginSettings, OfferedBy, find_node
from retinue_emulator.kubeletplugin.statusserver import StatusServer

from .kubeletplugin_stubs import (
    FAST,
    GPU,
    INVENTORY,
    NIC,
    NODE_UID,
    StubApiServer,
    StubKubelet,
    inventory,
    node_paths,
    running,
    until,
)

DRIVER = "gpu.nvidia.com"


class Node:
    """A real node as a kubelet registered it, its plugin, and what both talk to."""

    def __init__(self, name: str, server: StubApiServer, kubelet: StubKubelet, plugin: KubeletPlugin) -> None:
        self.name, self.server, self.kubelet, self.plugin = name, server, kubelet, plugin

    def listed(self, resource: str) -> int:
        """Number of devices that the kubelet knows."""
        return len(self.kubelet.devices.get(resource, {}))

    def object(self) -> dict[str, dict[str, dict[str, str]]]:
        return self.server.objects[f"/api/v1/nodes/{self.name}"]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name leaves room for sockets below it, unlike one that is named after the test."""
    return tmp_path_factory.mktemp("node")


@pytest.fixture
async def server() -> AsyncIterator[StubApiServer]:
    async with StubApiServer() as started:
        for name in ("kind-gpu", "kind-dra"):
            labels = {"kubernetes.io/hostname": name}
            metadata = {"name": name, "uid": NODE_UID, "labels": labels, "annotations": {}}
            started.put(
                f"/api/v1/nodes/{name}", {"metadata": metadata, "spec": {"taints": [], "podCIDR": "10.0.0.0/24"}}
            )
        yield started


@asynccontextmanager
async def node(name: str, folder: Path, server: StubApiServer, *, cleanup: bool = False) -> AsyncIterator[Node]:
    paths = node_paths(folder)
    settings = KubeletPluginSettings(
        offered_by=OfferedBy.DEVICE_PLUGIN, paths=paths, pace=FAST, sample_seconds=0.02, cleanup=cleanup
    )
    async with StubKubelet(paths) as kubelet, server.client() as api:
        plugin = KubeletPlugin(find_node(inventory(), name), "kind", api, settings)
        async with running(plugin.run()):
            if name == "kind-dra":
                await until((paths.registry / f"{DRIVER}-reg.sock").exists, "the driver is served")
                await kubelet.find_driver(DRIVER)
            await until(lambda: plugin.ready, "ready")
            yield Node(name, server, kubelet, plugin)


async def test_a_node_gets_labels_taints_and_devices(folder: Path, server: StubApiServer) -> None:
    async with node("kind-gpu", folder, server) as world:
        found = world.object()
        assert found["metadata"]["labels"]["nvidia.com/gpu.count"] == "8"
        assert found["metadata"]["labels"]["kubernetes.io/hostname"] == "kind-gpu"
        assert found["spec"]["taints"] == [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
        await until(lambda: world.listed(GPU) == world.listed(NIC) == 8, "all devices are listed")
        assert server.slices() == []


async def test_a_second_run_changes_nothing_on_the_node(folder: Path, server: StubApiServer) -> None:
    async with node("kind-gpu", folder, server) as world:
        first = world.object()
    async with node("kind-gpu", folder, server) as world:
        second = world.object()
    assert second["spec"] == first["spec"]
    assert {**second["metadata"], "resourceVersion": ""} == {**first["metadata"], "resourceVersion": ""}


async def test_accelerators_by_claims_are_not_offered_as_extended_resources(
    folder: Path, server: StubApiServer
) -> None:
    async with node("kind-dra", folder, server) as world:
        await until(lambda: len(server.slices()) == 1, "published")
        assert world.kubelet.registered == []


async def test_the_fault_of_the_inventory_holds_until_somebody_removes_it(folder: Path, server: StubApiServer) -> None:
    def listed() -> int:
        return len(server.slices()[0]["spec"]["devices"]) if server.slices() else 0

    async with node("kind-dra", folder, server) as world:
        assert world.object()["metadata"]["annotations"]["retinue.dev/fault"] == "device-unhealthy=3"
        await until(lambda: listed() == 3, "three healthy devices")
        server.annotate("kind-dra", None)
        await until(lambda: listed() == 4, "all healthy")
    async with node("kind-dra", folder, server) as world:
        assert "retinue.dev/fault" not in world.object()["metadata"]["annotations"]
        assert listed() == 4


async def test_an_annotation_breaks_and_heals_a_device(folder: Path, server: StubApiServer) -> None:
    async with node("kind-gpu", folder, server) as world:
        broken = world.plugin.devices[6].id
        await until(lambda: world.listed(GPU) == 8, "all devices are listed")
        server.annotate("kind-gpu", "device-unhealthy=6")
        await until(lambda: world.kubelet.devices[GPU][broken] == "Unhealthy", "unhealthy")
        server.annotate("kind-gpu", "no such thing")
        server.annotate("kind-gpu", None)
        await until(lambda: world.kubelet.devices[GPU][broken] == "Healthy", "healthy")


async def test_a_crashed_plugin_is_gone_for_the_kubelet_and_comes_back(folder: Path, server: StubApiServer) -> None:
    async with node("kind-gpu", folder, server) as world:
        await until(lambda: world.listed(GPU) == 8, "all devices are listed")
        server.annotate("kind-gpu", "plugin-crash=stale")
        await until(lambda: world.listed(GPU) == 0 and not world.plugin.ready, "gone")
        server.annotate("kind-gpu", None)
        await until(lambda: world.listed(GPU) == 8 and world.plugin.ready, "back")


@pytest.mark.parametrize(("crash", "left"), [("stale", 1), ("wiped", 0)])
async def test_a_crash_leaves_stale_slices_or_none(folder: Path, server: StubApiServer, crash: str, left: int) -> None:
    async with node("kind-dra", folder, server) as world:
        await until(lambda: len(server.slices()) == 1, "published")
        first = server.slices()[0]["spec"]["pool"]["generation"]
        registration = world.kubelet.paths.registry / f"{DRIVER}-reg.sock"
        server.annotate("kind-dra", f"plugin-crash={crash},device-unhealthy=0")
        await until(lambda: not registration.exists() and len(server.slices()) == left, "crashed")
        server.annotate("kind-dra", None)
        await until(lambda: registration.exists() and len(server.slices()) == 1, "back")
        await until(lambda: server.slices()[0]["spec"]["pool"]["generation"] > first, "a new generation")


async def test_the_end_leaves_everything_for_the_next_run_unless_told_to_clean_up(
    folder: Path, server: StubApiServer
) -> None:
    async with node("kind-dra", folder, server) as world:
        await until(lambda: len(server.slices()) == 1, "published")
    assert len(server.slices()) == 1
    assert list(world.kubelet.paths.cdi.glob("retinue.dev-*.json"))
    async with node("kind-dra", folder, server, cleanup=True):
        pass
    assert server.slices() == []
    assert "retinue.dev/fault" not in world.object()["metadata"]["annotations"]
    assert not list(world.kubelet.paths.cdi.glob("retinue.dev-*.json"))


async def test_metrics_and_readiness_are_served(folder: Path, server: StubApiServer) -> None:
    async with (
        node("kind-gpu", folder, server) as world,
        StatusServer(world.plugin, lambda: world.plugin.ready, host="127.0.0.1", port=0) as status,
        aiohttp.ClientSession() as session,
    ):
        url = "http://{}:{}".format(*status.address)
        async with session.get(f"{url}/metrics") as answer:
            text = await answer.text()
        assert text.count("DCGM_FI_DEV_GPU_UTIL{") == 8
        assert f'retinue_kubeletplugin_registrations_total{{name="{GPU}"}} 1.0' in text
        async with session.get(f"{url}/readyz") as answer:
            assert answer.status == 200
        await world.kubelet.stop()
        await until(lambda: not world.plugin.ready, "not ready without a kubelet")
        async with session.get(f"{url}/readyz") as answer:
            assert answer.status == 503


def kubeconfig(folder: Path, url: str) -> Path:
    path = folder / "config"
    path.write_text(
        f"apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: '{url}'}}}}]\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n"
    )
    return path


async def test_the_command_serves_a_kubelet_until_it_is_told_to_end(folder: Path, server: StubApiServer) -> None:
    paths = node_paths(folder)
    (folder / "inventory.yaml").write_text(INVENTORY)
    options = {
        "--node": "kind-gpu",
        "--inventory": folder / "inventory.yaml",
        "--kubeconfig": kubeconfig(folder, server.url),
        "--kubelet-dir": paths.kubelet,
        "--cdi-dir": paths.cdi,
        "--metrics-host": "127.0.0.1",
        "--metrics-port": 0,
    }
    arguments = [str(part) for option in options.items() for part in option]
    async with StubKubelet(paths) as kubelet:
        command = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "retinue_emulator", "kubelet-plugin", *arguments, stdout=asyncio.subprocess.PIPE
        )
        try:
            await until(lambda: len(kubelet.devices.get(GPU, {})) == len(kubelet.devices.get(NIC, {})) == 8, "devices")
            command.terminate()
            output, _ = await asyncio.wait_for(command.communicate(), 10)
        finally:
            if command.returncode is None:
                command.kill()
                await command.wait()
    assert command.returncode == 0
    assert output.decode().startswith("16 devices; 127.0.0.1:")
    assert list(paths.device_plugins.glob("retinue-*.sock")) == []


def test_a_node_outside_the_inventory_ends_the_command_with_one_line(tmp_path: Path) -> None:
    config = kubeconfig(tmp_path, "http://127.0.0.1:1")
    arguments = ["kubelet-plugin", "--node", "nowhere", "--kubeconfig", str(config), "--metrics-port", "0"]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 1
    assert "the inventory has no node nowhere" in result.output
    assert "Traceback" not in result.output
