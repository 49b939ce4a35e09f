"""Agentic-Mooncake rows (Dynamo's agent simulation): the exchange format of the internal form, read and written.

One row per request: ``request_id``, ``session_id``, ``wait_for`` (requests that must have ended), ``branches``
(requests of other sessions that this one spawns), ``prefix_reset`` (first turn of a session), ``timestamp`` (ms, the
start of rows that wait for nothing), ``delay`` and ``tool_wait_ms`` (ms after the last wait has ended),
``input_length``, ``output_length``, ``hash_ids``. Semantics: ai-dynamo/dynamo docs/agents/agent-simulation.md.

Rows written here carry in addition ``block_size``, ``scope``, ``parent_session_id``, ``role``, ``model``, ``phase``,
``gap_kind``, ``compaction`` and, when written compact, ``hash_runs`` instead of ``hash_ids``. Rows without them load
too: one numbering for the whole trace, blocks of 64, parents from ``branches``. Turns of one session are always
sequential here, even where a foreign row does not list the turn before in its ``wait_for``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from retinue_emulator.replay.events import (
    MAIN_ROLE,
    GapKind,
    Request,
    Session,
    Trace,
    estimated_server_seconds,
    make_trace,
    to_runs,
)
from retinue_emulator.replay.rows import Row

DEFAULT_BLOCK_SIZE = 64
_SCOPE = "agentic-mooncake"
_SUBAGENT_ROLE = "subagent"


def load(path: Path, rows: Iterable[Row]) -> Trace:
    """Sessions in the order of their first rows."""
    grouped: dict[str, list[tuple[int, Row]]] = {}
    spawned_from: dict[str, str] = {}
    for seq, row in enumerate(rows):
        session = row.text("session_id")
        grouped.setdefault(session, []).append((seq, row))
        for branch in row.texts("branches"):
            spawned_from[branch] = session
    parents = {session: _parent(session, turns[0][1], spawned_from) for session, turns in grouped.items()}
    starts = {session: _family_start(session, parents, grouped) for session in grouped}
    return make_trace(
        path.name,
        "agentic-mooncake",
        (_session(session, turns, parents[session], starts[session]) for session, turns in grouped.items()),
    )


def _parent(session: str, first: Row, spawned_from: dict[str, str]) -> str | None:
    if "parent_session_id" in first:
        return first.text("parent_session_id")
    parent = spawned_from.get(first.text("request_id"))
    return parent if parent != session else None


def _family_start(session: str, parents: dict[str, str | None], grouped: dict[str, list[tuple[int, Row]]]) -> float:
    """Milliseconds at which the family's root starts."""
    seen = {session}
    while (parent := parents.get(session)) is not None and parent in grouped and parent not in seen:
        seen.add(parent)
        session = parent
    return grouped[session][0][1].number("timestamp", 0.0)


def _session(name: str, turns: list[tuple[int, Row]], parent: str | None, start_ms: float) -> Session:
    role = turns[0][1].text("role", MAIN_ROLE if parent is None else _SUBAGENT_ROLE)
    requests: list[Request] = []
    for seq, row in turns:
        before = requests[-1] if requests else None
        wait_for = tuple(w for w in row.texts("wait_for") if before is None or w != before.id)
        gap, gap_kind = _gap(row, before, start_ms)
        requests.append(
            Request(
                id=row.text("request_id"),
                session=name,
                parent=parent,
                role=role,
                model=row.text("model", ""),
                t=_start(row, before, start_ms, gap),
                gap=gap,
                gap_kind=gap_kind,
                in_tokens=row.count("input_length"),
                out_tokens=row.count("output_length"),
                runs=row.runs("hash_runs") or to_runs(row.ids("hash_ids")),
                block_size=row.count("block_size", DEFAULT_BLOCK_SIZE),
                scope=row.text("scope", _SCOPE),
                wait_for=wait_for,
                compaction=row.flag("compaction"),
                phase=row.text("phase", ""),
                seq=seq,
            )
        )
    return Session(id=name, parent=parent, role=role, start=round(start_ms / 1000.0, 3), requests=tuple(requests))


def _start(row: Row, before: Request | None, start_ms: float, gap: float) -> float:
    """Seconds after the family's start; a row without ``timestamp`` follows its predecessor's estimated end."""
    if "timestamp" in row:
        return max(0.0, round((row.number("timestamp") - start_ms) / 1000.0, 3))
    return round(gap + (before.t + estimated_server_seconds(before.out_tokens) if before else 0.0), 3)


def _gap(row: Row, before: Request | None, start_ms: float) -> tuple[float, GapKind]:
    delay, tool = row.number("delay", 0.0), row.number("tool_wait_ms", 0.0)
    gap = round((delay + tool) / 1000.0, 3)
    if "gap_kind" in row:
        try:
            return gap, GapKind(row.text("gap_kind"))
        except ValueError as error:
            allowed = ", ".join(kind.value for kind in GapKind)
            raise row.error("gap_kind", f"must be one of {allowed}, not {row.text('gap_kind')!r}") from error
    if before is None:
        return gap, GapKind.START
    if not row.texts("wait_for") and "timestamp" in row:
        # The row starts at its own time; in a sequential session that is a pause after the turn before.
        since_start = (row.number("timestamp") - start_ms) / 1000.0
        gap = max(0.0, round(since_start - before.t - estimated_server_seconds(before.out_tokens), 3))
    if any(waited != before.id for waited in row.texts("wait_for")):
        return gap, GapKind.SUBAGENT
    return gap, GapKind.TOOL if tool else GapKind.HUMAN


def dump(trace: Trace, *, compact: bool = False) -> Iterator[str]:
    """Lines (with newline), family by family in the order of ``seq``; the same trace gives the same bytes.

    ``compact`` writes block ids as ``hash_runs`` ([first, count] pairs): about a hundredth of the size, but only this
    package reads it.
    """
    branches = _branches(trace)
    for family in trace.families().values():
        rows: list[tuple[int, str]] = []
        for session in family:
            before: Request | None = None
            for request in session.requests:
                rows.append((request.seq, _line(request, session, before, branches.get(request.id, []), compact)))
                before = request
        rows.sort(key=lambda row: row[0])
        yield from (line for _, line in rows)


def write(trace: Trace, path: Path, *, compact: bool = False) -> None:
    """Write :func:`dump` to ``path``."""
    path.write_text("".join(dump(trace, compact=compact)), encoding="utf-8")


def _branches(trace: Trace) -> dict[str, list[str]]:
    """Spawning request -> first requests of the sessions it spawns."""
    found: dict[str, list[str]] = {}
    for session in trace.sessions:
        if session.parent is not None and session.requests:
            for spawner in session.requests[0].wait_for:
                found.setdefault(spawner, []).append(session.requests[0].id)
    return found


def _line(request: Request, session: Session, before: Request | None, branches: list[str], compact: bool) -> str:
    tool_gap = request.gap_kind is GapKind.TOOL
    row: dict[str, object] = {
        "request_id": request.id,
        "session_id": request.session,
        "parent_session_id": request.parent,
        "role": request.role,
        "model": request.model,
        "phase": request.phase,
        "timestamp": _milliseconds(session.start + request.t),
        "wait_for": [*([before.id] if before else []), *request.wait_for],
        "branches": branches,
        "prefix_reset": before is None,
        "delay": 0 if tool_gap else _milliseconds(request.gap),
        "tool_wait_ms": _milliseconds(request.gap) if tool_gap else 0,
        "gap_kind": request.gap_kind.value,
        "compaction": request.compaction,
        "input_length": request.in_tokens,
        "output_length": request.out_tokens,
        "block_size": request.block_size,
        "scope": request.scope,
    }
    if compact:
        row["hash_runs"] = [list(run) for run in request.runs]
    else:
        row["hash_ids"] = list(request.blocks())
    return json.dumps(row, separators=(",", ":")) + "\n"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
