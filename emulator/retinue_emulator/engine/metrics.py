"""The metrics of one simulated engine, under vLLM 0.33's names and with its label sets.

Values are in wall time: a span of model time is divided by the clock's speed before it is observed, and so are the
bucket bounds, which keeps each observation in the bucket that it would have at speed 1. Plain numbers are kept here and
turned into metric families only when scraped, because a metric object per token would cost more than the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from retinue_emulator.engine.config import BLOCK_TOKENS, EngineConfig
from retinue_emulator.engine.histogram import BulkHistogram

# Bucket bounds of vLLM 0.33 (vllm/v1/metrics), seconds.
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_TTFT_TAIL = (160.0, 640.0, 2560.0)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_REQUEST = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
_REQUEST_TAIL = (960.0, 1920.0, 7680.0)
_TRANSFER = (0.005, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 5.0)
_TRANSFER_BYTES = tuple(float(2**20 * 2**power) for power in range(18))

WAITING_REASONS = ("capacity", "deferred")
PROMPT_SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
CACHED_SOURCES = ("device", "host", "p2p", "disk", "external_unspecified")
FINISH_REASONS = ("stop", "length", "abort", "error")

# name, help, bounds in seconds
_TIME_HISTOGRAMS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "time_to_first_token_seconds": ("Time to first token.", _TTFT + _TTFT_TAIL),
    "inter_token_latency_seconds": ("Time between output tokens.", _ITL),
    "request_time_per_output_token_seconds": ("Mean time per output token of a request.", _ITL),
    "e2e_request_latency_seconds": ("End to end request latency.", _REQUEST + _REQUEST_TAIL),
    "request_queue_time_seconds": ("Time in the WAITING phase.", _REQUEST + _REQUEST_TAIL),
    "request_inference_time_seconds": ("Time in the RUNNING phase.", _REQUEST + _REQUEST_TAIL),
    "request_prefill_time_seconds": ("Time in the PREFILL phase.", _REQUEST + _REQUEST_TAIL),
    "request_decode_time_seconds": ("Time in the DECODE phase.", _REQUEST + _REQUEST_TAIL),
    "nixl_xfer_time_seconds": ("KV transfer duration.", _TRANSFER),
}
_COUNTERS: Mapping[str, str] = {
    "prompt_tokens": "Prefill tokens processed.",
    "prompt_tokens_cached": "Prompt tokens found in a cache, local or external.",
    "generation_tokens": "Generated tokens.",
    "prefix_cache_queries": "Prompt tokens looked up in the local prefix cache.",
    "prefix_cache_hits": "Prompt tokens found in the local prefix cache.",
    "external_prefix_cache_queries": "Prompt tokens looked up outside device memory.",
    "external_prefix_cache_hits": "Prompt tokens found outside device memory.",
    "num_preemptions": "Preemptions by the engine (the simulated engine reserves a request's KV before it starts).",
    "nixl_num_failed_transfers": "KV transfers that failed.",
    "nixl_num_kv_expired_reqs": "Requests whose KV was never pulled before its lease ended.",
}
_LABELLED: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "prompt_tokens_by_source": ("Prompt tokens by where their KV came from.", "source", PROMPT_SOURCES),
    "prompt_tokens_cached_by_source": ("Cached prompt tokens by tier.", "source", CACHED_SOURCES),
    "request_success": ("Finished requests by reason.", "finished_reason", FINISH_REASONS),
}


def one_two_five(limit: int) -> tuple[float, ...]:
    """Bounds 1, 2, 5, 10, ... up to `limit`, as vLLM makes them for token counts."""
    bounds: list[float] = []
    exponent = 0
    while True:
        for mantissa in (1, 2, 5):
            value = mantissa * 10**exponent
            if value > limit:
                return tuple(bounds)
            bounds.append(float(value))
        exponent += 1


@dataclass(frozen=True)
class EngineGauges:
    """What a scrape reads from the running engine."""

    running: int
    waiting_capacity: int
    waiting_deferred: int
    kv_usage: float
    host_used_bytes: float
    host_capacity_bytes: float
    host_eviction_age: float | None
    clock_lag: float
    clock_behind: int


@dataclass(eq=False)
class EngineMetrics:
    """All counters and histograms of one engine; `read` supplies the gauges at scrape time."""

    config: EngineConfig
    speed: float
    read: Callable[[], EngineGauges]
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self._counters = dict.fromkeys(_COUNTERS, 0.0)
        self._labelled = {name: dict.fromkeys(values, 0.0) for name, (_, _, values) in _LABELLED.items()}
        self._times = {
            name: BulkHistogram([bound / self.speed for bound in bounds])
            for name, (_, bounds) in _TIME_HISTOGRAMS.items()
        }
        self._computed = BulkHistogram(one_two_five(self.config.context_window))
        self._prompt = BulkHistogram(one_two_five(self.config.context_window))
        self._generation = BulkHistogram(one_two_five(self.config.context_window))
        self._transferred = BulkHistogram(_TRANSFER_BYTES)
        self.registry.register(self)

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a counter (name without prefix and `_total`)."""
        self._counters[name] += amount

    def count_by(self, name: str, label: str, amount: float = 1) -> None:
        """Add to one child of a labelled counter."""
        self._labelled[name][label] += amount

    def time(self, name: str, model_seconds: float, times: int = 1) -> None:
        """Observe a span of model time, `times` times."""
        self._times[name].observe(model_seconds / self.speed, times)

    def computed_tokens(self, tokens: int) -> None:
        """Observe the prompt tokens that a request's prefill computed."""
        self._computed.observe(tokens)

    def request_tokens(self, prompt: int, generated: int) -> None:
        """Observe a finished request's lengths."""
        self._prompt.observe(prompt)
        self._generation.observe(generated)

    def transfer(self, size: float, model_seconds: float) -> None:
        """Observe one KV transfer."""
        self._times["nixl_xfer_time_seconds"].observe(model_seconds / self.speed)
        self._transferred.observe(size)

    def value(self, name: str, label: str | None = None) -> float:
        """Present value of a counter, for reports and tests."""
        return self._counters[name] if label is None else self._labelled[name][label]

    def histogram(self, name: str) -> BulkHistogram:
        """One histogram of times (wall seconds), for reports and tests."""
        return self._times[name]

    def collect(self) -> Iterable[Metric]:
        """Metric families in exposition form (prometheus_client calls this at each scrape)."""
        names = ["model_name", "engine"]
        values = [self.config.served_model_name, "0"]
        yield from self._collect_counters(names, values)
        yield from self._collect_histograms(names, values)
        yield from self._collect_gauges(names, values)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read gauges of an engine that is still being built."""
        return []

    def _collect_counters(self, names: list[str], values: list[str]) -> Iterator[Metric]:
        for name, text in _COUNTERS.items():
            family = CounterMetricFamily(f"vllm:{name}", text, labels=names)
            family.add_metric(values, self._counters[name])
            yield family
        for name, (text, label, _) in _LABELLED.items():
            family = CounterMetricFamily(f"vllm:{name}", text, labels=[*names, label])
            for child, amount in self._labelled[name].items():
                family.add_metric([*values, child], amount)
            yield family

    def _collect_histograms(self, names: list[str], values: list[str]) -> Iterator[Metric]:
        rows = [(name, _TIME_HISTOGRAMS[name][0], histogram) for name, histogram in self._times.items()]
        rows += [
            ("request_prefill_kv_computed_tokens", "Prompt tokens that a prefill computed.", self._computed),
            ("request_prompt_tokens", "Prompt tokens of a request.", self._prompt),
            ("request_generation_tokens", "Generated tokens of a request.", self._generation),
            ("nixl_bytes_transferred", "Bytes of one KV transfer.", self._transferred),
        ]
        for name, text, histogram in rows:
            family = HistogramMetricFamily(f"vllm:{name}", text, labels=names)
            histogram.add_to(family, values)
            yield family

    def _collect_gauges(self, names: list[str], values: list[str]) -> Iterator[Metric]:
        now = self.read()
        simple = [
            ("vllm:num_requests_running", "Requests in execution.", float(now.running)),
            ("vllm:num_requests_waiting", "Requests waiting.", float(now.waiting_capacity + now.waiting_deferred)),
            ("vllm:kv_cache_usage_perc", "KV blocks that requests hold, 1 means all.", now.kv_usage),
            ("retinue_sim_host_cache_used_bytes", "KV bytes in host memory.", now.host_used_bytes),
            ("retinue_sim_host_cache_capacity_bytes", "Host memory for KV.", now.host_capacity_bytes),
            ("retinue_sim_clock_lag_seconds", "How late the emulator's last tick was (wall).", now.clock_lag),
        ]
        if now.host_eviction_age is not None:
            age = now.host_eviction_age / self.speed
            simple.append(
                ("retinue_sim_host_cache_eviction_age_seconds", "Idle age of the block evicted last (wall).", age)
            )
        for name, text, amount in simple:
            gauge = GaugeMetricFamily(name, text, labels=names)
            gauge.add_metric(values, amount)
            yield gauge
        waiting = GaugeMetricFamily("vllm:num_requests_waiting_by_reason", "Waiting.", labels=[*names, "reason"])
        for reason, amount in zip(WAITING_REASONS, (now.waiting_capacity, now.waiting_deferred), strict=True):
            waiting.add_metric([*values, reason], float(amount))
        yield waiting
        info = GaugeMetricFamily("vllm:cache_config_info", "KV cache.", labels=["block_size", "num_gpu_blocks", *names])
        info.add_metric([str(BLOCK_TOKENS), str(self.config.kv_blocks), *values], 1.0)
        yield info
        behind = CounterMetricFamily("retinue_sim_behind", "Ticks that came later than tolerated.", labels=names)
        behind.add_metric(values, float(now.clock_behind))
        yield behind
