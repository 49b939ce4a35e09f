"""The reference session through the engine's own prefix cache reaches the published hit rates."""

from __future__ import annotations

import pytest

from retinue.economics.price import input_cost_ratio
from retinue_emulator.replay import data
from retinue_emulator.replay.events import Trace
from retinue_emulator.replay.generator import reference_session, reference_trace
from retinue_emulator.replay.load import load
from retinue_emulator.replay.oracle import expected_hit, expected_hits, parent_dropped_hit, round_robin_hit

TOLERANCE = 0.002


@pytest.fixture(scope="module")
def session() -> Trace:
    return reference_session()


def test_with_one_cache_that_keeps_everything(session: Trace) -> None:
    hits = expected_hit(session)
    assert hits.main == pytest.approx(0.947, abs=TOLERANCE)
    assert hits.subagents == pytest.approx(0.877, abs=TOLERANCE)
    assert hits.all == pytest.approx(0.905, abs=TOLERANCE)


def test_the_input_bill_is_15_percent_of_the_bill_without_a_cache(session: Trace) -> None:
    assert input_cost_ratio(expected_hit(session).main) == pytest.approx(0.148, abs=TOLERANCE)


def test_dropping_the_parent_while_its_subagents_run_costs_a_seventh_of_its_tokens(session: Trace) -> None:
    hits = parent_dropped_hit(session)
    assert hits.main == pytest.approx(0.804, abs=TOLERANCE)
    assert hits.subagents == pytest.approx(0.877, abs=TOLERANCE)


@pytest.mark.parametrize(("workers", "hit"), [(1, 0.947), (2, 0.895), (4, 0.798), (8, 0.625), (16, 0.364)])
def test_round_robin_without_affinity(session: Trace, workers: int, hit: float) -> None:
    assert round_robin_hit(session, workers).main == pytest.approx(hit, abs=TOLERANCE)


def test_a_cache_smaller_than_the_session_loses_the_prefix_during_waves(session: Trace) -> None:
    assert expected_hit(session, capacity_tokens=100_000).all < expected_hit(session).all - 0.05


def test_later_sessions_hit_the_role_prefix_that_the_first_has_filled() -> None:
    one, four = expected_hit(reference_trace(1)), expected_hit(reference_trace(4, ramp=600.0))
    assert four.main == pytest.approx(one.main)
    assert four.sub_hit_tokens == 4 * one.sub_hit_tokens + 3 * (9_750 // 64 * 64)


def test_hits_per_request_add_up_to_the_total(session: Trace) -> None:
    hits, total = expected_hits(session), expected_hit(session)
    assert sum(hits.values()) == total.main_hit_tokens + total.sub_hit_tokens
    assert hits["reference-0/0"] == 0
    assert hits["reference-0/40"] == 13_000 // 64 * 64


def test_a_capacity_in_tokens_needs_one_block_size() -> None:
    mixed = Trace(
        "mixed", "", reference_session().sessions + load(data.path(data.MOONCAKE_CONVERSATION), limit=1).sessions
    )
    with pytest.raises(ValueError, match="one block size"):
        expected_hit(mixed, capacity_tokens=1)
