"""The gateway on a real API server, under its own ServiceAccount: it finds engines by label and follows changes."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from retinue_emulator.loopback import ClusterAccess, eventually
from retinue_emulator.loopback.ports import pick_ports
from retinue_gateway.server import Gateway
from retinue_gateway.settings import GatewaySettings

pytestmark = pytest.mark.component

_RBAC = Path(__file__).resolve().parents[2] / "deploy" / "rbac-gateway.yaml"


@asynccontextmanager
async def engine(name: str) -> AsyncIterator[int]:
    """An HTTP server that answers completions with its name as an engine would; its port."""

    async def complete(_request: web.Request) -> web.Response:
        choice = {"index": 0, "message": {"role": "assistant", "content": name}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
        return web.json_response({"choices": [choice], "usage": usage})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def gateway(cluster: ClusterAccess, **settings: Any) -> AsyncIterator[tuple[Gateway, aiohttp.ClientSession]]:
    """The gateway as it runs in a cluster, and a client of it."""
    made = Gateway(
        GatewaySettings(kubeconfig=own_kubeconfig(cluster), host="127.0.0.1", port=0, shutdown_grace=2, **settings)
    )
    stop = asyncio.Event()
    serving = asyncio.create_task(made.serve(stop))
    try:

        async def ready() -> bool:
            if serving.done():
                await serving
            return made.port != 0 and made.table.synced

        await eventually(ready, what="the gateway has read the cluster")
        async with aiohttp.ClientSession(f"http://127.0.0.1:{made.port}") as client:
            yield made, client
    finally:
        stop.set()
        await serving


def own_kubeconfig(cluster: ClusterAccess) -> Path:
    """The gateway's ServiceAccount with the rights that the project ships."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(_RBAC))
    return cluster.service_account_kubeconfig("retinue-system", "retinue-gateway")


def apply_agent_pool(cluster: ClusterAccess, namespace: str) -> None:
    cluster.apply(
        {
            "apiVersion": "retinue.dev/v1alpha1",
            "kind": "AgentPool",
            "metadata": {"namespace": namespace, "name": "coder"},
            "spec": {
                "roles": [
                    {
                        "name": "primary",
                        "type": "Primary",
                        "model": {"name": "gpt-oss-120b"},
                        "engine": {"type": "Simulated"},
                        "decode": {"nodeClasses": ["h100"]},
                    }
                ]
            },
        }
    )
    roles = [{"name": "primary", "type": "Primary", "model": "gpt-oss-120b", "decodePool": "coder-primary"}]
    patch(cluster, namespace, "agentpool/coder", {"status": {"roles": roles}}, "--subresource=status")


def apply_pod(cluster: ClusterAccess, namespace: str, index: int, port: int) -> str:
    """A ready engine pod as an emulated node reports it; the name of its instance."""
    instance = f"coder-primary-decode-{index}"
    labels = {
        "app.kubernetes.io/managed-by": "retinue",
        "retinue.dev/agent-pool": "coder",
        "retinue.dev/role": "primary",
        "retinue.dev/pool": "coder-primary",
        "retinue.dev/pool-kind": "decode",
        "retinue.dev/instance": instance,
        "retinue.dev/rank": "0",
        "retinue.dev/routable": "true",
    }
    container = {"name": "engine", "image": "none", "ports": [{"name": "http", "containerPort": port}]}
    metadata = {"namespace": namespace, "name": f"{instance}-0", "labels": labels}
    # Bound to a node that no scheduler or kubelet knows, so that nobody else writes its status.
    spec = {"nodeName": "emulated", "containers": [container], "terminationGracePeriodSeconds": 0}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    set_ready(cluster, namespace, instance, "True")
    return instance


def set_ready(cluster: ClusterAccess, namespace: str, instance: str, ready: str) -> None:
    status = {
        "phase": "Running",
        "podIP": "127.0.0.1",
        "podIPs": [{"ip": "127.0.0.1"}],
        "conditions": [{"type": "Ready", "status": ready}],
    }
    patch(cluster, namespace, f"pod/{instance}-0", {"status": status}, "--subresource=status")


def patch(cluster: ClusterAccess, namespace: str, name: str, change: dict[str, Any], *flags: str) -> None:
    cluster.kubectl("patch", name, "-n", namespace, "--type=merge", "-p", json.dumps(change), *flags)


async def ask(client: aiohttp.ClientSession, namespace: str, session: str = "s1") -> tuple[int, str | None]:
    """Status, and the instance that answered."""
    body = {"model": "primary", "messages": [{"role": "user", "content": "hello"}]}
    path = f"/{namespace}/coder/v1/chat/completions"
    async with client.post(path, json=body, headers={"x-session-id": session}) as response:
        await response.read()
        return response.status, response.headers.get("x-retinue-decode-instance")


async def test_engines_are_found_by_label_and_an_unroutable_one_gets_nothing_within_a_second(
    cluster: ClusterAccess, namespace: str
) -> None:
    async with engine("a") as port_a, engine("b") as port_b, gateway(cluster) as (made, client):
        apply_agent_pool(cluster, namespace)
        names = {apply_pod(cluster, namespace, index, port) for index, port in enumerate((port_a, port_b))}

        async def both_answer() -> bool:
            answers = [await ask(client, namespace, f"s{index}") for index in range(4)]
            return {name for _, name in answers} == names

        await eventually(both_answer, what="both instances answer")
        _, home = await ask(client, namespace, "mine")
        assert {await ask(client, namespace, "mine") for _ in range(3)} == {(200, home)}

        await asyncio.to_thread(
            patch, cluster, namespace, f"pod/{home}-0", {"metadata": {"labels": {"retinue.dev/routable": "false"}}}
        )
        flipped = time.monotonic()

        async def moved() -> bool:
            return await ask(client, namespace, "mine") == (200, (names - {home}).pop())

        await eventually(moved, what="the session is served elsewhere", timeout=1.0, interval=0.01)
        assert time.monotonic() - flipped < 1.0
        labels = {"namespace": namespace, "agent_pool": "coder", "role": "primary"}
        moves = made.metrics.registry.get_sample_value(
            "retinue_gateway_session_moves_total", {**labels, "reason": "unroutable", "stage": "decode"}
        )
        assert moves is not None
        assert moves >= 1


async def test_a_request_for_a_pool_that_is_still_starting_waits_for_its_first_instance(
    cluster: ClusterAccess, namespace: str
) -> None:
    async with engine("a") as port, gateway(cluster, queue_timeout=20.0) as (made, client):
        apply_agent_pool(cluster, namespace)

        async def known() -> bool:
            return any(key.namespace == namespace for key in made.table.current.pools)

        await eventually(known, what="the AgentPool is known")
        asked = asyncio.create_task(ask(client, namespace))
        name = await asyncio.to_thread(apply_pod, cluster, namespace, 0, port)
        assert await asked == (200, name)


async def test_a_deleted_pod_and_a_deleted_agent_pool_leave_the_routing_table(
    cluster: ClusterAccess, namespace: str
) -> None:
    async with engine("a") as port, gateway(cluster, queue_timeout=0.1, namespaces=(namespace,)) as (made, client):
        apply_agent_pool(cluster, namespace)
        name = apply_pod(cluster, namespace, 0, port)

        async def answers() -> bool:
            return await ask(client, namespace) == (200, name)

        await eventually(answers, what="the instance answers")
        await asyncio.to_thread(cluster.kubectl, "delete", "pod", f"{name}-0", "-n", namespace, "--wait=false")

        async def nobody() -> bool:
            return (await ask(client, namespace))[0] == 503

        await eventually(nobody, what="no instance is left")
        await asyncio.to_thread(cluster.kubectl, "delete", "agentpool", "coder", "-n", namespace)

        async def unknown() -> bool:
            return (await ask(client, namespace))[0] == 404

        await eventually(unknown, what="the AgentPool is unknown")
        assert not made.table.current.routes


async def test_the_command_serves_with_json_logs_and_ends_cleanly_on_sigterm(
    cluster: ClusterAccess, namespace: str
) -> None:
    port, admin_port = pick_ports(2)
    command = Path(sys.executable).with_name("retinue-gateway")
    process = await asyncio.create_subprocess_exec(
        command, "run", f"--kubeconfig={own_kubeconfig(cluster)}", "--host=127.0.0.1", f"--port={port}",
        f"--admin-port={admin_port}", f"--namespace={namespace}", stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with engine("a") as upstream, aiohttp.ClientSession() as admin:

            async def ready() -> bool:
                assert process.returncode is None
                try:
                    async with admin.get(f"http://127.0.0.1:{admin_port}/readyz") as response:
                        return response.status == 200
                except aiohttp.ClientConnectionError:
                    return False

            await eventually(ready, what="the command is ready")
            apply_agent_pool(cluster, namespace)
            name = apply_pod(cluster, namespace, 0, upstream)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:

                async def answers() -> bool:
                    return await ask(client, namespace) == (200, name)

                await eventually(answers, what="the instance answers")
                async with client.get("/metrics") as response:
                    assert response.status == 404, "metrics are on the admin port only"
            async with admin.get(f"http://127.0.0.1:{admin_port}/metrics") as response:
                assert "retinue_gateway_requests_total{" in await response.text()
    finally:
        process.terminate()
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    logged = [json.loads(line) for line in errors.splitlines()]
    assert [line["event"] for line in logged if line["event"] in ("listening", "stopping")] == ["listening", "stopping"]
