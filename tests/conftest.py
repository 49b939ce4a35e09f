"""One cluster per test session, one namespace per test, and a Prometheus that scrapes the cluster's Retinue pods."""

import asyncio
import logging
import os
import re
import secrets
import shutil
from collections.abc import Coroutine, Generator, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from retinue_emulator.loopback import ClusterAccess, ControlPlane, LoopbackError, PrometheusServer, ensure_tools
from retinue_operator.settings import DEFAULT_NAMESPACE

from .sidebyside import OneWorkerPerCluster

_LOGGER = logging.getLogger(__name__)
_CRDS = Path(__file__).resolve().parent.parent / "crds"
_EXTERNAL = "RETINUE_KUBECONFIG"
_FAILED = pytest.StashKey[bool]()
_KEPT_LOGS = pytest.StashKey[list[Path]]()

T = TypeVar("T")


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: tests of a cluster mostly wait."""
    return (os.cpu_count() or 1) + 1


def _run(work: Coroutine[object, object, T]) -> T:
    """Runs a coroutine to its end in a loop of its own, without touching the loop that pytest-asyncio has set.

    Session fixtures are synchronous, because nothing in the loopback package is tied to a loop while each test has
    its own.
    """
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(work)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """With -n, tests of one cluster share a worker."""
    return OneWorkerPerCluster(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remembers that something failed, so that the logs of the session are worth keeping."""
    report = yield
    if report.failed:
        item.session.stash[_FAILED] = True
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says where the logs of a session with failures are."""
    for logs in terminalreporter.config.stash.get(_KEPT_LOGS, []):
        terminalreporter.write_line(f"logs of the failed session are kept in {logs}")


def _keep_logs_after_failure(request: pytest.FixtureRequest, logs: Path) -> bool:
    failed = request.session.stash.get(_FAILED, False)
    if failed:
        request.config.stash.setdefault(_KEPT_LOGS, []).append(logs)
    return failed


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterAccess]:
    """Admin access to the cluster under test, with Retinue's custom resources established.

    It is a ControlPlane of this session with an audit log of all writes and of all that Retinue's own accounts ask,
    unless RETINUE_KUBECONFIG names another cluster.
    """
    external = os.environ.get(_EXTERNAL)
    if external:
        kubectl = shutil.which("kubectl") or str(_run(ensure_tools(("kubectl",)))["kubectl"])
        access = ClusterAccess(Path(external), Path(kubectl), tmp_path_factory.mktemp("kubeconfigs"))
        _install_crds(access)
        yield access
        return
    control_plane = ControlPlane(audit=True, audit_reads=(DEFAULT_NAMESPACE,))
    _run(control_plane.start())
    try:
        _install_crds(control_plane)
        yield control_plane
    finally:
        _run(control_plane.stop(keep_logs=_keep_logs_after_failure(request, control_plane.logs)))


def _install_crds(access: ClusterAccess) -> None:
    if not any(_CRDS.glob("*.yaml")):
        return
    access.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(_CRDS))
    access.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(_CRDS))


@pytest.fixture
def namespace(request: pytest.FixtureRequest, cluster: ClusterAccess) -> Iterator[str]:
    """The name of a namespace of this test alone, with its default service account. Deleted afterwards, not awaited."""
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower()).strip("-")[:40].strip("-")
    name = f"{stem}-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    # Until the account exists, the API server refuses every pod of the namespace.
    cluster.kubectl("wait", "--for=create", "--timeout=30s", f"--namespace={name}", "serviceaccount/default")
    try:
        yield name
    finally:
        try:
            cluster.kubectl("delete", "namespace", name, "--wait=false")
        except LoopbackError as error:
            # A test may have left the API server down or the namespace deleted; its own failure is what counts.
            _LOGGER.warning("namespace %s was not deleted: %s", name, error)


@pytest.fixture(scope="session")
def prometheus(request: pytest.FixtureRequest, cluster: ClusterAccess) -> Iterator[PrometheusServer]:
    """A Prometheus that scrapes all Retinue pods of the cluster each second. A test that stops it starts it again."""
    server = PrometheusServer(kubeconfig=cluster.kubeconfig, scrape_interval="1s")
    _run(server.start())
    try:
        yield server
    finally:
        _run(server.stop(keep_logs=_keep_logs_after_failure(request, server.log.parent)))
