"""The cache key of the loopback binaries changes with everything that changes a binary, and with nothing else."""

import re
from dataclasses import replace

import pytest

from retinue_emulator.loopback.toolset import (
    CONTROL_PLANE_TOOLS,
    OPTIONAL_TOOLS,
    TOOLS,
    GoModule,
    Tool,
    cache_key,
    module_files,
)

FILES = {"etcd": {"go.mod": b"module a", "go.sum": b"sum"}}
ETCD = TOOLS["etcd"]
PLATFORM = "linux-x86_64"


def test_the_key_is_16_hex_digits_and_the_same_every_time() -> None:
    key = cache_key([ETCD], FILES, PLATFORM)
    assert key == cache_key([ETCD], {"etcd": dict(reversed(FILES["etcd"].items()))}, PLATFORM)
    assert len(key) == 16
    assert int(key, 16) >= 0


@pytest.mark.parametrize(
    ("tool", "files", "platform"),
    [
        (replace(ETCD, module=replace(ETCD.module, version="3.7.2")), FILES, PLATFORM),
        (replace(ETCD, module=replace(ETCD.module, ldflags="-s")), FILES, PLATFORM),
        (replace(ETCD, module=replace(ETCD.module, tags=("netgo",))), FILES, PLATFORM),
        (replace(ETCD, package="go.etcd.io/etcd/server/v4"), FILES, PLATFORM),
        (ETCD, {"etcd": {"go.mod": b"module b", "go.sum": b"sum"}}, PLATFORM),
        (ETCD, {"etcd": {"go.mod": b"module a", "go.sum": b"other"}}, PLATFORM),
        (ETCD, FILES, "linux-aarch64"),
    ],
    ids=["version", "ldflags", "tags", "package", "go.mod", "go.sum", "platform"],
)
def test_the_key_changes_with(tool: Tool, files: dict[str, dict[str, bytes]], platform: str) -> None:
    assert cache_key([tool], files, platform) != cache_key([ETCD], FILES, PLATFORM)


def test_every_module_folder_pins_its_dependencies_and_the_version_that_the_tools_claim() -> None:
    for tool in (*TOOLS.values(), *OPTIONAL_TOOLS.values()):
        files = module_files(tool.module)
        assert set(files) == {"go.mod", "go.sum", "toolset.go"}, tool.name
        assert f" v{tool.module.version}".encode() in files["go.mod"], tool.name


def _required(module: GoModule) -> dict[str, str]:
    text = module_files(module)["go.mod"].decode()
    return dict(re.findall(r"^\t(\S+) (v\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("tool", ["prometheus", "helm4", "helm3"])
def test_the_libraries_of_kubernetes_are_built_once_for_all(tool: str) -> None:
    """Another version of one of these, and all that stands on it would be compiled again: minutes."""
    own = _required((TOOLS | OPTIONAL_TOOLS)[tool].module)
    of_kubernetes = _required(TOOLS["kube-apiserver"].module)
    below = ("golang.org/x/net", "golang.org/x/sys", "golang.org/x/text", "google.golang.org/protobuf")
    shared = {name for name in own if name in of_kubernetes and (name.startswith("k8s.io/") or name in below)}
    assert {"k8s.io/client-go", "k8s.io/kube-openapi", *below} <= shared
    # v0.0.0 stands for the module's own copy.
    differing = {name: own[name] for name in shared if of_kubernetes[name] not in (own[name], "v0.0.0")}
    assert differing == {}


def test_a_build_never_modifies_go_mod_and_stamps_the_kubernetes_version() -> None:
    arguments = TOOLS["kube-apiserver"].build_arguments("/out/kube-apiserver")
    assert arguments[:2] == ["build", "-mod=readonly"]
    assert "selinux,notest,grpcnotrace" in arguments
    assert "-X k8s.io/component-base/version.gitVersion=v1.37.1" in " ".join(arguments)
    assert arguments[-3:] == ["-o", "/out/kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"]


def test_the_control_plane_needs_no_prometheus() -> None:
    assert set(CONTROL_PLANE_TOOLS) == set(TOOLS) - {"prometheus", "promtool"}
