"""Azure LLM inference traces (CSV of TIMESTAMP, ContextTokens, GeneratedTokens): arrivals and lengths, no prefixes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from retinue_emulator.replay.events import MAIN_ROLE, GapKind, Request, Session, Trace, make_trace
from retinue_emulator.replay.rows import TraceFormatError, csv_rows

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_BLOCK_SIZE = 64
_MICROSECOND_DIGITS = 6


def load(path: Path, text: str) -> Trace:
    """One session of one request per record, in time relative to the first record; no request can hit."""
    first: datetime | None = None
    sessions: list[Session] = []
    for seq, (line, record) in enumerate(csv_rows(path, text, COLUMNS)):
        when = _timestamp(path, line, record["TIMESTAMP"])
        first = first or when
        name = f"s{seq}"
        request = Request(
            id=f"r{seq}",
            session=name,
            parent=None,
            role=MAIN_ROLE,
            model="",
            t=0.0,
            gap=0.0,
            gap_kind=GapKind.START,
            in_tokens=_count(path, line, "ContextTokens", record["ContextTokens"]),
            out_tokens=_count(path, line, "GeneratedTokens", record["GeneratedTokens"]),
            runs=(),
            block_size=_BLOCK_SIZE,
            scope=name,
            seq=seq,
        )
        start = round((when - first).total_seconds(), 3)
        if start < 0:
            raise TraceFormatError(path, line, "TIMESTAMP", "is before the first record")
        sessions.append(Session(id=name, parent=None, role=MAIN_ROLE, start=start, requests=(request,)))
    return make_trace(path.name, "azure", sessions)


def _timestamp(path: Path, line: int, value: str) -> datetime:
    """The traces write seven digits of a second; Python reads six."""
    head, dot, digits = value.strip().partition(".")
    try:
        return datetime.fromisoformat(
            head + dot + digits[:_MICROSECOND_DIGITS].ljust(_MICROSECOND_DIGITS, "0") * bool(dot)
        )
    except ValueError as error:
        raise TraceFormatError(path, line, "TIMESTAMP", f"must be a date and time, not {value!r}") from error


def _count(path: Path, line: int, field: str, value: str) -> int:
    if not value.strip().isascii() or not value.strip().isdigit():
        raise TraceFormatError(path, line, field, f"must be a whole number, not {value!r}")
    return int(value)
