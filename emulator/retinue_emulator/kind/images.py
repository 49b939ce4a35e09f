"""Images for a kind cluster: the project's own by images/build.sh, and Prometheus from the binary built here."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from retinue_emulator.loopback.toolset import PROMETHEUS_VERSION

from .commands import run
from .layout import PROMETHEUS_IMAGE
from .machine import Machine

OWN_IMAGES = ("operator", "gateway", "emulator")
_DOCKERFILE = 'FROM scratch\nCOPY prometheus /bin/prometheus\nUSER 65532:65532\nENTRYPOINT ["/bin/prometheus"]\n'


def version(root: Path) -> str:
    """The version of a checkout, which is also the tag of its images."""
    found = re.search(r'^version = "(.*)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"{root / 'pyproject.toml'} states no version")
    return found[1]


def own_images(root: Path, names: Sequence[str] = OWN_IMAGES) -> list[str]:
    """Names with tags of the images of a checkout."""
    return [f"retinue/{name}:{version(root)}" for name in names]


def build_images(root: Path, machine: Machine, python: Path) -> str:
    """Builds operator, gateway and emulator of the checkout `root`; returns one line per image with its size.

    python: an interpreter with pip, for the wheels where the build itself reaches no package index.
    """
    environ = {**machine.environ, "CONTAINER_ENGINE": machine.engine}
    if machine.base_image is not None:
        environ |= {"BASE_IMAGE": machine.base_image, "WHEELS": "1", "PYTHON": str(python)}
    return run([root / "images" / "build.sh"], remedy="see above", environ=environ, show=True)


def build_prometheus(binary: Path, machine: Machine) -> str:
    """An image of the Prometheus binary `binary`; returns its name with the tag."""
    name = f"{PROMETHEUS_IMAGE}:{PROMETHEUS_VERSION}"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy2(binary, Path(folder) / "prometheus")
        (Path(folder) / "Dockerfile").write_text(_DOCKERFILE)
        run([machine.engine, "build", "--quiet", "--tag", name, folder], remedy="see below", environ=machine.environ)
    return name
