"""Helm 3 and Helm 4 built from Go modules (once, cached), and how tests render the chart with them."""

import asyncio
import contextlib
import copy
import functools
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinue_emulator.loopback import ControlPlane, ensure_tools

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "charts" / "retinue"
RELEASE = "retinue"
# The loader in C, where PyYAML has it, reads the CRDs in a tenth of the time.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Helm:
    """One Helm binary."""

    path: Path
    home: Path

    def run(self, *arguments: str, kubeconfig: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs it with a home of its own; returns whatever comes out."""
        environ = {"HOME": str(self.home), "PATH": "/usr/bin:/bin"}
        if kubeconfig is not None:
            environ["KUBECONFIG"] = str(kubeconfig)
        return subprocess.run([self.path, *arguments], env=environ, capture_output=True, text=True, check=False)

    def succeed(self, *arguments: str, kubeconfig: Path | None = None) -> str:
        """Standard output; fails the test with what Helm says otherwise."""
        done = self.run(*arguments, kubeconfig=kubeconfig)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def render(self, values: Path, *more: str, namespace: str = "retinue-system") -> list[dict[str, Any]]:
        """The objects of the chart with these values, ordered by kind, namespace and name."""
        return copy.deepcopy(_rendered(self, values, more, namespace))


@functools.cache
def _rendered(helm: Helm, values: Path, more: tuple[str, ...], namespace: str) -> list[dict[str, Any]]:
    """See Helm.render; many tests look at the same few renderings."""
    text = helm.succeed("template", RELEASE, str(CHART), "--namespace", namespace, "--values", str(values), *more)
    objects = [document for document in yaml.load_all(text, Loader=_LOADER) if document]
    return sorted(objects, key=_place)


def _place(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


@pytest.fixture(scope="session")
def tools(request: pytest.FixtureRequest) -> Mapping[str, Path]:
    """Paths of helm3, helm4 and promtool by name; what is missing is built with progress on the terminal."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    shown = capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext()
    with shown, asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(ensure_tools(("promtool", "helm4", "helm3")))


@pytest.fixture(scope="session", params=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, tools: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Each of the two Helm versions in turn."""
    return Helm(tools[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def helm4(tools: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm 4, for what does not depend on the version."""
    return Helm(tools["helm4"], tmp_path_factory.mktemp("helm"))


@pytest.fixture
def empty_cluster() -> Iterator[ControlPlane]:
    """A control plane of this test alone, on which nothing of Retinue is installed yet."""
    control_plane = ControlPlane()
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(control_plane.start())
        try:
            yield control_plane
        finally:
            runner.run(control_plane.stop())


def value_sets() -> Sequence[Path]:
    """The value files that are rendered in tests, by name."""
    return sorted((Path(__file__).parent / "values").glob("*.yaml"))
