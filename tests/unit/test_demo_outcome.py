"""The demo's verdict: what makes a run fail, and that it says which thing went wrong."""

from dataclasses import replace

import pytest

from retinue_emulator.demo.outcome import Outcome, checks
from retinue_emulator.demo.timeline import SizeChange
from retinue_emulator.replay.oracle import HitCount
from retinue_emulator.replay.records import SessionResult, summarise

from .demo_records import request_record

PREFILL = "prefill/coder-primary"
GOOD = Outcome(
    summary=summarise(
        [request_record("a", prompt=1000, cached=900)],
        [SessionResult("a", None, "main", 1, 1, 0.0, 1.0, None)],
        speed=12.0,
        duration=60.0,
    ),
    expected=HitCount(main_tokens=1000, main_hit_tokens=910),
    changes=(SizeChange(PREFILL, 1, 3, 1),),
    behind=None,
    must_scale=(PREFILL,),
)


def failed(outcome: Outcome) -> dict[str, str]:
    return {check.name: check.detail for check in checks(outcome) if not check.passed}


def test_a_good_run_passes_every_check() -> None:
    assert failed(GOOD) == {}
    assert len(checks(GOOD)) == 4


def test_a_failed_session_fails_the_run_and_is_named() -> None:
    lost = SessionResult("trace_0001", None, "main", 3, 1, 0.0, 1.0, "request 2: HTTP 503")
    summary = replace(GOOD.summary, sessions=2, failed_sessions=(lost,))
    (detail,) = failed(replace(GOOD, summary=summary)).values()
    assert "1 of 2 failed" in detail
    assert "trace_0001: request 2: HTTP 503" in detail


def test_an_emulator_that_fell_behind_fails_the_run_with_its_own_words() -> None:
    found = failed(replace(GOOD, behind="the emulator lost 3.0 s to late wake-ups"))
    assert found == {"the emulator kept up with its clock": "the emulator lost 3.0 s to late wake-ups"}


def test_a_hit_rate_more_than_two_points_below_the_oracle_fails_the_run() -> None:
    assert failed(replace(GOOD, expected=HitCount(main_tokens=1000, main_hit_tokens=919))) == {}
    found = failed(replace(GOOD, expected=HitCount(main_tokens=1000, main_hit_tokens=925)))
    assert found == {"the cache hit as it should": "measured 0.900, one cache without limit 0.925"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (SizeChange(PREFILL, 1, 1, 1), "did not grow and shrink: 1 -> 1 -> 1"),
        (SizeChange(PREFILL, 1, 3, 3), "did not shrink: 1 -> 3 -> 3"),
        (SizeChange("decode/other", 1, 3, 1), "never seen"),
    ],
)
def test_a_pool_that_did_not_grow_and_shrink_fails_the_run_and_says_which(change: SizeChange, words: str) -> None:
    found = failed(replace(GOOD, changes=(change,)))
    assert words in found[f"{PREFILL} grew and shrank"]
