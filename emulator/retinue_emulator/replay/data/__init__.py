"""Traces that come with the package; NOTICE at the root of the project says where they are from."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

SESSIONS_64 = "sessions-64.rle.jsonl.gz"
"""The first 64 recorded Claude Code sessions of the published set: what the trace oracles are computed on."""

DEMO_SESSIONS = "demo-sessions.rle.jsonl.gz"
"""Recorded sessions that fit a demo, chosen by :mod:`retinue_emulator.replay.curate`."""

TRACE_0712 = "trace_0712.json.gz"
"""The recorded session nearest to the reference session, byte for byte as published."""

MOONCAKE_CONVERSATION = "mooncake_conversation.jsonl.gz"
"""The Mooncake conversation trace: many short sessions with little to share."""


def path(name: str) -> Path:
    """File path of a packaged trace; raises FileNotFoundError with the names there are."""
    found = Path(str(files(__name__) / name))
    if not found.is_file():
        known = ", ".join((SESSIONS_64, DEMO_SESSIONS, TRACE_0712, MOONCAKE_CONVERSATION))
        raise FileNotFoundError(f"no packaged trace named {name}; there are {known}")
    return found
