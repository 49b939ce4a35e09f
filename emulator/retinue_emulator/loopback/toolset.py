"""Which binaries the loopback control plane consists of, their versions and build flags, and their cache key.

Versions and flags are chosen to equal those of other builds of the same binaries on a developer's machine, so that
Go's own build cache serves both. Prometheus and Helm are the newest versions that can be built with the dependencies of
Kubernetes, so that what they share, which is most of them, is compiled once. Each module folder under `modules/` holds
go.mod and go.sum, which pin every dependency by hash.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

KUBERNETES_VERSION = "1.37.1"
ETCD_VERSION = "3.7.1"
PROMETHEUS_VERSION = "0.313.2"
HELM3_VERSION = "3.21.4"
HELM4_VERSION = "4.2.4"

_VERSION_PACKAGE = "k8s.io/component-base/version"
_KUBERNETES_LDFLAGS = (
    f"-s -w -X {_VERSION_PACKAGE}.gitVersion=v{KUBERNETES_VERSION} -X {_VERSION_PACKAGE}.gitMajor=1 "
    f"-X {_VERSION_PACKAGE}.gitMinor={KUBERNETES_VERSION.split('.')[1]}"
)


@dataclass(frozen=True)
class GoModule:
    """A go.mod under `modules/` from which tools are built. `version` is that of the project it builds."""

    name: str
    version: str
    ldflags: str
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """One binary: the module that pins it and the Go package that is its main package."""

    name: str
    module: GoModule
    package: str

    @property
    def asset_variable(self) -> str:
        """The environment variable that names a ready-made binary, spelled as envtest spells it."""
        return "TEST_ASSET_" + self.name.upper().replace("-", "_")

    def build_arguments(self, output: str) -> list[str]:
        """Arguments of `go` that build this tool into the file `output`; go.mod is never modified."""
        tags = ["-tags", ",".join(self.module.tags)] if self.module.tags else []
        return [
            "build",
            "-mod=readonly",
            "-trimpath",
            *tags,
            "-ldflags",
            self.module.ldflags,
            "-v",
            "-o",
            output,
            self.package,
        ]


_KUBERNETES_TAGS = ("selinux", "notest", "grpcnotrace")
_KUBERNETES = GoModule("kubernetes", KUBERNETES_VERSION, _KUBERNETES_LDFLAGS, _KUBERNETES_TAGS)
_ETCD = GoModule("etcd", ETCD_VERSION, "-s -w")
# Only the Kubernetes service discovery is compiled in; the web UI is left out, the HTTP API is complete.
_PROMETHEUS = GoModule(
    "prometheus", PROMETHEUS_VERSION, "-s -w", (*_KUBERNETES_TAGS, "remove_all_sd", "enable_kubernetes_sd")
)

# Helm 3 takes the Kubernetes version of `helm template` from the linker, Helm 4 from its own dependencies.
_HELM3 = GoModule(
    "helm3",
    HELM3_VERSION,
    f"-s -w -X helm.sh/helm/v3/internal/version.version=v{HELM3_VERSION} "
    "-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 "
    f"-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={KUBERNETES_VERSION.split('.')[1]}",
)
_HELM4 = GoModule("helm4", HELM4_VERSION, f"-s -w -X helm.sh/helm/v4/internal/version.version=v{HELM4_VERSION}")

# In build order: the small etcd first, so that a machine that cannot build learns it early.
TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("etcd", _ETCD, "go.etcd.io/etcd/server/v3"),
        Tool("kube-apiserver", _KUBERNETES, "k8s.io/kubernetes/cmd/kube-apiserver"),
        Tool("kube-controller-manager", _KUBERNETES, "k8s.io/kubernetes/cmd/kube-controller-manager"),
        Tool("kube-scheduler", _KUBERNETES, "k8s.io/kubernetes/cmd/kube-scheduler"),
        Tool("kubectl", _KUBERNETES, "k8s.io/kubernetes/cmd/kubectl"),
        Tool("prometheus", _PROMETHEUS, "github.com/prometheus/prometheus/cmd/prometheus"),
        Tool("promtool", _PROMETHEUS, "github.com/prometheus/prometheus/cmd/promtool"),
    )
}
# Built only when asked for by name, in a cache folder of their own: neither a control plane nor the demo needs them.
OPTIONAL_TOOLS: Mapping[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool("helm4", _HELM4, "helm.sh/helm/v4/cmd/helm"),
        Tool("helm3", _HELM3, "helm.sh/helm/v3/cmd/helm"),
    )
}
CONTROL_PLANE_TOOLS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")


def module_files(module: GoModule) -> dict[str, bytes]:
    """The files of a module folder by file name, read from the installed package."""
    folder = resources.files("retinue_emulator.loopback").joinpath("modules", module.name)
    return {
        entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith((".mod", ".sum", ".go"))
    }


def cache_key(tools: Iterable[Tool], files: Mapping[str, Mapping[str, bytes]], platform: str) -> str:
    """16 hex digits that change with any version, build flag, module file or platform.

    `files` maps a module's name to its files by name; `platform` is a word such as `linux-x86_64`, because a home
    directory may be shared between machines.
    """
    digest = hashlib.sha256(platform.encode())
    for tool in tools:
        digest.update("\0".join([tool.name, tool.module.version, *tool.build_arguments(tool.name)]).encode())
    for module in sorted(files):
        for name in sorted(files[module]):
            digest.update(f"\0{module}/{name}\0".encode())
            digest.update(hashlib.sha256(files[module][name]).digest())
    return digest.hexdigest()[:16]
