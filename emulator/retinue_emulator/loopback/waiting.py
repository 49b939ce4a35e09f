"""Waiting for a condition with a deadline, instead of sleeping and hoping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .errors import LoopbackError

T = TypeVar("T")


async def eventually(
    probe: Callable[[], Awaitable[T | None]], *, what: str, timeout: float = 30.0, interval: float = 0.05
) -> T:
    """Calls `probe` every `interval` seconds until its result is truthy, and returns that result.

    A LoopbackError (kubectl failed, Prometheus does not answer) or AssertionError of the probe counts as not yet. After
    `timeout` seconds raises TimeoutError, which says `what` did not happen and the last result or error.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            result = await probe()
            if result:
                return result
            last = f"last result {result!r}"
        except (AssertionError, LoopbackError) as error:
            last = f"last error: {error}"
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what} ({last})")
        await asyncio.sleep(interval)
