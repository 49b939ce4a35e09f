"""Moving a prompt's KV from a prefill engine to a decode engine, as vLLM's NIXL connector does it.

The prefill engine keeps the memory of a finished prompt until the decode engine has pulled it, or until a lease ends.
The decode engine asks with GET /internal/kv/{request id}?seconds=S; the answer comes when the transfer's modelled time
has passed, so that a prefill engine that dies meanwhile breaks the transfer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from retinue_emulator.engine.clock import Clock
from retinue_emulator.engine.kvmemory import Reservation
from retinue_emulator.engine.request import RemoteKv

LEASE_SECONDS = 480.0
"""vLLM's default time that a prefill engine waits for its KV to be pulled (VLLM_NIXL_ABORT_REQUEST_TIMEOUT)."""


class TransferFailed(Exception):
    """The KV could not be pulled; the request has to start again at prefill."""


@dataclass(slots=True)
class _Held:
    reservation: Reservation
    tokens: int
    expires: float
    pulling: bool = False


class HeldKv:
    """KV that waits on a prefill engine to be pulled.

    Args:
        clock: model time.
        release: gives a reservation's memory back.
        expired: called for each lease that ended.
    """

    def __init__(self, clock: Clock, release: Callable[[Reservation], None], expired: Callable[[], None]) -> None:
        self._clock = clock
        self._release = release
        self._expired = expired
        self._held: dict[str, _Held] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, request_id: str, reservation: Reservation, tokens: int) -> None:
        """Keep the KV of a finished prompt."""
        self._held[request_id] = _Held(reservation, tokens, self._clock.now() + LEASE_SECONDS)
        self._arm()

    async def pull(self, request_id: str, seconds: float) -> int | None:
        """Serve one pull that takes `seconds` of model time, then give the memory back.

        Returns:
            Tokens of the prompt; None when nothing is held under this id (never was, pulled, or expired).
        """
        held = self._held.get(request_id)
        if held is None or held.pulling:
            return None
        held.pulling = True
        try:
            await self._clock.sleep(seconds)
        finally:
            held.pulling = False
        if self._held.pop(request_id, None) is None:
            return None
        self._release(held.reservation)
        return held.tokens

    def drop_all(self) -> None:
        """Give all memory back (the engine stops)."""
        for held in self._held.values():
            self._release(held.reservation)
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is None and self._held:
            first = min(held.expires for held in self._held.values())
            wait = self._clock.wall(max(0.0, first - self._clock.now()))
            self._timer = asyncio.get_running_loop().call_later(wait, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._clock.now()
        for request_id, held in list(self._held.items()):
            if held.pulling:
                # A transfer under way keeps its memory; look again a little later.
                held.expires = max(held.expires, now + 1.0)
            elif held.expires <= now:
                del self._held[request_id]
                self._release(held.reservation)
                self._expired()
        self._arm()


async def pull_remote(session: aiohttp.ClientSession, remote: RemoteKv, seconds: float) -> None:
    """Fetch KV from a prefill engine.

    Args:
        session: HTTP client.
        remote: who holds it.
        seconds: model time that the bytes need on the slower of the two sides' links.

    Raises:
        TransferFailed: it holds nothing for this request, or cannot be reached.
    """
    url = f"http://{remote.host}:{remote.port}/internal/kv/{remote.request_id}"
    try:
        async with session.get(url, params={"seconds": repr(seconds)}) as response:
            if response.status != 200:
                raise TransferFailed(f"{url} answered {response.status}")
            await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise TransferFailed(f"{url}: {error or type(error).__name__}") from error
