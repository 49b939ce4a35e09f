"""An engine's view of the remote tiers below it: look prompts up in chain order, and hand evicted blocks down.

Servers of one tier share its blocks by scope (rendezvous hashing), so that a prefix stays together on one server. A
tier that does not answer costs a miss, never the request. Evicted blocks are written in the background and in batches;
when a tier is too slow for them the oldest batch is dropped, because a cache write must not hold an engine up.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from retinue_emulator.engine.config import BLOCK_TOKENS, TierAddress

_MAX_PENDING = 256
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_UNREACHABLE = (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError)


@dataclass(frozen=True)
class RemoteHit:
    """Leading blocks found in remote tiers, and the model time that their servers need to send them."""

    blocks: int
    seconds: float


class RemoteTiers:
    """The chain of remote tiers of one engine.

    Args:
        addresses: servers in chain order; several of one name share one tier.
        bytes_per_token: KV bytes of a token.
    """

    def __init__(self, addresses: Sequence[TierAddress], bytes_per_token: float) -> None:
        self._tiers: dict[str, list[str]] = {}
        for address in addresses:
            self._tiers.setdefault(address.name, []).append(address.url)
        self._block_bytes = bytes_per_token * BLOCK_TOKENS
        self._pending: deque[tuple[str, list[tuple[int, int]]]] = deque(maxlen=_MAX_PENDING)
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self.failures = 0
        """Requests to tiers that failed."""

    def __bool__(self) -> bool:
        return bool(self._tiers)

    def start(self, session: aiohttp.ClientSession) -> None:
        """Begin to write evicted blocks."""
        if self._tiers:
            self._writer = asyncio.create_task(self._write(session), name="tier-writer")

    async def stop(self) -> None:
        """End the writer; what is still queued is lost, as it would be with the engine."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None

    def put(self, grouped: Sequence[tuple[str, list[tuple[int, int]]]]) -> None:
        """Queue evicted blocks, grouped by scope."""
        self._pending.extend(grouped)
        self._wake.set()

    async def lookup(self, session: aiohttp.ClientSession, scope: str, runs: Sequence[tuple[int, int]]) -> RemoteHit:
        """Ask the tiers in chain order for the leading run of `runs`; each is asked for what the ones before lack."""
        found, seconds, rest = 0, 0.0, list(runs)
        for servers in self._tiers.values():
            if not rest:
                break
            body = {"scope": scope, "runs": rest, "block_bytes": self._block_bytes}
            try:
                async with session.post(f"{self._server(servers, scope)}/kv/lookup", json=body, timeout=_TIMEOUT) as r:
                    r.raise_for_status()
                    answer = await r.json()
                hit, wait = int(answer["hit_blocks"]), float(answer.get("transfer_seconds", 0.0))
            except _UNREACHABLE:
                self.failures += 1
                continue
            found += hit
            seconds += wait
            rest = skip_blocks(rest, hit)
        return RemoteHit(found, seconds)

    async def _write(self, session: aiohttp.ClientSession) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._pending:
                scope, runs = self._pending.popleft()
                body = {"scope": scope, "runs": runs, "block_bytes": self._block_bytes}
                for servers in self._tiers.values():
                    url = f"{self._server(servers, scope)}/kv/put"
                    try:
                        async with session.post(url, json=body, timeout=_TIMEOUT) as response:
                            response.raise_for_status()
                    except _UNREACHABLE:
                        self.failures += 1

    @staticmethod
    def _server(servers: list[str], scope: str) -> str:
        if len(servers) == 1:
            return servers[0]
        return max(servers, key=lambda url: hashlib.blake2b(f"{url}\0{scope}".encode(), digest_size=8).digest())


def skip_blocks(runs: Sequence[tuple[int, int]], blocks: int) -> list[tuple[int, int]]:
    """The runs without their first `blocks` blocks."""
    rest = []
    for first, count in runs:
        if blocks >= count:
            blocks -= count
            continue
        rest.append((first + blocks, count - blocks))
        blocks = 0
    return rest
