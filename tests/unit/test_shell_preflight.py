"""An operator that cannot work says at its start what is missing and what to do, in one line."""

from typing import cast

import pytest

from retinue_operator.client import KubeClient
from retinue_operator.errors import Forbidden, KubeError, NotFound
from retinue_operator.preflight import Exit, StartError, check
from retinue_operator.resources import CLAIM_TEMPLATE, OWN_KINDS

OURS = OWN_KINDS[0].api_version
CURRENT = {OURS: [kind.plural for kind in OWN_KINDS], CLAIM_TEMPLATE.api_version: [CLAIM_TEMPLATE.plural]}


class Cluster:
    """An API server with nothing but discovery."""

    server = "https://cluster"

    def __init__(self, served: dict[str, list[str]], error: KubeError | None = None) -> None:
        self._served = served
        self._error = error

    async def read(self, path: str) -> dict[str, object]:
        if self._error is not None:
            raise self._error
        if path == "/version":
            return {"gitVersion": "v1.37.1"}
        names = self._served.get(path.removeprefix("/apis/"))
        if names is None:
            raise NotFound("the server could not find the requested resource", 404)
        return {"resources": [{"name": name} for name in names]}


async def start(cluster: Cluster) -> str:
    return await check(cast(KubeClient, cluster), "kubeconfig here")


async def test_a_cluster_with_everything_is_fine() -> None:
    assert await start(Cluster(CURRENT)) == "v1.37.1"


@pytest.mark.parametrize(
    ("cluster", "code", "says"),
    [
        (Cluster({**CURRENT, OURS: ["agentpools"]}), Exit.CRDS_MISSING, "decodepools.retinue.dev"),
        (Cluster({OURS: CURRENT[OURS]}), Exit.CLUSTER_TOO_OLD, "resource.k8s.io/v1: upgrade it to Kubernetes 1.34"),
        (Cluster({}), Exit.CLUSTER_TOO_OLD, "resource.k8s.io/v1"),
        (Cluster(CURRENT, Forbidden("no", 403)), Exit.NO_ACCESS, "refuses kubeconfig here"),
        (Cluster(CURRENT, KubeError("no", 500)), Exit.NO_ACCESS, "cannot be used with kubeconfig here"),
    ],
    ids=["crds", "old", "old-and-crds", "forbidden", "broken"],
)
async def test_what_is_missing_is_said_with_an_exit_code_of_its_own(cluster: Cluster, code: Exit, says: str) -> None:
    with pytest.raises(StartError) as told:
        await start(cluster)
    assert told.value.code == code
    assert says in str(told.value)
    assert "\n" not in str(told.value)
