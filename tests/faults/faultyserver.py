"""The test cluster behind a proxy that lets things go wrong, and what must be true of an operator behind it."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from retinue_emulator.faultproxy import FaultProxy, Request
from retinue_emulator.loopback import ClusterAccess, ControlPlane

CRDS = Path(__file__).resolve().parents[2] / "crds"


@asynccontextmanager
async def faulty(cluster: ClusterAccess, seed: int = 0) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the API server, with the API server's own certificate. Skips on a cluster of others."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("the key of the API server of RETINUE_KUBECONFIG is not ours to use")
    serve = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serve.load_cert_chain(*cluster.serving_files)
    trust = ssl.create_default_context(cafile=str(cluster.ca_file))
    print(f"fault proxy with seed {seed}")
    async with FaultProxy(cluster.server, serve=serve, trust=trust, seed=seed) as proxy:
        yield proxy


def no_watch(request: Request) -> bool:
    """Matches everything but watches."""
    return not request.watch


def writes(request: Request) -> bool:
    """Matches what may change something, but for the lease and Events."""
    return request.writes and "/leases" not in request.path and "/events" not in request.path


class Watches:
    """Matches watches of one resource."""

    def __init__(self, plural: str) -> None:
        self._plural = plural

    def __call__(self, request: Request) -> bool:
        return request.watch and request.path.endswith(f"/{self._plural}")
