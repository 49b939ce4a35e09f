"""Binaries are looked up in TEST_ASSET_*, KUBEBUILDER_ASSETS, PATH (Prometheus only) and the cache, in this order."""

from pathlib import Path

import pytest

from retinue_emulator.loopback.errors import LoopbackError
from retinue_emulator.loopback.locate import (
    Location,
    Search,
    Source,
    cache_root,
    current_search,
    find,
    find_all,
    prometheus_version,
)
from retinue_emulator.loopback.toolset import TOOLS


def program(path: Path, output: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


def test_a_named_asset_wins_over_the_assets_folder_which_wins_over_the_cache(tmp_path: Path) -> None:
    named = program(tmp_path / "named" / "my-apiserver")
    in_folder = program(tmp_path / "assets" / "kube-apiserver")
    cached = program(tmp_path / "cache" / "bin" / "kube-apiserver")
    tool = TOOLS["kube-apiserver"]
    environ = {"TEST_ASSET_KUBE_APISERVER": str(named), "KUBEBUILDER_ASSETS": str(in_folder.parent)}
    search = Search(environ, tmp_path / "cache")
    assert find(tool, search) == Location(named, Source.TEST_ASSET)
    del environ["TEST_ASSET_KUBE_APISERVER"]
    assert find(tool, search) == Location(in_folder, Source.KUBEBUILDER_ASSETS)
    del environ["KUBEBUILDER_ASSETS"]
    assert find(tool, search) == Location(cached, Source.CACHE)
    cached.unlink()
    assert find(tool, search) is None


def test_what_the_assets_folder_lacks_comes_from_the_cache(tmp_path: Path) -> None:
    program(tmp_path / "assets" / "etcd")
    cached = program(tmp_path / "cache" / "bin" / "kube-scheduler")
    search = Search({"KUBEBUILDER_ASSETS": str(tmp_path / "assets")}, tmp_path / "cache")
    assert find(TOOLS["kube-scheduler"], search) == Location(cached, Source.CACHE)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TEST_ASSET_ETCD": "/nowhere/etcd"}, "TEST_ASSET_ETCD names /nowhere/etcd, which is not an executable file"),
        ({"KUBEBUILDER_ASSETS": "/nowhere"}, "KUBEBUILDER_ASSETS names /nowhere, which is not a folder"),
    ],
)
def test_a_place_the_user_named_and_that_does_not_exist_is_an_error(
    environ: dict[str, str], message: str, tmp_path: Path
) -> None:
    program(tmp_path / "bin" / "etcd")
    with pytest.raises(LoopbackError, match=message):
        find(TOOLS["etcd"], Search(environ, tmp_path))


@pytest.mark.parametrize(("version", "accepted"), [("3.0.1", True), ("3.14.0", True), ("2.55.1", False), ("x", False)])
def test_prometheus_from_path_is_taken_if_it_is_new_enough(version: str, accepted: bool, tmp_path: Path) -> None:
    found = program(tmp_path / "path" / "prometheus", f"prometheus, version {version} (branch: HEAD)")
    search = Search({"PATH": str(found.parent)}, tmp_path)
    assert find(TOOLS["prometheus"], search) == (Location(found, Source.PATH) if accepted else None)


def test_no_other_binary_is_taken_from_path(tmp_path: Path) -> None:
    found = program(tmp_path / "path" / "kubectl")
    assert find(TOOLS["kubectl"], Search({"PATH": str(found.parent)}, tmp_path)) is None


def test_find_all_tells_what_is_there_and_what_must_be_built_in_build_order(tmp_path: Path) -> None:
    cached = program(tmp_path / "bin" / "kubectl")
    found, missing = find_all(("promtool", "kubectl", "etcd"), Search({}, tmp_path))
    assert found == {"kubectl": Location(cached, Source.CACHE)}
    assert missing == ("etcd", "promtool")


def test_the_version_of_prometheus_is_read_from_what_it_prints() -> None:
    assert prometheus_version("prometheus, version 3.5.0 (branch: HEAD, revision: abc)") == (3, 5)
    assert prometheus_version("something else 9.9") is None


def test_the_cache_follows_the_xdg_specification() -> None:
    assert cache_root({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/retinue/loopback")
    assert cache_root({"HOME": "/h"}) == Path("/h/.cache/retinue/loopback")
    assert cache_root({"XDG_CACHE_HOME": "relative", "HOME": "/h"}) == Path("/h/.cache/retinue/loopback")
    assert current_search({"XDG_CACHE_HOME": "/x"}).cache.parent == Path("/x/retinue/loopback")
