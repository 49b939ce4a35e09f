"""What must be so before the operator can start, and the one line that says what to do when it is not."""

from collections.abc import Sequence
from enum import IntEnum

from retinue.api import GROUP, VERSION
from retinue_operator.client import KubeClient
from retinue_operator.errors import Forbidden, KubeError, NotFound, one_line
from retinue_operator.resources import OWN_KINDS


class Exit(IntEnum):
    """Exit codes of retinue-operator; 2 is a wrong command line, as usual."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_ACCESS = 3
    CRDS_MISSING = 4
    LEASE_LOST = 5
    DRIFT = 6


class StartError(Exception):
    """The operator cannot start: one line for the user, and the exit code."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code


async def check(client: KubeClient, source: str) -> str:
    """The version of the API server. Raises StartError when it cannot be used; `source` says whose credentials fail."""
    try:
        version = await client.read("/version")
        missing = await _missing_kinds(client)
    except Forbidden as error:
        raise StartError(f"{client.server} refuses {source}: {one_line(error)}", Exit.NO_ACCESS) from error
    except KubeError as error:
        raise StartError(
            f"{client.server} cannot be used with {source}: {one_line(error)}; "
            "check that the cluster runs and that the credentials are current",
            Exit.NO_ACCESS,
        ) from error
    if missing:
        raise StartError(
            f"the cluster lacks the CRDs {', '.join(missing)}: install them with kubectl apply --server-side -f crds/",
            Exit.CRDS_MISSING,
        )
    return str(version.get("gitVersion", "unknown"))


async def _missing_kinds(client: KubeClient) -> Sequence[str]:
    try:
        found = await client.read(f"/apis/{GROUP}/{VERSION}")
    except NotFound:
        found = {}
    served = {entry["name"] for entry in found.get("resources") or []}
    return [f"{resource.plural}.{GROUP}" for resource in OWN_KINDS if resource.plural not in served]
