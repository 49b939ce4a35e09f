"""Whatever stands in a trace file, it is either a trace or refused with file, line and field."""

import gzip
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue_emulator.replay.events import Trace, TraceError
from retinue_emulator.replay.load import Format, load
from retinue_emulator.replay.rows import TraceFormatError

from ..nonsense import NONSENSE, spoiled

_EXAMPLES = settings(
    max_examples=int(os.environ.get("RETINUE_FUZZ_EXAMPLES", "150")),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
_TURN = {"model": "big", "in": 640, "out": 70, "type": "n", "api_time": 5.0, "input_types": ["tool_result"]}
_AGENT = {"t": 9.0, "type": "subagent", "agent_id": "a1", "subagent_type": "Explore", "duration_ms": 900}
_ROWS: dict[Format, list[dict[str, Any]]] = {
    Format.MOONCAKE: [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 2500, "input_length": 600, "output_length": 7, "hash_ids": [0, 9]},
    ],
    Format.MOONCAKE_MULTI_TURN: [
        {"session_id": "a", "timestamp": 1000, "input_length": 1024, "output_length": 512, "hash_ids": [1, 2]},
        {"session_id": "a", "delay": 4000, "input_length": 512, "output_length": 9, "hash_ids": [7]},
    ],
    Format.WEKA: [
        {
            "id": "w",
            "models": ["big"],
            "block_size": 64,
            "hash_id_scope": "local",
            "requests": [
                {**_TURN, "t": 1.0, "hash_ids": list(range(10))},
                {**_AGENT, "status": "completed", "requests": [{**_TURN, "t": 9.5, "hash_ids": list(range(10))}]},
                {**_TURN, "t": 30.0, "hash_ids": list(range(10))},
            ],
        }
    ],
    Format.QWEN: [
        {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 60, "output_length": 9, "type": "text",
         "turn": 1, "hash_ids": [1, 2, 3, 4]},
        {"chat_id": 2, "parent_chat_id": 1, "timestamp": 9.0, "input_length": 90, "output_length": 9, "type": "text",
         "turn": 2, "hash_ids": [1, 2, 3, 4, 5, 6]},
    ],
    Format.AGENTIC_MOONCAKE: [
        {"request_id": "a:0", "session_id": "a", "timestamp": 0, "input_length": 600, "output_length": 9,
         "hash_ids": [1, 2]},
        {"request_id": "a:1", "session_id": "a", "wait_for": ["a:0"], "delay": 500, "input_length": 900,
         "output_length": 9, "hash_ids": [1, 2, 3]},
    ],
}  # fmt: skip
_MOST_BLOCKS_LOOKED_AT = 1000


def _loaded(path: Path, format: Format | None) -> Trace | TraceError | TraceFormatError:
    try:
        return load(path, format)
    except (TraceError, TraceFormatError) as error:
        return error


def _read(path: Path, content: bytes, format: Format | None = None) -> bool:
    """Whether the content is a trace."""
    path.write_bytes(content)
    trace = _loaded(path, format)
    if isinstance(trace, TraceFormatError):
        assert trace.path == str(path)
        assert trace.line >= 1
        assert trace.problem
        return False
    if isinstance(trace, TraceError):
        assert str(trace)
        return False
    for start, _ in trace.schedule():
        assert 0 <= start < float("inf")
    for request in trace.requests():
        assert request.in_tokens >= 0
        assert request.out_tokens >= 0
        assert 0 <= request.gap < float("inf")
        assert all(block >= 0 for block in itertools.islice(request.blocks(), _MOST_BLOCKS_LOOKED_AT))
    return True


def _lines(rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


@pytest.mark.parametrize("format", list(_ROWS))
def test_the_rows_that_are_spoiled_here_are_right_at_first(format: Format, tmp_path: Path) -> None:
    assert _read(tmp_path / "t.jsonl", _lines(_ROWS[format]))


@pytest.mark.parametrize("format", list(_ROWS))
@_EXAMPLES
@given(data=st.data())
def test_a_trace_with_one_thing_wrong(format: Format, tmp_path: Path, data: st.DataObject) -> None:
    rows = data.draw(spoiled(st.just(_ROWS[format])))
    _read(tmp_path / "t.jsonl", _lines(rows), data.draw(st.sampled_from([None, format])))


@_EXAMPLES
@given(
    st.binary(max_size=200)
    | st.text().map(str.encode)
    | NONSENSE.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=50).map(lambda noise: gzip.compress(_lines(_ROWS[Format.WEKA]))[:-20] + noise)
    | st.text(alphabet="TIMESTAMP,ContextTokens\n0123456789-:. ").map(
        lambda t: b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + t.encode()
    )
)
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    _read(tmp_path / "t", content)


@pytest.mark.parametrize(
    "text", ['{"timestamp": ' + "9" * 5000 + "}", '{"requests": ' + "[" * 100_000, "TIMESTAMP\r\0"]
)
def test_what_a_parser_itself_stumbles_over(tmp_path: Path, text: str) -> None:
    assert not _read(tmp_path / "t", text.encode())


def test_a_gzip_file_with_a_hole(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(_lines(_ROWS[Format.WEKA] * 50)))
    whole[20:60] = bytes(40)
    assert not _read(tmp_path / "t", bytes(whole))
