"""One completion request: what the gateway reads of its body, and the bodies it sends to engines."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from retinue_gateway.errors import GatewayError, bad_field

_CHARS_PER_TOKEN = 4
_LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")


class Endpoint(StrEnum):
    """The engine's paths."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Usage:
    """Token counts of one answered request. cached: None if the engine did not say."""

    prompt: int
    completion: int
    cached: int | None


@dataclass(frozen=True)
class Call:
    """A checked request.

    prompt_tokens: as `retinue_prompt` says, or else estimated from the length of the text; wants_usage: the client
    asked for the usage chunk of a stream.
    """

    endpoint: Endpoint
    body: dict[str, Any]
    model: str
    stream: bool
    wants_usage: bool
    prompt_tokens: int


def parse_call(endpoint: Endpoint, raw: bytes) -> Call:
    """Checks what the gateway relies on, and leaves the rest to the engine. Raises GatewayError 400 with the field."""
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise GatewayError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise GatewayError(400, "the body must be a JSON object", code="invalid_json")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise bad_field("model", "model must be the name of a role or of a model that a role runs")
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise bad_field("stream", "stream must be true or false")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise bad_field("stream_options", "stream_options must be an object")
    for field in _LENGTH_FIELDS:
        length = body.get(field)
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise bad_field(field, f"{field} must be a whole number of at least 1")
    return Call(
        endpoint=endpoint,
        body=body,
        model=model,
        stream=stream,
        wants_usage=bool(options.get("include_usage")),
        prompt_tokens=_prompt_tokens(endpoint, body),
    )


def prefill_body(call: Call, model: str | None) -> bytes:
    """The request that makes a prefill engine compute the prompt and hold its KV for a decode engine to pull.

    The protocol is that of vLLM's NIXL connector: one token, no stream, kv_transfer_params with do_remote_decode.
    """
    body = {name: value for name, value in call.body.items() if name not in ("stream_options", "min_tokens")}
    if "max_completion_tokens" in body:
        body["max_completion_tokens"] = 1
    body |= {
        "max_tokens": 1,
        "stream": False,
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
    }
    return _encode(body, model)


def decode_body(call: Call, model: str | None, kv_transfer_params: dict[str, Any] | None) -> bytes:
    """The client's request for the engine that answers it. Usage is always asked for, because metrics need it."""
    body = dict(call.body)
    if kv_transfer_params is not None:
        body["kv_transfer_params"] = kv_transfer_params
    if call.stream:
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return _encode(body, model)


def read_usage(usage: object) -> Usage | None:
    """A `usage` object of an answer; None if there is none."""
    if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int):
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    return Usage(prompt=usage["prompt_tokens"], completion=usage.get("completion_tokens") or 0, cached=cached)


def set_cached_tokens(usage: dict[str, Any], cached: int) -> None:
    """Writes the number of cached prompt tokens where the OpenAI API has it."""
    usage["prompt_tokens_details"] = {**(usage.get("prompt_tokens_details") or {}), "cached_tokens": cached}


def _encode(body: dict[str, Any], model: str | None) -> bytes:
    # Clients may address a role; engines know the name of the model only.
    named = body if model is None else {**body, "model": model}
    return json.dumps(named, ensure_ascii=False, separators=(",", ":")).encode()


def _prompt_tokens(endpoint: Endpoint, body: dict[str, Any]) -> int:
    replayed = body.get("retinue_prompt")
    if replayed is not None:
        tokens = replayed.get("tokens") if isinstance(replayed, dict) else None
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
            raise bad_field("retinue_prompt.tokens", "retinue_prompt must be an object whose tokens is a whole number")
        return tokens
    if endpoint is Endpoint.CHAT:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise bad_field("messages", "messages must be a list with at least one message")
        return _characters(messages) // _CHARS_PER_TOKEN
    prompt = body.get("prompt")
    if not isinstance(prompt, (str, list)) or not prompt:
        raise bad_field("prompt", "prompt must be a text, a list of texts or a list of tokens")
    return _completion_tokens(prompt)


def _completion_tokens(prompt: str | list[Any]) -> int:
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        return len(prompt)
    if isinstance(prompt, list) and isinstance(prompt[0], list):
        return sum(len(tokens) for tokens in prompt if isinstance(tokens, list))
    return _characters(prompt) // _CHARS_PER_TOKEN


def _characters(value: object) -> int:
    """The text in a JSON value: a fair measure of a prompt, however its messages are structured."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(map(_characters, value))
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return 0
