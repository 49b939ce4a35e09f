"""The whole product beside the test cluster: node plugin, operator and gateway as child processes, and a Prometheus.

Every process runs under the ServiceAccount and the roles that the project ships, never as admin.
"""

import asyncio
import sys
from collections.abc import Generator, Iterator

import pytest

from retinue_emulator.loopback import ClusterAccess, PrometheusServer, StaticTarget, eventually
from retinue_emulator.loopback.ports import pick_ports
from retinue_emulator.loopback.process import ChildProcess

from . import wholesuite
from .product import CLASSES, NODE_CLASS, REPOSITORY, SPEED, Agents, answers


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever the order of the rest."""
    wholesuite.proof_last(items)


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        wholesuite.note_deselected(items[0].config, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Only tests of this folder come here."""
    report = yield
    wholesuite.note_outcome(item.config, report)
    return report


@pytest.fixture(scope="module")
def agents(cluster: ClusterAccess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agents]:
    """The product on the test cluster with 14 emulated nodes of 80 GPUs, and node classes for them.

    For one module only: other modules run operators and Prometheus servers of their own on the same cluster.
    """
    logs = tmp_path_factory.mktemp("agents")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "deploy"))
    operator_port, gateway_port = pick_ports(2)
    targets = [
        StaticTarget("retinue-gateway", f"127.0.0.1:{gateway_port}"),
        StaticTarget("retinue-operator", f"127.0.0.1:{operator_port}"),
    ]
    prometheus = PrometheusServer(kubeconfig=cluster.kubeconfig, targets=targets, scrape_interval="500ms")
    running = Agents(cluster, prometheus, f"http://127.0.0.1:{gateway_port}", logs, operator_port)

    def spawn(name: str, *arguments: str) -> ChildProcess:
        kubeconfig = cluster.service_account_kubeconfig("retinue-system", f"retinue-{name}")
        argv = [sys.executable, "-m", f"retinue_{name}", *arguments, "--kubeconfig", str(kubeconfig)]
        return ChildProcess.spawn(name, argv, log=logs / f"{name}.log")

    async def start() -> list[ChildProcess]:
        await prometheus.start()
        plugin = spawn("emulator", "node-plugin", "--inventory", "demo", "--speed", str(SPEED))
        latency_scale = ("--latency-scale", str(SPEED), "--session-idle-timeout", "45")
        gateway = spawn("gateway", "run", "--host", "127.0.0.1", "--port", str(gateway_port), *latency_scale)
        running.start_operator()
        for name, spec in CLASSES.items():
            cluster.kubectl("apply", "-f", "-", stdin=NODE_CLASS.format(name=name, spec=spec, speed=SPEED))
        for url in (f"{running.gateway_url}/readyz", f"{running.operator_url}/readyz"):
            await eventually(lambda url=url: answers(url), what=f"{url} answers", timeout=60)
        # On a cluster of somebody else there may be further classes, which nothing here makes Ready.
        cluster.kubectl("wait", *(f"nodeclass/{name}" for name in CLASSES), "--for=condition=Ready", "--timeout=60s")
        return [gateway, plugin]

    async def stop(children: list[ChildProcess]) -> None:
        if running.operator is not None:
            await running.operator.stop(10)
        for child in children:
            await child.stop(10)
        await prometheus.stop()
        cluster.kubectl("delete", "nodeclass", *CLASSES, "--ignore-not-found")

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        children = runner.run(start())
        try:
            yield running
        finally:
            runner.run(stop(children))
            print(f"logs of operator, gateway and node plugin: {logs}")
