"""Qwen (Bailian) usage traces: chats linked by ``parent_chat_id``, times in seconds, blocks of 16 tokens.

Fields: ``chat_id``, ``parent_chat_id`` (-1 for a first turn), ``timestamp`` (s), ``turn``, ``type``, ``input_length``,
``output_length``, ``hash_ids`` (one numbering for the whole trace). Each row has its complete prompt. A session is a
tree of chats under one first turn; a chat whose parent was cut from the trace starts a session of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
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

BLOCK_SIZE = 16
SCOPE = "qwen"
_NO_PARENT = -1


def load(path: Path, rows: Iterable[Row]) -> Trace:
    """Sessions in the order of their first turns; turns by ``timestamp``, ties in file order."""
    parents: dict[int, int] = {}
    found: list[tuple[float, int, Row]] = []
    for seq, row in enumerate(rows):
        chat = row.count("chat_id")
        if chat in parents:
            raise row.error("chat_id", f"{chat} occurs twice")
        parent = row.peek("parent_chat_id")
        if isinstance(parent, bool) or not isinstance(parent, int):
            raise row.error("parent_chat_id", f"must be a whole number, not {parent!r}")
        parents[chat] = parent
        found.append((row.number("timestamp"), seq, row))
    found.sort(key=lambda item: item[:2])
    grouped: dict[int, list[tuple[float, int, Row]]] = {}
    for item in found:
        grouped.setdefault(_first_chat(parents, item[2]), []).append(item)
    return make_trace(path.name, "qwen", (_session(chat, turns) for chat, turns in grouped.items()))


def _first_chat(parents: dict[int, int], row: Row) -> int:
    chat = row.count("chat_id")
    seen = {chat}
    while (parent := parents[chat]) != _NO_PARENT and parent in parents:
        if parent in seen:
            raise row.error("parent_chat_id", f"chat {chat} is its own ancestor")
        seen.add(parent)
        chat = parent
    return chat


def _session(chat: int, turns: list[tuple[float, int, Row]]) -> Session:
    name = f"chat-{chat}"
    start = turns[0][0]
    requests: list[Request] = []
    busy_until = start
    for turn, (when, seq, row) in enumerate(turns):
        out = row.count("output_length")
        requests.append(
            Request(
                id=f"{name}/{row.count('chat_id')}",
                session=name,
                parent=None,
                role=MAIN_ROLE,
                model="",
                t=round(when - start, 3),
                gap=max(0.0, round(when - busy_until, 3)),
                gap_kind=GapKind.HUMAN if turn else GapKind.START,
                in_tokens=row.count("input_length"),
                out_tokens=out,
                runs=to_runs(row.ids("hash_ids")),
                block_size=BLOCK_SIZE,
                scope=SCOPE,
                phase=row.text("type", ""),
                seq=seq,
            )
        )
        busy_until = when + estimated_server_seconds(out)
    return Session(id=name, parent=None, role=MAIN_ROLE, start=round(start, 3), requests=tuple(requests))
