"""Making the packaged trace files from the published set: ``python -m retinue_emulator.replay.curate SRC [DEST]``.

SRC is the folder of the trace set (with ``claude-code/`` and ``mooncake/``). The result depends on nothing else: no
random source, no clock, gzip without name and time. Lines are copied unchanged, except excerpts (see below).

The demo needs sessions that end within its time and fit its models:

1. the session nearest to the reference session (trace_0712);
2. every session with sub-agents, cut to its first part where that fits the limits and still has a sub-agent in it
   (only one of the published sessions with sub-agents is short enough as a whole);
3. complete sessions spread evenly over the range of peak context, until there are enough. They start fresh (a small
   first prompt), so that a cold start is the agent's own and not the tail of a session that began elsewhere, and no two
   of them are re-recordings of one session (same number of input tokens).
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from retinue_emulator.replay import data

DEMO_COUNT = 28
MAX_SECONDS = 2_400.0
MAX_MAIN_TOKENS = 196_000
MAX_SUBAGENT_TOKENS = 131_072
_MIN_TURNS = 10
_MIN_SECONDS = 300.0
_MAX_FIRST_TOKENS = 45_000
_MAX_TURNS = 90
_NEAREST = "trace_0712"
_ORACLE_SESSIONS = 64


def main_turns(session: dict[str, Any]) -> list[dict[str, Any]]:
    """Requests of the main agent."""
    return [r for r in session["requests"] if r["type"] != "subagent"]


def subagents(session: dict[str, Any]) -> list[dict[str, Any]]:
    """Sub-agent rows, each with its own requests."""
    return [r for r in session["requests"] if r["type"] == "subagent"]


def seconds(session: dict[str, Any]) -> float:
    """Recorded length of the session, gaps included."""
    return max(float(r["t"]) + float(r.get("api_time", 0.0)) for r in session["requests"])


def fits(session: dict[str, Any]) -> bool:
    """Whether the session ends in time and every prompt plus answer fits the model it goes to."""
    main = max((r["in"] + r["out"] for r in main_turns(session)), default=0)
    sub = max((r["in"] + r["out"] for s in subagents(session) for r in s["requests"]), default=0)
    return seconds(session) <= MAX_SECONDS and main <= MAX_MAIN_TOKENS and sub <= MAX_SUBAGENT_TOKENS


def excerpt(session: dict[str, Any]) -> dict[str, Any] | None:
    """The longest first part that fits and ends with a main turn after a sub-agent; None if there is none."""
    rows = session["requests"]
    for count in range(len(rows), 1, -1):
        part = {**session, "requests": rows[:count]}
        ends_after_subagent = rows[count - 1]["type"] != "subagent" and bool(subagents(part))
        if ends_after_subagent and fits(part):
            if count == len(rows):
                return session
            totals = {"excerpt": {"first_rows": count, "of_rows": len(rows)}}
            return {**{k: v for k, v in part.items() if k != "totals"}, **totals}
    return None


def spread(candidates: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` sessions at even distances in the order of peak context."""
    ordered = sorted(candidates, key=lambda s: (max(r["in"] for r in main_turns(s)), s["id"]))
    if len(ordered) <= count:
        return ordered
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def demo_sessions(lines: list[str]) -> list[str]:
    """Lines of the demo file, in the order of the published set."""
    sessions = [json.loads(line) for line in lines]
    chosen: dict[str, str] = {}
    for session, line in zip(sessions, lines, strict=True):
        if session["id"] == _NEAREST:
            chosen[session["id"]] = line
        elif subagents(session) and (part := excerpt(session)) is not None:
            chosen[session["id"]] = line if part is session else json.dumps(part, separators=(",", ":")) + "\n"
    candidates: dict[int, dict[str, Any]] = {}
    for session in sessions:
        turns = main_turns(session)
        suits = (
            session["id"] not in chosen
            and not subagents(session)
            and fits(session)
            and _MIN_TURNS <= len(turns) <= _MAX_TURNS
            and seconds(session) >= _MIN_SECONDS
            and turns[0]["in"] <= _MAX_FIRST_TOKENS
        )
        if suits:
            candidates.setdefault(sum(r["in"] for r in turns), session)
    by_id = {s["id"]: line for s, line in zip(sessions, lines, strict=True)}
    for session in spread(list(candidates.values()), DEMO_COUNT - len(chosen)):
        chosen[session["id"]] = by_id[session["id"]]
    return [chosen[s["id"]] for s in sessions if s["id"] in chosen]


def write_gzip(path: Path, content: bytes) -> None:
    """gzip with neither name nor time, so that equal content gives equal bytes."""
    path.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))


def curate(source: Path, destination: Path) -> None:
    """Write all packaged traces from the trace set in ``source``."""
    published = gzip.decompress((source / "claude-code" / "sessions.rle.jsonl.gz").read_bytes()).decode()
    lines = published.splitlines(keepends=True)
    write_gzip(destination / data.SESSIONS_64, "".join(lines[:_ORACLE_SESSIONS]).encode())
    write_gzip(destination / data.DEMO_SESSIONS, "".join(demo_sessions(lines)).encode())
    for name, original in (
        (data.TRACE_0712, source / "claude-code" / "raw" / "trace_0712.json.gz"),
        (data.MOONCAKE_CONVERSATION, source / "mooncake" / "conversation_trace.jsonl.gz"),
    ):
        write_gzip(destination / name, gzip.decompress(original.read_bytes()))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m retinue_emulator.replay.curate SRC [DEST]")
    curate(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else Path(data.__file__).parent)
