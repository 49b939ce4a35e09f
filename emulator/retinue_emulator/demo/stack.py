"""The whole product as processes on this machine: control plane, Prometheus, emulated nodes, operator, gateway."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from retinue_emulator.checkout import Checkout, find_checkout
from retinue_emulator.loopback import (
    ClusterAccess,
    ControlPlane,
    LoopbackError,
    PrometheusServer,
    StaticTarget,
    ensure_tools,
)
from retinue_emulator.loopback.health import wait_healthy
from retinue_emulator.loopback.ports import HOST, pick_ports
from retinue_emulator.loopback.process import ChildProcess
from retinue_emulator.loopback.progress import Reporter
from retinue_emulator.stages import Stage, Stages

from .parts import (
    ACCOUNTS,
    GATEWAY,
    HEALTH_PATHS,
    NODE_PLUGIN,
    OPERATOR,
    SYSTEM_NAMESPACE,
    ChildDied,
    Wiring,
    base_url,
    command,
)
from .watch import ApiReader

_READY_SECONDS = 60.0
_STOP_SECONDS = 8.0
_WATCH_SECONDS = 0.3


class Stack:
    """`async with Stack(speed=12) as stack:` is a running cluster with Retinue on it; leaving it ends every process.

    speed: how many times faster than real the emulated hardware runs.
    inventory: an inventory file or the name of a packaged example.
    scrape_interval: of Prometheus, a Prometheus duration.
    state: folder for data, keys and logs; it must be empty or new, and is kept. By default a temporary one, which is
        removed unless something failed.
    operator_args, gateway_args, node_plugin_args: more command-line arguments; they win over the built-in ones.
    with_prometheus, with_node_plugin, with_operator, with_gateway: parts to leave out, for tests of the others.
    stages: receives the progress. reporter: receives the progress of a build of missing binaries.

    Operator, gateway and node plugin act as the service accounts that the project ships, never as admin. It must be
    started in the main thread: its processes die with that thread, whatever ends it.
    """

    def __init__(
        self,
        *,
        speed: float = 12.0,
        inventory: str = "demo",
        scrape_interval: str = "1s",
        state: Path | None = None,
        operator_args: Sequence[str] = (),
        gateway_args: Sequence[str] = (),
        node_plugin_args: Sequence[str] = (),
        with_prometheus: bool = True,
        with_node_plugin: bool = True,
        with_operator: bool = True,
        with_gateway: bool = True,
        checkout: Checkout | None = None,
        stages: Stages | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.speed = speed
        self.scrape_interval = scrape_interval
        self._inventory = inventory
        self._arguments = {
            OPERATOR: tuple(operator_args),
            GATEWAY: tuple(gateway_args),
            NODE_PLUGIN: tuple(node_plugin_args),
        }
        self._wanted = {
            "prometheus": with_prometheus,
            NODE_PLUGIN: with_node_plugin,
            OPERATOR: with_operator,
            GATEWAY: with_gateway,
        }
        self._checkout = checkout
        self._stages = stages or Stages()
        self._reporter = reporter
        self._temporary = state is None
        default = Path(tempfile.gettempdir()) / f"retinue-demo-{secrets.token_hex(6)}"
        self.state = default if state is None else state.absolute()
        self.cluster = ControlPlane(state=self.state / "cluster", reporter=reporter)
        self._prometheus: PrometheusServer | None = None
        self._children: dict[str, ChildProcess] = {}
        self._ports: dict[str, int] = {}
        self._kept_logs = False

    @property
    def logs(self) -> Path:
        """Logs of the operator, the gateway and the node plugin; those of the cluster are beside them."""
        return self.state / "logs"

    @property
    def history_file(self) -> Path:
        """The operator's record of autoscaling decisions, one JSON line each."""
        return self.state / "decisions.jsonl"

    async def decisions(self) -> str:
        """The text of that record; empty while there is none."""
        return self.history_file.read_text(encoding="utf-8") if self.history_file.is_file() else ""

    @property
    def access(self) -> ClusterAccess:
        """kubectl for the cluster."""
        return self.cluster

    @property
    def api(self) -> ApiReader:
        """How to read the API server, as the user whose kubeconfig the demo prints."""
        token, ca_file = self.cluster.admin_token, self.cluster.ca_file
        return ApiReader(self.cluster.server, token, ca_file, f"see {self.cluster.logs}")

    @property
    def engine_args(self) -> tuple[str, ...]:
        """None: the node plugin runs its engines at its own speed."""
        return ()

    @property
    def gateway_url(self) -> str:
        """The gateway's base URL."""
        return self.url(GATEWAY)

    @property
    def prometheus(self) -> PrometheusServer:
        """The running Prometheus. Raises LoopbackError when there is none."""
        if self._prometheus is None:
            raise LoopbackError("there is no Prometheus", "start the stack with it")
        return self._prometheus

    @property
    def logs_kept(self) -> bool:
        """Whether the logs are still there after the stop."""
        return not self._temporary or self._kept_logs

    def url(self, name: str) -> str:
        """Base URL of the operator's, gateway's or node plugin's HTTP port."""
        return base_url(self._ports[name])

    def child(self, name: str) -> ChildProcess:
        """The process of the operator, the gateway or the node plugin."""
        return self._children[name]

    async def start(self) -> None:
        """Starts everything and returns when every part says it is ready; a failed start leaves nothing behind."""
        try:
            await self._start()
        except BaseException as error:
            await self.stop(keep_logs=isinstance(error, Exception))
            raise

    async def stop(self, *, keep_logs: bool = False) -> None:
        """Ends all processes, clients before servers. A temporary state folder goes, but for its logs if asked."""
        try:
            children = [self._children[name] for name in (GATEWAY, OPERATOR, NODE_PLUGIN) if name in self._children]
            await asyncio.gather(*(child.stop(_STOP_SECONDS) for child in children))
            if self._prometheus is not None:
                await self._prometheus.stop(keep_logs=True)
        finally:
            await self.cluster.stop()
            self._children.clear()
        if self._temporary:
            self._kept_logs = keep_logs
            if keep_logs:
                self._keep_only_logs()
            else:
                shutil.rmtree(self.state, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop(keep_logs=isinstance(error, Exception))

    def check(self) -> None:
        """Raises ChildDied with the tail of the log of a process that has ended by itself."""
        for child in self._children.values():
            if child.exit_code() is not None:
                raise ChildDied(child)
        if self._prometheus is not None and not self._prometheus.running:
            raise LoopbackError("Prometheus ended by itself", f"see {self._prometheus.log}")

    async def run_until_failure(self) -> None:
        """Returns never; raises LoopbackError as soon as a process ends by itself."""
        watching = asyncio.create_task(self.cluster.run_until_failure())
        try:
            while True:
                self.check()
                if watching.done():
                    await watching
                await asyncio.sleep(_WATCH_SECONDS)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError, LoopbackError):
                await watching

    async def start_child(self, name: str) -> None:
        """Starts the operator, the gateway or the node plugin (again) and waits until it is ready."""
        self._children[name] = ChildProcess.spawn(
            name, self._command(name), log=self.logs / f"{name}.log", cwd=self.state, env=self._environment()
        )
        try:
            await wait_healthy(self._children[name], f"{self.url(name)}{HEALTH_PATHS[name]}", timeout=_READY_SECONDS)
        except LoopbackError as error:
            if self._children[name].exit_code() is not None:
                raise ChildDied(self._children[name]) from error
            raise

    async def stop_child(self, name: str) -> None:
        """Stops one of them in order; `start_child` brings it back on the same port."""
        await self._children.pop(name).stop(_STOP_SECONDS)

    async def kill_child(self, name: str) -> None:
        """Kills one of them outright; `start_child` brings it back on the same port."""
        child = self._children.pop(name)
        child.send(signal.SIGKILL)
        await child.wait()

    async def behind(self) -> str | None:
        """Why the emulator's numbers are not to be trusted; None while it keeps up with its clock."""
        async with (
            aiohttp.ClientSession(trust_env=False) as session,
            session.get(f"{self.url(NODE_PLUGIN)}/behind") as response,
        ):
            answer = await response.json()
        verdict = answer.get("verdict")
        return None if verdict is None else str(verdict)

    async def _start(self) -> None:
        checkout = self._checkout or find_checkout()
        self._prepare_state()
        with self._stages.stage("Control plane binaries") as stage:
            tools = await ensure_tools(reporter=self._reporter)
            stage.done(str(tools["kubectl"].parent))
        self._ports = dict(zip((NODE_PLUGIN, OPERATOR, GATEWAY), pick_ports(3), strict=True))
        with self._stages.stage("Control plane") as stage:
            stage.update("etcd, kube-apiserver, kube-controller-manager, kube-scheduler")
            await self.cluster.start()
            stage.done(f"etcd, API server, controller manager, scheduler at {self.cluster.server}")
        with self._stages.stage("CRDs and RBAC") as stage:
            stage.done(await self._install(checkout, stage))
        if self._wanted["prometheus"]:
            with self._stages.stage("Prometheus") as stage:
                await self._start_prometheus()
                stage.done(f"{self.prometheus.url}, scrapes every {self.scrape_interval}")
        for name, title in ((NODE_PLUGIN, "Emulated nodes"), (OPERATOR, "Operator"), (GATEWAY, "Gateway")):
            if self._wanted[name]:
                with self._stages.stage(title) as stage:
                    await self.start_child(name)
                    stage.done(await self._inventory_text() if name == NODE_PLUGIN else self.url(name))

    def _prepare_state(self) -> None:
        if not self._temporary and self.state.is_dir() and any(self.state.iterdir()):
            raise LoopbackError(f"the state folder {self.state} is not empty", "choose a new one")
        try:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=not self._temporary)
            self.logs.mkdir()
        except OSError as error:
            raise LoopbackError(
                f"the state folder {self.state} cannot be made ({error.strerror})", "choose a writable place"
            ) from error

    async def _install(self, checkout: Checkout, stage: Stage) -> str:
        for folder in (checkout.crds, checkout.deploy):
            stage.update(f"applying {folder.name}/")
            await self._kubectl("apply", "--server-side", "-f", str(folder))
        stage.update("waiting for the CRDs")
        await self._kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(checkout.crds))
        kinds = len(list(checkout.crds.glob("*.yaml")))
        accounts = []
        for name in (NODE_PLUGIN, OPERATOR, GATEWAY):
            await asyncio.to_thread(self.cluster.service_account_kubeconfig, SYSTEM_NAMESPACE, ACCOUNTS[name])
            accounts.append(ACCOUNTS[name])
        return f"{kinds} kinds; service accounts {', '.join(accounts)}"

    async def _start_prometheus(self) -> None:
        targets = [
            StaticTarget(f"retinue-{name}", f"{HOST}:{self._ports[name]}")
            for name in (OPERATOR, GATEWAY, NODE_PLUGIN)
            if self._wanted[name]
        ]
        self._prometheus = PrometheusServer(
            kubeconfig=self.cluster.kubeconfig,
            targets=targets,
            scrape_interval=self.scrape_interval,
            state=self.state / "prometheus",
            reporter=self._reporter,
        )
        await self._prometheus.start()

    async def _inventory_text(self) -> str:
        nodes = (await asyncio.to_thread(self.cluster.get, "nodes"))["items"]
        devices: dict[str, int] = {}
        for node in nodes:
            for resource, count in node["status"].get("capacity", {}).items():
                if "/" in resource and not resource.startswith(("hugepages", "rdma")):
                    devices[resource] = devices.get(resource, 0) + int(count)
        found = ", ".join(f"{count} {resource}" for resource, count in sorted(devices.items()))
        return f"{len(nodes)} nodes, {found or 'no devices'}; speed {self.speed:g}"

    def _command(self, name: str) -> list[str]:
        wiring = Wiring(
            speed=self.speed,
            inventory=self._inventory,
            kubeconfig=self.cluster.layout.kubeconfigs / f"{SYSTEM_NAMESPACE}.{ACCOUNTS[name]}.kubeconfig",
            ports=self._ports,
            prometheus_url=None if self._prometheus is None else self._prometheus.url,
            history_file=self.history_file,
        )
        return [*command(name, wiring), *self._arguments[name]]

    def _environment(self) -> dict[str, str]:
        """This process' environment without settings meant for another operator or gateway."""
        return {name: value for name, value in os.environ.items() if not name.startswith("RETINUE_")}

    async def _kubectl(self, *arguments: str) -> str:
        return await asyncio.to_thread(self.cluster.kubectl, *arguments)

    def _keep_only_logs(self) -> None:
        for source in (self.cluster.logs, self.state / "prometheus" / "logs"):
            for log in source.glob("*.log"):
                shutil.copy2(log, self.logs / log.name)
        for path in self.state.iterdir():
            if path != self.logs and path != self.history_file:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
