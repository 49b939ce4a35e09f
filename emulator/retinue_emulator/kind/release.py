"""The chart as a Helm release in a cluster: installed, upgraded, uninstalled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from retinue_emulator.loopback import ClusterAccess

from .commands import run
from .layout import RELEASE, SYSTEM_NAMESPACE

_TIMEOUT = "180s"


@dataclass(frozen=True)
class Release:
    """A release of `chart` in the cluster behind `access`, made with the Helm binary `helm`."""

    access: ClusterAccess
    helm: Path
    chart: Path
    name: str = RELEASE
    namespace: str = SYSTEM_NAMESPACE

    def install(self, values: Mapping[str, Any], *flags: str, wait: bool = True) -> str:
        """Installs or upgrades with exactly these values; waits until all pods are Ready. Returns Helm's notes."""
        file = self.access.scratch / f"values-{self.name}.yaml"
        file.write_text(yaml.safe_dump(dict(values), sort_keys=False))
        waiting = ("--wait", "--timeout", _TIMEOUT) if wait else ()
        return self._helm(
            *("upgrade", "--install", self.name, str(self.chart), "--create-namespace", "--values", str(file)),
            *waiting,
            *flags,
        )

    def uninstall(self) -> None:
        """Removes the release and waits until its objects are gone; CRDs and custom resources stay."""
        self._helm("uninstall", self.name, "--wait", "--timeout", _TIMEOUT)

    def _helm(self, *argv: str) -> str:
        home = self.access.scratch / "helm"
        home.mkdir(exist_ok=True)
        environ = {"HOME": str(home), "KUBECONFIG": str(self.access.kubeconfig)}
        return run(
            [self.helm, *argv, "--namespace", self.namespace],
            remedy="Helm says why below",
            environ=environ,
            timeout=300,
        )
