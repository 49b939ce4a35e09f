"""Agents as clients: streamed chat completions through the gateway with the openai package."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import openai


@dataclass(frozen=True)
class Stream:
    """One streamed completion: tokens, whether it ended as it should, the instance that served it, or an error."""

    tokens: int
    finished: bool
    instance: str
    cached: int = 0
    error: str | None = None


def client(base_url: str) -> openai.AsyncOpenAI:
    """A client that never tries again by itself: what fails must show."""
    return openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=300)


async def stream(
    agents: openai.AsyncOpenAI,
    session: str,
    *,
    tokens: int,
    text: str = "",
    model: str = "primary",
    started: asyncio.Event | None = None,
) -> Stream:
    """Asks for exactly `tokens` tokens; sets `started` when the first one came."""
    instance, received, cached, finished = "", 0, 0, False
    try:
        raw = await agents.chat.completions.with_raw_response.create(
            model=model,
            messages=[{"role": "user", "content": text or f"session {session}"}],
            max_tokens=tokens,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
            extra_headers={"x-session-id": session},
        )
        instance = raw.headers.get("x-retinue-decode-instance", "")
        async for chunk in raw.parse():
            if chunk.choices and started is not None:
                started.set()
            if chunk.choices and chunk.choices[0].finish_reason is not None:
                finished = True
            if chunk.usage is not None:
                received = chunk.usage.completion_tokens
                details = chunk.usage.prompt_tokens_details
                cached = (details.cached_tokens or 0) if details else 0
    except openai.OpenAIError as error:
        return Stream(received, finished, instance, cached, f"{type(error).__name__}: {error}")
    return Stream(received, finished, instance, cached)


async def begin(
    agents: openai.AsyncOpenAI, count: int, *, tokens: int, prefix: str = "s"
) -> list[asyncio.Task[Stream]]:
    """Starts `count` streams of different sessions and returns when each has its first token."""
    began = [asyncio.Event() for _ in range(count)]
    running = [
        asyncio.create_task(stream(agents, f"{prefix}{number}", tokens=tokens, started=event))
        for number, event in enumerate(began)
    ]
    waiting = asyncio.gather(*(event.wait() for event in began))
    failed = asyncio.gather(*running)
    done, _ = await asyncio.wait(
        [asyncio.ensure_future(f) for f in (waiting, failed)], timeout=90, return_when=asyncio.FIRST_COMPLETED
    )
    assert waiting in done, f"streams did not begin: {[t.result() for t in running if t.done()]}"
    return running
