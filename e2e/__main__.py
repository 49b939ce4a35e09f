"""`python e2e` (make e2e): makes a kind cluster with the product on it, runs the suite, prints figures, cleans up.

With KUBECONFIG set the suite runs on that cluster, which must be able to get the images (RETINUE_E2E_REGISTRY), and
tests that stop nodes are skipped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# `python e2e` puts this folder first: the package is beside it.
sys.path[0] = str(REPOSITORY)

from e2e.figures import print_figures  # noqa: E402
from e2e.session import WHOLE, Session  # noqa: E402
from rich.console import Console  # noqa: E402

from retinue_emulator.kind.bringup import bring_up  # noqa: E402
from retinue_emulator.kind.layout import values  # noqa: E402
from retinue_emulator.loopback import LoopbackError, ensure_tools  # noqa: E402
from retinue_emulator.loopback.toolset import PROMETHEUS_VERSION  # noqa: E402
from retinue_emulator.stages import Stages  # noqa: E402

SPEED = 12.0
_NO_TESTS = 5


def main() -> int:
    """The exit code: 0 when every test passed."""
    options = _options()
    artifacts = REPOSITORY / "e2e-report"
    shutil.rmtree(artifacts, ignore_errors=True)
    artifacts.mkdir()
    try:
        session = _session(options, artifacts)
    except LoopbackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    environ = {**os.environ, **session.save()}
    if options.phase == "all" and not options.pytest:
        environ[WHOLE] = "1"
    try:
        return _run(options, environ)
    finally:
        print_figures(artifacts, Console())
        _clean_up(session, keep=options.keep)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python e2e", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--state", type=Path, help="folder of a cluster that an earlier run kept: use it again")
    parser.add_argument("--name", default="retinue-e2e", help="name of the kind cluster")
    parser.add_argument("--workers", default="3", help="tests that run side by side")
    parser.add_argument("--phase", choices=("all", "install", "together", "alone"), default="all")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest after --, such as -k drain")
    return parser.parse_args()


def _session(options: argparse.Namespace, artifacts: Path) -> Session:
    if options.state is not None:
        saved = json.loads((options.state / "session.json").read_text())
        saved["artifacts"] = str(artifacts)
        (options.state / "session.json").write_text(json.dumps(saved))
        from e2e.session import open_session

        return open_session({"RETINUE_E2E_SESSION": str(options.state / "session.json")})
    tools = asyncio.run(ensure_tools(("kubectl", "helm4", "promtool", "prometheus")))
    state = Path(tempfile.mkdtemp(prefix="retinue-e2e-"))
    foreign = os.environ.get("KUBECONFIG")
    if foreign:
        registry = os.environ.get("RETINUE_E2E_REGISTRY", "")
        chosen = {**values("none", speed=SPEED, prometheus_tag=PROMETHEUS_VERSION, nodes=None)}
        chosen["image"] = {"registry": registry}
        kubeconfig, machine = Path(foreign), None
    else:
        cluster = asyncio.run(bring_up(options.name, state, Stages(Console())))
        chosen = values(options.name, speed=SPEED, prometheus_tag=PROMETHEUS_VERSION)
        kubeconfig, machine = cluster.access.kubeconfig, cluster.machine
    return Session(
        state=state,
        kubeconfig=kubeconfig,
        kubectl=tools["kubectl"],
        helm=tools["helm4"],
        promtool=tools["promtool"],
        artifacts=artifacts,
        speed=SPEED,
        values=chosen,
        kind_name=None if machine is None else options.name,
        machine=machine,
    )


def _run(options: argparse.Namespace, environ: dict[str, str]) -> int:
    base = [sys.executable, "-m", "pytest", "e2e", "--durations=15"]
    # First of all the chart is installed, because that is measured; the rest relies on it.
    phases: list[tuple[str, Sequence[str]]] = [
        ("install", ("-m", "install")),
        ("together", ("-m", "not alone and not install", "-n", options.workers)),
        ("alone", ("-m", "alone")),
    ]
    code = 0
    for name, arguments in phases:
        if options.phase not in ("all", name):
            continue
        began = time.monotonic()
        print(f"\n== e2e: {name}", flush=True)
        done = subprocess.run([*base, *arguments, *options.pytest], cwd=REPOSITORY, env=environ, check=False).returncode
        print(f"== e2e: {name} ended with {done} after {time.monotonic() - began:.0f} s", flush=True)
        if done not in (0, _NO_TESTS) or (done == _NO_TESTS and not options.pytest):
            code = done
        if code and name == "install":
            break
    return code


def _clean_up(session: Session, *, keep: bool) -> None:
    cluster = session.cluster()
    if keep:
        print(f"the cluster stays: export KUBECONFIG={session.kubeconfig}; again with --state {session.state}")
    else:
        if cluster is not None:
            cluster.delete()
        shutil.rmtree(session.state, ignore_errors=True)


sys.exit(main())
