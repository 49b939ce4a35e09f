"""Continuous batching in model time: admission, chunked prefill and decode steps, without one timer per token.

The scheduler owns no clock and no task. `advance(now)` carries the engine to model time `now` and returns when it wants
to be called next. A step that prefills is simulated by itself; while only decoding happens, all steps until the next
completion are one *segment* whose token times are an arithmetic series. An arrival cuts the running segment at its next
step boundary. Steps follow each other at computed times, so a caller that comes late loses no model time.

Data-parallel replicas are simulated as one engine with the sum of their limits.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from retinue.economics.costmodel import StepTimes
from retinue_emulator.engine.booking import book_finish, book_first_token
from retinue_emulator.engine.config import BLOCK_TOKENS
from retinue_emulator.engine.kvmemory import KvMemory
from retinue_emulator.engine.metrics import EngineMetrics
from retinue_emulator.engine.request import FinishReason, Phase, SimRequest


@dataclass(frozen=True)
class Limits:
    """What one step may hold, over all replicas."""

    sequences: int
    batched_tokens: int


@dataclass(slots=True)
class _Segment:
    """`count` steps of `step` seconds from `start`; `chunks` only when count is 1."""

    start: float
    step: float
    count: int
    decoding: list[SimRequest]
    chunks: list[tuple[SimRequest, int]]
    emitted: int = 0

    @property
    def end(self) -> float:
        return self.start + self.step * self.count


@dataclass(frozen=True)
class Hooks:
    """What the engine around the scheduler does for it.

    private_blocks: blocks beyond the hashed prompt blocks that a request needs.
    admit: called once a request has its memory; says how it gets its cached KV: seconds until it may compute (0 for at
        once), or None when `kv_arrived` or `fail` will be called.
    finished: called when a request has ended, before its memory is released; returns True to keep the memory.
    """

    private_blocks: Callable[[SimRequest], int]
    admit: Callable[[SimRequest], float | None]
    finished: Callable[[SimRequest], bool]


class Scheduler:
    """One engine's queue and batch. All times are model seconds."""

    def __init__(
        self, times: StepTimes, memory: KvMemory, limits: Limits, metrics: EngineMetrics, hooks: Hooks
    ) -> None:
        self._times = times
        self._memory = memory
        self._limits = limits
        self._metrics = metrics
        self._hooks = hooks
        self._waiting: deque[SimRequest] = deque()
        self._fetching: dict[str, SimRequest] = {}
        self._prefilling: list[SimRequest] = []
        self._decoding: list[SimRequest] = []
        self._timers: list[tuple[float, int, SimRequest]] = []
        self._timer_serial = 0
        self._segment: _Segment | None = None
        self._now = 0.0
        self._blocked_at: int | None = None

    @property
    def waiting(self) -> int:
        """Requests without memory."""
        return len(self._waiting)

    @property
    def fetching(self) -> int:
        """Requests that have memory and wait for their KV."""
        return len(self._fetching)

    @property
    def running(self) -> int:
        """Requests that compute."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def in_flight(self) -> int:
        """All requests that have not ended."""
        return self.waiting + self.fetching + self.running

    @property
    def streams_progress(self) -> bool:
        """True while someone watches tokens of a segment appear."""
        segment = self._segment
        return segment is not None and segment.count > 1 and any(r.streaming for r in segment.decoding)

    @property
    def first_token_due(self) -> float | None:
        """When the running segment gives somebody a first token to stream; that one is not to wait for others."""
        segment = self._segment
        if segment is None or segment.emitted or all(r.first_token is not None for r in segment.decoding):
            return None
        return segment.start + segment.step

    def submit(self, request: SimRequest, now: float) -> None:
        """Queue a request that arrived at `now`."""
        self._arrive(now)
        self._waiting.append(request)

    def kv_arrived(self, request: SimRequest, now: float) -> None:
        """The cached KV of an admitted request is in device memory: it may compute."""
        self._arrive(now)
        if self._fetching.pop(request.id, None) is not None:
            self._start_computing(request)

    def fail(self, request: SimRequest, message: str, now: float) -> None:
        """End a request whose KV could not be fetched."""
        request.error = message
        self._drop(request, FinishReason.ERROR, now)

    def abort(self, request: SimRequest, now: float) -> None:
        """End a request that nobody waits for any more."""
        self._drop(request, FinishReason.ABORT, now)

    def abort_all(self, now: float) -> None:
        """End everything."""
        everyone = [*self._waiting, *self._fetching.values(), *self._prefilling, *self._decoding]
        for request in everyone:
            self._drop(request, FinishReason.ABORT, now)

    def memory_released(self, now: float) -> None:
        """Held KV was given back outside a step: requests that wait for room may fit now."""
        self._arrive(now)

    def advance(self, now: float) -> float | None:
        """Carry out everything up to `now`.

        Returns:
            The model time of the next step's end or timer; None when there is nothing to wait for.
        """
        while True:
            if self._segment is None:
                self._fire_timers(self._now)
                self._admit()
                self._plan()
            segment = self._segment
            if segment is None:
                if not self._timers:
                    self._now = max(self._now, now)
                    return None
                due = self._timers[0][0]
                if due > now:
                    self._now = max(self._now, now)
                    return due
                self._now = max(self._now, due)
                continue
            if segment.end > now:
                self._emit(segment, min(int((now - segment.start) / segment.step), segment.count - 1))
                return segment.end
            self._complete(segment)

    def _arrive(self, now: float) -> None:
        """Something new is to be scheduled at `now`: catch up, and cut a running segment at its next step boundary."""
        self.advance(now)
        segment = self._segment
        if segment is not None and segment.count > 1:
            steps = math.ceil((now - segment.start) / segment.step)
            segment.count = max(1, segment.emitted, min(segment.count, steps))

    def _fire_timers(self, at: float) -> None:
        while self._timers and self._timers[0][0] <= at:
            request = heapq.heappop(self._timers)[2]
            if self._fetching.pop(request.id, None) is not None:
                self._start_computing(request)

    def _admit(self) -> None:
        waiting = self._waiting
        while waiting and self.running + self.fetching < self._limits.sequences:
            if self._blocked_at == self._memory.released:
                return
            request = waiting[0]
            held = self._memory.reserve(request.ranges, self._hooks.private_blocks(request), self._now)
            if held is None:
                # Nothing waits behind a request that holds no memory itself, as long as somebody else does.
                self._blocked_at = self._memory.released
                return
            waiting.popleft()
            self._blocked_at = None
            request.reservation = held
            request.scheduled = self._now
            request.phase = Phase.FETCHING
            self._fetching[request.id] = request
            delay = self._hooks.admit(request)
            if delay is None:
                continue
            if delay <= 0:
                del self._fetching[request.id]
                self._start_computing(request)
            else:
                self._timer_serial += 1
                heapq.heappush(self._timers, (self._now + delay, self._timer_serial, request))

    def _start_computing(self, request: SimRequest) -> None:
        if request.pull is not None:
            request.phase = Phase.DECODE
            self._decoding.append(request)
            return
        # Even a prompt that is cached to its end computes its last token, to have something to sample from.
        request.prefill_left = max(1, request.prompt_tokens - request.cached_tokens)
        request.phase = Phase.PREFILL
        self._prefilling.append(request)

    def _plan(self) -> None:
        """Choose the next step or segment, starting now."""
        decoding = list(self._decoding)
        budget = max(1, self._limits.batched_tokens - len(decoding))
        chunks: list[tuple[SimRequest, int]] = []
        for request in self._prefilling:
            if budget <= 0:
                break
            part = min(request.prefill_left, budget)
            chunks.append((request, part))
            budget -= part
        if not chunks and not decoding:
            return
        context = float(sum(request.context for request in decoding))
        if chunks:
            parts = [(part, request.prompt_tokens - request.prefill_left) for request, part in chunks]
            self._segment = _Segment(self._now, self._times.mixed(parts, len(decoding), context), 1, decoding, chunks)
            return
        count = min(request.max_tokens - request.generated for request in decoding)
        step = self._times.decode(len(decoding), context + len(decoding) * count / 2)
        if self._timers:
            count = max(1, min(count, math.ceil((self._timers[0][0] - self._now) / step)))
        self._segment = _Segment(self._now, step, count, decoding, [])

    def _emit(self, segment: _Segment, upto: int) -> None:
        """Book the tokens of steps emitted+1..upto of a segment."""
        new = upto - segment.emitted
        if new <= 0:
            return
        gaps = 0
        first = segment.start + segment.step * (segment.emitted + 1)
        last = segment.start + segment.step * upto
        for request in segment.decoding:
            if request.phase is not Phase.DECODE:
                continue
            request.generated += new
            gaps += new
            if request.first_token is None:
                gaps -= 1
                book_first_token(self._metrics, request, first)
            request.last_token = last
            if request.streaming:
                request.changed.set()
            self._metrics.count("generation_tokens", new)
        if gaps:
            self._metrics.time("inter_token_latency_seconds", segment.step, gaps)
        segment.emitted = upto

    def _complete(self, segment: _Segment) -> None:
        self._emit(segment, segment.count)
        self._now = segment.end
        self._segment = None
        for request, part in segment.chunks:
            if request.phase is not Phase.PREFILL:
                continue
            request.prefill_left -= part
            if request.prefill_left <= 0:
                self._prefilled(request)
        for request in segment.decoding:
            if request.phase is Phase.DECODE and request.generated >= request.max_tokens:
                self._decoding.remove(request)
                self._finish(request, FinishReason.LENGTH)

    def _prefilled(self, request: SimRequest) -> None:
        self._prefilling.remove(request)
        request.generated = 1
        request.last_token = self._now
        request.phase = Phase.DECODE
        book_first_token(self._metrics, request, self._now)
        self._metrics.count("generation_tokens")
        if request.generated >= request.max_tokens:
            self._finish(request, FinishReason.LENGTH)
            return
        self._decoding.append(request)
        request.changed.set()

    def _finish(self, request: SimRequest, reason: FinishReason, computed: int | None = None) -> None:
        """End a request; `computed` leading blocks of its prompt have their KV (None: all)."""
        request.phase = Phase.DONE
        request.finished = reason
        book_finish(self._metrics, request, reason)
        keep = self._hooks.finished(request)
        if request.reservation is not None and not keep:
            self._memory.release(request.reservation, self._now, computed)
            request.reservation = None
        request.changed.set()

    def _drop(self, request: SimRequest, reason: FinishReason, now: float) -> None:
        self._arrive(now)
        if request.phase is Phase.DONE:
            return
        computed: int | None = None
        if request.phase is Phase.WAITING:
            self._waiting.remove(request)
            self._blocked_at = None
        elif request.phase is Phase.FETCHING:
            self._fetching.pop(request.id, None)
            computed = request.reservation.hit if request.reservation is not None else 0
        elif request.phase is Phase.PREFILL:
            self._prefilling.remove(request)
            computed = (request.prompt_tokens - request.prefill_left) // BLOCK_TOKENS
        else:
            self._decoding.remove(request)
        request.hold_kv = False
        self._finish(request, reason, computed)
