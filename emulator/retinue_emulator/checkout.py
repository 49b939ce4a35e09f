"""Where the source checkout is: the demo installs the manifests in its folders `crds` and `deploy`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retinue_emulator.loopback import LoopbackError

_FOLDERS = ("crds", "deploy")


@dataclass(frozen=True)
class Checkout:
    """The folders of a source checkout that a cluster is set up from."""

    root: Path

    @property
    def crds(self) -> Path:
        """The custom resource definitions."""
        return self.root / "crds"

    @property
    def deploy(self) -> Path:
        """Namespaces, service accounts and roles."""
        return self.root / "deploy"


def find_checkout(start: Path | None = None) -> Checkout:
    """The nearest folder that has the manifests: upwards from `start`, from this file, then from the working folder.

    Raises LoopbackError when there is none, as with an installed wheel.
    """
    for folder in _candidates(start):
        if all(any((folder / name).glob("*.yaml")) for name in _FOLDERS):
            return Checkout(folder)
    raise LoopbackError(
        "the folders crds and deploy were not found",
        "run this from a clone of the Retinue repository (pip install --editable .)",
    )


def _candidates(start: Path | None) -> Iterator[Path]:
    origins = [start] if start is not None else [Path(__file__), Path.cwd()]
    for origin in origins:
        resolved = origin.resolve()
        yield resolved
        yield from resolved.parents
