"""The reference session: the published numbers, the same bytes at each run, and what every numbered variant keeps."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue_emulator.replay import agentic
from retinue_emulator.replay.events import GapKind
from retinue_emulator.replay.generator import DEFAULT_SHAPE, reference_session, reference_trace
from retinue_emulator.replay.load import load

GOLDEN_SHA256 = "156fc209bf638401011f3f1e11cf718308c3e3ab805ca91a6bfe513758e62980"

SESSION_NUMBERS = st.integers(min_value=0, max_value=100_000)


def test_it_has_58_main_and_225_subagent_requests_in_20_subagents() -> None:
    trace = reference_session()
    main = [r for r in trace.requests() if r.is_main]
    assert (len(main), len(list(trace.requests()))) == (58, 283)
    assert [len(s.requests) for s in trace.sessions[1:]].count(11) == 15
    assert [len(s.requests) for s in trace.sessions[1:]].count(12) == 5


def test_its_context_grows_to_156000_is_compacted_to_20000_and_grows_again() -> None:
    main = [r for r in reference_session().requests() if r.is_main]
    contexts = [r.in_tokens for r in main]
    assert (contexts[0], max(contexts), contexts[39], contexts[-1]) == (15_000, 156_000, 156_000, 91_111)
    assert min(contexts[40:]) == contexts[40] == 20_000
    assert sum(contexts[:40]) == 3_419_982
    assert sum(contexts[40:]) == 999_999
    assert [i for i, r in enumerate(main) if r.compaction] == [40]


def test_it_takes_33_minutes() -> None:
    assert DEFAULT_SHAPE.duration_ms() == 1_981_000
    last = max(reference_session().requests(), key=lambda r: r.t)
    assert last.t + (DEFAULT_SHAPE.main_server_ms + DEFAULT_SHAPE.tool_gap_ms) / 1000 == pytest.approx(1_981.0)
    assert round(DEFAULT_SHAPE.duration_ms() / 60_000, 1) == 33.0


def test_the_same_bytes_come_out_at_each_run() -> None:
    written = "".join(agentic.dump(reference_session()))
    assert hashlib.sha256(written.encode()).hexdigest() == GOLDEN_SHA256


def test_ten_main_turns_wait_for_two_subagents_each() -> None:
    trace = reference_session()
    waiting = [k for k, r in enumerate(trace.sessions[0].requests) if r.wait_for]
    assert waiting == [4, 8, 12, 16, 20, 24, 28, 44, 48, 52]
    lasts = {s.requests[-1].id for s in trace.sessions[1:]}
    waited = [w for r in trace.sessions[0].requests for w in r.wait_for]
    assert set(waited) == lasts
    assert len(waited) == 20


def test_written_rows_load_as_the_same_trace(tmp_path: Path) -> None:
    trace = reference_trace(3, ramp=600.0)
    agentic.write(trace, tmp_path / "r.jsonl", compact=True)
    assert load(tmp_path / "r.jsonl").sessions == trace.sessions


@settings(max_examples=15, deadline=None)
@given(n=SESSION_NUMBERS, ramp=st.integers(0, 7_200))
def test_no_row_of_any_variant_waits_for_a_later_row(n: int, ramp: int) -> None:
    trace = reference_session(n, ramp=float(ramp))
    started: set[str] = set()
    position = {request.id: i for i, (_, request) in enumerate(trace.schedule())}
    for _, request in trace.schedule():
        assert all(position[w] < position[request.id] for w in request.wait_for)
        started.add(request.id)
    assert len(started) == 283


@settings(max_examples=15, deadline=None)
@given(n=SESSION_NUMBERS, ramp=st.integers(1, 7_200))
def test_a_variant_differs_from_the_first_only_in_names_ids_and_start(n: int, ramp: int) -> None:
    zero, other = reference_session(0), reference_session(n, ramp=float(ramp))
    assert 0 <= other.sessions[0].start <= ramp
    for a, b in zip(zero.requests(), other.requests(), strict=True):
        assert (a.t, a.gap, a.gap_kind, a.in_tokens, a.out_tokens, a.role, a.phase, a.compaction) == (
            (b.t, b.gap, b.gap_kind, b.in_tokens, b.out_tokens, b.role, b.phase, b.compaction)
        )
        assert [count for _, count in a.runs] == [count for _, count in b.runs]


@settings(max_examples=15, deadline=None)
@given(numbers=st.sets(SESSION_NUMBERS, min_size=2, max_size=2))
def test_two_variants_share_only_the_role_prefix(numbers: set[int]) -> None:
    blocks = [{b for r in reference_session(n).requests() for b in r.blocks()} for n in sorted(numbers)]
    assert blocks[0] & blocks[1] == set(range(DEFAULT_SHAPE.sub_prefix_tokens // 64))


@settings(max_examples=10, deadline=None)
@given(n=SESSION_NUMBERS)
def test_prompts_extend_the_turn_before_by_whole_blocks_except_at_the_compaction(n: int) -> None:
    for session in reference_session(n).sessions:
        for before, after in itertools.pairwise(session.requests):
            old, new = list(before.blocks()), list(after.blocks())
            assert len(new) == after.in_tokens // 64
            kept = 13_000 // 64 if after.compaction else len(old)
            assert new[:kept] == old[:kept]
            assert not set(new[kept:]) & set(old)


def test_a_turn_after_a_wave_goes_on_when_the_last_subagent_gap_is_over() -> None:
    trace = reference_session()
    ends = {s.requests[-1].id: s.requests[-1].t + DEFAULT_SHAPE.sub_server_ms / 1000 for s in trace.sessions[1:]}
    for request in trace.sessions[0].requests:
        if request.gap_kind is GapKind.SUBAGENT:
            assert request.t == pytest.approx(max(ends[w] for w in request.wait_for) + request.gap)


def test_a_negative_session_number_is_refused() -> None:
    with pytest.raises(ValueError, match="zero or more"):
        reference_session(-1)
