"""One completion request: what the gateway reads of its body, and the bodies it sends to engines."""

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NoReturn

from retinue_gateway.errors import GatewayError, bad_field

_CHARS_PER_TOKEN = 4
_LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")
# What engines take from a router and not from a client: where to pull KV from, whose session or request it continues.
# With these a caller could read the KV of somebody else's request, or make an engine call any address.
_BETWEEN_US_AND_ENGINES = frozenset({
    "kv_transfer_params",  # vLLM
    "request_id",  # vLLM, SGLang
    "bootstrap_host", "bootstrap_port", "bootstrap_room", "session_params", "rid",  # SGLang
    "disaggregated_params", "conversation_params",  # TensorRT-LLM
})  # fmt: skip
# vLLM passes these on to where it also looks for kv_transfer_params.
_ENGINE_ARGUMENTS = "vllm_xargs"
_LONGEST_MODEL_NAME = 512
# More than any context window, and small enough to be summed in metrics.
_MOST_TOKENS = 10**9
# Each value of a JSON text costs some 60 bytes of memory, however short: two million are 120 MB.
_MOST_JSON_VALUES = 2_000_000


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
    body = _object(raw)
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= _LONGEST_MODEL_NAME:
        raise bad_field(
            "model",
            f"model must be the name of a role or of a model that a role runs, of at most {_LONGEST_MODEL_NAME}"
            " characters",
        )
    _refuse_what_is_ours(body)
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


def with_cache_salt(call: Call, salt: str | None) -> Call:
    """The call with that salt in place of the client's own; None leaves it without one."""
    body = {name: value for name, value in call.body.items() if name != "cache_salt"}
    return replace(call, body=body if salt is None else {**body, "cache_salt": salt})


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
    prompt = _count(usage, "prompt_tokens")
    if not isinstance(usage, dict) or prompt is None:
        return None
    cached = _count(usage.get("prompt_tokens_details"), "cached_tokens")
    return Usage(prompt=prompt, completion=_count(usage, "completion_tokens") or 0, cached=cached)


def set_cached_tokens(usage: dict[str, Any], cached: int) -> None:
    """Writes the number of cached prompt tokens where the OpenAI API has it."""
    details = usage.get("prompt_tokens_details")
    usage["prompt_tokens_details"] = {**(details if isinstance(details, dict) else {}), "cached_tokens": cached}


def compact_json(value: dict[str, Any]) -> bytes:
    """JSON without blanks, in UTF-8. Raises RecursionError if the value is nested too deeply."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, which JSON can write and UTF-8 cannot.
        return json.dumps(value, separators=(",", ":")).encode()


def _count(found: object, name: str) -> int | None:
    """A number of tokens; None if it is missing or is none, because engines are not trusted more than clients."""
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= _MOST_TOKENS else None


def _object(raw: bytes) -> dict[str, Any]:
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > _MOST_JSON_VALUES:
        raise _invalid_json(f"it has {values} commas and opening brackets; {_MOST_JSON_VALUES} are allowed")
    try:
        body = json.loads(raw, parse_constant=_no_number)
    except RecursionError as error:
        raise _invalid_json("it is nested too deeply") from error
    except ValueError as error:
        raise _invalid_json(str(error)) from error
    if not isinstance(body, dict):
        raise GatewayError(400, "the body must be a JSON object", code="invalid_json")
    return body


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number in JSON")


def _invalid_json(what: str) -> GatewayError:
    return GatewayError(400, f"the body is not valid JSON: {what}", code="invalid_json")


def _refuse_what_is_ours(body: dict[str, Any]) -> None:
    arguments = body.get(_ENGINE_ARGUMENTS)
    for name in _BETWEEN_US_AND_ENGINES:
        if body.get(name) is not None or (isinstance(arguments, dict) and name in arguments):
            raise bad_field(name, f"{name} is for the gateway to say to engines: leave it out")


def _encode(body: dict[str, Any], model: str | None) -> bytes:
    # Clients may address a role; engines know the name of the model only.
    named = body if model is None else {**body, "model": model}
    try:
        return compact_json(named)
    except RecursionError as error:
        raise _invalid_json("it is nested too deeply") from error


def _prompt_tokens(endpoint: Endpoint, body: dict[str, Any]) -> int:
    replayed = body.get("retinue_prompt")
    if replayed is not None:
        tokens = replayed.get("tokens") if isinstance(replayed, dict) else None
        if not isinstance(tokens, int) or isinstance(tokens, bool) or not 0 <= tokens <= _MOST_TOKENS:
            raise bad_field(
                "retinue_prompt.tokens",
                f"retinue_prompt must be an object whose tokens is a whole number of at most {_MOST_TOKENS}",
            )
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
    found, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            found += len(part)
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
    return found
