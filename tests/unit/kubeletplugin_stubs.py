"""A stub kubelet on unix sockets and a small API server in memory, for contract tests of the kubelet-mode plugin."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from kubernetes.aio.client import Configuration

from retinue_emulator.inventory import Inventory, parse_inventory
from retinue_emulator.kubeletplugin.paths import NodePaths
from retinue_emulator.kubeletplugin.pluginsocket import Pace
from retinue_emulator.kubeletplugin.proto import deviceplugin_v1beta1_pb2 as dp
from retinue_emulator.kubeletplugin.proto import dra_v1_pb2 as dra
from retinue_emulator.kubeletplugin.proto import drahealth_v1_pb2 as health
from retinue_emulator.kubeletplugin.proto import pluginregistration_v1_pb2 as registration
from retinue_emulator.kubeletplugin.proto import podresources_v1_pb2 as podresources
from retinue_emulator.kubeletplugin.rpc import (
    ALLOCATE,
    GET_INFO,
    LIST_AND_WATCH,
    LIST_PODS,
    NOTIFY,
    OPTIONS,
    PRE_START,
    PREFERRED,
    PREPARE,
    REGISTER,
    UNPREPARE,
    WATCH_HEALTH,
    Context,
    channel,
    serve,
)
from retinue_emulator.nodeplugin.apiserver import ApiServer

GPU, LPU, NIC = "nvidia.com/gpu", "example.com/lpu", "rdma/ib"
FAST = Pace(poll=0.01, unwatched=0.5, first_retry=0.01, longest_retry=0.05)
NODE_UID = "0c6c1f0e-node"

INVENTORY = """
apiVersion: emulator.retinue.dev/v1alpha1
kind: Inventory
cluster: kind
racks:
- name: r1
  nodeGroups:
  - {name: h100, count: 1, preset: h100, cpu: 64, memory: 1Ti, rdma: {rdma/ib: 8}, nodeNames: [kind-gpu],
     taints: [{key: nvidia.com/gpu, value: present, effect: NoSchedule}]}
  - {name: lpx, count: 1, preset: lpx-lp30, cpu: 64, nodeNames: [kind-lpx]}
  - {name: dra, count: 1, preset: gb300, cpu: 64, memory: 1Ti, nodeNames: [kind-dra],
     labels: {emulator.retinue.dev/devices-by: dra}, faults: [{node: 0, fault: device-unhealthy=3}]}
"""


def inventory() -> Inventory:
    """A GPU node (8 GPUs and 8 NICs, by device plugin), an LPX node (8 LPUs), and a node with 4 GPUs by DRA."""
    return parse_inventory(INVENTORY)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Waits for a condition; fails with `what` after ten seconds."""
    deadline = asyncio.get_running_loop().time() + 10
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"still not so after 10 s: {what}")
        await asyncio.sleep(0.005)


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Runs a coroutine beside the body; an error of its own fails the test."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        (end,) = await asyncio.gather(task, return_exceptions=True)
    assert end is None or isinstance(end, asyncio.CancelledError), end


@dataclass
class StubKubelet:
    """What a kubelet does with plugins. `devices` has the last list of each resource, health by device id."""

    paths: NodePaths
    devices: dict[str, dict[str, str]] = field(default_factory=dict)
    options: dict[str, dp.DevicePluginOptions] = field(default_factory=dict)
    endpoints: dict[str, str] = field(default_factory=dict)
    registered: list[str] = field(default_factory=list)
    holders: podresources.ListPodResourcesResponse = field(default_factory=podresources.ListPodResourcesResponse)
    refuse: bool = False
    _servers: list[grpc.aio.Server] = field(default_factory=list)
    _watches: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> "StubKubelet":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """A kubelet starts: it empties its folder of device plugins, then serves."""
        self.paths.device_plugins.mkdir(parents=True, exist_ok=True)
        self.paths.pod_resources.parent.mkdir(parents=True, exist_ok=True)
        for left in self.paths.device_plugins.iterdir():
            left.unlink()
        self.devices.clear()
        self._servers.append(await serve(self.paths.kubelet_socket, REGISTER.serve(self._register)))
        self._servers.append(await serve(self.paths.pod_resources, LIST_PODS.serve(self._list_pods)))

    async def stop(self) -> None:
        """The kubelet ends; it forgets what it knew."""
        for task in self._watches:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        self._watches.clear()
        while self._servers:
            await self._servers.pop().stop(grace=None)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def stop_watching(self) -> None:
        """Loses the lists, as a kubelet does whose connection broke."""
        for task in self._watches:
            task.cancel()

    async def allocate(self, resource: str, *containers: list[str]) -> dp.AllocateResponse:
        asked = [dp.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
        async with self._plugin(resource) as connection:
            return await ALLOCATE.call(connection)(dp.AllocateRequest(container_requests=asked), timeout=5)

    async def preferred(self, resource: str, available: list[str], must: list[str], size: int) -> list[str]:
        asked = dp.ContainerPreferredAllocationRequest(
            available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
        )
        async with self._plugin(resource) as connection:
            answer = await PREFERRED.call(connection)(
                dp.PreferredAllocationRequest(container_requests=[asked]), timeout=5
            )
        return list(answer.container_responses[0].deviceIDs)

    async def pre_start(self, resource: str, ids: list[str]) -> None:
        async with self._plugin(resource) as connection:
            await PRE_START.call(connection)(dp.PreStartContainerRequest(devices_ids=ids), timeout=5)

    async def find_driver(self, name: str) -> registration.PluginInfo:
        """What the plugin watcher does with a registration socket."""
        async with channel(self.paths.registry / f"{name}-reg.sock") as connection:
            info = await GET_INFO.call(connection)(registration.InfoRequest(), timeout=5)
            await NOTIFY.call(connection)(registration.RegistrationStatus(plugin_registered=True), timeout=5)
        return info

    async def prepare(self, driver: str, *claims: dra.Claim) -> dict[str, dra.NodePrepareResourceResponse]:
        async with channel(self.paths.driver(driver) / "dra.sock") as connection:
            answer = await PREPARE.call(connection)(dra.NodePrepareResourcesRequest(claims=claims), timeout=5)
        return dict(answer.claims)

    async def unprepare(self, driver: str, *claims: dra.Claim) -> dict[str, dra.NodeUnprepareResourceResponse]:
        async with channel(self.paths.driver(driver) / "dra.sock") as connection:
            answer = await UNPREPARE.call(connection)(dra.NodeUnprepareResourcesRequest(claims=claims), timeout=5)
        return dict(answer.claims)

    @asynccontextmanager
    async def health(self, driver: str) -> AsyncIterator[AsyncIterator[dict[tuple[str, str], str]]]:
        """The driver's reports on its devices: health by pool and name."""
        async with channel(self.paths.driver(driver) / "dra.sock") as connection:
            stream = WATCH_HEALTH.stream(connection)(health.NodeWatchResourcesRequest(), timeout=10)

            async def reports() -> AsyncIterator[dict[tuple[str, str], str]]:
                async for answer in stream:
                    yield {
                        (item.device.pool_name, item.device.device_name): health.HealthStatus.Name(item.health)
                        for item in answer.devices
                    }

            yield reports()
            stream.cancel()

    @asynccontextmanager
    async def _plugin(self, resource: str) -> AsyncIterator[grpc.aio.Channel]:
        async with channel(self.paths.device_plugins / self.endpoints[resource]) as connection:
            yield connection

    async def _register(self, request: dp.RegisterRequest, context: Context) -> dp.Empty:
        assert request.version == "v1beta1"
        assert "/" not in request.endpoint
        if self.refuse:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "still starting")
        self.registered.append(request.resource_name)
        self.endpoints[request.resource_name] = request.endpoint
        self._watches.append(asyncio.create_task(self._watch(request.resource_name, request.endpoint)))
        return dp.Empty()

    async def _watch(self, resource: str, endpoint: str) -> None:
        async with channel(self.paths.device_plugins / endpoint) as connection:
            self.options[resource] = await OPTIONS.call(connection)(dp.Empty(), timeout=5)
            try:
                async for answer in LIST_AND_WATCH.stream(connection)(dp.Empty()):
                    self.devices[resource] = {device.ID: device.health for device in answer.devices}
            except grpc.aio.AioRpcError:
                self.devices[resource] = {}

    async def _list_pods(
        self, _: podresources.ListPodResourcesRequest, __: Context
    ) -> podresources.ListPodResourcesResponse:
        return self.holders


class StubApiServer:
    """Objects by path, with resource versions, field selectors, merge and apply patches, and watches."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.writes: list[tuple[str, str]] = []
        self.generations: list[tuple[str, int]] = []
        self._version = 0
        self._changed: dict[str, set[asyncio.Queue[dict[str, Any]]]] = {}
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def __aenter__(self) -> "StubApiServer":
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def client(self) -> ApiServer:
        return ApiServer(Configuration(host=self.url))

    def put(self, path: str, item: dict[str, Any]) -> dict[str, Any]:
        """Stores an object and tells the watches of its collection."""
        kind = "MODIFIED" if path in self.objects else "ADDED"
        self._version += 1
        metadata = {"uid": path, **item.get("metadata", {}), "resourceVersion": str(self._version)}
        self.objects[path] = {**item, "metadata": metadata}
        self._tell(path, kind)
        return self.objects[path]

    def remove(self, path: str) -> None:
        self._tell(path, "DELETED")
        del self.objects[path]

    def slices(self) -> list[dict[str, Any]]:
        """ResourceSlices in name order."""
        return [item for path, item in sorted(self.objects.items()) if "/resourceslices/" in path]

    def annotate(self, node: str, text: str | None) -> None:
        """Writes the fault annotation of a node."""
        item = json.loads(json.dumps(self.objects[f"/api/v1/nodes/{node}"]))
        annotations = item["metadata"].setdefault("annotations", {})
        annotations.pop("retinue.dev/fault", None)
        if text is not None:
            annotations["retinue.dev/fault"] = text
        self.put(f"/api/v1/nodes/{node}", item)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if request.method == "GET":
            if request.query.get("watch"):
                return await self._watch(request, path)
            if path in self.objects:
                return web.json_response(self.objects[path])
            if path.rpartition("/")[2] not in ("nodes", "pods", "resourceslices"):
                return _refused(404, "NotFound")
            selected = [self.objects[found] for found in sorted(self.objects) if found.rpartition("/")[0] == path]
            items = [item for item in selected if _selected(item, request.query.get("fieldSelector", ""))]
            return web.json_response({"items": items, "metadata": {"resourceVersion": str(self._version)}})
        body = await request.json()
        self.writes.append((request.method, path))
        match request.method:
            case "POST":
                path = f"{path}/{body['metadata']['name']}"
                if path in self.objects:
                    return _refused(409, "AlreadyExists")
                return web.json_response(self._store(path, body))
            case "PUT":
                if body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
                    return _refused(409, "Conflict")
                return web.json_response(self._store(path, body))
            case "PATCH":
                return web.json_response(self.put(path, _merged(self.objects[path], body)))
        if path not in self.objects:
            return _refused(404, "NotFound")
        self.remove(path)
        return web.json_response({})

    def _store(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if "/resourceslices/" in path:
            self.generations.append((body["metadata"]["name"], body["spec"]["pool"]["generation"]))
        return self.put(path, body)

    async def _watch(self, request: web.Request, path: str) -> web.StreamResponse:
        events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._changed.setdefault(path, set()).add(events)
        since = int(request.query["resourceVersion"])
        response = web.StreamResponse()
        await response.prepare(request)
        missed = [item for found, item in self.objects.items() if found.rpartition("/")[0] == path]
        for item in missed:
            if int(item["metadata"]["resourceVersion"]) > since:
                events.put_nowait({"type": "MODIFIED", "object": item})
        while True:
            event = await events.get()
            if _selected(event["object"], request.query.get("fieldSelector", "")):
                await response.write(json.dumps(event).encode() + b"\n")

    def _tell(self, path: str, kind: str) -> None:
        for queue in self._changed.get(path.rpartition("/")[0], ()):
            queue.put_nowait({"type": kind, "object": self.objects[path]})


def _merged(old: Any, new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old) if isinstance(old, dict) else {}
    for key, value in new.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value) if isinstance(value, dict) else value
    return merged


def _selected(item: dict[str, Any], selector: str) -> bool:
    for part in filter(None, selector.split(",")):
        path, _, wanted = part.partition("=")
        value: Any = item
        for key in path.split("."):
            value = value.get(key, {})
        if value != wanted:
            return False
    return True


def _refused(status: int, reason: str) -> web.Response:
    return web.json_response({"reason": reason, "message": reason}, status=status)


def node_paths(folder: Path) -> NodePaths:
    """A node's folders below a test's."""
    paths = NodePaths(folder / "kubelet", folder / "cdi")
    paths.make()
    return paths
