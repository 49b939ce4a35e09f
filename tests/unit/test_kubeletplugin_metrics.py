"""Device metrics follow the engines that really hold the devices."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from retinue_emulator.kubeletplugin.dcgm import DeviceMetrics
from retinue_emulator.kubeletplugin.engineload import Load, LoadWindow, Sample, engine_url, parse_sample, scrape
from retinue_emulator.kubeletplugin.faults import KubeletFaults, parse_kubelet_faults
from retinue_emulator.kubeletplugin.holders import Holder, device_holders, read_holders
from retinue_emulator.kubeletplugin.nodedevices import node_devices
from retinue_emulator.kubeletplugin.plugin import find_node
from retinue_emulator.kubeletplugin.proto import podresources_v1_pb2 as podresources

from .kubeletplugin_stubs import GPU, LPU, StubKubelet, inventory, node_paths

FACTS = find_node(inventory(), "kind-gpu")
DEVICES = node_devices(FACTS, "kind")
ENGINE = Holder("agents", "coder-0", "engine")
HALF_BUSY = Load(busy=0.5, kv=0.5)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name leaves room for sockets below it, unlike one that is named after the test."""
    return tmp_path_factory.mktemp("node")


def held(*indexes: int) -> podresources.ListPodResourcesResponse:
    plugged = podresources.ContainerDevices(resource_name=GPU, device_ids=[DEVICES[index].id for index in indexes])
    container = podresources.ContainerResources(name="engine", devices=[plugged])
    pod = podresources.PodResources(name="coder-0", namespace="agents", containers=[container])
    return podresources.ListPodResourcesResponse(pod_resources=[pod])


def read(metrics: DeviceMetrics, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    registry.register(metrics)
    full = {"device": f"nvidia{labels['gpu']}", "modelName": "NVIDIA H100 80GB HBM3", "Hostname": "kind-gpu"}
    uuid = {"UUID": DEVICES[int(labels["gpu"])].id}
    return registry.get_sample_value(name, {"container": "", "namespace": "", "pod": "", **full, **uuid, **labels})


def exposition(running: float, usage: float) -> str:
    labels = '{model_name="m",engine="0"}'
    return (
        f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{labels} {running}\n"
        f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{labels} {usage}\n"
    )


@asynccontextmanager
async def engine(text: str) -> AsyncIterator[int]:
    """A server with these metrics; yields its port."""
    app = web.Application()

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=text)

    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def pod(port: int, name: str = "coder-0") -> dict[str, object]:
    ports = [{"name": "http", "containerPort": port}]
    return {
        "metadata": {"namespace": "agents", "name": name},
        "spec": {"containers": [{"name": "engine", "ports": ports}, {"name": "sidecar"}]},
        "status": {"podIP": "127.0.0.1"},
    }


async def test_the_kubelet_says_which_container_holds_a_device(folder: Path) -> None:
    kubelet = StubKubelet(node_paths(folder), holders=held(2, 3))
    async with kubelet:
        holders = await read_holders(kubelet.paths.pod_resources, DEVICES)
    assert holders == {DEVICES[2].id: ENGINE, DEVICES[3].id: ENGINE}


def test_a_device_of_a_claim_has_a_holder_too_and_foreign_devices_have_none() -> None:
    mine = podresources.ClaimResource(driver_name="gpu.nvidia.com", pool_name="kind-gpu", device_name="gpu-5")
    foreign = podresources.ClaimResource(driver_name="nic.example.com", pool_name="kind-gpu", device_name="gpu-6")
    claim = podresources.DynamicResource(claim_name="c", claim_namespace="agents", claim_resources=[mine, foreign])
    other = podresources.ContainerDevices(resource_name=LPU, device_ids=[DEVICES[0].id])
    container = podresources.ContainerResources(name="engine", devices=[other], dynamic_resources=[claim])
    item = podresources.PodResources(name="coder-0", namespace="agents", containers=[container])
    answer = podresources.ListPodResourcesResponse(pod_resources=[item])
    assert device_holders(answer, DEVICES) == {DEVICES[5].id: ENGINE}


async def test_only_engines_that_answer_have_a_load() -> None:
    silent = Holder("agents", "gone", "engine")
    async with engine(exposition(3, 0.4)) as port, aiohttp.ClientSession() as session:
        pods = [pod(port), pod(1, "gone")]
        found = await scrape(session, pods, [ENGINE, ENGINE, silent, Holder("agents", "coder-0", "sidecar")])
    assert found == {ENGINE: Sample(running=3, kv=0.4)}


def test_an_exposition_without_engine_metrics_is_no_engine() -> None:
    assert parse_sample("# TYPE up gauge\nup 1\n") is None
    assert engine_url({"spec": {"containers": []}}, "engine") is None


def test_load_is_the_mean_over_the_window() -> None:
    window = LoadWindow(samples=4)
    for running in (0, 0, 0, 2, 1, 0):
        window.take({ENGINE: Sample(running, running / 10)})
    assert window.load(ENGINE) == Load(busy=0.5, kv=pytest.approx(0.075))
    window.take({})
    assert window.load(ENGINE) is None


def test_a_held_device_carries_its_container_and_follows_its_load() -> None:
    metrics = DeviceMetrics(FACTS, DEVICES)
    metrics.update({DEVICES[2].id: ENGINE}, lambda _: HALF_BUSY, KubeletFaults(), 1.0)
    labels = {"gpu": "2", "namespace": "agents", "pod": "coder-0", "container": "engine"}
    assert read(metrics, "DCGM_FI_DEV_GPU_UTIL", **labels) == 50
    assert read(metrics, "DCGM_FI_DEV_GPU_UTIL", gpu="0") == 0
    used, free = (read(metrics, f"DCGM_FI_DEV_FB_{what}", **labels) for what in ("USED", "FREE"))
    assert used is not None
    assert free is not None
    assert used + free == DEVICES[2].memory_bytes / 2**20
    assert used > free
    assert read(metrics, "DCGM_FI_DEV_FB_USED", gpu="0") == 0
    idle = read(metrics, "DCGM_FI_DEV_POWER_USAGE", gpu="0")
    busy = read(metrics, "DCGM_FI_DEV_POWER_USAGE", **labels)
    assert idle is not None
    assert busy is not None
    assert 0 < idle < busy < 700


def test_more_load_never_draws_less_power() -> None:
    def power(load: Load) -> float:
        metrics = DeviceMetrics(FACTS, DEVICES)
        metrics.update({DEVICES[0].id: ENGINE}, lambda _: load, KubeletFaults(), 1.0)
        value = read(metrics, "DCGM_FI_DEV_POWER_USAGE", gpu="0", namespace="agents", pod="coder-0", container="engine")
        assert value is not None
        return value

    steps = [power(Load(busy, kv)) for busy in (0.0, 0.5, 1.0) for kv in (0.0, 1.0)]
    assert steps == sorted(steps)
    assert steps[-1] == 700


def test_energy_is_power_over_time() -> None:
    metrics = DeviceMetrics(FACTS, DEVICES)
    metrics.update({}, lambda _: None, KubeletFaults(), 0.0)
    watts = read(metrics, "DCGM_FI_DEV_POWER_USAGE", gpu="0")
    metrics.update({}, lambda _: None, KubeletFaults(), 10.0)
    assert watts is not None
    assert read(metrics, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", gpu="0") == pytest.approx(10_000 * watts)


def test_a_broken_device_reports_its_error_and_stops_computing() -> None:
    metrics = DeviceMetrics(FACTS, DEVICES)
    metrics.update({DEVICES[1].id: ENGINE}, lambda _: HALF_BUSY, parse_kubelet_faults("device-unhealthy=1"), 1.0)
    labels = {"gpu": "1", "namespace": "agents", "pod": "coder-0", "container": "engine"}
    assert read(metrics, "DCGM_FI_DEV_XID_ERRORS", **labels) == 79
    assert read(metrics, "DCGM_FI_DEV_GPU_UTIL", **labels) == 0


def test_lpus_have_no_metrics_of_gpus() -> None:
    facts = find_node(inventory(), "kind-lpx")
    devices = node_devices(facts, "kind")
    metrics = DeviceMetrics(facts, devices)
    metrics.update({devices[0].id: ENGINE}, lambda _: HALF_BUSY, KubeletFaults(), 1.0)
    registry = CollectorRegistry()
    registry.register(metrics)
    names = {sample.name for family in registry.collect() for sample in family.samples}
    assert names == {"retinue_sim_device_healthy", "retinue_sim_device_busy_ratio"}
    labels = {"resource": LPU, "device": devices[0].id, "node": "kind-lpx", "namespace": "agents"}
    busy = {**labels, "pod": "coder-0", "container": "engine"}
    assert registry.get_sample_value("retinue_sim_device_busy_ratio", busy) == 0.5
