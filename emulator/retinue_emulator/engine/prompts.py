"""Turns an OpenAI request body into a prompt of block runs and limits, or into an API error.

Replay sends `retinue_prompt`: the block ids of the prompt as runs, instead of megabytes of text. Ordinary clients send
text, which is cut into blocks and hashed as a chain, as vLLM does, so that equal prefixes give equal blocks.

As in vLLM, `cache_salt` is part of every block's name: prompts with different salts share nothing, here and in tiers.
It ends the scope, so that no choice of a scope can stand for another salt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retinue_emulator.engine.config import BLOCK_TOKENS
from retinue_emulator.engine.request import RemoteKv

CHARACTERS_PER_TOKEN = 4
DEFAULT_MAX_TOKENS = 256
MAX_RUNS = 65_536


class ApiError(Exception):
    """An error in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400."""
    return ApiError(400, message, "BadRequestError", param, code)


@dataclass(frozen=True)
class Prompt:
    """A prompt as the cache sees it."""

    scope: str
    runs: tuple[tuple[int, int], ...]
    tokens: int


@dataclass(frozen=True)
class Call:
    """A validated request."""

    prompt: Prompt
    max_tokens: int
    stream: bool
    include_usage: bool
    pull: RemoteKv | None
    hold_kv: bool


def parse_call(body: Mapping[str, Any], *, chat: bool, model: str, context_window: int) -> Call:
    """Validate a request body.

    Raises:
        ApiError: 404 for another model, 400 for anything malformed or too long.
    """
    wanted = body.get("model", model)
    if wanted != model:
        raise ApiError(404, f"The model `{wanted}` does not exist.", "NotFoundError", "model", "model_not_found")
    prompt = _prompt(body, chat)
    max_tokens = _max_tokens(body, prompt.tokens, context_window)
    if prompt.tokens + max_tokens > context_window:
        raise bad_request(
            f"This model's maximum context length is {context_window} tokens. However, you requested "
            f"{prompt.tokens + max_tokens} tokens ({prompt.tokens} in the prompt, {max_tokens} in the completion).",
            "max_tokens" if prompt.tokens < context_window else "messages",
            "context_length_exceeded",
        )
    options = body.get("stream_options")
    transfer = body.get("kv_transfer_params")
    if transfer is not None and not isinstance(transfer, Mapping):
        raise bad_request("kv_transfer_params must be an object", "kv_transfer_params")
    return Call(
        prompt=prompt,
        max_tokens=max_tokens,
        stream=bool(body.get("stream", False)),
        include_usage=isinstance(options, Mapping) and bool(options.get("include_usage", False)),
        pull=_pull(transfer or {}),
        hold_kv=bool((transfer or {}).get("do_remote_decode", False)),
    )


def _max_tokens(body: Mapping[str, Any], prompt_tokens: int, context_window: int) -> int:
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    value = body.get(name)
    if value is None:
        return max(1, min(DEFAULT_MAX_TOKENS, context_window - prompt_tokens))
    if not _is_count(value) or value < 1:
        raise bad_request(f"{name} must be a positive integer, got {value!r}", name)
    return int(value)


def _pull(transfer: Mapping[str, Any]) -> RemoteKv | None:
    if not transfer.get("do_remote_prefill", False):
        return None
    host, port, request = (transfer.get(key) for key in ("remote_host", "remote_port", "remote_request_id"))
    if not isinstance(host, str) or not _is_count(port) or not isinstance(request, str):
        raise bad_request(
            "kv_transfer_params with do_remote_prefill needs remote_host, remote_port and remote_request_id",
            "kv_transfer_params",
        )
    return RemoteKv(host, int(str(port)), request)


def _prompt(body: Mapping[str, Any], chat: bool) -> Prompt:
    salt = body.get("cache_salt")
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise bad_request("cache_salt must be a non-empty string", "cache_salt")
    extension = body.get("retinue_prompt")
    if extension is not None:
        return _replayed(extension, salt or "")
    return _hashed(_messages_text(body) if chat else _completion_text(body), salt or "")


def _replayed(extension: object, salt: str) -> Prompt:
    where = "retinue_prompt"
    if not isinstance(extension, Mapping):
        raise bad_request(f"{where} must be an object", where)
    scope, tokens, runs = extension.get("scope"), extension.get("tokens"), extension.get("runs")
    size = extension.get("block_size", BLOCK_TOKENS)
    if not isinstance(scope, str) or not scope:
        raise bad_request(f"{where}.scope must be a non-empty string", where)
    if not _is_count(tokens) or int(str(tokens)) < 1:
        raise bad_request(f"{where}.tokens must be a positive integer", where)
    if not _is_count(size) or int(size) < BLOCK_TOKENS or int(size) % BLOCK_TOKENS:
        raise bad_request(f"{where}.block_size must be a multiple of {BLOCK_TOKENS}, got {size!r}", where)
    if not isinstance(runs, list) or len(runs) > MAX_RUNS:
        raise bad_request(f"{where}.runs must be a list of at most {MAX_RUNS} [first id, count] pairs", where)
    # A trace with larger blocks: each of its ids stands for several of ours.
    factor = int(size) // BLOCK_TOKENS
    out = []
    for run in runs:
        valid = isinstance(run, list) and len(run) == 2 and all(_is_count(number) for number in run)
        if not valid or (run[0] + run[1]) * factor > 1 << 64:
            raise bad_request(f"{where}.runs must hold [first id, count] pairs, got {run!r}", where)
        out.append((run[0] * factor, run[1] * factor))
    count = int(str(tokens))
    blocks = sum(run[1] for run in out)
    if (blocks - factor) * BLOCK_TOKENS >= count:
        raise bad_request(f"{where}: {blocks * BLOCK_TOKENS} tokens of blocks, but only {count} tokens", where)
    return Prompt(f"{scope}\0{salt}" if salt else scope, tuple(out), count)


def _hashed(text: str, salt: str) -> Prompt:
    if not text:
        raise bad_request("the prompt is empty", "messages")
    tokens = -(-len(text) // CHARACTERS_PER_TOKEN)
    width = BLOCK_TOKENS * CHARACTERS_PER_TOKEN
    runs, chained = [], b""
    for start in range(0, len(text) - width + 1, width):
        chained = hashlib.blake2b(text[start : start + width].encode(), digest_size=8, salt=chained).digest()
        runs.append((int.from_bytes(chained) >> 1, 1))
    return Prompt(f"text\0{salt}", tuple(runs), tokens)


def _messages_text(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a non-empty list", "messages")
    # Tools stand before the system prompt, as providers render them.
    parts = [json.dumps(body["tools"], sort_keys=True)] if body.get("tools") else []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise bad_request("each message must be an object with a role", "messages")
        parts.append(f"<{message['role']}>{_content_text(message.get('content'))}")
        if message.get("tool_calls"):
            parts.append(json.dumps(message["tool_calls"], sort_keys=True))
    return "".join(parts)


def _content_text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    raise bad_request("message content must be a string or a list of parts", "messages")


def _completion_text(body: Mapping[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise bad_request("prompt must be one string", "prompt")
    return prompt


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
