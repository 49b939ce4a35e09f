"""The simulated ContextStorage server: a shared LRU store of KV blocks with one queue for its bandwidth.

POST /kv/lookup {"scope", "runs", "block_bytes"} -> {"hit_blocks", "transfer_seconds"}: the leading run that is stored,
touched, and the model time until this server has sent it, behind everything that it sends already.
POST /kv/put {"scope", "runs", "block_bytes"} -> {"stored_blocks"}. GET /health, GET /metrics (Mooncake-store names).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from retinue_emulator.engine.blockkeys import BlockKeys, Runs
from retinue_emulator.engine.clock import Clock
from retinue_emulator.engine.config import BLOCK_TOKENS, TierConfig
from retinue_emulator.engine.listener import Listener
from retinue_emulator.engine.prefixcache import PrefixCache

_MAX_BODY = 64 * 2**20


class TierStore:
    """Blocks of several models under one capacity in bytes. Times are model seconds."""

    def __init__(self, config: TierConfig) -> None:
        self.config = config
        self.used_bytes = 0.0
        self.evicted_bytes = 0.0
        self.lookup_tokens = 0
        self.hit_tokens = 0
        self._keys = BlockKeys()
        self._sizes: dict[str, float] = {}
        self._busy_until = 0.0
        self.blocks = PrefixCache(sys.maxsize, on_evict=self._evicted)

    def lookup(self, scope: str, runs: Runs, now: float) -> tuple[int, float]:
        """Leading stored run in blocks, and the model time until it has been sent.

        Raises:
            ValueError: runs outside 0..2^64.
        """
        ranges = self._keys.ranges(scope, runs)
        hit = self.blocks.match(ranges, now)
        self.blocks.touch(leading(ranges, hit), now)
        self.lookup_tokens += sum(count for _, count in runs) * BLOCK_TOKENS
        self.hit_tokens += hit * BLOCK_TOKENS
        if not hit:
            return 0, 0.0
        size = hit * self._sizes.get(scope, 0.0)
        self._busy_until = max(self._busy_until, now) + size / self.config.bytes_per_second
        return hit, self._busy_until - now + self.config.latency_seconds

    def put(self, scope: str, runs: Runs, block_bytes: float, now: float) -> int:
        """Store blocks, and push the least recently used out until they fit; returns how many were new.

        Raises:
            ValueError: runs outside 0..2^64.
        """
        if self.config.bytes_per_token is not None:
            block_bytes = self.config.bytes_per_token * BLOCK_TOKENS
        # A scope belongs to one model and precision (the engine sees to that), so its blocks have one size.
        size = self._sizes.setdefault(scope, block_bytes)
        before = len(self.blocks)
        self.blocks.touch(self._keys.ranges(scope, runs), now)
        new = len(self.blocks) - before
        self.used_bytes += new * size
        while self.used_bytes > self.config.capacity_bytes and len(self.blocks):
            self.blocks.evict(
                max(1, int((self.used_bytes - self.config.capacity_bytes) // max(self._sizes.values()))), now
            )
        return new

    def _evicted(self, keys: list[int], last_used: float, now: float) -> None:
        del last_used, now
        for scope, runs in self._keys.runs(keys):
            size = sum(count for _, count in runs) * self._sizes[scope]
            self.used_bytes -= size
            self.evicted_bytes += size


def leading(ranges: Iterable[range], blocks: int) -> list[range]:
    """The first `blocks` keys of the ranges."""
    out = []
    for keys in ranges:
        if blocks <= 0:
            break
        out.append(keys[:blocks])
        blocks -= len(keys)
    return out


class TierServer:
    """One server pod of a ContextStorage tier, listening on `address`:`port`.

    Args:
        config: capacity and bandwidth.
        clock: model time.
        address: IPv4 address to bind.
        port: 0 picks a free one; None takes the config's.
    """

    def __init__(self, config: TierConfig, clock: Clock, address: str = "127.0.0.1", port: int | None = None) -> None:
        self.config = config
        self.clock = clock
        self.address = address
        self.store = TierStore(config)
        self.registry = CollectorRegistry()
        self.registry.register(self)
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/kv/lookup", self._lookup)
        app.router.add_post("/kv/put", self._put)
        self._listener = Listener(app, address, config.port if port is None else port)

    @property
    def port(self) -> int:
        """The bound port."""
        return self._listener.port

    async def start(self) -> None:
        """Listen; a tier server is ready at once.

        Raises:
            OSError: the address is taken.
        """
        await self._listener.start()

    async def drain(self, grace_seconds: float) -> bool:
        """Stop: a tier has no requests to finish, and its blocks can be computed again."""
        del grace_seconds
        await self.stop()
        return True

    async def stop(self) -> None:
        """Free the address."""
        await self._listener.stop()

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering reads no values."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Metric families in exposition form."""
        store = self.store
        gauges = [
            ("retinue_tier_up", "1 while the tier serves.", 1.0),
            ("master_allocated_bytes", "Bytes of stored blocks.", store.used_bytes),
            ("master_total_capacity_bytes", "Bytes that fit.", float(self.config.capacity_bytes)),
            ("master_key_count", "Stored blocks.", float(len(store.blocks))),
            # Mooncake exposes these two running totals without the suffix that a counter would get.
            ("master_evicted_key_count", "Blocks pushed out.", float(store.blocks.evicted_total)),
            ("master_evicted_size_bytes", "Bytes pushed out.", store.evicted_bytes),
        ]
        if store.blocks.eviction_age is not None:
            age = store.blocks.eviction_age / self.clock.speed
            gauges.append(("retinue_tier_eviction_age_seconds", "Idle age of the block evicted last (wall).", age))
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(name, text)
            gauge.add_metric([], value)
            yield gauge
        for name, text, tokens in (
            ("retinue_tier_lookup_tokens", "Tokens asked for.", store.lookup_tokens),
            ("retinue_tier_hit_tokens", "Tokens found.", store.hit_tokens),
        ):
            counter = CounterMetricFamily(name, text)
            counter.add_metric([], float(tokens))
            yield counter

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _lookup(self, http: web.Request) -> web.Response:
        try:
            scope, runs, _ = _parse(await http.json())
            hit, seconds = self.store.lookup(scope, runs, self.clock.now())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"hit_blocks": hit, "transfer_seconds": seconds})

    async def _put(self, http: web.Request) -> web.Response:
        try:
            scope, runs, block_bytes = _parse(await http.json())
            if block_bytes <= 0 and self.config.bytes_per_token is None:
                raise ValueError("block_bytes must be above 0")
            stored = self.store.put(scope, runs, block_bytes, self.clock.now())
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)
        return web.json_response({"stored_blocks": stored})


def _parse(body: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]], float]:
    """A request body; json.JSONDecodeError is a ValueError too."""
    try:
        scope, runs = str(body["scope"]), [(int(first), int(count)) for first, count in body["runs"]]
        return scope, runs, float(body.get("block_bytes", 0))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"malformed request: {type(error).__name__}: {error}") from error
