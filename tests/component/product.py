"""The product as it runs beside the test cluster: what the tests may do with its processes."""

import sys
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from retinue_emulator.loopback import ClusterAccess, PrometheusServer
from retinue_emulator.loopback.process import ChildProcess

REPOSITORY = Path(__file__).resolve().parents[2]
SPEED = 20.0
NODE_CLASS = """
apiVersion: retinue.dev/v1alpha1
kind: NodeClass
metadata: {{name: {name}, annotations: {{retinue.dev/time-scale: "{speed:g}"}}}}
spec: {spec}
"""
CLASSES = {
    "h100": '{family: GPU, preset: h100, costPerNodeHour: "24"}',
    "h200": '{family: GPU, preset: h200, costPerNodeHour: "32"}',
    "b200": '{family: GPU, preset: b200, costPerNodeHour: "48"}',
    "storage": '{family: CPU, nodeSelector: {node-role: storage}, costPerNodeHour: "4"}',
}


@dataclass
class Agents:
    """The running product. `operator` can be killed and started again; the others stay."""

    cluster: ClusterAccess
    prometheus: PrometheusServer
    gateway_url: str
    logs: Path
    _operator_port: int
    operator: ChildProcess | None = None

    @property
    def operator_url(self) -> str:
        return f"http://127.0.0.1:{self._operator_port}"

    def start_operator(self) -> ChildProcess:
        """A new operator process with short lease times, so that a successor need not wait long."""
        kubeconfig = self.cluster.service_account_kubeconfig("retinue-system", "retinue-operator")
        self.operator = ChildProcess.spawn(
            "operator",
            [
                *(sys.executable, "-m", "retinue_operator", "run"),
                *("--kubeconfig", str(kubeconfig), "--prometheus-url", self.prometheus.url),
                *("--gateway-url", self.gateway_url, "--http-host", "127.0.0.1"),
                *("--http-port", str(self._operator_port), "--log-format", "text"),
                *("--lease-duration", "8", "--lease-renew-deadline", "6", "--lease-retry-period", "1"),
                *("--history-file", str(self.logs / "decisions.jsonl")),
            ],
            log=self.logs / "operator.log",
        )
        return self.operator


async def answers(url: str) -> bool:
    """Whether GET `url` says 200."""
    try:
        async with aiohttp.ClientSession() as http, http.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
