"""What this machine makes kind clusters with: kind and a container engine, or a program that provides both.

On a workstation, kind and docker are in PATH and kind pulls its node image. Where no image can be pulled, the variable
RETINUE_KIND_BUILDER names a program that builds what is missing: `ensure` does it, `env` prints export lines (PATH,
KIND_NODE_IMAGE), and `python-base` makes the image PYTHON_BASE.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retinue_emulator.loopback import LoopbackError

from .commands import run

BUILDER = "RETINUE_KIND_BUILDER"
PYTHON_BASE = "retinue-base/python:3.11"
_EXPORT = re.compile(r"([A-Z_]+)=(\S+)")


@dataclass(frozen=True)
class Machine:
    """The programs that make clusters. node_image None: kind's own. base_image None: the default of images/build.sh.

    environ: variables that these programs need on top of this process'.
    """

    kind: str
    engine: str
    environ: Mapping[str, str]
    node_image: str | None = None
    base_image: str | None = None


def find_machine(environ: Mapping[str, str] | None = None) -> Machine:
    """The machine as it is, after the builder (if one is named) has provided what is missing; minutes the first time.

    Raises LoopbackError with what to install.
    """
    environ = os.environ if environ is None else environ
    builder = environ.get(BUILDER)
    if builder:
        return _built(Path(builder), environ)
    for program, where in (("docker", "https://docs.docker.com/engine/install"), ("kind", "https://kind.sigs.k8s.io")):
        if shutil.which(program, path=environ.get("PATH")) is None:
            raise LoopbackError(
                f"{program} was not found in PATH",
                f"install it ({where}), or name a program that provides kind in {BUILDER}",
            )
    run(["docker", "info"], remedy="start the container engine")
    return Machine("kind", "docker", {}, node_image=environ.get("KIND_NODE_IMAGE"), base_image=None)


def _built(builder: Path, environ: Mapping[str, str]) -> Machine:
    remedy = f"{BUILDER} names {builder}; see its output above"
    run([builder, "ensure"], remedy=remedy, show=True)
    run([builder, "python-base"], remedy=remedy, show=True)
    exports = dict(_EXPORT.findall(run([builder, "env"], remedy=remedy)))
    path = exports.get("PATH", "$PATH").replace("$PATH", environ.get("PATH", ""))
    found = {name: value for name, value in exports.items() if name != "PATH"}
    kind = shutil.which("kind", path=path)
    if kind is None:
        raise LoopbackError(f"{builder} has provided no kind", f"run {builder} ensure and read its output")
    return Machine(kind, "docker", {**found, "PATH": path}, found.get("KIND_NODE_IMAGE"), PYTHON_BASE)
