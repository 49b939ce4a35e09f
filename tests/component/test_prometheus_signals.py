"""Canonical signals through a real Prometheus: every query runs, and says what real exposition text says."""

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from retinue.api.pool import EngineType
from retinue.autoscaling.assemble import pool_signals, role_signals, tier_signals
from retinue.autoscaling.inputs import PoolKind, PoolSignals
from retinue.autoscaling.signals import PoolScope, Scope, queries
from retinue_emulator.loopback import PrometheusServer, StaticTarget, eventually
from retinue_operator.prometheus.client import PrometheusClient, PrometheusSettings, Refused, WrongType
from retinue_operator.prometheus.poller import Poll, collect

pytestmark = pytest.mark.component

WINDOW = 4.0
SCOPE = Scope(
    namespace="agents",
    agent_pool="coder",
    pools=(
        PoolScope(PoolKind.PREFILL, "coder-primary", EngineType.SIMULATED),
        PoolScope(PoolKind.DECODE, "coder-primary", EngineType.SIMULATED),
    ),
    tiers=("cold",),
    window=WINDOW,
)
BOUNDS = (0.1, 0.5, 1.0, 5.0)


@dataclass(eq=False)
class Engine(Collector):
    """One instance's metrics: counters that rise at fixed speeds since its start, as vLLM names them."""

    instance: str
    kind: str = "prefill"
    speed: float = 1.0
    """Multiplies all counters; 0 = no traffic."""
    hit_rate: float = 0.75
    started: float = field(default_factory=time.monotonic)

    def collect(self) -> Iterator[Metric]:
        done = (time.monotonic() - self.started) * self.speed
        prompt = 1000.0 * done
        cached = prompt * self.hit_rate
        yield self._counter("vllm:prompt_tokens", prompt)
        yield self._counter("vllm:prompt_tokens_cached", cached)
        yield self._by_source(
            "vllm:prompt_tokens_by_source",
            local_compute=prompt - cached,
            local_cache_hit=cached,
            external_kv_transfer=0,
        )
        yield self._by_source("vllm:prompt_tokens_cached_by_source", device=cached * 0.8, host=cached * 0.2)
        yield self._counter("vllm:generation_tokens", 50.0 * done)
        # Two requests a second, .2 s in prefill each.
        for name, each in (
            ("vllm:request_queue_time_seconds", 0.05),
            ("vllm:request_prefill_time_seconds", 0.2),
            ("vllm:inter_token_latency_seconds", 0.05),
            ("vllm:time_to_first_token_seconds", 0.2),
            ("vllm:nixl_xfer_time_seconds", 0.05),
        ):
            yield self._histogram(name, 2.0 * done, each)
        for name, value in (
            ("vllm:num_requests_running", 3.0),
            ("vllm:num_requests_waiting", 1.0),
            ("vllm:kv_cache_usage_perc", 0.25),
            ("retinue_sim_host_cache_capacity_bytes", 1e9),
            ("retinue_sim_host_cache_used_bytes", 5e8),
            ("retinue_sim_host_cache_eviction_age_seconds", 60.0),
        ):
            yield self._gauge(name, value)

    @property
    def _labels(self) -> dict[str, str]:
        return {
            "namespace": "agents",
            "pool": "coder-primary",
            "pool_kind": self.kind,
            "retinue_instance": self.instance,
            "pod": f"{self.instance}-0",
            "engine": "0",
        }

    def _counter(self, name: str, value: float) -> Metric:
        family = CounterMetricFamily(name, "tokens", labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _by_source(self, name: str, **values: float) -> Metric:
        family = CounterMetricFamily(name, "tokens", labels=[*self._labels, "source"])
        for source, value in values.items():
            family.add_metric([*self._labels.values(), source], value)
        return family

    def _gauge(self, name: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, "gauge", labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _histogram(self, name: str, count: float, each: float) -> Metric:
        family = HistogramMetricFamily(name, "seconds", labels=list(self._labels))
        buckets = [(f"{bound:g}", count if each <= bound else 0.0) for bound in BOUNDS]
        family.add_metric(list(self._labels.values()), [*buckets, ("+Inf", count)], sum_value=count * each)
        return family


@dataclass(eq=False)
class Door(Collector):
    """The gateway's metrics of one role, and those of one tier server."""

    def collect(self) -> Iterator[Metric]:
        done = time.monotonic()
        role = {"namespace": "agents", "agent_pool": "coder", "role": "primary"}
        for name, speed in (
            ("requests_started", 2.0),
            ("prompt_tokens", 1000.0),
            ("cached_tokens", 900.0),
            ("completion_tokens", 50.0),
        ):
            counter = CounterMetricFamily(f"retinue_gateway_{name}", name, labels=list(role))
            counter.add_metric(list(role.values()), speed * done)
            yield counter
        ended = CounterMetricFamily("retinue_gateway_requests", "ended", labels=[*role, "code"])
        ended.add_metric([*role.values(), "200"], 1.5 * done)
        ended.add_metric([*role.values(), "503"], 0.5 * done)
        yield ended
        for name, value in (
            ("requests_in_flight", 4.0),
            ("queued_prefill_tokens", 8000.0),
            ("open_sessions", 6.0),
            ("open_session_context_tokens", 240_000.0),
        ):
            gauge = GaugeMetricFamily(f"retinue_gateway_{name}", name, labels=list(role))
            gauge.add_metric(list(role.values()), value)
            yield gauge
        stages = HistogramMetricFamily("retinue_gateway_stage_seconds", "stage", labels=[*role, "stage"])
        for stage in ("prefill", "decode_first_token", "total"):
            buckets = [(f"{bound:g}", 2.0 * done if bound >= 0.5 else 0.0) for bound in BOUNDS]
            stages.add_metric([*role.values(), stage], [*buckets, ("+Inf", 2.0 * done)], sum_value=done)
        yield stages
        tier = {"namespace": "agents", "tier": "cold", "retinue_instance": "cold-tier-0"}
        for name, value in (
            ("master_total_capacity_bytes", 1e12),
            ("master_allocated_bytes", 2e11),
            ("retinue_tier_eviction_age_seconds", 300.0),
            ("retinue_tier_up", 1.0),
        ):
            gauge = GaugeMetricFamily(name, name, labels=list(tier))
            gauge.add_metric(list(tier.values()), value)
            yield gauge
        for name, speed in (("retinue_tier_lookup_tokens", 400.0), ("retinue_tier_hit_tokens", 100.0)):
            counter = CounterMetricFamily(name, name, labels=list(tier))
            counter.add_metric(list(tier.values()), speed * done)
            yield counter


@asynccontextmanager
async def exposed(collector: Collector) -> AsyncIterator[StaticTarget]:
    """Serves a collector's metrics on a free loopback port."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        yield StaticTarget(job="engines", address=f"127.0.0.1:{port}")
    finally:
        await runner.cleanup()


@asynccontextmanager
async def scraping(tmp_path: Path, *targets: StaticTarget) -> AsyncIterator[tuple[PrometheusServer, PrometheusClient]]:
    async with (
        PrometheusServer(targets=targets, scrape_interval="250ms", state=tmp_path / "prometheus") as server,
        PrometheusClient(PrometheusSettings(server.url)) as client,
    ):
        yield server, client


async def poll_until(client: PrometheusClient, condition: Callable[[Poll], bool], what: str) -> Poll:
    """Polls until the condition holds; fails with what was waited for."""
    last = Poll()

    async def holds() -> bool:
        nonlocal last
        last = await collect(client, queries(SCOPE))
        return condition(last)

    await eventually(holds, what=what, timeout=40.0)
    return last


def prefill(poll: Poll) -> PoolSignals:
    return pool_signals(poll.samples, PoolKind.PREFILL, "coder-primary")


def near(value: float | None, expected: float) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=0.1)


async def test_signals_say_what_two_instances_expose(tmp_path: Path) -> None:
    async with (
        exposed(Engine("coder-primary-prefill-0")) as one,
        exposed(Engine("coder-primary-prefill-1", hit_rate=0.25)) as two,
        exposed(Engine("coder-primary-decode-0", kind="decode")) as three,
        exposed(Door()) as door,
        scraping(tmp_path, one, two, three, door) as (_, client),
    ):
        poll = await poll_until(
            client,
            lambda poll: (
                near(prefill(poll).prompt_rate.value, 2000.0)
                and near(prefill(poll).prefill_speed.value, 2500.0 / 2)
                and near(role_signals(poll.samples, "primary").completions.value, 2.0)
                and near(tier_signals(poll.samples, "cold").lookup_rate.value, 400.0)
                and not pool_signals(poll.samples, PoolKind.DECODE, "coder-primary").prompt_rate.missing
            ),
            "rates over a full window",
        )
        assert poll.failures == {}
        found = prefill(poll)
        assert near(found.computed_rate.value, 1000.0)
        assert near(found.cached_rate.value, 1000.0)
        # Weighted by tokens over both instances.
        assert near(found.hit_rate.value, 0.5)
        assert near(found.host_hit_rate.value, 0.1)
        assert near(found.generation_rate.value, 100.0)
        assert found.queue_time.value == pytest.approx(0.095)  # .95 of the way through the first bucket
        assert found.prefill_time.value is not None
        assert 0.1 < found.prefill_time.value <= 0.5
        assert (found.running.value, found.running_peak.value, found.waiting.value) == (6.0, 6.0, 2.0)
        assert found.waiting_low.value == 2.0
        assert (found.kv_use.value, found.reporting.value) == (0.25, 2.0)
        assert (found.host_capacity_bytes.value, found.host_used_bytes.value) == (2e9, 1e9)
        assert found.host_eviction_age.value == 60.0
        for signal in (found.running, found.hit_rate):
            assert signal.age is not None
            assert signal.age < 2.0
        decode = pool_signals(poll.samples, PoolKind.DECODE, "coder-primary")
        assert (decode.running.value, decode.reporting.value) == (3.0, 1.0)
        role = role_signals(poll.samples, "primary")
        assert (role.open_sessions.value, role.context_tokens.value) == (6.0, 240_000.0)
        assert (role.in_flight.value, role.queued_prefill_tokens.value) == (4.0, 8000.0)
        assert near(role.arrivals.value, 2.0)
        assert near(role.hit_rate.value, 0.9)
        assert role.first_decode_time.value is not None
        tier = tier_signals(poll.samples, "cold")
        assert (tier.capacity_bytes.value, tier.used_bytes.value, tier.reporting.value) == (1e12, 2e11, 1.0)
        assert near(tier.hit_rate.value, 0.25)


async def test_no_traffic_is_neither_zero_hit_rate_nor_missing(tmp_path: Path) -> None:
    async with (
        exposed(Engine("coder-primary-prefill-0", speed=0.0)) as target,
        scraping(tmp_path, target) as (_, client),
    ):
        poll = await poll_until(
            client, lambda poll: prefill(poll).prompt_rate.value == 0.0, "a rate of zero over the window"
        )
        found = prefill(poll)
        for signal in (found.hit_rate, found.prefill_speed, found.queue_time, found.inter_token_time):
            assert signal.value is None
            assert not signal.missing
        # Nothing was scraped of these at all.
        assert pool_signals(poll.samples, PoolKind.DECODE, "coder-primary") == PoolSignals()
        assert role_signals(poll.samples, "primary").hit_rate.missing


async def test_a_restarted_engine_does_not_bend_the_rates(tmp_path: Path) -> None:
    engine = Engine("coder-primary-prefill-0")
    async with exposed(engine) as target, scraping(tmp_path, target) as (_, client):
        await poll_until(client, lambda poll: near(prefill(poll).prompt_rate.value, 1000.0), "a steady rate")
        engine.started = time.monotonic()
        restarted = time.monotonic()
        lowest = math.inf

        def over(poll: Poll) -> bool:
            nonlocal lowest
            rate = prefill(poll).prompt_rate.value
            assert rate is not None
            lowest = min(lowest, rate)
            return time.monotonic() - restarted > WINDOW + 1.0

        await poll_until(client, over, "a window after the restart")
        # A difference of sums would have been far below zero; a lost piece of one scrape interval is all that may be.
        assert lowest > 800.0


async def test_a_dead_target_gets_older_and_prometheus_that_is_away_is_an_error(tmp_path: Path) -> None:
    async with exposed(Door()) as door:
        async with exposed(Engine("coder-primary-prefill-0")) as target:
            server = PrometheusServer(targets=(target, door), scrape_interval="250ms", state=tmp_path / "prometheus")
            await server.start()
            client = PrometheusClient(PrometheusSettings(server.url, timeout=3.0))
            await poll_until(client, lambda poll: near(prefill(poll).prompt_rate.value, 1000.0), "a steady rate")
        try:
            dead = await poll_until(
                client,
                lambda poll: prefill(poll).hit_rate.age is not None and (prefill(poll).hit_rate.age or 0.0) > 3.0,
                "the age of what the dead target said",
            )
            assert prefill(dead).running.missing
            role = role_signals(dead.samples, "primary")
            assert role.open_sessions.age is not None
            assert role.open_sessions.age < 2.0
            await server.pause()
            away = await collect(client, queries(SCOPE))
            assert away.error is not None
            assert away.samples == {}
            assert prefill(away) == PoolSignals()
            await server.start()
            await poll_until(client, lambda poll: poll.error is None and bool(poll.samples), "Prometheus to be back")
        finally:
            await client.close()
            await server.stop()


@pytest.mark.parametrize("engine", list(EngineType))
async def test_every_query_of_every_engine_is_valid(engine: EngineType, prometheus_client: PrometheusClient) -> None:
    scope = Scope(
        namespace='odd"\\name',
        agent_pool="coder",
        pools=(PoolScope(PoolKind.PREFILL, "a.b-c", engine), PoolScope(PoolKind.DECODE, "d", engine)),
        tiers=("cold", "warm"),
        window=7.5,
        ttft_quantile=0.99,
    )
    poll = await collect(prometheus_client, queries(scope))
    assert poll.error is None
    assert poll.failures == {}


async def test_a_wrong_query_and_a_matrix_are_errors(prometheus_client: PrometheusClient) -> None:
    with pytest.raises(Refused, match="bad_data"):
        await prometheus_client.query("sum(")
    with pytest.raises(WrongType, match="matrix"):
        await prometheus_client.query("up[1m]")
    assert [point.value for point in await prometheus_client.query("vector(1) / 0")] == [math.inf]
    assert (await prometheus_client.query("42"))[0].value == 42.0


@pytest.fixture
async def prometheus_client(tmp_path: Path) -> AsyncIterator[PrometheusClient]:
    """The client of a real Prometheus that scrapes nothing."""
    async with scraping(tmp_path) as (_, client):
        yield client
