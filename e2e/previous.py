"""The version before this one: its chart and images from its commit, put into the cluster under test."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from retinue_emulator.kind.cluster import KindCluster
from retinue_emulator.kind.commands import CommandFailed, run
from retinue_emulator.kind.images import version
from retinue_emulator.loopback import LoopbackError

REPOSITORY = Path(__file__).resolve().parents[1]
# The last commit of 0.1.0.
COMMIT = "034a9646c201b9e13937db1f2ea0fa3cc608bf29"
# The emulator stays as it is: what is upgraded is the product. Engines run this version's image in any case.
IMAGES = ("operator", "gateway")
_REVISION = "org.opencontainers.image.revision"


@dataclass(frozen=True)
class Previous:
    """The unpacked source of a former version."""

    root: Path

    @property
    def chart(self) -> Path:
        """Its chart."""
        return self.root / "charts" / "retinue"

    @property
    def version(self) -> str:
        """Its version, which is also the tag of its images."""
        return version(self.root)


def unpack(state: Path, commit: str = COMMIT) -> Previous:
    """The source of `commit` below the folder `state`. Raises LoopbackError where the clone does not hold it."""
    root = state / f"source-{commit[:7]}"
    if not root.exists():
        archive = state / f"source-{commit[:7]}.tar"
        try:
            run(["git", "archive", "--output", archive, commit], remedy="git says why below", cwd=REPOSITORY)
        except CommandFailed as error:
            raise LoopbackError(
                f"this clone does not hold commit {commit[:7]}, the previous version",
                f"git fetch --unshallow\n{error}",
            ) from error
        with tarfile.open(archive) as packed:
            packed.extractall(root, filter="data")
        archive.unlink()
    return Previous(root)


def provide(previous: Previous, kind: KindCluster, node: str, commit: str = COMMIT) -> None:
    """Builds the images of operator and gateway of a former version, unless they are there, and loads them into a node.

    Where nothing can be pulled its dependencies come from build/wheels, as for the images of the present version.
    """
    machine = kind.machine
    arguments = {"VERSION": previous.version}
    if machine.base_image is not None:
        arguments |= {"BASE_IMAGE": machine.base_image, "PIP_ARGS": "--no-index --find-links=/wheels"}
        shutil.copytree(REPOSITORY / "build" / "wheels", previous.root / "build" / "wheels", dirs_exist_ok=True)
    names = [f"retinue/{name}:{previous.version}" for name in IMAGES]
    for target, name in zip(IMAGES, names, strict=True):
        if _revision(kind, name) == commit:
            continue
        kind.engine(
            *("build", "--quiet", "--file", f"{previous.root}/images/Dockerfile", "--target", target, "--tag", name),
            *("--label", f"{_REVISION}={commit}"),
            *(word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")),
            str(previous.root),
            timeout=600,
        )
    kind.load(*names, nodes=[node])


def values_for(chart: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of these values those that the chart knows: a former chart refuses settings that came after it."""
    return _known(yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8")), values)


def _known(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in values.items():
        if name not in defaults:
            continue
        # An empty default takes anything: a node selector, annotations.
        deeper = isinstance(value, Mapping) and isinstance(defaults[name], Mapping) and defaults[name]
        kept[name] = _known(defaults[name], value) if deeper else value
    return kept


def _revision(kind: KindCluster, image: str) -> str:
    try:
        return kind.engine("image", "inspect", "--format", f'{{{{index .Config.Labels "{_REVISION}"}}}}', image).strip()
    except CommandFailed:
        return ""
