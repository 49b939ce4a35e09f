"""Recorded traces through the engine's own prefix cache hit as an independent script computed (ORACLES.md)."""

from __future__ import annotations

import pytest

from retinue_emulator.replay import data
from retinue_emulator.replay.events import Trace
from retinue_emulator.replay.load import load
from retinue_emulator.replay.oracle import expected_hit

PUBLISHED = 0.00005001
"""Half a unit of the fourth decimal, to which the tables are printed: stricter than the third that is asked for."""


@pytest.fixture(scope="module")
def sessions() -> Trace:
    """64 recorded sessions, one started every 28.125 s."""
    return load(data.path(data.SESSIONS_64)).with_starts(lambda i: i * 1_800 / 64)


@pytest.fixture(scope="module")
def conversation() -> Trace:
    return load(data.path(data.MOONCAKE_CONVERSATION))


@pytest.mark.parametrize(
    ("million_tokens", "hit"), [(1, 0.6731), (2, 0.8663), (3, 0.9173), (4, 0.9315), (6, 0.9414), (None, 0.9499)]
)
def test_sessions_in_one_shared_lru(sessions: Trace, million_tokens: int | None, hit: float) -> None:
    capacity = None if million_tokens is None else million_tokens * 1_000_000
    assert expected_hit(sessions, capacity_tokens=capacity).all == pytest.approx(hit, abs=PUBLISHED)


@pytest.mark.parametrize(("seconds", "hit"), [(10, 0.0949), (30, 0.5363), (60, 0.7145), (300, 0.8953), (3_600, 0.9453)])
def test_sessions_with_blocks_kept_for_a_time_after_their_last_use(sessions: Trace, seconds: int, hit: float) -> None:
    assert expected_hit(sessions, ttl=float(seconds)).all == pytest.approx(hit, abs=PUBLISHED)


@pytest.mark.parametrize(("blocks", "hit"), [(10_000, 0.2157), (20_000, 0.2935), (50_000, 0.3615), (None, 0.3736)])
def test_the_mooncake_conversation_in_one_lru(conversation: Trace, blocks: int | None, hit: float) -> None:
    capacity = None if blocks is None else blocks * 512
    assert expected_hit(conversation, capacity_tokens=capacity).all == pytest.approx(hit, abs=PUBLISHED)
