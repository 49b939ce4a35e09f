"""One streamed chat completion: the request body and headers of a replayed turn, and a cheap reading of its answer.

A replay holds dozens of streams open on few cores, so only what is needed is parsed as JSON: events up to the first
token, and the last few events, which carry the finish, the usage and possibly an error.
"""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from retinue_emulator.replay.events import Request

_TAIL_BYTES: Final = 16_384
"""Kept at least of the end of a stream: far more than the usage event and the one before it."""

_MESSAGE: Final = "replayed turn; the prompt is in retinue_prompt"
_RETRYABLE: Final = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class SessionHeaders:
    """Names of the headers by which the gateway knows sessions."""

    session: str = "x-session-id"
    parent: str = "x-parent-session-id"
    final: str = "x-session-final"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. ``first_token`` and ``ended`` are readings of ``time.monotonic``; error None means whole.

    ``retryable``: asking again is safe (no token was seen) and may help (the trouble may pass).
    """

    status: int | None
    first_token: float | None
    ended: float
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    retryable: bool = False


def completion_body(request: Request, model: str) -> bytes:
    """The chat completion for a turn: block ids as runs, exact output length, streamed, with usage at the end."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": _MESSAGE}],
        "max_tokens": output_tokens(request),
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "retinue_prompt": {
            "scope": request.scope,
            "block_size": request.block_size,
            "tokens": request.in_tokens,
            "runs": [list(run) for run in request.runs],
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


def output_tokens(request: Request) -> int:
    """Tokens to ask for: the recorded number, at least the one token that the API requires."""
    return max(1, request.out_tokens)


def session_headers(request: Request, names: SessionHeaders, *, final: bool) -> dict[str, str]:
    """Identity of the turn's session, its parent, and on the last turn that the session may be released."""
    headers = {"content-type": "application/json", "x-request-id": request.id, names.session: request.session}
    if request.parent is not None:
        headers[names.parent] = request.parent
    if final:
        headers[names.final] = "true"
    return headers


async def ask(http: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str], timeout: float) -> Answer:
    """Send one turn and read its answer to the end; trouble of any kind is in the answer, not raised.

    ``timeout`` is wall seconds for the whole exchange.
    """
    status: int | None = None
    stream = StreamReading()
    try:
        limit = aiohttp.ClientTimeout(total=timeout)
        async with http.post(url, data=body, headers=headers, timeout=limit) as response:
            status = response.status
            if response.status != 200:
                return _refused(response.status, await response.text())
            async for chunk in response.content.iter_any():
                stream.feed(chunk, time.monotonic())
    except TimeoutError:
        ended = time.monotonic()
        return Answer(status, stream.first_token, ended, error=f"no complete answer within {timeout:g} s")
    except (aiohttp.ClientError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
        return stream.broken(status, time.monotonic(), problem)
    return stream.answer(status, time.monotonic())


def _refused(status: int, text: str) -> Answer:
    try:
        message = str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = text.strip()[:200] or "no explanation"
    error = f"HTTP {status}: {message}"
    return Answer(status, None, time.monotonic(), error=error, retryable=status in _RETRYABLE)


class StreamReading:
    """Server-sent events of one completion, fed as the bytes arrive."""

    def __init__(self) -> None:
        self.first_token: float | None = None
        self._last_bytes: float | None = None
        self._pending = b""
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0

    def feed(self, data: bytes, now: float) -> None:
        """Take in ``data`` that arrived at ``now``."""
        self._tail.append(data)
        self._tail_bytes += len(data)
        while self._tail_bytes - len(self._tail[0]) >= _TAIL_BYTES:
            self._tail_bytes -= len(self._tail.popleft())
        self._last_bytes = now
        if self.first_token is not None:
            return
        *whole, self._pending = (self._pending + data).split(b"\n")
        if any(_has_token(line) for line in whole):
            self.first_token = now
            self._pending = b""

    def broken(self, status: int | None, ended: float, error: str) -> Answer:
        """An answer that ended in ``error``; worth another attempt only if no token had come."""
        return Answer(status, self.first_token, ended, error=error, retryable=self.first_token is None)

    def answer(self, status: int | None, now: float) -> Answer:
        """The finished answer; its error says what is missing from the stream."""
        ended = self._last_bytes if self._last_bytes is not None else now
        usage: dict[str, Any] | None = None
        done = False
        for line in reversed(b"".join(self._tail).split(b"\n")):
            payload = _payload(line)
            if payload == b"[DONE]":
                done = True
                continue
            event = _event(payload)
            if event is None:
                continue
            if "error" in event:
                return self.broken(status, ended, f"error in the stream: {_message(event)}")
            if isinstance(event.get("usage"), dict):
                usage = event["usage"]
                break
        if usage is None or not done:
            missing = "usage" if done else "end"
            return self.broken(status, ended, f"the stream was cut: it has no {missing}")
        details = usage.get("prompt_tokens_details") or {}
        return Answer(
            status=status,
            first_token=self.first_token,
            ended=ended,
            prompt_tokens=int(usage.get("prompt_tokens", 0)),
            cached_tokens=int(details.get("cached_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens", 0)),
        )


def _payload(line: bytes) -> bytes:
    return line[5:].strip() if line.startswith(b"data:") else b""


def _event(payload: bytes) -> dict[str, Any] | None:
    """The event as an object; None for an empty line and for the cut first line of the tail."""
    if not payload:
        return None
    try:
        event = json.loads(payload)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _message(event: dict[str, Any]) -> str:
    error = event["error"]
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _has_token(line: bytes) -> bool:
    """Whether the event has generated text; an engine may announce the role in an event of its own first."""
    event = _event(_payload(line))
    choices = event.get("choices") if event else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return False
    delta = choices[0].get("delta") or {}
    texts = (choices[0].get("text"), delta.get("content"), delta.get("reasoning_content"), delta.get("tool_calls"))
    return any(texts)
