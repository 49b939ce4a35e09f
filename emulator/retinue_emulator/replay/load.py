"""Opening a trace of any supported format, recognised by its content."""

from __future__ import annotations

import enum
import itertools
from pathlib import Path

from retinue_emulator.replay import agentic, azure, mooncake, qwen, weka
from retinue_emulator.replay.events import Trace
from retinue_emulator.replay.rows import Row, TraceFormatError, json_rows, read_text


class Format(enum.Enum):
    """Trace formats, by the project that defines them."""

    MOONCAKE = "mooncake"
    MOONCAKE_MULTI_TURN = "mooncake-multi-turn"
    WEKA = "weka"
    QWEN = "qwen"
    AGENTIC_MOONCAKE = "agentic-mooncake"
    AZURE = "azure"


_ROW_LOADERS = {
    Format.MOONCAKE: mooncake.load_single,
    Format.MOONCAKE_MULTI_TURN: mooncake.load_multi_turn,
    Format.WEKA: weka.load,
    Format.QWEN: qwen.load,
    Format.AGENTIC_MOONCAKE: agentic.load,
}


def load(path: Path | str, format: Format | str | None = None, limit: int | None = None) -> Trace:
    """The trace in ``path`` (plain or gzip). ``limit`` reads only the first so many rows of a JSON Lines file.

    Raises :class:`~retinue_emulator.replay.rows.TraceFormatError` naming file, line and field,
    :class:`~retinue_emulator.replay.events.TraceError` for contradictions between rows, OSError if unreadable.
    """
    path = Path(path)
    text = read_text(path)
    if not text.strip():
        raise TraceFormatError(path, 1, "", "is empty")
    if Format(format) is Format.AZURE if format is not None else not text.lstrip().startswith("{"):
        return azure.load(path, text)
    rows = json_rows(path, text)
    first = next(rows)
    chosen = Format(format) if format is not None else _detect(first)
    selected = itertools.islice(itertools.chain([first], rows), limit)
    return _ROW_LOADERS[chosen](path, selected)


def _detect(row: Row) -> Format:
    """Each format has a field that no other has; plain Mooncake is what has none of them."""
    marks = (
        ("requests", Format.WEKA),
        ("request_id", Format.AGENTIC_MOONCAKE),
        ("chat_id", Format.QWEN),
        ("session_id", Format.MOONCAKE_MULTI_TURN),
        ("input_length", Format.MOONCAKE),
    )
    for field, found in marks:
        if field in row:
            return found
    known = ", ".join(f.value for f in Format)
    raise row.error("", f"is none of the known trace formats ({known}); name one to see what is missing")
