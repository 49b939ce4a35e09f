"""The rights of the product's accounts: all were used in this run, none was missing, and what must not be is denied.

The file's name makes it run when the others have used what they need.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime, timedelta

import pytest
from tests.rbacdenied import DENIED, allowed, questions
from tests.rbacproof import Account, prove

from retinue_emulator.loopback.audit import AuditEvent, read_events

from .session import WHOLE
from .world import World

pytestmark = pytest.mark.alone
# By the table of what is denied: the account of the release. The chart calls what emulates on kubelets `emulator`.
ACCOUNTS = {"operator": "operator", "gateway": "gateway", "kubelet-plugin": "emulator"}
# This Prometheus streams the first list as the API server of this cluster can; others list.
UNUSED = {"prometheus": {"list pods"}}
ROLES = {"roles", "rolebindings", "clusterroles", "clusterrolebindings"}
FORBIDDEN = 403
EXCHANGE = timedelta(minutes=2)
"""How long a pod may go on after its rights were exchanged: an upgrade replaces pods once their roles are in place."""


@pytest.mark.parametrize("name", [*ACCOUNTS.values(), "prometheus"])
def test_every_right_was_used_and_none_was_missing(world: World, name: str) -> None:
    if WHOLE not in os.environ:
        pytest.skip("proves something only after the whole suite")
    events = list(read_events(world.machine().audit_log, reads=True))
    counted = [event for event in events if event.code != FORBIDDEN or not _pod_is_older_than_its_rights(event, events)]
    proof = prove(world.access, counted, _account(world, name))
    assert proof.granted
    assert {str(right) for right in proof.unused} <= UNUSED.get(name, set()), str(proof)
    assert not proof.denied, str(proof)


@pytest.mark.parametrize("part", ACCOUNTS)
def test_what_is_not_granted_is_denied(world: World, part: str) -> None:
    account = _account(world, ACCOUNTS[part])
    assert [str(question) for question in allowed(world.access, account, questions(DENIED[part]))] == []


def _account(world: World, name: str) -> Account:
    return Account(world.release.namespace, f"{world.release.name}-{name}")


def _pod_is_older_than_its_rights(denied: AuditEvent, events: Sequence[AuditEvent]) -> bool:
    """Whether roles were just exchanged (other namespaces or version, uninstalled) under a pod that had others."""
    if not denied.pod:
        return False
    began = min(event.time for event in events if event.pod == denied.pod)
    earliest = datetime.fromisoformat(denied.time) - EXCHANGE
    return any(
        began < event.time < denied.time and datetime.fromisoformat(event.time) > earliest
        for event in events
        if event.resource in ROLES and event.code < 300
    )
