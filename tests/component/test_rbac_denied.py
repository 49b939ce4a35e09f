"""What the accounts of Retinue may not do, by the API server's own authorizer with the shipped roles installed."""

import pytest

from retinue_emulator.loopback import ClusterAccess
from retinue_operator.settings import DEFAULT_NAMESPACE

from ..rbacdenied import DENIED, Question, allowed, questions
from ..rbacproof import Account, granted
from .product import REPOSITORY

pytestmark = pytest.mark.component

# One thing that each part is for: an authorizer that denied everything would prove nothing.
PURPOSE = {
    "operator": Question("create", "pods", "agents"),
    "gateway": Question("watch", "agentpools.retinue.dev", "agents"),
    "emulator": Question("patch", "nodes/status"),
}


@pytest.fixture(scope="module")
def installed(cluster: ClusterAccess) -> ClusterAccess:
    """The cluster with the shipped rights of all parts."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(REPOSITORY / "deploy"))
    return cluster


@pytest.mark.parametrize("part", PURPOSE)
def test_what_is_not_granted_is_denied(installed: ClusterAccess, part: str) -> None:
    account = Account(DEFAULT_NAMESPACE, f"retinue-{part}")
    assert allowed(installed, account, [PURPOSE[part]]) == [PURPOSE[part]]
    assert [str(question) for question in allowed(installed, account, questions(DENIED[part]))] == []


@pytest.mark.parametrize("part", PURPOSE)
def test_no_installed_role_has_a_wildcard(installed: ClusterAccess, part: str) -> None:
    objects = installed.get("clusterroles,clusterrolebindings,roles,rolebindings", "-A")["items"]
    grants = granted(objects, Account(DEFAULT_NAMESPACE, f"retinue-{part}"))
    assert grants
    assert [str(grant.right) for grant in grants if "*" in str(grant.right)] == []


def test_the_operator_may_update_its_own_lease_and_no_other(installed: ClusterAccess) -> None:
    leases = "leases.coordination.k8s.io"
    own = Question("update", leases, DEFAULT_NAMESPACE, "retinue-operator")
    others = [
        Question("update", leases, DEFAULT_NAMESPACE, "another"),
        Question("update", leases, "kube-node-lease", "retinue-operator"),
        Question("delete", leases, DEFAULT_NAMESPACE, "retinue-operator"),
    ]
    assert allowed(installed, Account(DEFAULT_NAMESPACE, "retinue-operator"), [own, *others]) == [own]
