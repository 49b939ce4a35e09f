"""Access to one cluster, loopback or not, by a kubeconfig: kubectl, addresses, and kubeconfigs of service accounts."""

import base64
import json
import subprocess
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import LoopbackError
from .kubeconfig import render_kubeconfig
from .private_files import write_private

_KUBECTL_SECONDS = 120.0
_TOKEN_DURATION = "24h"


class KubectlError(LoopbackError):
    """kubectl ended with an error; `output` is what it wrote to standard error."""

    def __init__(self, arguments: tuple[str, ...], output: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)} failed", output.strip() or "it gave no reason")
        self.output = output


class ClusterAccess:
    """One cluster seen through one kubeconfig.

    `kubectl_path` is the kubectl binary, `scratch` a folder for the files this object writes (kubeconfigs with tokens).
    """

    def __init__(self, kubeconfig: Path, kubectl_path: Path, scratch: Path) -> None:
        self.kubeconfig = kubeconfig
        self.kubectl_path = kubectl_path
        self.scratch = scratch

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = _KUBECTL_SECONDS) -> str:
        """Runs kubectl and returns its standard output; `stdin` is for `apply -f -`.

        Blocks the caller: in a test that serves the cluster from the same event loop, use `asyncio.to_thread`.
        Raises KubectlError when kubectl fails or takes more than `timeout` seconds.
        """
        try:
            done = subprocess.run(
                # kubectl would keep what it learns of a cluster in the user's home folder, long after the cluster.
                [self.kubectl_path, f"--kubeconfig={self.kubeconfig}", f"--cache-dir={self._cache}", *arguments],
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            raise KubectlError(arguments, f"no answer after {timeout} s") from expired
        if done.returncode != 0:
            raise KubectlError(arguments, done.stderr)
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Server-side applies the objects with kubectl's own field manager; conflicts are an error."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "-f", "-", stdin=text)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get ARGUMENTS -o json` as an object."""
        found = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        if not isinstance(found, dict):
            raise KubectlError(("get", *arguments), "the answer is not an object")
        return found

    @property
    def _cache(self) -> Path:
        return self.scratch / "kubectl-cache"

    @cached_property
    def _cluster(self) -> dict[str, str]:
        view = json.loads(self.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
        cluster: dict[str, str] = view["clusters"][0]["cluster"]
        return cluster

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return self._cluster["server"]

    @property
    def ca_certificate(self) -> bytes:
        """The CA of the API server as PEM."""
        return base64.b64decode(self._cluster.get("certificate-authority-data", ""))

    @property
    def ca_file(self) -> Path:
        """A file with the CA of the API server as PEM."""
        path = self.scratch / "ca.crt"
        return path if path.is_file() else write_private(path, self.ca_certificate)

    def service_account_kubeconfig(self, namespace: str, name: str, *, server: str = "") -> Path:
        """A kubeconfig that acts as a service account that exists, with a token valid for 24 hours.

        server: the address to use in place of the cluster's own, of a proxy that has a certificate of the same CA.
        Uses the TokenRequest API and creates nothing else in the cluster. Raises KubectlError when there is no such
        account.
        """
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", f"--duration={_TOKEN_DURATION}")
        text = render_kubeconfig(
            server=server or self.server,
            ca_certificate=self.ca_certificate,
            token=token.strip(),
            user=f"system:serviceaccount:{namespace}:{name}",
            namespace=namespace,
        )
        place = f".{server.rpartition(':')[2]}" if server else ""
        return write_private(self.scratch / f"{namespace}.{name}{place}.kubeconfig", text)

    def as_service_account(self, namespace: str, name: str) -> "ClusterAccess":
        """The same cluster through the rights of a service account, see `service_account_kubeconfig`."""
        return ClusterAccess(self.service_account_kubeconfig(namespace, name), self.kubectl_path, self.scratch)
