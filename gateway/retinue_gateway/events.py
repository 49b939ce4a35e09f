"""A stream of server-sent events on its way to the client: passed on as bytes, looked into only where needed."""

import json
import re
from dataclasses import dataclass
from typing import Any

from retinue_gateway.calls import Usage, compact_json, read_usage, set_cached_tokens

# Escaped quotes in generated text cannot match: there the byte before the closing quote is a backslash.
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
# One event is a few hundred bytes, a tool call's arguments perhaps some kilobytes; before the first token come few.
_LONGEST_EVENT = 2**22
_TOKEN_FIELDS = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call", "refusal")


@dataclass(eq=False)
class StreamedError(Exception):
    """The engine reported an error inside a stream before any token. body: its error object."""

    body: dict[str, Any]

    @property
    def code(self) -> str:
        return str(self.body.get("code") or "")

    @property
    def message(self) -> str:
        return str(self.body.get("message") or self.body)


class TooLong(Exception):
    """An engine sends an event without end, or very much without a token."""

    def __init__(self) -> None:
        super().__init__(f"the engine sent more than {_LONGEST_EVENT} bytes without the end of an event or a token")


class EventStream:
    """Feed it bytes as they come from the engine; it returns the bytes that the client may have now.

    Whole events pass as soon as they are complete. Until the first token everything is held back, so that a request
    that has produced none can still be served by another instance. Afterwards an event is parsed only if it carries
    usage: its cached tokens become `cached_tokens` (the prefill engine's number; None leaves them), and a client that
    did not ask for usage does not see it.
    """

    def __init__(self, *, wants_usage: bool, cached_tokens: int | None) -> None:
        self._wants_usage = wants_usage
        self._cached_tokens = cached_tokens
        self._rest = b""
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.first_token = False
        self.done = False
        self.usage: Usage | None = None

    def feed(self, data: bytes) -> bytes:
        """Raises StreamedError if the engine reports an error before the first token, and TooLong."""
        data = self._rest + data
        end = max(_after_last(b"\n\n", data), _after_last(b"\r\n\r\n", data))
        complete, self._rest = data[:end], data[end:]
        if len(self._rest) > _LONGEST_EVENT:
            raise TooLong
        if not complete:
            return b""
        if b"data: [DONE]" in complete:
            self.done = True
        if self.first_token:
            return complete if _USAGE.search(complete) is None else self._rewrite_all(complete)
        return self._before_first_token(complete)

    def close(self) -> bytes:
        """What is left when the engine has ended its answer."""
        rest, self._rest = b"".join(self._held) + self._rest, b""
        self._held.clear()
        return rest

    def _before_first_token(self, complete: bytes) -> bytes:
        for event in _split(complete):
            payload = _payload(event)
            if payload is not None and isinstance(payload.get("error"), dict) and not self.first_token:
                raise StreamedError(payload["error"])
            self.first_token = self.first_token or _has_token(payload)
            self._held.append(self._rewrite(event))
            self._held_bytes += len(event)
        if not self.first_token:
            if self._held_bytes > _LONGEST_EVENT:
                raise TooLong
            return b""
        released = b"".join(self._held)
        self._held.clear()
        return released

    def _rewrite_all(self, complete: bytes) -> bytes:
        return b"".join(map(self._rewrite, _split(complete)))

    def _rewrite(self, event: bytes) -> bytes:
        if _USAGE.search(event) is None:
            return event
        payload = _payload(event)
        if payload is None or not isinstance(payload.get("usage"), dict):
            return event
        usage = payload["usage"]
        if self._cached_tokens is not None:
            set_cached_tokens(usage, self._cached_tokens)
        self.usage = read_usage(usage) or self.usage
        if not self._wants_usage:
            if not payload.get("choices"):
                return b""
            del payload["usage"]
        return b"data: " + compact_json(payload) + b"\n\n"


def _after_last(separator: bytes, data: bytes) -> int:
    found = data.rfind(separator)
    return 0 if found < 0 else found + len(separator)


def _split(complete: bytes) -> list[bytes]:
    """The events in `complete`, each with the blank line that ends it."""
    events, start = [], 0
    for blank in _BLANK_LINE.finditer(complete):
        events.append(complete[start : blank.end()])
        start = blank.end()
    return events


def _payload(event: bytes) -> dict[str, Any] | None:
    """The JSON object that an event carries; None for comments, [DONE] and what else is not an object."""
    lines = (line.removeprefix(b"data:").strip() for line in event.splitlines() if line.startswith(b"data:"))
    try:
        payload = json.loads(b"\n".join(lines))
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def _has_token(payload: dict[str, Any] | None) -> bool:
    """Whether an event carries output. Some engines send an opening event with the role alone much earlier."""
    choices = (payload or {}).get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        if choice.get("text") or choice.get("finish_reason") or any(delta.get(field) for field in _TOKEN_FIELDS):
            return True
    return False
