"""What a run must have shown, as named checks: each passes, or says in one line what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retinue_emulator.replay.oracle import HitCount
from retinue_emulator.replay.records import Summary

from .timeline import SizeChange

HIT_RATE_TOLERANCE = 0.02
"""How far the measured hit rate may be below that of one cache without limit."""


@dataclass(frozen=True)
class Check:
    """One thing that must be so."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Outcome:
    """Everything that the checks look at. `must_scale` are the keys of the pools that must have grown and shrunk."""

    summary: Summary
    expected: HitCount
    changes: Sequence[SizeChange]
    behind: str | None
    must_scale: Sequence[str]


def checks(outcome: Outcome) -> tuple[Check, ...]:
    """All checks, the gravest first."""
    return tuple(_checks(outcome))


def _checks(outcome: Outcome) -> Iterator[Check]:
    failed = outcome.summary.failed_sessions
    first = f"; first: {failed[0].id}: {failed[0].error}" if failed else ""
    yield Check(
        "every session ended well",
        not failed,
        f"{len(failed)} of {outcome.summary.sessions} failed{first}" if failed else f"{outcome.summary.sessions} did",
    )
    yield Check("the emulator kept up with its clock", outcome.behind is None, outcome.behind or "it was never behind")
    gap = outcome.expected.all - outcome.summary.all.hit_rate
    yield Check(
        "the cache hit as it should",
        gap <= HIT_RATE_TOLERANCE,
        f"measured {outcome.summary.all.hit_rate:.3f}, one cache without limit {outcome.expected.all:.3f}",
    )
    for key in outcome.must_scale:
        change = next((change for change in outcome.changes if change.key == key), None)
        if change is None:
            yield Check(f"{key} grew and shrank", False, "it was never seen")
            continue
        path = f"{change.first} -> {change.peak} -> {change.last}"
        missing = [word for word, there in (("grow", change.grew), ("shrink", change.shrank)) if not there]
        detail = f"it did not {' and '.join(missing)}: {path} instances" if missing else f"{path} instances"
        yield Check(f"{key} grew and shrank", not missing, detail)
