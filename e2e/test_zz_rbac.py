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
# Emulated nodes that no kubelet runs are not part of this cluster's release: the component suite proves their account.
PARTS = ("operator", "gateway", "kubelet-plugin")


@pytest.mark.parametrize("part", PARTS)
def test_every_right_was_used_and_none_was_missing(world: World, part: str) -> None:
    if WHOLE not in os.environ:
        pytest.skip("proves something only after the whole suite")
    events = read_events(world.machine().audit_log, reads=True)
    proof = prove(world.access, events, _account(world, part))
    assert proof.granted
    assert not proof.unused, str(proof)
    assert not proof.denied, str(proof)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_not_granted_is_denied(world: World, part: str) -> None:
    assert [str(question) for question in allowed(world.access, _account(world, part), questions(DENIED[part]))] == []


def _account(world: World, part: str) -> Account:
    return Account(world.release.namespace, f"{world.release.name}-{part}")
