"""What must be so before the operator can start, and the one line that says what to do when it is not."""

from collections.abc import Iterable, Sequence
from enum import IntEnum

from retinue_operator.client import KubeClient
from retinue_operator.errors import Forbidden, KubeError, NotFound, one_line
from retinue_operator.resources import CLAIM_TEMPLATE, OWN_KINDS, Resource


class Exit(IntEnum):
    """Exit codes of retinue-operator; 2 is a wrong command line, as usual."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_ACCESS = 3
    CRDS_MISSING = 4
    LEASE_LOST = 5
    DRIFT = 6
    CLUSTER_TOO_OLD = 7


class StartError(Exception):
    """The operator cannot start: one line for the user, and the exit code."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


async def check(client: KubeClient, source: str) -> str:
    """The version of the API server. Raises StartError when it cannot be used; `source` says whose credentials fail."""
    try:
        version = await client.read("/version")
        missing = await _missing(client, OWN_KINDS)
        too_old = await _missing(client, (CLAIM_TEMPLATE,))
    except Forbidden as error:
        raise StartError(f"{client.server} refuses {source}: {one_line(error)}", Exit.NO_ACCESS) from error
    except KubeError as error:
        raise StartError(
            f"{client.server} cannot be used with {source}: {one_line(error)}; "
            "check that the cluster runs and that the credentials are current",
            Exit.NO_ACCESS,
        ) from error
    if too_old:
        raise StartError(
            f"{client.server} does not serve {CLAIM_TEMPLATE.api_version}: upgrade it to Kubernetes 1.34 or newer",
            Exit.CLUSTER_TOO_OLD,
        )
    if missing:
        raise StartError(
            f"the cluster lacks the CRDs {', '.join(missing)}: install them with kubectl apply --server-side -f crds/",
            Exit.CRDS_MISSING,
        )
    return str(version.get("gitVersion", "unknown"))


async def _missing(client: KubeClient, resources: Iterable[Resource]) -> Sequence[str]:
    """Those of the resources that the API server does not serve, as the names of their CRDs would be."""
    served: dict[str, frozenset[str]] = {}
    missing: list[str] = []
    for resource in resources:
        if resource.api_version not in served:
            served[resource.api_version] = await _served(client, resource.api_version)
        if resource.plural not in served[resource.api_version]:
            missing.append(f"{resource.plural}.{resource.group}")
    return missing


async def _served(client: KubeClient, api_version: str) -> frozenset[str]:
    try:
        found = await client.read(f"/apis/{api_version}")
    except NotFound:
        found = {}
    return frozenset(entry["name"] for entry in found.get("resources") or [])
