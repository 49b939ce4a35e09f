"""Waiting for a condition with a deadline, instead of sleeping and hoping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .errors import LoopbackError

T = TypeVar("T")
_LONGEST_PAUSE = 1.0


async def eventually(
    probe: Callable[[], Awaitable[T | None]], *, what: str, timeout: float = 30.0, interval: float = 0.05
) -> T:
    """Calls `probe` every `interval` seconds until its result is truthy, and returns that result.

    A probe that takes long (kubectl is a process each time) is called less often, so that whoever waits does not take
    the time of those who work. A LoopbackError (kubectl failed, Prometheus does not answer) or AssertionError of the
    probe counts as not yet. After `timeout` seconds raises TimeoutError, which says `what` did not happen and the last
    result or error.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        try:
            result = await probe()
            if result:
                return result
            last = f"last result {result!r}"
        except (AssertionError, LoopbackError) as error:
            last = f"last error: {error}"
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what} ({last})")
        await asyncio.sleep(max(interval, min(2 * (time.monotonic() - began), _LONGEST_PAUSE)))
