"""Requests through the gateway, as a client sees them."""

import asyncio
import json
from dataclasses import dataclass

import aiohttp

_TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass(frozen=True)
class Stream:
    """One streamed completion: how many tokens came, whether it ended as it should, and who served it."""

    tokens: int
    finished: bool
    instance: str
    error: str | None = None


async def stream(
    http: aiohttp.ClientSession,
    base: str,
    session: str,
    *,
    model: str,
    tokens: int,
    started: asyncio.Event | None = None,
) -> Stream:
    """Asks for exactly `tokens` tokens; sets `started` when the first one came."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"session {session}"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    received, finished, instance, error = 0, False, "", None
    headers = {"x-session-id": session}
    async with http.post(f"{base}/chat/completions", json=body, headers=headers, timeout=_TIMEOUT) as response:
        instance = response.headers.get("x-retinue-decode-instance", "")
        if response.status != 200:
            return Stream(0, False, instance, await response.text())
        async for raw in response.content:
            line = raw.decode().strip()
            if line == "data: [DONE]":
                finished = True
            elif line.startswith("data: "):
                data = json.loads(line.removeprefix("data: "))
                error = data["error"]["message"] if "error" in data else error
                received = data["usage"]["completion_tokens"] if data.get("usage") else received
                if data.get("choices") and started is not None:
                    started.set()
    return Stream(received, finished, instance, error)
