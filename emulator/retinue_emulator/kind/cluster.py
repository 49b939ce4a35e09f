"""One kind cluster: made, loaded with images, its nodes stopped and started, and taken away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retinue_emulator.loopback import ClusterAccess, LoopbackError
from retinue_emulator.loopback.audit import render_policy
from retinue_emulator.loopback.ports import HOST, pick_ports

from .commands import run
from .layout import SYSTEM_NAMESPACE, Nodes, kind_config
from .machine import Machine

_CREATE_SECONDS = "180s"
_READY_SECONDS = "120s"


class KindCluster:
    """A kind cluster called `name` with its files (kubeconfig, audit log) in the folder `state`.

    It exists between `create` and `delete`; `attach` takes over one that another process made with the same `state`.
    """

    def __init__(self, name: str, machine: Machine, state: Path, kubectl: Path) -> None:
        self.name = name
        self.machine = machine
        self.state = state
        self.access = ClusterAccess(state / "kubeconfig", kubectl, state)

    @property
    def audit_log(self) -> Path:
        """The API server's audit log, JSON lines."""
        return self.state / "audit" / "audit.log"

    @property
    def gateway_url(self) -> str:
        """Where the gateway's node port is on this machine."""
        return f"http://{HOST}:{self._port_file.read_text().strip()}"

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes, which are names of containers too."""
        return sorted(self._kind("get", "nodes", "--name", self.name).split())

    @property
    def exists(self) -> bool:
        """Whether the cluster is there."""
        return self.name in self._kind("get", "clusters").split()

    def create(self, nodes: Nodes) -> None:
        """Makes the cluster and waits until all nodes are Ready (about half a minute)."""
        if self.exists:
            raise LoopbackError(
                f"there is a kind cluster {self.name} already", f"remove it: kind delete cluster --name {self.name}"
            )
        audit = self.state / "audit"
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        audit.mkdir(exist_ok=True)
        # Beside all writes, what the product's own accounts read is counted and held against their roles.
        (audit / "policy.yaml").write_text(render_policy([SYSTEM_NAMESPACE]))
        port = pick_ports(1)[0]
        self._port_file.write_text(str(port))
        config = self.state / "kind.yaml"
        config.write_text(kind_config(gateway_port=port, audit=audit, workers=nodes.workers))
        image = ("--image", self.machine.node_image) if self.machine.node_image else ()
        self._kind(
            *("create", "cluster", "--quiet", "--name", self.name, "--config", str(config), *image),
            *("--kubeconfig", str(self.access.kubeconfig), "--wait", _CREATE_SECONDS),
        )
        self.access.kubectl(
            "wait", "node", "--all", "--for=condition=Ready", f"--timeout={_READY_SECONDS}", timeout=150
        )

    def delete(self) -> None:
        """Takes the cluster away; nothing happens when there is none."""
        self._kind("delete", "cluster", "--quiet", "--name", self.name, "--kubeconfig", str(self.access.kubeconfig))

    @property
    def workers(self) -> list[str]:
        """The nodes that run pods."""
        return [node for node in self.nodes if not node.endswith("-control-plane")]

    def load(self, *images: str, nodes: Sequence[str] = ()) -> None:
        """Puts images of this machine's engine into these nodes, or into all workers."""
        chosen = ",".join(nodes or self.workers)
        self._kind("load", "docker-image", "--name", self.name, "--nodes", chosen, *images)

    def in_node(self, node: str, *argv: str) -> str:
        """Runs a command in a node and returns its standard output."""
        return self.engine("exec", node, *argv)

    def engine(self, *argv: str, timeout: float | None = 120) -> str:
        """Runs the container engine, for example `engine("stop", node)`."""
        return run(
            [self.machine.engine, *argv],
            remedy="look at the engine's log",
            environ=self.machine.environ,
            timeout=timeout,
        )

    @property
    def _port_file(self) -> Path:
        return self.state / "gateway-port"

    def _kind(self, *argv: str) -> str:
        return run([self.machine.kind, *argv], remedy="kind says why below", environ=self.machine.environ)
