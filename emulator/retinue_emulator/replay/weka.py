"""Recorded Claude Code sessions in the session JSON of kv-cache-tester (WEKA), plain or with run-length block ids.

One object per session: ``id``, ``requests`` and what the traces' README lists. A row of type ``subagent`` holds the
requests of one sub-agent. Block ids are numbered per session and sub-agents share the parent's numbering, so the scope
of all blocks of a family is the root session's id.

What waits for what is not recorded but follows from the times. The ``t`` of a ``subagent`` row is the moment at which
its result came back (or, with status ``async_launched``, at which it was launched): subtracting ``duration_ms`` lands
0.1 to 1.1 s after the end of a main turn for all rows but two of a resumed session, and no main turn ever starts in
between. So a sub-agent is spawned by the last main turn that had ended by then, and the first main turn from ``t`` on
waits for it. ``Request.t`` nevertheless follows the convention of the published open-loop schedule (row ``t`` plus the
request's own ``t``), which the hit rates of the trace oracles are defined on.

Gaps are the distance between the recorded end of what a turn waited for and its start; ``think_time`` is not used
because it exceeds the start-to-start distance after rows without ``api_time``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from retinue_emulator.replay.events import (
    MAIN_ROLE,
    GapKind,
    Request,
    Runs,
    Session,
    Trace,
    estimated_server_seconds,
    make_trace,
    to_runs,
)
from retinue_emulator.replay.rows import Row

_COMPACTION_FROM = 40_000
"""A compaction is a drop of the prompt to under half from above this many tokens (index.csv of the trace set)."""

_ASYNC = "async_launched"
_CLOCK_SLACK = 1.1
"""Seconds by which a recorded end may lie after the start that it caused: many rows have whole-second times."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """A request with its recorded start and end in seconds on the clock of its own session."""

    request: Request
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class _Child:
    """One sub-agent on the parent's clock: when it was spawned, and when it came back (None: nobody waited)."""

    turns: tuple[_Turn, ...]
    spawned: float
    returned: float | None


def load(path: Path, rows: Iterable[Row]) -> Trace:
    """All sessions of the file, sub-agents right after their parent; every family starts at 0."""
    sessions: list[Session] = []
    seq = 0
    for row in rows:
        family = _family(row, seq)
        seq += sum(len(session.requests) for session in family)
        sessions.extend(family)
    return make_trace(path.name, "weka", sessions)


def _family(row: Row, seq: int) -> list[Session]:
    name = row.text("id")
    block_size = row.count("block_size")
    if block_size == 0:
        raise row.error("block_size", "must be above zero")
    main: list[_Turn] = []
    children: list[_Child] = []
    for entry in row.rows("requests"):
        blank = Request(
            id=f"{name}/{len(main)}", session=name, parent=None, role=MAIN_ROLE, model="", t=0.0, gap=0.0,
            gap_kind=GapKind.START, in_tokens=0, out_tokens=0, runs=(), block_size=block_size, scope=name, seq=seq,
        )  # fmt: skip
        if entry.text("type") != "subagent":
            main.append(_turn(entry, blank, 0.0))
            seq += 1
        elif inner := entry.rows("requests"):
            children.append(_child(entry, inner, blank))
            seq += len(inner)
    if not main:
        raise row.error("requests", "must hold a request of the session itself, not only of sub-agents")
    sessions = [Session(id=name, parent=None, role=MAIN_ROLE, start=0.0, requests=_main_requests(main, children))]
    for child in children:
        first = child.turns[0].request
        requests = _child_requests(child, main)
        sessions.append(Session(id=first.session, parent=name, role=first.role, start=0.0, requests=requests))
    return sessions


def _child(entry: Row, inner: list[Row], parent: Request) -> _Child:
    name = f"{parent.session}/{entry.text('agent_id')}"
    role = entry.text("subagent_type", "subagent")
    marker = entry.number("t")
    turns = tuple(
        _turn(
            row,
            replace(parent, id=f"{name}/{i}", session=name, parent=parent.session, role=role, seq=parent.seq + i),
            marker,
        )
        for i, row in enumerate(inner)
    )
    if entry.text("status", "") == _ASYNC:
        return _Child(turns=turns, spawned=marker, returned=None)
    return _Child(turns=turns, spawned=marker - _duration(entry, turns), returned=marker)


def _duration(entry: Row, turns: tuple[_Turn, ...]) -> float:
    """Seconds from spawn to return; where it was not recorded, the time that the sub-agent's own requests cover."""
    if "duration_ms" in entry:
        return entry.number("duration_ms") / 1000.0
    return max(turn.end for turn in turns)


def _turn(row: Row, blank: Request, offset: float) -> _Turn:
    t = row.number("t")
    out = row.count("out")
    request = replace(
        blank,
        model=row.text("model", ""),
        t=round(offset + t, 3),
        gap_kind=GapKind.TOOL if "tool_result" in row.texts("input_types") else GapKind.HUMAN,
        in_tokens=row.count("in"),
        out_tokens=out,
        runs=_block_runs(row),
    )
    return _Turn(request=request, start=t, end=t + row.number("api_time", estimated_server_seconds(out)))


def _block_runs(row: Row) -> Runs:
    """``hash_ids`` as plain ids or as [first, count] runs, told apart by the first element."""
    value = row.peek("hash_ids")
    if isinstance(value, list) and value and isinstance(value[0], list):
        return row.runs("hash_ids")
    return to_runs(row.ids("hash_ids"))


def _chain(turns: tuple[_Turn, ...] | list[_Turn]) -> list[Request]:
    """Turns of one session with gaps and compactions filled in."""
    requests: list[Request] = []
    for before, turn in zip([None, *turns[:-1]], turns, strict=True):
        if before is None:
            requests.append(replace(turn.request, gap_kind=GapKind.START))
            continue
        shrunk = before.request.in_tokens > _COMPACTION_FROM and turn.request.in_tokens * 2 < before.request.in_tokens
        gap = max(0.0, round(turn.start - before.end, 3))
        requests.append(replace(turn.request, gap=gap, compaction=shrunk))
    return requests


def _main_requests(main: list[_Turn], children: list[_Child]) -> tuple[Request, ...]:
    requests = _chain(main)
    joined: dict[int, list[_Child]] = {}
    for child in children:
        if child.returned is None:
            continue
        follower = next((i for i, turn in enumerate(main) if turn.start >= child.returned), None)
        if follower is not None:
            joined.setdefault(follower, []).append(child)
    for i, waited in joined.items():
        back = max(child.returned for child in waited if child.returned is not None)
        requests[i] = replace(
            requests[i],
            wait_for=tuple(child.turns[-1].request.id for child in waited),
            gap=max(0.0, round(main[i].start - back, 3)),
            gap_kind=GapKind.SUBAGENT,
        )
    return tuple(requests)


def _child_requests(child: _Child, main: list[_Turn]) -> tuple[Request, ...]:
    requests = _chain(child.turns)
    spawner = None
    for turn in main:
        if turn.end <= child.spawned + _CLOCK_SLACK and (child.returned is None or turn.start < child.returned):
            spawner = turn
    if spawner is not None:
        gap = max(0.0, round(child.spawned - spawner.end, 3))
        requests[0] = replace(requests[0], wait_for=(spawner.request.id,), gap=gap)
    else:
        requests[0] = replace(requests[0], gap=round(child.spawned, 3) if child.spawned > 0 else 0.0)
    return tuple(requests)
