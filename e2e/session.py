"""What the runner and the tests must agree on: where cluster, binaries and results are, as RETINUE_E2E_* variables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinue_emulator.kind.cluster import KindCluster
from retinue_emulator.kind.machine import Machine
from retinue_emulator.kind.release import Release
from retinue_emulator.loopback import ClusterAccess

from .portforward import forwarded
from .world import World

REPOSITORY = Path(__file__).resolve().parents[1]
_VARIABLE = "RETINUE_E2E_SESSION"
# Set when all tests run, so that what only all of them together show can be asserted.
WHOLE = "RETINUE_E2E_WHOLE"


@dataclass(frozen=True)
class Session:
    """One run of the suite. kind_name None: the cluster is somebody else's, and `kubeconfig` is all there is."""

    state: Path
    kubeconfig: Path
    kubectl: Path
    helm: Path
    promtool: Path
    artifacts: Path
    speed: float
    values: Mapping[str, Any]
    kind_name: str | None = None
    machine: Machine | None = None

    def save(self) -> dict[str, str]:
        """Writes the session down; the variables that lead tests to it."""
        path = self.state / "session.json"
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        plain["machine"] = None if self.machine is None else vars(self.machine)
        path.write_text(json.dumps(plain))
        return {_VARIABLE: str(path)}

    def access(self) -> ClusterAccess:
        """Admin access; files with tokens go to the state folder."""
        return ClusterAccess(self.kubeconfig, self.kubectl, self.state)

    def cluster(self) -> KindCluster | None:
        """The kind cluster, if it is ours."""
        if self.kind_name is None or self.machine is None:
            return None
        return KindCluster(self.kind_name, self.machine, self.state, self.kubectl)

    def release(self) -> Release:
        """The release under test."""
        return Release(self.access(), self.helm, REPOSITORY / "charts" / "retinue")

    @contextmanager
    def world(self) -> Iterator[World]:
        """The cluster as tests use it; on a foreign cluster the gateway is reached by a port-forward."""
        release, kind = self.release(), self.cluster()
        with ExitStack() as stack:
            url = (
                kind.gateway_url
                if kind is not None
                else stack.enter_context(forwarded(self.access(), release.namespace, "service/retinue-gateway", 8080))
            )
            yield World(self.access(), release, url, self.speed, self.values, kind, self.artifacts)


def open_session(environ: Mapping[str, str]) -> Session:
    """The session that the runner saved."""
    if _VARIABLE not in environ:
        raise RuntimeError("the e2e suite is started with `make e2e` (python e2e), which makes its cluster")
    saved: dict[str, Any] = json.loads(Path(environ[_VARIABLE]).read_text())
    for name in ("state", "kubeconfig", "kubectl", "helm", "promtool", "artifacts"):
        saved[name] = Path(saved[name])
    machine = saved.pop("machine")
    return Session(**saved, machine=None if machine is None else Machine(**machine))
