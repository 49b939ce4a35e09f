"""The demo's ground on a kind cluster: made, installed on with Helm, read through a kubectl proxy, and taken away."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from retinue_emulator.kind import bringup
from retinue_emulator.kind.cluster import KindCluster
from retinue_emulator.kind.layout import DEMO, values
from retinue_emulator.loopback import ClusterAccess, LoopbackError, PrometheusApi
from retinue_emulator.loopback.health import wait_healthy
from retinue_emulator.loopback.ports import HOST, pick_ports
from retinue_emulator.loopback.process import ChildProcess
from retinue_emulator.loopback.toolset import PROMETHEUS_VERSION
from retinue_emulator.stages import Stages

from .watch import ApiReader

_NAME = "retinue-demo"
_HISTORY = "/tmp/decisions.jsonl"
_WATCH_SECONDS = 1.0
_STOP_SECONDS = 8.0
# Ticks of an engine that came at least a tenth of a second late within ten seconds: a quarter of the time was lost.
_LATE_TICKS = 25
_BEHIND = "max(max_over_time(increase(retinue_sim_behind_total[10s])[30m:5s]))"


class KindGround:
    """A kind cluster of the demo's own; see Ground.

    state: folder for kubeconfig, audit log and logs; by default a temporary one.
    """

    def __init__(self, *, speed: float, state: Path | None, stages: Stages) -> None:
        self.speed = speed
        self.state = Path(tempfile.mkdtemp(prefix="retinue-demo-")) if state is None else state.absolute()
        self._stages = stages
        self._cluster: KindCluster | None = None
        self._proxy: ChildProcess | None = None
        self._proxy_url = ""

    @property
    def access(self) -> ClusterAccess:
        """kubectl for the cluster."""
        return self._made.access

    @property
    def api(self) -> ApiReader:
        """The API server behind the proxy."""
        return ApiReader(self._proxy_url, None, None, f"see {self.logs}")

    @property
    def prometheus(self) -> PrometheusApi:
        """The release's Prometheus behind the proxy."""
        path = "/api/v1/namespaces/retinue-system/services/retinue-prometheus:9090/proxy"
        return PrometheusApi(f"{self._proxy_url}{path}", "look at the pod retinue-prometheus")

    @property
    def gateway_url(self) -> str:
        """The gateway's node port."""
        return self._made.gateway_url

    @property
    def logs(self) -> Path:
        """Logs of the proxy; those of the product are the cluster's (kubectl logs)."""
        return self.state

    @property
    def logs_kept(self) -> bool:
        """Always: the folder is small."""
        return True

    @property
    def engine_args(self) -> tuple[str, ...]:
        """A container's engine must be told how fast to run."""
        return (f"--speed={self.speed:g}",)

    async def behind(self) -> str | None:
        """Why an engine's numbers are not to be trusted, from the late ticks that it counts."""
        samples = await self.prometheus.query(_BEHIND)
        worst = max((sample.value for sample in samples), default=0.0)
        if worst < _LATE_TICKS:
            return None
        return f"an engine was late {worst:.0f} times within 10 s, 0.1 s or more each; lower the speed or the load"

    async def decisions(self) -> str:
        """What the leading operator has recorded."""
        lease = await asyncio.to_thread(self.access.get, "lease", "retinue-operator", "-n", "retinue-system")
        leader = str(lease["spec"].get("holderIdentity", "")).rsplit("_", 1)[0]
        read = ("exec", leader, "-n", "retinue-system", "--", "cat", _HISTORY)
        return await asyncio.to_thread(self.access.kubectl, *read)

    async def run_until_failure(self) -> None:
        """Returns never; raises LoopbackError when the proxy ended, without which nothing can be seen."""
        while True:
            if self._proxy is None or self._proxy.exit_code() is not None:
                raise LoopbackError("kubectl proxy ended by itself", f"see {self.state / 'proxy.log'}")
            await asyncio.sleep(_WATCH_SECONDS)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def _made(self) -> KindCluster:
        if self._cluster is None:
            raise LoopbackError("there is no cluster", "start it first")
        return self._cluster

    async def _start(self) -> None:
        self._cluster = await bringup.bring_up(_NAME, self.state, self._stages, DEMO)
        wanted = values(_NAME, speed=self.speed, prometheus_tag=PROMETHEUS_VERSION, nodes=DEMO)
        wanted["operator"] = {"extraEnv": [{"name": "RETINUE_HISTORY_FILE", "value": _HISTORY}]}
        await bringup.install(self._cluster, wanted, self._stages)
        await self._start_proxy()

    async def _start_proxy(self) -> None:
        port = pick_ports(1)[0]
        self._proxy_url = f"http://{HOST}:{port}"
        argv = [str(self.access.kubectl_path), f"--kubeconfig={self.access.kubeconfig}", "proxy", f"--port={port}"]
        self._proxy = ChildProcess.spawn("proxy", argv, log=self.state / "proxy.log")
        await wait_healthy(self._proxy, f"{self._proxy_url}/version", timeout=30)

    async def _stop(self) -> None:
        if self._proxy is not None:
            await self._proxy.stop(_STOP_SECONDS)
        if self._cluster is not None:
            with contextlib.suppress(LoopbackError):
                await asyncio.to_thread(self._cluster.delete)
