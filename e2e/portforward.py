"""A port of a pod or service on this machine, through the API server."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from retinue_emulator.loopback import ClusterAccess, LoopbackError


@contextmanager
def forwarded(access: ClusterAccess, namespace: str, target: str, port: int) -> Iterator[str]:
    """`kubectl port-forward` to `target` (pod/NAME or service/NAME) for a `with` block; the base URL on 127.0.0.1."""
    argv = [
        *(str(access.kubectl_path), f"--kubeconfig={access.kubeconfig}", "port-forward", "-n", namespace),
        *("--address", "127.0.0.1", target, f":{port}"),
    ]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        line = child.stdout.readline() if child.stdout is not None else ""
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise LoopbackError(f"{target} in {namespace} cannot be forwarded", line.strip() or "kubectl said nothing")
        yield f"http://127.0.0.1:{found[1]}"
    finally:
        child.terminate()
        child.wait()
