"""The three programs of the product as child processes: their command lines, accounts, health, and how they die."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retinue_emulator.loopback import LoopbackError
from retinue_emulator.loopback.ports import HOST
from retinue_emulator.loopback.process import ChildProcess

SYSTEM_NAMESPACE = "retinue-system"
NODE_PLUGIN = "node-plugin"
OPERATOR = "operator"
GATEWAY = "gateway"
ACCOUNTS: Mapping[str, str] = {
    NODE_PLUGIN: "retinue-emulator",
    OPERATOR: "retinue-operator",
    GATEWAY: "retinue-gateway",
}
"""The service account that each program acts as."""
HEALTH_PATHS: Mapping[str, str] = {NODE_PLUGIN: "/healthz", OPERATOR: "/readyz", GATEWAY: "/readyz"}
_TAIL_LINES = 12


@dataclass(frozen=True)
class Wiring:
    """What the programs must know of each other. `ports` are their HTTP ports by name."""

    speed: float
    inventory: str
    kubeconfig: Path
    ports: Mapping[str, int]
    prometheus_url: str | None
    history_file: Path


class ChildDied(LoopbackError):
    """A process of the stack has ended by itself; the message ends with the last lines of its log."""

    def __init__(self, child: ChildProcess) -> None:
        code = child.exit_code() or 0
        how = f"signal {-code}" if code < 0 else f"status {code}"
        tail = "\n".join(f"    {line[:400]}" for line in child.log_tail(_TAIL_LINES).splitlines())
        super().__init__(f"{child.name} ended with {how}", f"its log is {child.log}, its last lines:\n{tail}")


def base_url(port: int) -> str:
    """The URL of a local HTTP port."""
    return f"http://{HOST}:{port}"


def command(name: str, wiring: Wiring) -> list[str]:
    """The command line of one of the programs."""
    port = str(wiring.ports[name])
    if name == OPERATOR:
        words = ["retinue_operator", "run", "--http-host", HOST, "--http-port", port, "--log-format", "text"]
        words += ["--gateway-url", base_url(wiring.ports[GATEWAY]), "--history-file", str(wiring.history_file)]
        if wiring.prometheus_url is not None:
            words += ["--prometheus-url", wiring.prometheus_url]
    elif name == GATEWAY:
        words = ["retinue_gateway", "run", "--host", HOST, "--port", port, "--log-format", "text"]
        words += ["--latency-scale", f"{wiring.speed:g}", "--shutdown-grace", "1"]
    else:
        words = ["retinue_emulator", "node-plugin", "--inventory", wiring.inventory]
        # The nodes go with the control plane; taking them away one by one would only make the stop slow.
        words += ["--speed", f"{wiring.speed:g}", "--metrics-port", port, "--keep"]
    return [sys.executable, "-m", *words, "--kubeconfig", str(wiring.kubeconfig)]
