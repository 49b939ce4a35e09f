"""Hit rates that independent code computed on recorded traces, reproduced through the engine's own prefix cache.

Events: session i (a line of the packaged file) starts at i x 1800/64 s; a main request happens at its session's start
plus its own time, a sub-agent's request at start + the sub-agent's time + its own; ties keep the file's order.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from typing import Any

import pytest

from retinue_emulator.engine.blockkeys import BlockKeys
from retinue_emulator.engine.prefixcache import PrefixCache

CLAUDE_BLOCK, MOONCAKE_BLOCK = 64, 512


@dataclass(frozen=True)
class Event:
    time: float
    tokens: int
    ranges: list[range]


def lines(name: str) -> Iterator[dict[str, Any]]:
    data = (resources.files("retinue_emulator.replay.data") / name).read_bytes()
    return (json.loads(line) for line in gzip.decompress(data).splitlines())


@pytest.fixture(scope="module")
def claude_code() -> list[Event]:
    keys = BlockKeys()
    found: list[tuple[float, int, Event]] = []
    for index, session in enumerate(lines("sessions-64.rle.jsonl.gz")):
        start = index * 1800 / 64
        for row in session["requests"]:
            inner = row["requests"] if row["type"] == "subagent" else [row]
            offset = row["t"] if row["type"] == "subagent" else 0.0
            for request in inner:
                when = start + offset + request["t"]
                runs = [(first, count) for first, count in request["hash_ids"]]
                found.append((when, index, Event(when, request["in"], keys.ranges(str(index), runs))))
    found.sort(key=lambda row: row[:2])
    return [event for _, _, event in found]


@pytest.fixture(scope="module")
def mooncake() -> list[Event]:
    keys = BlockKeys()
    rows = sorted(lines("mooncake_conversation.jsonl.gz"), key=lambda row: row["timestamp"])
    return [
        Event(row["timestamp"] / 1000, row["input_length"], keys.ranges("mooncake", as_runs(row["hash_ids"])))
        for row in rows
    ]


def as_runs(ids: list[int]) -> list[tuple[int, int]]:
    runs = []
    for _, group in groupby(enumerate(ids), key=lambda pair: pair[1] - pair[0]):
        members = [block for _, block in group]
        runs.append((members[0], len(members)))
    return runs


def hit_rate(cache: PrefixCache, events: list[Event], block: int) -> float:
    hit = sum(min(cache.lookup(event.ranges, event.time) * block, event.tokens) for event in events)
    return hit / sum(event.tokens for event in events)


def test_the_recorded_sessions_are_the_ones_the_oracle_speaks_of(claude_code: list[Event]) -> None:
    assert len(claude_code) == 3_574
    assert sum(event.tokens for event in claude_code) == 454_800_719


@pytest.mark.parametrize(
    ("million_tokens", "expected"), [(1, 0.6731), (2, 0.8663), (3, 0.9173), (4, 0.9315), (6, 0.9414)]
)
def test_a_shared_lru_of_limited_size(claude_code: list[Event], million_tokens: int, expected: float) -> None:
    cache = PrefixCache(capacity=million_tokens * 1_000_000 // CLAUDE_BLOCK)
    assert hit_rate(cache, claude_code, CLAUDE_BLOCK) == pytest.approx(expected, abs=5e-5)


def test_a_cache_without_limit(claude_code: list[Event]) -> None:
    assert hit_rate(PrefixCache(), claude_code, CLAUDE_BLOCK) == pytest.approx(0.9499, abs=5e-5)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(10, 0.0949), (30, 0.5363), (60, 0.7145), (300, 0.8953), (3_600, 0.9453)]
)
def test_blocks_kept_for_a_time_after_their_last_use(claude_code: list[Event], seconds: float, expected: float) -> None:
    assert hit_rate(PrefixCache(ttl=seconds), claude_code, CLAUDE_BLOCK) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("blocks", "expected"), [(10_000, 0.2157), (20_000, 0.2935), (50_000, 0.3615), (None, 0.3736)])
def test_the_mooncake_conversation_trace(mooncake: list[Event], blocks: int | None, expected: float) -> None:
    assert hit_rate(PrefixCache(capacity=blocks), mooncake, MOONCAKE_BLOCK) == pytest.approx(expected, abs=5e-5)
