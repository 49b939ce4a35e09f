"""Batching in model time, without a clock: order, batching, chunking, admission, and invariants under random load."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.economics.costmodel import StepTimes
from retinue_emulator.engine.config import EngineConfig, parse_engine
from retinue_emulator.engine.kvmemory import KvMemory
from retinue_emulator.engine.metrics import EngineGauges, EngineMetrics
from retinue_emulator.engine.request import FinishReason, Phase, RemoteKv, SimRequest
from retinue_emulator.engine.scheduler import Hooks, Limits, Scheduler


def config() -> EngineConfig:
    return parse_engine(
        ["--role=aggregated", "--model=llama-3.3-70b", "--device=h200", "--tensor=4", "--cold-start-seconds=0"], {}
    )


NO_GAUGES = EngineGauges(0, 0, 0, 0.0, 0.0, 0.0, None, 0.0, 0)


@dataclass
class Bench:
    """A scheduler with its memory, and a log of what ended."""

    blocks: int = 100_000
    sequences: int = 256
    batched_tokens: int = 16_384
    restore: float = 0.0
    ended: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = config()
        self.times = StepTimes(self.config.shape)
        self.memory = KvMemory(self.blocks)
        self.metrics = EngineMetrics(self.config, 1.0, lambda: NO_GAUGES)
        self.scheduler = Scheduler(
            self.times,
            self.memory,
            Limits(self.sequences, self.batched_tokens),
            self.metrics,
            Hooks(lambda request: 1 + request.max_tokens // 64, self._admit, self._finished),
        )
        self.serial = 0

    def _admit(self, request: SimRequest) -> float | None:
        assert request.reservation is not None
        request.device_tokens = min(64 * request.reservation.device_hit, request.prompt_tokens)
        return self.restore

    def _finished(self, request: SimRequest) -> bool:
        self.ended.append(request.id)
        return False

    def submit(self, at: float, prompt: int, output: int, scope: int | None = None) -> SimRequest:
        self.serial += 1
        base = 10**6 * (self.serial if scope is None else scope)
        ranges = [range(base, base + prompt // 64)]
        request = SimRequest(f"r{self.serial}", "s", [], ranges, prompt, output, at)
        self.scheduler.submit(request, at)
        return request

    def run(self, until: float = 1e9) -> None:
        while (due := self.scheduler.advance(0)) is not None and due <= until:
            self.scheduler.advance(due)


def test_one_request_takes_its_prefill_and_one_step_per_further_token() -> None:
    bench = Bench()
    request = bench.submit(5.0, 6_400, 11)
    bench.run()
    prefill = bench.times.prefill([(6_400, 0)])
    assert request.first_token == pytest.approx(5.0 + prefill)
    assert request.last_token is not None
    assert request.first_token is not None
    assert request.last_token - request.first_token == pytest.approx(10 * bench.times.decode(1, 6_401 + 5), rel=1e-3)
    assert request.finished is FinishReason.LENGTH


def test_long_prompts_are_prefilled_in_chunks_of_the_token_budget() -> None:
    bench = Bench(batched_tokens=4_096)
    request = bench.submit(0.0, 10_000, 1)
    bench.run()
    parts = [(4_096, 0), (4_096, 4_096), (1_808, 8_192)]
    assert request.first_token == pytest.approx(sum(bench.times.prefill([part]) for part in parts))


def test_prompts_that_wait_together_share_a_step() -> None:
    bench = Bench()
    blocker = bench.submit(0.0, 16_000, 1)
    first, second = bench.submit(0.01, 640, 1), bench.submit(0.02, 640, 1)
    bench.run()
    assert blocker.first_token is not None
    shared = bench.times.prefill([(640, 0), (640, 0)])
    assert first.first_token == second.first_token == pytest.approx(blocker.first_token + shared)


def test_an_arrival_is_served_at_the_next_step_boundary_of_a_decoding_engine() -> None:
    bench = Bench()
    running = bench.submit(0.0, 640, 100_000)
    bench.scheduler.advance(10.0)
    late = bench.submit(10.0, 640, 1)
    bench.scheduler.advance(11.0)
    assert late.scheduled is not None
    assert 10.0 <= late.scheduled <= 10.0 + 1.5 * bench.times.decode(1, running.context)


def test_a_late_caller_loses_no_model_time() -> None:
    punctual, late = Bench(), Bench()
    for bench in (punctual, late):
        bench.submit(0.0, 6_400, 50)
        bench.submit(0.0, 12_800, 90)
    punctual.run()
    late.scheduler.advance(1_000.0)
    assert late.ended == punctual.ended
    for name in ("e2e_request_latency_seconds", "inter_token_latency_seconds", "request_decode_time_seconds"):
        assert late.metrics.histogram(name).total == pytest.approx(punctual.metrics.histogram(name).total)


def test_a_request_is_never_scheduled_before_it_arrived_even_if_nobody_called_meanwhile() -> None:
    bench = Bench()
    bench.submit(0.0, 640, 5)
    second = bench.submit(500.0, 640, 5)
    bench.run()
    assert second.scheduled == 500.0


def test_prefill_stretches_the_gap_between_tokens_of_running_streams() -> None:
    bench = Bench()
    bench.submit(0.0, 640, 2_000)
    bench.scheduler.advance(2.0)
    bench.submit(2.0, 16_000, 1)
    bench.run()
    slow = bench.times.prefill([(16_000, 0)])
    histogram = bench.metrics.histogram("inter_token_latency_seconds")
    assert histogram.count == 1_999
    assert histogram.total > 1_998 * bench.times.decode(1, 640) + slow


def test_a_restore_delays_computing_but_not_others() -> None:
    bench = Bench(restore=3.0)
    first = bench.submit(0.0, 640, 1)
    bench.scheduler.advance(1.0)
    assert first.phase is Phase.FETCHING
    assert bench.scheduler.fetching == 1
    bench.run()
    assert first.first_token == pytest.approx(3.0 + bench.times.prefill([(640, 0)]))


def test_the_first_token_after_a_transfer_can_be_streamed_when_its_step_is_over() -> None:
    bench = Bench()
    pulled = SimRequest(
        "pulled", "s", [], [range(100)], 6_400, 1_000, 0.0, pull=RemoteKv("127.0.0.1", 1, "x"), streaming=True
    )
    bench.scheduler.submit(pulled, 0.0)
    end = bench.scheduler.advance(0.0)
    due = bench.scheduler.first_token_due
    assert end is not None
    assert due is not None
    assert due == pytest.approx(end / 1_000)
    bench.scheduler.advance(due * 1.001)
    assert (pulled.generated, pulled.first_token) == (1, due)
    assert pulled.changed.is_set()
    assert bench.scheduler.first_token_due is None


def test_at_most_max_num_seqs_run() -> None:
    bench = Bench(sequences=2)
    requests = [bench.submit(0.0, 640, 20) for _ in range(5)]
    bench.scheduler.advance(0.1)
    assert (bench.scheduler.running, bench.scheduler.waiting) == (2, 3)
    bench.run()
    assert bench.ended == [request.id for request in requests]


def test_aborting_gives_the_memory_back_in_every_phase() -> None:
    bench = Bench(blocks=250)
    decoding = bench.submit(0.0, 6_400, 64)
    bench.scheduler.advance(0.5)
    prefilling = bench.submit(0.5, 6_400, 64)
    waiting = bench.submit(0.5, 6_400, 64)
    bench.scheduler.advance(0.52)
    assert [request.phase for request in (decoding, prefilling, waiting)] == [
        Phase.DECODE,
        Phase.PREFILL,
        Phase.WAITING,
    ]
    for request in (waiting, prefilling, decoding):
        bench.scheduler.abort(request, 0.53)
        bench.scheduler.abort(request, 0.53)
    assert bench.memory.in_use == 0
    assert bench.scheduler.in_flight == 0
    assert bench.metrics.value("request_success", "abort") == 3


def test_an_aborted_prompt_leaves_in_the_cache_only_what_was_computed() -> None:
    chunk = Bench().times.mixed([(16_384, 0)], 0, 0.0)
    for at, phase, cached in ((1.0, Phase.FETCHING, 0), (4.9 + 1.5 * chunk, Phase.PREFILL, 16_384 // 64)):
        bench = Bench(restore=4.9)
        request = bench.submit(0.0, 64_000, 64)
        bench.run(until=at)
        assert request.phase is phase
        bench.scheduler.abort(request, at)
        assert bench.memory.device.match(request.ranges, at) == cached
        assert bench.memory.in_use == 0


work = st.lists(
    st.tuples(
        st.floats(0, 5), st.integers(1, 30_000), st.integers(1, 400), st.integers(0, 4), st.booleans(), st.booleans()
    ),
    min_size=1,
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(work)
def test_whatever_arrives_everything_ends_and_nothing_leaks(
    jobs: list[tuple[float, int, int, int, bool, bool]],
) -> None:
    bench, now, requests = Bench(blocks=1_200, sequences=6, batched_tokens=2_048), 0.0, []
    for pause, prompt, output, scope, abort, advance in jobs:
        now += pause
        request = bench.submit(now, prompt, output, scope)
        requests.append(request)
        if advance:
            bench.scheduler.advance(now)
        if abort:
            now += pause / 10
            bench.scheduler.abort(request, now)
        assert bench.memory.in_use <= bench.memory.blocks
        assert len(bench.memory.device) <= bench.memory.blocks
    bench.run()
    assert bench.scheduler.in_flight == 0
    assert bench.memory.in_use == 0
    assert sorted(bench.ended) == sorted(request.id for request in requests)
    for request in requests:
        if request.finished is FinishReason.LENGTH:
            assert request.generated == request.max_tokens
            assert request.scheduled is not None
            assert request.first_token is not None
            assert request.last_token is not None
            assert request.arrived <= request.scheduled < request.first_token <= request.last_token
    by_source = sum(
        bench.metrics.value("prompt_tokens_by_source", source) for source in ("local_compute", "local_cache_hit")
    )
    assert by_source == bench.metrics.value("prompt_tokens")
