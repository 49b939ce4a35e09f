"""The rights of each account, proved by the API server's audit log of this session: all are used, none is missing.

Runs last (see wholesuite.py).
"""

import pytest

from retinue_emulator.loopback import AuditEvent, ClusterAccess, ControlPlane
from retinue_operator.rbac import PARTS
from retinue_operator.settings import DEFAULT_NAMESPACE

from ..rbacproof import Account, prove, used
from . import wholesuite

pytestmark = pytest.mark.component

ACCOUNTS = [Account(DEFAULT_NAMESPACE, part.name) for part in PARTS]


@pytest.fixture(scope="module")
def asked(cluster: ClusterAccess) -> list[AuditEvent]:
    """All that was asked in this session so far."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("the API server of RETINUE_KUBECONFIG shows no audit log")
    return list(cluster.audit_events(reads=True))


@pytest.mark.parametrize("account", ACCOUNTS, ids=lambda account: account.name)
def test_nothing_that_was_needed_was_denied(cluster: ClusterAccess, asked: list[AuditEvent], account: Account) -> None:
    if not used(asked, account):
        pytest.skip(f"{account.name} did nothing in this session")
    proof = prove(cluster, asked, account)
    assert not proof.denied, str(proof)


@pytest.mark.parametrize("account", ACCOUNTS, ids=lambda account: account.name)
def test_every_granted_right_was_used(
    request: pytest.FixtureRequest, cluster: ClusterAccess, asked: list[AuditEvent], account: Account
) -> None:
    if why := wholesuite.left_out(request.session):
        pytest.skip(f"proves something only after the whole suite; {why}")
    proof = prove(cluster, asked, account)
    assert proof.granted
    if proof.unused and (failed := wholesuite.failed(request.session)):
        # What was used is proved all the same; for the rest there is a better reason than the table of rights.
        pytest.skip(f"{proof}\nperhaps because these failed: {', '.join(failed)}")
    assert not proof.unused, str(proof)
