"""The rights of the product's accounts: all were used in this run, none was missing, and what must not be is denied.

The file's name makes it run when the others have used what they need.
"""

from __future__ import annotations

import os

import pytest
from tests.rbacdenied import DENIED, allowed, questions
from tests.rbacproof import Account, prove

from retinue_emulator.loopback.audit import read_events

from .session import WHOLE
from .world import World

pytestmark = pytest.mark.alone
# By the table of what is denied: the account of the release. The chart calls what emulates on kubelets `emulator`.
ACCOUNTS = {"operator": "operator", "gateway": "gateway", "kubelet-plugin": "emulator"}


@pytest.mark.parametrize("name", [*ACCOUNTS.values(), "prometheus"])
def test_every_right_was_used_and_none_was_missing(world: World, name: str) -> None:
    if WHOLE not in os.environ:
        pytest.skip("proves something only after the whole suite")
    events = read_events(world.machine().audit_log, reads=True)
    proof = prove(world.access, events, _account(world, name))
    assert proof.granted
    assert not proof.unused, str(proof)
    assert not proof.denied, str(proof)


@pytest.mark.parametrize("part", ACCOUNTS)
def test_what_is_not_granted_is_denied(world: World, part: str) -> None:
    account = _account(world, ACCOUNTS[part])
    assert [str(question) for question in allowed(world.access, account, questions(DENIED[part]))] == []


def _account(world: World, name: str) -> Account:
    return Account(world.release.namespace, f"{world.release.name}-{name}")
