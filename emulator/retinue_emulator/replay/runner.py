"""Closed-loop replay: every session behaves as its agent did, at the pace that the cluster allows.

A turn is sent when the turn before it and everything else it waits for have ended and its gap has passed; so a slow
cluster makes sessions longer instead of piling requests up, as real agents do. Gaps are model time and are divided by
``speed``, like all times of the emulator. A session that fails stops; its parent goes on without it, sub-agents that it
had not spawned yet never start, and no other session notices.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import aiohttp

from retinue_emulator.replay.client import (
    Answer,
    SessionHeaders,
    ask,
    completion_body,
    output_tokens,
    session_headers,
)
from retinue_emulator.replay.events import Request, Session, Trace
from retinue_emulator.replay.records import RequestRecord, SessionResult, Summary, summarise


@dataclass(frozen=True)
class ReplayOptions:
    """Where to and how fast. ``role_models`` maps a trace's role to the AgentPool role that serves it."""

    base_url: str
    namespace: str
    agent_pool: str
    speed: float = 1.0
    main_model: str = "primary"
    subagent_model: str = "explorer"
    """AgentPool role for sub-agent roles that ``role_models`` does not name."""
    role_models: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    max_gap: float | None = None
    """Longest gap in model seconds; longer ones are cut to it. None keeps the recorded gaps."""
    request_timeout: float = 180.0
    """Wall seconds for one request, retries apart."""
    run_timeout: float | None = None
    """Wall seconds for the whole run; sessions still open then are stopped and count as failed."""
    retries: int = 3
    """Further attempts at a request that got no token and was refused or broken off for a passing reason."""
    backoff: float = 2.0
    """Model seconds before the first retry; doubled for each further one."""
    headers: SessionHeaders = field(default_factory=SessionHeaders)

    def __post_init__(self) -> None:
        if self.speed <= 0:
            raise ValueError(f"speed must be above zero, not {self.speed}")

    @property
    def url(self) -> str:
        """The chat completions endpoint of the AgentPool."""
        return f"{self.base_url.rstrip('/')}/{self.namespace}/{self.agent_pool}/v1/chat/completions"

    def model_for(self, request: Request) -> str:
        """AgentPool role that serves the request."""
        fallback = self.main_model if request.is_main else self.subagent_model
        return self.role_models.get(request.role, fallback)


@dataclass
class Progress:
    """Counters of a run under way; read them at any time."""

    sessions: int = 0
    open_sessions: int = 0
    finished_sessions: int = 0
    failed_sessions: int = 0
    requests: int = 0
    in_flight: int = 0
    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Token-weighted hit rate so far; None before the first answer."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else None


@dataclass(frozen=True)
class ReplayResult:
    """Everything a run measured: records in order of their ends, session results in the order of the trace."""

    records: tuple[RequestRecord, ...]
    sessions: tuple[SessionResult, ...]
    speed: float
    duration: float

    def summary(self, *, write_premium: float = 1.0, hit_discount: float = 0.9) -> Summary:
        """Hit rates, latencies, cost ratio and failed sessions."""
        return summarise(
            self.records,
            self.sessions,
            speed=self.speed,
            duration=self.duration,
            write_premium=write_premium,
            hit_discount=hit_discount,
        )


@dataclass(frozen=True, slots=True)
class _End:
    """When a request was over, and whether it was answered; others wait for this."""

    at: float
    answered: bool


class Replay:
    """One run of a trace. ``progress`` may be read while :meth:`run` is under way; run it once."""

    def __init__(
        self, trace: Trace, options: ReplayOptions, on_record: Callable[[RequestRecord], None] | None = None
    ) -> None:
        self.trace = trace
        self.options = options
        self.progress = Progress(
            sessions=len(trace.sessions), requests=sum(len(session.requests) for session in trace.sessions)
        )
        self._on_record = on_record
        self._records: list[RequestRecord] = []
        self._results: dict[str, SessionResult] = {}
        self._ends: dict[str, asyncio.Future[_End]] = {}
        self._zero = 0.0

    async def run(self) -> ReplayResult:
        """Replay all sessions to their ends. Failures are in the result; cancelling stops all sessions at once."""
        loop = asyncio.get_running_loop()
        self._ends = {request.id: loop.create_future() for request in self.trace.requests()}
        self._zero = time.monotonic()
        # No limit on connections: the number of open sessions is the limit, and waiting here would skew the times.
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            tasks = [asyncio.create_task(self._session(http, session)) for session in self.trace.sessions]
            try:
                await self._wait(tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return ReplayResult(
            records=tuple(self._records),
            sessions=tuple(self._results[session.id] for session in self.trace.sessions),
            speed=self.options.speed,
            duration=time.monotonic() - self._zero,
        )

    async def _wait(self, tasks: list[asyncio.Task[None]]) -> None:
        if not tasks:
            return
        done, pending = await asyncio.wait(tasks, timeout=self.options.run_timeout, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()  # A defect of the client itself, as opposed to a failed request, ends the run.
        if not pending:
            return
        for session in self.trace.sessions:
            if session.id not in self._results:
                own = [record for record in self._records if record.session == session.id]
                started = min((record.started for record in own), default=None)
                self._finish(session, started, len(own), f"was still open after {self.options.run_timeout:g} s")

    async def _session(self, http: aiohttp.ClientSession, session: Session) -> None:
        started: float | None = None
        answered = 0
        error: str | None = None
        try:
            for turn, request in enumerate(session.requests):
                due = await self._due(session, turn, request)
                if due is None:
                    error = "was not started: the turn that spawns it failed"
                    break
                await _sleep_until(due)
                if started is None:
                    started = time.monotonic() - self._zero
                    self.progress.open_sessions += 1
                record = await self._turn(http, session, turn, request, due)
                if record.error is not None:
                    error = f"request {request.id}: {record.error}"
                    break
                answered += 1
        finally:
            now = time.monotonic()
            for request in session.requests:
                if not self._ends[request.id].done():
                    self._ends[request.id].set_result(_End(at=now, answered=False))
            if started is not None:
                self.progress.open_sessions -= 1
        self._finish(session, started, answered, error)

    def _finish(self, session: Session, started: float | None, answered: int, error: str | None) -> None:
        if error is None:
            self.progress.finished_sessions += 1
        else:
            self.progress.failed_sessions += 1
        self._results[session.id] = SessionResult(
            id=session.id,
            parent=session.parent,
            role=session.role,
            requests=len(session.requests),
            answered=answered,
            started=started,
            ended=time.monotonic() - self._zero if started is not None else None,
            error=error,
        )

    async def _due(self, session: Session, turn: int, request: Request) -> float | None:
        """When the turn is to be sent (``time.monotonic``); None if the session's spawning turn failed."""
        ends = [await asyncio.shield(self._ends[other]) for other in request.wait_for]
        if turn > 0:
            ends.append(await asyncio.shield(self._ends[session.requests[turn - 1].id]))
        elif not all(end.answered for end in ends):
            return None
        speed = self.options.speed
        ready = max((end.at for end in ends), default=self._zero + session.start / speed)
        gap = request.gap if self.options.max_gap is None else min(request.gap, self.options.max_gap)
        return ready + gap / speed

    async def _turn(
        self, http: aiohttp.ClientSession, session: Session, turn: int, request: Request, due: float
    ) -> RequestRecord:
        options = self.options
        body = completion_body(request, options.model_for(request))
        headers = session_headers(request, options.headers, final=turn == len(session.requests) - 1)
        started = time.monotonic()
        self.progress.in_flight += 1
        retries = 0
        try:
            while True:
                answer = await ask(http, options.url, body, headers, options.request_timeout)
                if not answer.retryable or retries == options.retries:
                    break
                await asyncio.sleep(options.backoff * 2**retries / options.speed)
                retries += 1
        finally:
            self.progress.in_flight -= 1
        record = self._record(request, turn, due, started, answer, retries)
        self._ends[request.id].set_result(_End(at=answer.ended, answered=record.error is None))
        self._count(record)
        return record

    def _record(
        self, request: Request, turn: int, due: float, started: float, answer: Answer, retries: int
    ) -> RequestRecord:
        asked = output_tokens(request)
        error = answer.error
        if error is None and answer.completion_tokens != asked:
            error = f"the answer has {answer.completion_tokens} of {asked} tokens"
        first = answer.first_token
        tpot = None
        if first is not None and error is None and answer.completion_tokens > 1:
            tpot = (answer.ended - first) / (answer.completion_tokens - 1)
        return RequestRecord(
            id=request.id,
            session=request.session,
            parent=request.parent,
            role=request.role,
            model=self.options.model_for(request),
            phase=request.phase,
            turn=turn,
            compaction=request.compaction,
            due=due - self._zero,
            started=started - self._zero,
            ttft=None if first is None else first - started,
            tpot=tpot,
            duration=answer.ended - started,
            in_tokens=request.in_tokens,
            out_tokens=asked,
            prompt_tokens=answer.prompt_tokens,
            cached_tokens=answer.cached_tokens,
            completion_tokens=answer.completion_tokens,
            status=answer.status,
            retries=retries,
            error=error,
        )

    def _count(self, record: RequestRecord) -> None:
        self._records.append(record)
        progress = self.progress
        if record.error is None:
            progress.answered += 1
            progress.prompt_tokens += record.prompt_tokens
            progress.cached_tokens += record.cached_tokens
            progress.completion_tokens += record.completion_tokens
        else:
            progress.failed += 1
        if self._on_record is not None:
            self._on_record(record)


async def _sleep_until(when: float) -> None:
    """Until ``time.monotonic`` reaches ``when``."""
    if (pause := when - time.monotonic()) > 0:
        await asyncio.sleep(pause)
