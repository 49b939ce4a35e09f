"""The node plugin on a real API server, scheduler and node-lifecycle controller, under its own service account."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue_emulator.inventory import Inventory, parse_inventory
from retinue_emulator.loopback import ClusterAccess, KubectlError, eventually
from retinue_emulator.nodeplugin import NodePlugin, PluginSettings
from retinue_emulator.nodeplugin.noderegistration import ForeignNode

pytestmark = pytest.mark.component
RBAC = Path(__file__).resolve().parents[2] / "deploy" / "rbac-emulator.yaml"
GPU = "nvidia.com/gpu"
SPEED = 40.0


def inventory(name: str, *, gpu_nodes: int = 1, extra: str = "") -> Inventory:
    """`gpu_nodes` nodes of 8 GPUs whose names start with `name`; pods of a test select them by the label `test`."""
    return parse_inventory(
        "apiVersion: emulator.retinue.dev/v1alpha1\n"
        "kind: Inventory\n"
        f"cluster: {name}\n"
        f"labels: {{test: {name}}}\n"
        "racks:\n"
        f"- name: {name}\n"
        "  nodeGroups:\n"
        f"  - {{name: {name}, count: {gpu_nodes}, preset: h100, cpu: 96, memory: 2Ti{extra}}}\n"
    )


@pytest.fixture(scope="session")
def emulator_kubeconfig(cluster: ClusterAccess) -> Path:
    """A kubeconfig with exactly the rights that the project ships for the emulator."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(RBAC))
    return cluster.service_account_kubeconfig("retinue-system", "retinue-emulator")


@pytest.fixture
def name(namespace: str) -> str:
    """A name for the nodes of this test alone."""
    assert namespace
    return f"t{secrets.token_hex(3)}"


@asynccontextmanager
async def plugin(
    kubeconfig: Path,
    nodes: Inventory,
    *,
    speed: float = SPEED,
    keep: bool = False,
    address_range: str | None = None,
) -> AsyncIterator[NodePlugin]:
    settings = PluginSettings(speed=speed, http_port=0, keep=keep, address_range=address_range)
    async with NodePlugin(nodes, kubeconfig=kubeconfig, settings=settings) as running:
        yield running
        assert running.failure is None


class Kube:
    """kubectl for a test that shares its event loop with the plugin."""

    def __init__(self, cluster: ClusterAccess, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace

    async def run(self, *arguments: str) -> str:
        return await asyncio.to_thread(self._cluster.kubectl, f"--namespace={self._namespace}", *arguments)

    async def apply(self, *objects: dict[str, Any]) -> None:
        await asyncio.to_thread(self._cluster.apply, *objects)

    async def get(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.run("get", *arguments, "-o", "json"))
        return found

    async def until(
        self, what: tuple[str, ...], condition: Callable[[dict[str, Any]], bool], *, timeout: float = 60
    ) -> dict[str, Any]:
        """The object, once the condition holds; fails with its last state."""

        async def probe() -> dict[str, Any]:
            seen = await self.get(*what)
            assert condition(seen), json.dumps(seen, indent=1)
            return seen

        return await eventually(probe, what=f"{' '.join(what)} is as expected", timeout=timeout)

    async def gone(self, *what: str, timeout: float = 60) -> None:
        async def probe() -> bool:
            return not await self.run("get", *what, "--ignore-not-found", "-o", "name")

        await eventually(probe, what=f"{' '.join(what)} is gone", timeout=timeout)


@pytest.fixture
def kube(cluster: ClusterAccess, namespace: str) -> Kube:
    return Kube(cluster, namespace)


def pod(namespace: str, nodes: str, name: str = "p", **spec: Any) -> dict[str, Any]:
    """A pod on the nodes of this test with one inert container, changed by `spec` and `container`."""
    container = {"name": "c", "image": "example.com/image:1", **spec.pop("container", {})}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, **spec.pop("metadata", {})},
        "spec": {"containers": [container], "nodeSelector": {"test": nodes}, **spec},
    }


def engine(namespace: str, nodes: str, name: str = "e", devices: int = 2, **spec: Any) -> dict[str, Any]:
    args = ["--role=aggregated", "--model=llama-3.1-70b", "--device=h100", f"--tensor={devices}"]
    container = {
        "name": "engine",
        "command": ["retinue-emulator", "engine"],
        "args": args,
        "resources": {"limits": {GPU: str(devices)}},
        "ports": [{"name": "http", "containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2},
    }
    return pod(namespace, nodes, name, container=container, **spec)


def condition(item: dict[str, Any], kind: str) -> str:
    conditions = item.get("status", {}).get("conditions", [])
    return next((str(c["status"]) for c in conditions if c["type"] == kind), "")


def is_ready(item: dict[str, Any]) -> bool:
    return condition(item, "Ready") == "True"


def container(item: dict[str, Any]) -> dict[str, Any]:
    statuses = item.get("status", {}).get("containerStatuses", [])
    return statuses[0] if statuses else {"restartCount": 0, "state": {}, "lastState": {}}


async def models(address: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}:8000/v1/models") as response:
        return response.status


async def test_nodes_are_ready_with_devices_labels_and_a_renewed_lease(
    emulator_kubeconfig: Path, kube: Kube, name: str
) -> None:
    nodes = inventory(name, gpu_nodes=2, extra=", rdma: {rdma/ib: 8}")
    async with plugin(emulator_kubeconfig, nodes) as running:
        node = await kube.until(("node", f"{name}-1"), is_ready)
        assert node["status"]["capacity"][GPU] == "8"
        assert node["status"]["allocatable"]["rdma/ib"] == "8"
        assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
        lease = ("lease", f"{name}-1", "--namespace=kube-node-lease")
        first = (await kube.get(*lease))["spec"]["renewTime"]
        await kube.until(lease, lambda item: item["spec"]["renewTime"] != first)
        # The taint that new nodes carry goes when the node-lifecycle controller has seen them Ready.
        await kube.until(("node", f"{name}-1"), lambda item: is_ready(item) and not item["spec"].get("taints"))
        assert set(running.nodes) == {f"{name}-0", f"{name}-1"}
    await kube.gone("node", f"{name}-0")
    await kube.gone("node", f"{name}-1")


async def test_an_engine_pod_is_scheduled_starts_and_serves_on_its_own_address(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)) as running:
        await kube.apply(engine(namespace, name), engine(namespace, name, "f"))
        first = await kube.until(("pod", "e"), is_ready)
        second = await kube.until(("pod", "f"), is_ready)
        addresses = {first["status"]["podIP"], second["status"]["podIP"]}
        assert len(addresses) == 2
        assert all(address.startswith("127.") for address in addresses)
        assert [await models(address) for address in addresses] == [200, 200]
        devices = {item["metadata"]["annotations"]["retinue.dev/devices"] for item in (first, second)}
        assert devices == {f"{GPU}=0,1", f"{GPU}=2,3"}
        held = {device.index for d in running.nodes[f"{name}-0"].host.ledger.holders().values() for device in d}
        assert held == {0, 1, 2, 3}
        events = await kube.get("events")
        reasons = {event["reason"] for event in events["items"] if event["involvedObject"]["name"] == "e"}
        assert {"Scheduled", "Pulled", "Created", "Started"} <= reasons


async def test_no_status_is_written_while_nothing_changes(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)) as running:
        await kube.apply(engine(namespace, name))
        ready = await kube.until(("pod", "e"), is_ready)
        writes = running.status_writes
        renewals = running.nodes[f"{name}-0"].lease_renewals

        async def renewed() -> bool:
            return running.nodes[f"{name}-0"].lease_renewals > renewals

        await eventually(renewed, what="the node's lease is renewed")
        assert running.status_writes == writes
        assert (await kube.get("pod", "e"))["metadata"]["resourceVersion"] == ready["metadata"]["resourceVersion"]


async def test_a_deleted_pod_finishes_its_stream_before_it_goes(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)):
        await kube.apply(engine(namespace, name))
        address = (await kube.until(("pod", "e"), is_ready))["status"]["podIP"]
        body = {
            "model": "llama-3.1-70b",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 6000,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{address}:8000/v1/chat/completions", json=body) as response,
        ):
            assert response.status == 200
            await response.content.readline()
            await kube.run("delete", "pod", "e", "--wait=false")
            await kube.until(("pod", "e"), lambda item: "deletionTimestamp" in item["metadata"])
            lines = [line async for line in response.content if line.startswith(b"data: ")]
        assert lines[-1].strip() == b"data: [DONE]"
        assert json.loads(lines[-2].removeprefix(b"data: "))["usage"]["completion_tokens"] == 6000
        await kube.gone("pod", "e")
        with pytest.raises(aiohttp.ClientConnectorError):
            await models(address)


async def test_a_failing_container_is_restarted_with_back_off(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)):
        await kube.apply(pod(namespace, name, container={"command": ["false"]}))
        found = await kube.until(("pod", "p"), lambda item: container(item)["restartCount"] >= 2)
        found = await kube.until(
            ("pod", "p"), lambda item: container(item)["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff"
        )
        assert container(found)["lastState"]["terminated"]["exitCode"] == 1
        assert found["status"]["phase"] == "Running"


async def test_a_pod_that_must_not_restart_fails_or_succeeds(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)) as running:
        good = pod(namespace, name, "good", restartPolicy="Never", container={"command": ["sleep", "1"]})
        bad = pod(
            namespace,
            name,
            "bad",
            restartPolicy="Never",
            container={"command": ["false"], "resources": {"limits": {GPU: "8"}}},
        )
        await kube.apply(good, bad)
        await kube.until(("pod", "good"), lambda item: item["status"]["phase"] == "Succeeded")
        await kube.until(("pod", "bad"), lambda item: item["status"]["phase"] == "Failed")
        assert running.nodes[f"{name}-0"].host.ledger.holders() == {}


async def test_faults_crash_and_hang_come_and_go_with_the_annotation(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)) as running:
        await kube.apply(engine(namespace, name))
        address = (await kube.until(("pod", "e"), is_ready))["status"]["podIP"]
        await kube.run("annotate", "pod", "e", "retinue.dev/fault=crash")
        crashed = await kube.until(("pod", "e"), lambda item: container(item)["restartCount"] == 1 and is_ready(item))
        assert container(crashed)["lastState"]["terminated"]["message"] == "crashed by the fault crash"
        assert crashed["status"]["podIP"] == address
        await running.set_pod_fault(namespace, "e", "hang,metrics-gone")
        await kube.until(("pod", "e"), lambda item: not is_ready(item))
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}:8000/metrics") as response:
            assert "vllm:" not in await response.text()
        await running.set_pod_fault(namespace, "e", None)
        await kube.until(("pod", "e"), is_ready)
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}:8000/metrics") as response:
            assert "vllm:num_requests_running" in await response.text()


async def test_a_broken_device_shrinks_the_node_and_fails_its_pod(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)):
        await kube.apply(engine(namespace, name, "e", restartPolicy="Never"), engine(namespace, name, "f"))
        holder = await kube.until(("pod", "e"), is_ready)
        await kube.until(("pod", "f"), is_ready)
        broken = holder["metadata"]["annotations"]["retinue.dev/devices"].partition("=")[2].split(",")[0]
        await kube.run("annotate", "node", f"{name}-0", f"retinue.dev/fault=device-unhealthy={broken}")
        failed = await kube.until(("pod", "e"), lambda item: item["status"]["phase"] == "Failed")
        assert "is unhealthy" in container(failed)["state"]["terminated"]["message"]
        node = await kube.until(("node", f"{name}-0"), lambda item: item["status"]["allocatable"][GPU] == "7")
        assert node["status"]["capacity"][GPU] == "8"
        assert is_ready(await kube.get("pod", "f"))
        await kube.run("annotate", "node", f"{name}-0", "retinue.dev/fault-")
        await kube.until(("node", f"{name}-0"), lambda item: item["status"]["allocatable"][GPU] == "8")


async def test_a_node_that_is_down_serves_nothing_and_restarts_its_pods_when_it_is_back(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)) as running:
        await kube.apply(engine(namespace, name), engine(namespace, name, "never", restartPolicy="Never"))
        ready = await kube.until(("pod", "e"), is_ready)
        await kube.until(("pod", "never"), is_ready)
        await running.set_node_fault(f"{name}-0", "down")
        await kube.until(("node", f"{name}-0"), lambda item: condition(item, "Ready") == "Unknown")
        await kube.until(("pod", "e"), lambda item: not is_ready(item))
        with pytest.raises(aiohttp.ClientConnectorError):
            await models(ready["status"]["podIP"])
        # The node-lifecycle controller keeps new pods away and will evict those that are there.
        await kube.until(
            ("node", f"{name}-0"),
            lambda item: "node.kubernetes.io/unreachable" in {t["key"] for t in item["spec"].get("taints", [])},
        )
        await running.set_node_fault(f"{name}-0", None)
        await kube.until(("node", f"{name}-0"), is_ready)
        back = await kube.until(("pod", "e"), lambda item: is_ready(item) and container(item)["restartCount"] == 1)
        assert container(back)["lastState"]["terminated"]["exitCode"] == 255
        assert await models(back["status"]["podIP"]) == 200
        # As after the reboot of a real node: what must not be restarted has failed.
        await kube.until(("pod", "never"), lambda item: item["status"]["phase"] == "Failed")


async def test_pods_stay_away_from_a_tainted_node_unless_they_tolerate_it(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    tainted = inventory(name, extra=f", taints: [{{key: {GPU}, value: present, effect: NoSchedule}}]")
    async with plugin(emulator_kubeconfig, tainted):
        tolerant = pod(namespace, name, "tolerant", tolerations=[{"key": GPU, "operator": "Exists"}])
        await kube.apply(pod(namespace, name, "plain"), tolerant)
        await kube.until(("pod", "tolerant"), is_ready)
        plain = await kube.until(("pod", "plain"), lambda item: condition(item, "PodScheduled") == "False")
        assert "untolerated taint" in json.dumps(plain["status"]["conditions"])


async def test_more_devices_than_are_left_keep_a_pod_pending(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)):
        await kube.apply(engine(namespace, name, "big", devices=8))
        await kube.until(("pod", "big"), is_ready)
        await kube.apply(engine(namespace, name, "more", devices=2))
        waiting = await kube.until(("pod", "more"), lambda item: condition(item, "PodScheduled") == "False")
        assert f"Insufficient {GPU}" in json.dumps(waiting["status"]["conditions"])
        await kube.run("delete", "pod", "big", "--wait=false")
        await kube.until(("pod", "more"), is_ready)


async def test_an_engine_finds_the_servers_of_its_tier_by_their_service_name(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)), aiohttp.ClientSession() as session:
        command = {"command": ["retinue-emulator", "tier"], "args": ["--capacity-bytes=1000000000000"]}
        server = pod(
            namespace, name, "warm-tier-0-0", container=command, hostname="warm-tier-0-0", subdomain="warm-tier"
        )
        await kube.apply(server)
        tier = (await kube.until(("pod", "warm-tier-0-0"), is_ready))["status"]["podIP"]
        user = engine(namespace, name)
        user["spec"]["containers"][0]["args"] += [
            f"--tier=warm=http://warm-tier.{namespace}.svc:8000",
            "--num-gpu-blocks-override=64",
            "--context-window=4096",
        ]
        await kube.apply(user)
        address = (await kube.until(("pod", "e"), is_ready))["status"]["podIP"]
        for number in range(4):
            prompt = {"scope": "s", "block_size": 64, "tokens": 40 * 64, "runs": [[number * 1000, 40]]}
            body = {"model": "llama-3.1-70b", "messages": [], "max_tokens": 1, "retinue_prompt": prompt}
            async with session.post(f"http://{address}:8000/v1/chat/completions", json=body) as response:
                assert response.status == 200, await response.text()

        async def stored() -> bool:
            async with session.get(f"http://{tier}:8000/metrics") as response:
                text = await response.text()
            blocks = float(next(line for line in text.splitlines() if line.startswith("master_key_count")).split()[1])
            # 160 blocks went through room for 64, so at least the first two prompts were handed down.
            assert blocks >= 80, f"the tier holds {blocks} blocks"
            return True

        await eventually(stored, what="the tier holds what was evicted")


async def test_a_restarted_plugin_takes_its_nodes_and_pods_over(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name), keep=True):
        await kube.apply(engine(namespace, name))
        before = await kube.until(("pod", "e"), is_ready)
        node = await kube.get("node", f"{name}-0")
    async with plugin(emulator_kubeconfig, inventory(name)):
        after = await kube.until(("pod", "e"), lambda item: is_ready(item) and container(item)["restartCount"] == 1)
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["metadata"]["annotations"] == before["metadata"]["annotations"]
        assert (await kube.get("node", f"{name}-0"))["metadata"]["uid"] == node["metadata"]["uid"]
        assert await models(after["status"]["podIP"]) == 200


async def test_a_plugin_that_finds_its_addresses_taken_takes_its_pods_over_to_others(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name), keep=True) as first:
        await kube.apply(engine(namespace, name))
        before = await kube.until(("pod", "e"), is_ready)
    taken = first.address_range
    async with (
        plugin(emulator_kubeconfig, inventory(f"{name}b"), address_range=taken),
        plugin(emulator_kubeconfig, inventory(name)) as second,
    ):
        assert second.address_range != taken
        after = await kube.until(("pod", "e"), lambda item: is_ready(item) and container(item)["restartCount"] == 1)
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        for addresses in ("hostIPs", "podIPs"):
            (address,) = after["status"][addresses]
            assert address not in before["status"][addresses]
        assert await models(after["status"]["podIP"]) == 200


async def test_two_plugins_share_a_cluster_without_sharing_addresses(
    emulator_kubeconfig: Path, kube: Kube, namespace: str, name: str
) -> None:
    async with (
        plugin(emulator_kubeconfig, inventory(name)) as first,
        plugin(emulator_kubeconfig, inventory(f"{name}b")) as second,
    ):
        assert first.address_range != second.address_range
        await kube.apply(engine(namespace, name), engine(namespace, f"{name}b", "f"))
        addresses = [(await kube.until(("pod", item), is_ready))["status"]["podIP"] for item in ("e", "f")]
        assert [await models(address) for address in addresses] == [200, 200]


async def test_a_node_of_somebody_else_is_never_taken_over(
    cluster: ClusterAccess, emulator_kubeconfig: Path, name: str
) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{name}-0"}}
    await asyncio.to_thread(cluster.apply, node)
    try:
        with pytest.raises(ExceptionGroup) as raised:
            async with plugin(emulator_kubeconfig, inventory(name)):
                pass
        assert raised.group_contains(ForeignNode, match="rename the node group in the inventory or delete the node")
        assert (await asyncio.to_thread(cluster.get, "node", f"{name}-0"))["metadata"]["name"] == f"{name}-0"
    finally:
        await asyncio.to_thread(cluster.kubectl, "delete", "node", f"{name}-0")


async def test_the_status_server_reports_health_metrics_clock_and_takes_faults(
    emulator_kubeconfig: Path, kube: Kube, name: str
) -> None:
    async with plugin(emulator_kubeconfig, inventory(name)) as running, aiohttp.ClientSession() as session:
        base = f"http://127.0.0.1:{running.http_port}"
        async with session.get(f"{base}/healthz") as response:
            assert response.status == 200
        async with session.get(f"{base}/behind") as response:
            verdict = await response.json()
        assert verdict["behind"] is False
        assert verdict["speed"] == SPEED
        async with session.put(f"{base}/faults/nodes/{name}-0", data="device-unhealthy=0+1") as response:
            assert response.status == 204
        await kube.until(("node", f"{name}-0"), lambda item: item["status"]["allocatable"][GPU] == "6")
        async with session.get(f"{base}/metrics") as response:
            text = await response.text()
        assert f'retinue_nodeplugin_devices{{node="{name}-0",state="healthy"}} 6.0' in text
        async with session.put(f"{base}/faults/nodes/{name}-0", data="nonsense") as response:
            assert response.status == 400
            assert "device-unhealthy" in (await response.json())["error"]
        async with session.put(f"{base}/faults/nodes/other", data="down") as response:
            assert response.status == 404
        async with session.delete(f"{base}/faults/nodes/{name}-0") as response:
            assert response.status == 204
        await kube.until(("node", f"{name}-0"), lambda item: item["status"]["allocatable"][GPU] == "8")


async def test_the_plugin_may_not_touch_what_it_does_not_need(
    cluster: ClusterAccess, emulator_kubeconfig: Path
) -> None:
    account = ClusterAccess(emulator_kubeconfig, cluster.kubectl_path, cluster.scratch)
    for refused in (("create", "pods"), ("get", "secrets"), ("patch", "services"), ("create", "pods/exec")):
        with pytest.raises(KubectlError):
            await asyncio.to_thread(account.kubectl, "auth", "can-i", *refused, "--quiet")
