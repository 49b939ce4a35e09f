"""Where a loopback binary is found: an ordered list of places, and the cache folder that is the last of them."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from .errors import LoopbackError
from .toolset import TOOLS, Tool, cache_key, module_files

ASSETS_VARIABLE = "KUBEBUILDER_ASSETS"
# Prometheus 3 changed label matching and range selectors; queries are written for it.
MINIMUM_PROMETHEUS = (3, 0)


class Source(StrEnum):
    """The place a binary came from."""

    TEST_ASSET = "TestAsset"
    KUBEBUILDER_ASSETS = "KubebuilderAssets"
    PATH = "Path"
    CACHE = "Cache"


@dataclass(frozen=True)
class Location:
    """A binary that exists and is executable, and the place it came from."""

    path: Path
    source: Source


@dataclass(frozen=True)
class Search:
    """Everything a look-up may consult: the environment and the cache folder of this set of versions."""

    environ: Mapping[str, str]
    cache: Path

    @property
    def bin(self) -> Path:
        return self.cache / "bin"


def cache_root(environ: Mapping[str, str]) -> Path:
    """The folder for all loopback builds: `$XDG_CACHE_HOME/retinue/loopback`, by default below `~/.cache`."""
    base = environ.get("XDG_CACHE_HOME") or ""
    # The XDG specification tells programs to ignore a relative path here.
    root = Path(base) if Path(base).is_absolute() else Path(environ.get("HOME") or Path.home()) / ".cache"
    return root / "retinue" / "loopback"


def current_search(environ: Mapping[str, str] | None = None, tools: Mapping[str, Tool] = TOOLS) -> Search:
    """The search for this machine and the versions of these tools that this package pins."""
    environ = os.environ if environ is None else environ
    files = {tool.module.name: module_files(tool.module) for tool in tools.values()}
    key = cache_key(tools.values(), files, f"{platform.system()}-{platform.machine()}".lower())
    return Search(environ, cache_root(environ) / key)


def find(tool: Tool, search: Search) -> Location | None:
    """The first place that has the tool, or None when it must be built.

    Raises LoopbackError when the user named a place explicitly and it cannot be used: building silently instead would
    hide the mistake.
    """
    for source, look_up in LOOK_UPS:
        path = look_up(tool, search)
        if path is not None:
            return Location(path, source)
    return None


def find_all(
    names: Iterable[str], search: Search, tools: Mapping[str, Tool] = TOOLS
) -> tuple[dict[str, Location], tuple[str, ...]]:
    """What of these tools is there by name, and the names of what must be built in build order."""
    wanted = set(names)
    found = {name: find(tool, search) for name, tool in tools.items() if name in wanted}
    present = {name: location for name, location in found.items() if location is not None}
    return present, tuple(name for name in found if name not in present)


def prometheus_version(output: str) -> tuple[int, int] | None:
    """(major, minor) from the text of `prometheus --version`, or None when it does not say."""
    match = re.search(r"prometheus, version v?(\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else None


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _from_test_asset(tool: Tool, search: Search) -> Path | None:
    value = search.environ.get(tool.asset_variable)
    if not value:
        return None
    if not _executable(Path(value)):
        raise LoopbackError(
            f"{tool.asset_variable} names {value}, which is not an executable file",
            f"point it at the {tool.name} binary or unset it",
        )
    return Path(value).absolute()


def _from_kubebuilder_assets(tool: Tool, search: Search) -> Path | None:
    value = search.environ.get(ASSETS_VARIABLE)
    if not value:
        return None
    if not Path(value).is_dir():
        raise LoopbackError(
            f"{ASSETS_VARIABLE} names {value}, which is not a folder",
            "point it at a folder with kube-apiserver, etcd and kubectl or unset it",
        )
    path = Path(value).absolute() / tool.name
    return path if _executable(path) else None


def _from_path(tool: Tool, search: Search) -> Path | None:
    # A control plane of unknown version would make results depend on the machine; Prometheus is asked for its version.
    if tool.name != "prometheus":
        return None
    found = shutil.which(tool.name, path=search.environ.get("PATH", ""))
    if found is None:
        return None
    try:
        shown = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = prometheus_version(shown.stdout + shown.stderr)
    return Path(found).absolute() if version is not None and version >= MINIMUM_PROMETHEUS else None


def _from_cache(tool: Tool, search: Search) -> Path | None:
    path = search.bin / tool.name
    return path if _executable(path) else None


LOOK_UPS: tuple[tuple[Source, Callable[[Tool, Search], Path | None]], ...] = (
    (Source.TEST_ASSET, _from_test_asset),
    (Source.KUBEBUILDER_ASSETS, _from_kubebuilder_assets),
    (Source.PATH, _from_path),
    (Source.CACHE, _from_cache),
)
