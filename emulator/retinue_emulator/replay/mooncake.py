"""Mooncake request traces (FAST'25 release) and their multi-turn form as AIPerf writes it.

Single-turn: ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids`` (blocks of 512 tokens, one numbering
for the whole trace). Every row is a session of one request.

Multi-turn: rows with ``session_id`` form one session; a later row has ``delay`` (ms after the turn before) instead of
``timestamp``, and its lengths and ids are what the turn ADDS. The prompt of a turn is therefore all earlier additions
and answers plus its own addition. Answers have no recorded ids, so the blocks that they fill get ids that no other
session can have.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from retinue_emulator.replay.events import MAIN_ROLE, GapKind, Request, Session, Trace, make_trace, to_runs
from retinue_emulator.replay.rows import Row

BLOCK_SIZE = 512
SCOPE = "mooncake"
_ANSWER_IDS = 1 << 39
"""First id of the blocks filled by answers: far above any id in a trace."""


def load_single(path: Path, rows: Iterable[Row]) -> Trace:
    """Rows of independent requests, each at its own ``timestamp``."""
    sessions: list[Session] = []
    for seq, row in enumerate(rows):
        request = Request(
            id=f"r{seq}",
            session=f"s{seq}",
            parent=None,
            role=MAIN_ROLE,
            model="",
            t=0.0,
            gap=0.0,
            gap_kind=GapKind.START,
            in_tokens=row.count("input_length"),
            out_tokens=row.count("output_length"),
            runs=to_runs(row.ids("hash_ids")),
            block_size=BLOCK_SIZE,
            scope=SCOPE,
            seq=seq,
        )
        start = round(row.number("timestamp") / 1000.0, 3)
        sessions.append(Session(id=f"s{seq}", parent=None, role=MAIN_ROLE, start=start, requests=(request,)))
    return make_trace(path.name, "mooncake", sessions)


def load_multi_turn(path: Path, rows: Iterable[Row]) -> Trace:
    """Rows grouped by ``session_id`` with lengths and ids as additions; a row needs ``timestamp`` or ``delay``."""
    grouped: dict[str, list[tuple[int, Row]]] = {}
    for seq, row in enumerate(rows):
        grouped.setdefault(row.text("session_id"), []).append((seq, row))
    next_answer_id = _ANSWER_IDS
    sessions: list[Session] = []
    for name, turns in grouped.items():
        start = round(turns[0][1].number("timestamp", 0.0) / 1000.0, 3)
        context: list[int] = []
        context_tokens = 0
        clock = 0.0
        requests: list[Request] = []
        for turn, (seq, row) in enumerate(turns):
            added, out = row.count("input_length"), row.count("output_length")
            gap = _gap(row, turn, start, clock)
            context.extend(row.ids("hash_ids"))
            context_tokens += added
            requests.append(
                Request(
                    id=f"{name}/{turn}",
                    session=name,
                    parent=None,
                    role=MAIN_ROLE,
                    model=row.text("model", ""),
                    t=round(clock + gap, 3),
                    gap=gap,
                    gap_kind=GapKind.HUMAN if turn else GapKind.START,
                    in_tokens=context_tokens,
                    out_tokens=out,
                    runs=to_runs(context),
                    block_size=BLOCK_SIZE,
                    scope=SCOPE,
                    seq=seq,
                )
            )
            clock = round(clock + gap, 3)
            context_tokens += out
            missing = max(0, context_tokens // BLOCK_SIZE - len(context))
            context.extend(range(next_answer_id, next_answer_id + missing))
            # One id is left out between answers so that neighbouring answers never fold into one run by accident.
            next_answer_id += missing + 1
        sessions.append(Session(id=name, parent=None, role=MAIN_ROLE, start=start, requests=tuple(requests)))
    return make_trace(path.name, "mooncake-multi-turn", sessions)


def _gap(row: Row, turn: int, start: float, clock: float) -> float:
    """Seconds between the turn before and this one; the first turn has none."""
    if turn == 0:
        return 0.0
    if "delay" in row:
        return round(row.number("delay") / 1000.0, 3)
    if "timestamp" not in row:
        raise row.error("delay", "is missing, and so is timestamp: a later turn needs one of them")
    return max(0.0, round(row.number("timestamp") / 1000.0 - start - clock, 3))
