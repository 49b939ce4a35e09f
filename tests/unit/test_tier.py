"""The tier server's store: capacity in bytes over models, shared bandwidth, leading runs, and its HTTP surface."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from retinue_emulator.engine.clock import Clock
from retinue_emulator.engine.config import TierAddress, TierConfig
from retinue_emulator.engine.tier import TierServer, TierStore, leading
from retinue_emulator.engine.tiers import RemoteTiers, TierServers, skip_blocks


def test_a_lookup_returns_the_leading_stored_run() -> None:
    store = TierStore(TierConfig(10**9, 1e9))
    assert store.put("s", [(0, 10), (20, 5)], 100, 0) == 15
    assert store.lookup("s", [(0, 10), (20, 9)], 1)[0] == 15
    assert store.lookup("s", [(5, 10)], 1)[0] == 5
    assert store.lookup("s", [(19, 3)], 1)[0] == 0
    assert store.lookup("other", [(0, 10)], 1)[0] == 0
    assert (store.lookup_tokens, store.hit_tokens) == (64 * (19 + 10 + 3 + 10), 64 * 20)


def test_capacity_is_counted_in_bytes_over_models_with_different_blocks() -> None:
    store = TierStore(TierConfig(10_000, 1e9))
    store.put("small", [(0, 50)], 100, 0)
    store.put("large", [(0, 6)], 1_000, 1)
    assert store.used_bytes <= 10_000
    assert store.lookup("large", [(0, 6)], 2)[0] == 6
    assert store.lookup("small", [(0, 50)], 2)[0] == 40
    assert store.evicted_bytes == 1_000
    assert store.blocks.eviction_age == 1


def test_storing_a_block_again_costs_nothing_but_refreshes_it() -> None:
    store = TierStore(TierConfig(1_000, 1e9))
    store.put("s", [(0, 10)], 100, 0)
    assert store.put("s", [(0, 5)], 100, 1) == 0
    assert store.used_bytes == 1_000
    store.put("s", [(50, 5)], 100, 2)
    assert store.lookup("s", [(0, 5)], 3)[0] == 5
    assert store.lookup("s", [(5, 5)], 3)[0] == 0


def test_readers_share_the_bandwidth_in_turn() -> None:
    store = TierStore(TierConfig(10**9, 1_000, latency_seconds=0.5))
    store.put("s", [(0, 20)], 100, 0)
    assert store.lookup("s", [(0, 20)], 10) == (20, 2.5)
    assert store.lookup("s", [(0, 20)], 11) == (20, 3.5)
    assert store.lookup("s", [(0, 20)], 100) == (20, 2.5)


def test_the_configured_bytes_per_token_win() -> None:
    store = TierStore(TierConfig(10**9, 1e9, bytes_per_token=10))
    store.put("s", [(0, 3)], 1, 0)
    assert store.used_bytes == 3 * 640


def test_runs_are_cut_where_they_should_be() -> None:
    assert leading([range(5), range(10, 15)], 7) == [range(5), range(10, 12)]
    assert leading([range(5)], 0) == []
    assert skip_blocks([(0, 5), (10, 5)], 7) == [(12, 3)]
    assert skip_blocks([(0, 5), (10, 5)], 10) == []
    assert skip_blocks([(0, 5)], 0) == [(0, 5)]


@pytest.fixture
async def servers() -> AsyncIterator[list[TierServer]]:
    clock = Clock()
    made = [TierServer(TierConfig(10**9, 1e12), clock, "127.0.0.1", 0) for _ in range(3)]
    for server in made:
        await server.start()
    yield made
    for server in made:
        await server.drain(0)


def address(name: str, server: TierServer) -> TierAddress:
    return TierAddress(name, f"http://127.0.0.1:{server.port}")


async def test_a_chain_is_asked_in_order_each_for_what_the_one_before_lacks(servers: list[TierServer]) -> None:
    warm, cold, _ = servers
    warm.store.put("s", [(0, 4)], 64, 0)
    cold.store.put("s", [(0, 10)], 64, 0)
    tiers = RemoteTiers([address("warm", warm), address("cold", cold)], 1.0)
    async with aiohttp.ClientSession() as http:
        hit = await tiers.lookup(http, "s", [(0, 12)])
    assert hit.blocks == 10
    assert warm.store.hit_tokens == 4 * 64
    assert cold.store.hit_tokens == 6 * 64
    assert cold.store.lookup_tokens == 8 * 64


async def test_servers_of_one_tier_share_it_by_scope(servers: list[TierServer]) -> None:
    tiers = RemoteTiers([address("warm", server) for server in servers], 1.0)
    async with aiohttp.ClientSession() as http:
        for scope in range(60):
            tiers.put([(f"s{scope}", [(0, 5)])])
        tiers.start(http)
        while sum(len(server.store.blocks) for server in servers) < 300:
            await tiers.lookup(http, "s0", [(0, 1)])
        await tiers.stop()
        hits = [await tiers.lookup(http, f"s{scope}", [(0, 5)]) for scope in range(60)]
    assert [hit.blocks for hit in hits] == [5] * 60
    assert all(len(server.store.blocks) > 30 for server in servers)


@pytest.mark.parametrize("body", [{}, {"scope": "s", "runs": 5}, {"scope": "s", "runs": [[-1, 2]], "block_bytes": 9}])
async def test_malformed_requests_are_refused(servers: list[TierServer], body: dict[str, object]) -> None:
    async with aiohttp.ClientSession() as http:
        for path in ("lookup", "put"):
            async with http.post(f"http://127.0.0.1:{servers[0].port}/kv/{path}", json=body) as response:
                assert response.status == 400


async def test_metrics_have_mooncakes_names(servers: list[TierServer]) -> None:
    servers[0].store.put("s", [(0, 5)], 1_000, 0)
    async with aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{servers[0].port}/metrics") as response:
            lines = (await response.text()).splitlines()
        async with http.get(f"http://127.0.0.1:{servers[0].port}/health") as response:
            assert response.status == 200
    for line in (
        "retinue_tier_up 1.0",
        "master_allocated_bytes 5000.0",
        "master_total_capacity_bytes 1e+09",
        "master_key_count 5.0",
        "master_evicted_key_count 0.0",
        "master_evicted_size_bytes 0.0",
        "retinue_tier_lookup_tokens_total 0.0",
        "retinue_tier_hit_tokens_total 0.0",
    ):
        assert line in lines


async def test_a_tier_named_by_a_service_is_asked_for_its_servers_again_while_engines_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("retinue_emulator.engine.tiers._RESOLVE_SECONDS", 0.0)
    known: list[str] = ["127.0.0.1"]

    async def resolve(host: str) -> list[str]:
        assert host == "cold-tier.agents.svc"
        return known

    servers = TierServers("http://cold-tier.agents.svc:8000", resolve)

    assert await servers.urls() == ("http://127.0.0.1:8000",)
    known.append("127.0.0.2")
    assert await servers.urls() == ("http://127.0.0.1:8000", "http://127.0.0.2:8000")
    known.clear()
    assert await servers.urls() == ()
