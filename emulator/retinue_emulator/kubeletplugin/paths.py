"""Where a kubelet and a container runtime look for plugins, sockets and device descriptions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NodePaths:
    """Folders of one node. `kubelet` is the kubelet's root, /var/lib/kubelet by default; `cdi` is read by the runtime.

    All of them must have the same path in the plugin's container as on the host, because the kubelet and the runtime
    are told these paths.
    """

    kubelet: Path = Path("/var/lib/kubelet")
    cdi: Path = Path("/var/run/cdi")

    @property
    def device_plugins(self) -> Path:
        """Sockets of device plugins, beside the kubelet's own registration socket."""
        return self.kubelet / "device-plugins"

    @property
    def kubelet_socket(self) -> Path:
        """Where device plugins register."""
        return self.device_plugins / "kubelet.sock"

    @property
    def registry(self) -> Path:
        """Where the kubelet looks for the registration sockets of DRA drivers."""
        return self.kubelet / "plugins_registry"

    @property
    def pod_resources(self) -> Path:
        """Where the kubelet says which container holds which device."""
        return self.kubelet / "pod-resources" / "kubelet.sock"

    @property
    def device_facts(self) -> Path:
        """One JSON file per device, mounted into the containers that hold it."""
        return self.kubelet / "plugins" / "retinue-emulator" / "devices"

    def driver(self, name: str) -> Path:
        """The folder of a DRA driver: its socket and its checkpoint."""
        return self.kubelet / "plugins" / name

    def make(self) -> None:
        """Creates the folders that the plugin writes to."""
        for folder in (self.device_plugins, self.registry, self.device_facts, self.cdi):
            folder.mkdir(parents=True, exist_ok=True)


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that a reader sees either the old text or the new one."""
    # Runtimes read every *.json of the CDI folder, and this name is none.
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
