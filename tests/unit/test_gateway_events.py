"""A stream of events on its way to the client, however the network cuts it."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_gateway.calls import Usage
from retinue_gateway.events import EventStream, StreamedError


def event(payload: dict[str, Any] | str, end: str = "\n\n") -> bytes:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {text}{end}".encode()


def token(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}], **more}


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
USAGE = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}
STREAM: list[dict[str, Any] | str] = [
    ROLE,
    token("a"),
    token('say "usage": {"x": 1}'),
    token("ü"),
    {"choices": [], "usage": USAGE},
    "[DONE]",
]


def through(pieces: list[bytes], **options: Any) -> tuple[bytes, EventStream]:
    stream = EventStream(**{"wants_usage": True, "cached_tokens": 8} | options)
    return b"".join(stream.feed(piece) for piece in pieces) + stream.close(), stream


def payloads(data: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in data.splitlines() if line]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


@given(st.lists(st.integers(0, 800), max_size=12), st.sampled_from(["\n\n", "\r\n\r\n"]), st.booleans())
def test_the_client_gets_the_same_however_the_bytes_arrive(cuts: list[int], end: str, wants: bool) -> None:
    data = b"".join(event(payload, end) for payload in STREAM)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[start:stop] for start, stop in pairwise(edges)]
    passed, stream = through(pieces, wants_usage=wants)
    received = payloads(passed)
    assert received[:4] == STREAM[:4]
    assert received[-1] == "[DONE]"
    patched = {**USAGE, "prompt_tokens_details": {"cached_tokens": 8}}
    assert received[4:-1] == ([{"choices": [], "usage": patched}] if wants else [])
    assert stream.usage == Usage(prompt=10, completion=2, cached=8)
    assert stream.first_token
    assert stream.done


def test_nothing_is_passed_on_before_the_first_token() -> None:
    stream = EventStream(wants_usage=False, cached_tokens=None)
    assert stream.feed(b": ping\n\n") == b""
    assert stream.feed(event(ROLE)) == b""
    assert not stream.first_token
    assert stream.feed(event(token("a"))) == b": ping\n\n" + event(ROLE) + event(token("a"))
    assert stream.first_token


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"reasoning_content": "hm"}},
        {"delta": {"tool_calls": [{"index": 0}]}},
        {"text": "completion"},
        {"delta": {}, "finish_reason": "stop"},
    ],
)
def test_every_kind_of_output_counts_as_a_token(choice: dict[str, Any]) -> None:
    stream = EventStream(wants_usage=False, cached_tokens=None)
    assert stream.feed(event({"choices": [choice]}))
    assert stream.first_token


def test_usage_beside_a_choice_is_removed_without_the_choice() -> None:
    passed, _ = through([event(token("a")), event(token("b", usage=USAGE))], wants_usage=False)
    assert payloads(passed) == [token("a"), token("b")]


def test_cached_tokens_stay_as_the_engine_says_without_a_prefill_engine() -> None:
    passed, stream = through([event(token("a")), event({"choices": [], "usage": USAGE})], cached_tokens=None)
    assert payloads(passed)[-1]["usage"] == USAGE
    assert stream.usage == Usage(prompt=10, completion=2, cached=1)


def test_an_error_before_the_first_token_is_raised_and_one_after_it_is_passed_on() -> None:
    broken = event({"error": {"message": "no", "code": "kv_transfer_failed"}})
    with pytest.raises(StreamedError) as raised:
        through([event(ROLE), broken])
    assert raised.value.code == "kv_transfer_failed"
    passed, _ = through([event(token("a")), broken])
    assert passed.endswith(broken)
