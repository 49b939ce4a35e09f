"""Operator and gateway of a release that watches two namespaces: what the chart grants and sets is enough, and no more.

The processes run beside the cluster with the environment of the installed Deployments and under their accounts.
"""

import asyncio
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from retinue_emulator.loopback import ControlPlane, eventually
from retinue_emulator.loopback.ports import pick_ports
from retinue_emulator.loopback.process import ChildProcess

from .conftest import CHART, RELEASE, Helm

NAMESPACE = "retinue-system"
TIER = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "KVCacheTier",
    "metadata": {"name": "warm"},
    "spec": {"medium": "HostMemory", "backend": "Engine", "capacityPerMember": "1Gi"},
}
NODE_CLASS = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "NodeClass",
    "metadata": {"name": "gb300"},
    "spec": {"family": "GPU", "preset": "gb300"},
}


def spawn(cluster: ControlPlane, component: str, logs: Path, **overridden: str) -> ChildProcess:
    deployment = json.loads(
        cluster.kubectl("get", "deployment", f"{RELEASE}-{component}", "-n", NAMESPACE, "-o", "json")
    )
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    environ = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    kubeconfig = cluster.service_account_kubeconfig(NAMESPACE, pod["serviceAccountName"])
    argv = [sys.executable, "-m", f"retinue_{component}", *container["args"], "--kubeconfig", str(kubeconfig)]
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return ChildProcess.spawn(
        component, argv, log=logs / f"{component}.log", env={**inherited, **environ, **overridden}
    )


async def status(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


async def conditions(cluster: ControlPlane, *what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        json.loads(cluster.kubectl("get", *what, "-o", "json")).get("status", {}).get("conditions", [])
    )
    return found


@pytest.mark.component
async def test_a_release_for_two_namespaces_serves_them_and_sees_nothing_else(
    helm4: Helm, empty_cluster: ControlPlane, tmp_path: Path
) -> None:
    cluster = empty_cluster
    for name in ("agents", "batch", "other"):
        cluster.kubectl("create", "namespace", name)
    install = ("install", RELEASE, str(CHART), "-n", NAMESPACE, "--create-namespace")
    helm4.succeed(*install, "--set", "watch.namespaces={agents,batch}", kubeconfig=cluster.kubeconfig)
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(NODE_CLASS))
    for name in ("agents", "batch", "other"):
        cluster.kubectl("create", "-n", name, "-f", "-", stdin=json.dumps(TIER))

    port, api, admin = pick_ports(3)
    operator = spawn(cluster, "operator", tmp_path, RETINUE_HTTP_PORT=str(port), RETINUE_LOG_FORMAT="text")
    gateway = spawn(cluster, "gateway", tmp_path, RETINUE_GATEWAY_PORT=str(api), RETINUE_GATEWAY_ADMIN_PORT=str(admin))
    try:
        for number in (port, admin):
            await eventually(partial(ready, number), what=f"port {number} is ready", timeout=60)
        for name in ("agents", "batch"):
            await eventually(
                partial(conditions, cluster, "kvcachetier", "warm", "-n", name),
                what=f"the tier in {name} has a status",
                timeout=30,
            )
        await eventually(
            partial(conditions, cluster, "nodeclass", "gb300"), what="the node class has a status", timeout=30
        )
        holder = json.loads(cluster.kubectl("get", "lease", f"{RELEASE}-operator", "-n", NAMESPACE, "-o", "json"))
        assert holder["spec"]["holderIdentity"]
        assert await conditions(cluster, "kvcachetier", "warm", "-n", "other") == []
    finally:
        await asyncio.gather(operator.stop(10), gateway.stop(10))
    for name in ("operator", "gateway"):
        log = (tmp_path / f"{name}.log").read_text()
        assert "orbidden" not in log, log


async def ready(port: int) -> bool:
    try:
        return await status(f"http://127.0.0.1:{port}/readyz") == 200
    except aiohttp.ClientError:
        return False
