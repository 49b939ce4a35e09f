"""An engine's view of the remote tiers below it: look prompts up in chain order, and hand evicted blocks down.

Servers of one tier share its blocks by scope (rendezvous hashing), so that a prefix stays together on one server and a
resize moves only the scopes that the new or lost server wins or had. Who serves a tier is looked up by name again and
again, because tiers are resized while engines run. A tier that does not answer costs a miss, never the request. Evicted
blocks are written in the background and in batches; when a tier is too slow for them the oldest batch is dropped,
because a cache write must not hold an engine up.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import math
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from retinue_emulator.engine.config import BLOCK_TOKENS, TierAddress

Resolver = Callable[[str], Awaitable[Sequence[str]]]
"""From a host name to the IP addresses behind it."""

_MAX_PENDING = 256
_RESOLVE_SECONDS = 2.0
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
        resolve: from a host name to the addresses behind it; by default the resolver of the machine.
    """

    def __init__(
        self, addresses: Sequence[TierAddress], bytes_per_token: float, resolve: Resolver | None = None
    ) -> None:
        self._tiers: dict[str, list[TierServers]] = {}
        for address in addresses:
            self._tiers.setdefault(address.name, []).append(TierServers(address.url, resolve or resolve_by_dns))
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
                url = f"{await self._server(servers, scope)}/kv/lookup"
                async with session.post(url, json=body, timeout=_TIMEOUT) as r:
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
                    try:
                        url = f"{await self._server(servers, scope)}/kv/put"
                        async with session.post(url, json=body, timeout=_TIMEOUT) as response:
                            response.raise_for_status()
                    except _UNREACHABLE:
                        self.failures += 1

    @staticmethod
    async def _server(groups: Sequence[TierServers], scope: str) -> str:
        servers = [url for group in groups for url in await group.urls()]
        if not servers:
            raise OSError("no server answers to the tier's name")
        return max(servers, key=lambda url: hashlib.blake2b(f"{url}\0{scope}".encode(), digest_size=8).digest())


class TierServers:
    """The servers behind one address of a tier: itself if it is an IP address, else whoever its name stands for now."""

    def __init__(self, url: str, resolve: Resolver) -> None:
        parts = urlsplit(url)
        self._resolve = resolve
        self._host = parts.hostname or ""
        self._scheme, self._port = parts.scheme, parts.port or 80
        self._urls: tuple[str, ...] = (url,) if _is_address(self._host) else ()
        self._known_until = math.inf if self._urls else 0.0

    async def urls(self) -> tuple[str, ...]:
        """Base addresses; asks again once a few seconds have passed. Empty when nobody answers to the name."""
        now = asyncio.get_running_loop().time()
        if now >= self._known_until:
            addresses = await self._resolve(self._host)
            self._urls = tuple(f"{self._scheme}://{address}:{self._port}" for address in sorted(addresses))
            self._known_until = now + _RESOLVE_SECONDS
        return self._urls


async def resolve_by_dns(host: str) -> Sequence[str]:
    """The IPv4 addresses that the machine's resolver gives for a name; none when it does not know it."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return ()
    return sorted({str(entry[4][0]) for entry in found})


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


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
