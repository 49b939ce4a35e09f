"""The DRA driver's contract with a kubelet and the API server: claims prepared once, slices always in order."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from retinue_emulator.kubeletplugin.dradriver import DraDriver, driver_name
from retinue_emulator.kubeletplugin.driversocket import DriverSocket
from retinue_emulator.kubeletplugin.faults import KubeletFaults, parse_kubelet_faults
from retinue_emulator.kubeletplugin.nodedevices import PluginDevice, node_devices
from retinue_emulator.kubeletplugin.paths import NodePaths
from retinue_emulator.kubeletplugin.plugin import find_node
from retinue_emulator.kubeletplugin.proto import dra_v1_pb2 as dra
from retinue_emulator.kubeletplugin.slicepublisher import SlicePublisher
from retinue_emulator.kubeletplugin.slices import DEVICES_PER_SLICE, published_devices

from .kubeletplugin_stubs import (
    FAST,
    NODE_UID,
    StubApiServer,
    StubKubelet,
    inventory,
    node_paths,
    running,
    until,
)

DRIVER, NODE = "gpu.nvidia.com", "kind-dra"
CLAIM = dra.Claim(namespace="agents", uid="u1", name="one")
FACTS = find_node(inventory(), NODE)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name leaves room for sockets below it, unlike one that is named after the test."""
    return tmp_path_factory.mktemp("node")


def gpus() -> tuple[PluginDevice, ...]:
    return tuple(device for device in node_devices(FACTS, "kind") if device.accelerator)


def claim_object(claim: dra.Claim, *devices: str, **extra: Any) -> dict[str, Any]:
    results = [{"request": "gpu", "driver": DRIVER, "pool": NODE, "device": name, **extra} for name in devices]
    foreign = {"request": "nic", "driver": "nic.example.com", "pool": "x", "device": "nic-0"}
    metadata = {"namespace": claim.namespace, "name": claim.name, "uid": claim.uid}
    return {"metadata": metadata, "status": {"allocation": {"devices": {"results": [*results, foreign]}}}}


class Claims:
    """Claims by path, and how often they were read."""

    def __init__(self) -> None:
        self.reads = 0
        self._objects: dict[str, dict[str, Any]] = {}

    def put(self, claim: dra.Claim, *devices: str, **extra: Any) -> None:
        path = f"/apis/resource.k8s.io/v1/namespaces/{claim.namespace}/resourceclaims/{claim.name}"
        self._objects[path] = claim_object(claim, *devices, **extra)

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        self.reads += 1
        return self._objects[path]


class Driven:
    """A driver on its sockets and a kubelet that found it."""

    def __init__(self, paths: NodePaths, claims: Claims) -> None:
        self.driver = DraDriver(NODE, gpus(), claims, paths)
        self.socket = DriverSocket(self.driver, paths, FAST)
        self.kubelet = StubKubelet(paths)
        self.paths = paths

    def spec(self, uid: str = "u1") -> Path:
        return self.paths.cdi / f"retinue.dev-claim-{uid}.json"


@asynccontextmanager
async def driven(folder: Path, claims: Claims) -> AsyncIterator[Driven]:
    world = Driven(node_paths(folder), claims)
    async with running(world.socket.run()):
        await until((world.paths.registry / f"{DRIVER}-reg.sock").exists, "the registration socket")
        info = await world.kubelet.find_driver(DRIVER)
        services = ["v1.DRAPlugin", "v1.DRAResourceHealth"]
        assert (info.type, info.name, list(info.supported_versions)) == ("DRAPlugin", DRIVER, services)
        assert info.endpoint == str(world.paths.driver(DRIVER) / "dra.sock")
        yield world


def test_a_driver_is_named_after_its_resource() -> None:
    assert driver_name("nvidia.com/gpu") == "gpu.nvidia.com"
    assert driver_name("example.com/lpu") == "lpu.example.com"


async def test_a_claim_is_prepared_with_the_devices_that_the_scheduler_chose(folder: Path) -> None:
    claims = Claims()
    claims.put(CLAIM, "gpu-2", "gpu-0")
    async with driven(folder, claims) as world:
        answer = (await world.kubelet.prepare(DRIVER, CLAIM))["u1"]
        assert not answer.error
        assert [(d.pool_name, d.device_name, list(d.request_names)) for d in answer.devices] == [
            (NODE, "gpu-2", ["gpu"]),
            (NODE, "gpu-0", ["gpu"]),
        ]
        spec = json.loads(world.spec().read_text())
        entries = {f"{spec['kind']}={entry['name']}": entry["containerEdits"] for entry in spec["devices"]}
        assert {name for d in answer.devices for name in d.cdi_device_ids} == entries.keys()
        ids = {device.name: device.id for device in gpus()}
        assert f"RETINUE_DEVICE_IDS={ids['gpu-2']},{ids['gpu-0']}" in entries["retinue.dev/claim=u1-gpu"]["env"]


async def test_preparing_again_reads_and_writes_nothing(folder: Path) -> None:
    claims = Claims()
    claims.put(CLAIM, "gpu-0")
    async with driven(folder, claims) as world:
        first = await world.kubelet.prepare(DRIVER, CLAIM)
        assert await world.kubelet.prepare(DRIVER, CLAIM) == first
        assert claims.reads == 1


async def test_prepared_claims_outlive_the_plugin(folder: Path) -> None:
    claims = Claims()
    claims.put(CLAIM, "gpu-1")
    async with driven(folder, claims) as world:
        first = await world.kubelet.prepare(DRIVER, CLAIM)
    world.spec().unlink()
    # The claim is gone from the API, as it may be by the time a pod has ended.
    async with driven(folder, Claims()) as world:
        world.driver.restore()
        assert world.spec().exists()
        assert await world.kubelet.prepare(DRIVER, CLAIM) == first
        other = dra.Claim(namespace="agents", uid="u2", name="two")
        answers = await world.kubelet.unprepare(DRIVER, CLAIM, other)
        assert {uid: answer.error for uid, answer in answers.items()} == {"u1": "", "u2": ""}
        assert not world.spec().exists()
    async with driven(folder, Claims()) as world:
        assert world.driver.prepared == ()
        assert not (await world.kubelet.unprepare(DRIVER, CLAIM))["u1"].error


async def test_a_checkpoint_that_cannot_be_read_is_set_aside(folder: Path) -> None:
    claims = Claims()
    claims.put(CLAIM, "gpu-1")
    async with driven(folder, claims) as world:
        await world.kubelet.prepare(DRIVER, CLAIM)
    checkpoint = world.paths.driver(DRIVER) / "checkpoint.json"
    checkpoint.write_text(checkpoint.read_text().replace("gpu-1", "gpu-2"))
    async with driven(folder, claims) as world:
        assert world.driver.prepared == ()
        assert checkpoint.with_name("checkpoint.json.unreadable").exists()
        assert not (await world.kubelet.prepare(DRIVER, CLAIM))["u1"].error


async def test_each_claim_of_a_call_gets_its_own_answer(folder: Path) -> None:
    claims = Claims()
    bad, taken = (dra.Claim(namespace="agents", uid=uid, name=uid) for uid in ("u2", "u3"))
    claims.put(CLAIM, "gpu-0")
    claims.put(bad, "gpu-9")
    async with driven(folder, claims) as world:
        answers = await world.kubelet.prepare(DRIVER, CLAIM, bad)
        assert not answers["u1"].error
        assert "not on node" in answers["u2"].error
        claims.put(taken, "gpu-0")
        assert "in use by claim agents/one" in (await world.kubelet.prepare(DRIVER, taken))["u3"].error
        claims.put(taken, "gpu-0", adminAccess=True)
        assert not (await world.kubelet.prepare(DRIVER, taken))["u3"].error


async def test_a_claim_of_another_uid_or_without_allocation_is_refused(folder: Path) -> None:
    claims = Claims()
    claims.put(dra.Claim(namespace="agents", uid="new", name="one"), "gpu-0")
    async with driven(folder, claims) as world:
        assert "replaced" in (await world.kubelet.prepare(DRIVER, CLAIM))["u1"].error
        claims.put(CLAIM)
        assert "no allocation" in (await world.kubelet.prepare(DRIVER, CLAIM))["u1"].error


async def test_an_unhealthy_device_is_not_prepared_until_it_works_again(folder: Path) -> None:
    claims = Claims()
    claims.put(CLAIM, "gpu-3")
    async with driven(folder, claims) as world:
        world.driver.faults = parse_kubelet_faults("device-unhealthy=3")
        assert "unhealthy" in (await world.kubelet.prepare(DRIVER, CLAIM))["u1"].error
        world.driver.faults = KubeletFaults()
        assert not (await world.kubelet.prepare(DRIVER, CLAIM))["u1"].error


async def test_the_kubelet_hears_of_a_device_that_breaks_and_heals(folder: Path) -> None:
    async with driven(folder, Claims()) as world, world.kubelet.health(DRIVER) as reports:
        assert await anext(reports) == {(NODE, f"gpu-{index}"): "HEALTHY" for index in range(4)}
        world.driver.faults = parse_kubelet_faults("device-unhealthy=1")
        assert (await anext(reports))[NODE, "gpu-1"] == "UNHEALTHY"
        world.driver.faults = KubeletFaults()
        assert set((await anext(reports)).values()) == {"HEALTHY"}


async def test_one_device_is_not_prepared_for_two_claims_at_once(folder: Path) -> None:
    claims = Claims()
    rivals = [dra.Claim(namespace="agents", uid=f"r{n}", name=f"r{n}") for n in range(4)]
    for rival in rivals:
        claims.put(rival, "gpu-0")
    async with driven(folder, claims) as world:
        world.driver.faults = KubeletFaults(prepare_seconds=0.02)
        answers = await asyncio.gather(*(world.kubelet.prepare(DRIVER, rival) for rival in rivals))
        errors = [answer.error for item in answers for answer in item.values()]
        assert errors.count("") == 1


async def test_a_removed_registration_socket_comes_back_for_the_next_kubelet(folder: Path) -> None:
    async with driven(folder, Claims()) as world:
        path = world.paths.registry / f"{DRIVER}-reg.sock"
        path.unlink()
        await until(lambda: path.exists() and not world.socket.ready, "served again")
        await world.kubelet.find_driver(DRIVER)
        assert world.socket.ready


@asynccontextmanager
async def published(server: StubApiServer) -> AsyncIterator[SlicePublisher]:
    async with server.client() as api:
        publisher = SlicePublisher(api, driver=DRIVER, node=NODE, node_uid=NODE_UID)
        async with running(publisher.run()):
            yield publisher


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"name": f"gpu-{n}", "attributes": {"index": {"int": n}}} for n in range(count)]


def test_a_device_says_what_it_is_and_how_it_is_linked() -> None:
    devices = published_devices(FACTS, gpus(), parse_kubelet_faults("device-unhealthy=1,link-down=0"))
    # The device without links comes last: the scheduler takes the first that fit.
    assert [device["name"] for device in devices] == ["gpu-2", "gpu-3", "gpu-0"]
    attributes = devices[0]["attributes"]
    assert attributes["productName"] == {"string": "NVIDIA-GB300"}
    assert attributes["driverVersion"] == {"version": "580.95.5"}
    assert attributes["cudaComputeCapability"] == {"version": "10.3.0"}
    groups = [device["attributes"]["linkGroup"]["string"] for device in devices]
    assert groups == [f"{NODE}.1", f"{NODE}.1", f"{NODE}.gpu-0"]
    assert int(devices[0]["capacity"]["memory"]["value"]) > 200 * 2**30


async def test_slices_are_published_once_and_belong_to_the_node() -> None:
    async with StubApiServer() as server, published(server) as publisher:
        publisher.publish(numbered(4))
        await until(lambda: len(server.slices()) == 1, "published")
        (item,) = server.slices()
        assert item["metadata"]["ownerReferences"][0]["uid"] == NODE_UID
        assert item["spec"]["pool"] == {"name": NODE, "generation": 1, "resourceSliceCount": 1}
        publisher.publish(numbered(4))
        publisher.publish(numbered(3))
        await until(lambda: len(server.slices()[0]["spec"]["devices"]) == 3, "changed")
        # Publishing the same again was no write, so the change is the second generation.
        assert [generation for _, generation in server.generations] == [1, 2]


async def test_a_changed_pool_gets_the_next_generation_in_name_order() -> None:
    async with StubApiServer() as server, published(server) as publisher:
        publisher.publish(numbered(2 * DEVICES_PER_SLICE + 1))
        await until(lambda: len(server.slices()) == 3, "three slices")
        names = [item["metadata"]["name"] for item in server.slices()]
        assert names == [f"{NODE}-{DRIVER}-00{n}" for n in range(3)]
        publisher.publish(numbered(DEVICES_PER_SLICE + 1))
        await until(lambda: len(server.slices()) == 2, "two slices")
        assert server.generations == [(name, 1) for name in names] + [(name, 2) for name in names[:2]]
        # The slice that is too many goes only when the new generation is complete.
        assert server.writes[-1] == ("DELETE", f"/apis/resource.k8s.io/v1/resourceslices/{names[2]}")
        listed = [device["name"] for item in server.slices() for device in item["spec"]["devices"]]
        assert listed == [f"gpu-{n}" for n in range(DEVICES_PER_SLICE + 1)]


async def test_slices_that_a_starting_kubelet_wiped_come_back_with_a_higher_generation() -> None:
    async with StubApiServer() as server, published(server) as publisher:
        publisher.publish(numbered(4))
        await until(lambda: len(server.slices()) == 1, "published")
        server.remove(f"/apis/resource.k8s.io/v1/resourceslices/{NODE}-{DRIVER}-000")
        await until(lambda: len(server.slices()) == 1, "published again")
        assert server.slices()[0]["spec"]["pool"]["generation"] == 2


async def test_a_foreign_change_of_a_slice_is_undone() -> None:
    async with StubApiServer() as server, published(server) as publisher:
        publisher.publish(numbered(2))
        await until(lambda: len(server.slices()) == 1, "published")
        (item,) = server.slices()
        spec = {**item["spec"], "devices": numbered(1)}
        server.put(f"/apis/resource.k8s.io/v1/resourceslices/{item['metadata']['name']}", {**item, "spec": spec})
        await until(lambda: len(server.slices()[0]["spec"]["devices"]) == 2, "repaired")


async def test_a_restarted_publisher_goes_on_from_the_generation_that_it_finds() -> None:
    async with StubApiServer() as server:
        async with published(server) as publisher:
            publisher.publish(numbered(4))
            await until(lambda: len(server.slices()) == 1, "published")
        async with published(server) as publisher:
            publisher.publish(numbered(3))
            await until(lambda: server.slices()[0]["spec"]["pool"]["generation"] == 2, "next generation")
            publisher.pause()
            await publisher.remove()
        assert server.slices() == []
