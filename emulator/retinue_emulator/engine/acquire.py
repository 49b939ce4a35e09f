"""How an admitted request gets the KV that need not be computed: host cache, remote tiers, or a prefill engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp

from retinue.economics.costmodel import kv_bytes_per_token, pull_seconds, transfer_seconds
from retinue_emulator.engine.clock import Clock
from retinue_emulator.engine.config import BLOCK_TOKENS, EngineConfig
from retinue_emulator.engine.kvtransfer import TransferFailed, pull_remote
from retinue_emulator.engine.metrics import EngineMetrics
from retinue_emulator.engine.request import SimRequest
from retinue_emulator.engine.tiers import RemoteTiers, Resolver, skip_blocks

Arrived = Callable[[SimRequest], None]
Failed = Callable[[SimRequest, str], None]


class KvAcquisition:
    """Fetches KV for requests that have their memory.

    Args:
        config: the engine.
        clock: model time.
        metrics: where hits and transfers are counted.
        arrived: called when a request's KV is in device memory.
        failed: called with a message when it cannot be had.
        resolve: from a tier's host name to addresses; by default the resolver of the machine.
    """

    def __init__(
        self,
        config: EngineConfig,
        clock: Clock,
        metrics: EngineMetrics,
        arrived: Arrived,
        failed: Failed,
        resolve: Resolver | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._arrived = arrived
        self._failed = failed
        self._token_bytes = kv_bytes_per_token(config.shape)
        self._tiers = RemoteTiers(config.tiers, self._token_bytes, resolve)
        self._http: aiohttp.ClientSession | None = None
        self._fetches: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Open the HTTP client (inside a running event loop)."""
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._tiers.start(self._http)

    async def stop(self) -> None:
        """Cancel what is under way and close the client."""
        fetches = list(self._fetches.values())
        for task in fetches:
            task.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)
        await self._tiers.stop()
        if self._http is not None:
            await self._http.close()
            self._http = None

    def admit(self, request: SimRequest) -> float | None:
        """Book what was found, and begin to fetch.

        Returns:
            Model seconds until the request may compute; None when `arrived` or `failed` will be called.
        """
        held = request.reservation
        if held is None:
            raise RuntimeError(f"request {request.id} was admitted without memory")
        prompt = request.prompt_tokens
        request.device_tokens = min(held.device_hit * BLOCK_TOKENS, prompt)
        request.host_tokens = min(held.hit * BLOCK_TOKENS, prompt) - request.device_tokens
        self._metrics.count("prefix_cache_queries", prompt)
        self._metrics.count("prefix_cache_hits", request.device_tokens)
        if request.pull is not None:
            self._fetch(request, self._pull(request))
            return None
        if self._config.host_cache_bytes or self._tiers:
            self._metrics.count("external_prefix_cache_queries", prompt - request.device_tokens)
            self._metrics.count("external_prefix_cache_hits", request.host_tokens)
        restore = self._restore_seconds(request.host_tokens)
        if not self._tiers or request.cached_tokens >= prompt:
            return restore
        self._fetch(request, self._fetch_remote(request, held.hit, restore))
        return None

    def cancel(self, request: SimRequest) -> None:
        """Stop fetching for a request that was aborted."""
        task = self._fetches.pop(request.id, None)
        if task is not None:
            task.cancel()

    def hand_down(self, grouped: list[tuple[str, list[tuple[int, int]]]]) -> None:
        """Give blocks that left local memory, grouped by scope, to the remote tiers."""
        if self._tiers:
            self._tiers.put([(self._tier_scope(scope), runs) for scope, runs in grouped])

    @property
    def has_remote(self) -> bool:
        """True when there is a tier below local memory."""
        return bool(self._tiers)

    def _restore_seconds(self, tokens: int) -> float:
        """Model time to bring host blocks up: each device of the replica loads its shard over its host link."""
        shape = self._config.shape
        link = shape.device.host_link_bytes_per_second
        if link is None or tokens <= 0:
            return 0.0
        return transfer_seconds(tokens * self._token_bytes, link, links=shape.kv_shards * shape.pipeline)

    async def _fetch_remote(self, request: SimRequest, cached: int, restore: float) -> None:
        rest = skip_blocks(request.runs, cached)
        hit = await self._tiers.lookup(self._session(), self._tier_scope(request.scope), rest)
        before = request.device_tokens + request.host_tokens
        request.remote_tokens = min((cached + hit.blocks) * BLOCK_TOKENS, request.prompt_tokens) - before
        self._metrics.count("external_prefix_cache_hits", request.remote_tokens)
        # The slower of the engine's own network and what the tier's servers can give it now.
        seconds = max(hit.seconds, pull_seconds(self._config.shape, request.remote_tokens)) if hit.blocks else 0.0
        await self._clock.sleep(restore + seconds)
        self._arrived(request)

    async def _pull(self, request: SimRequest) -> None:
        if request.pull is None:
            raise RuntimeError(f"request {request.id} has nothing to pull")
        missing = request.prompt_tokens - request.cached_tokens
        seconds = pull_seconds(self._config.shape, missing) + self._restore_seconds(request.host_tokens)
        started = self._clock.now()
        try:
            await pull_remote(self._session(), request.pull, seconds)
        except TransferFailed as error:
            self._metrics.count("nixl_num_failed_transfers")
            self._failed(request, str(error))
            return
        self._metrics.transfer(missing * self._token_bytes, self._clock.now() - started)
        request.pulled_tokens = missing
        self._arrived(request)

    def _fetch(self, request: SimRequest, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"fetch-{request.id}")
        self._fetches[request.id] = task
        task.add_done_callback(lambda _: self._fetches.pop(request.id, None))

    def _tier_scope(self, scope: str) -> str:
        """Blocks of different models or precisions must never meet in a shared tier."""
        return f"{self._config.shape.model.name}\0{self._config.shape.kv_precision}\0{scope}"

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("the engine is not started")
        return self._http
