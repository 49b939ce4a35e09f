"""The runner behaves as agents do: turns wait, parents wait, failures stay where they happen, headers tell who asks."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from retinue_emulator.replay.client import StreamReading
from retinue_emulator.replay.events import GapKind, Request, Session, Trace, make_trace
from retinue_emulator.replay.generator import reference_session
from retinue_emulator.replay.records import RequestRecord, quantile, summarise
from retinue_emulator.replay.runner import Replay, ReplayOptions, ReplayResult

SPEED = 100.0


@dataclass
class Seen:
    """One request as the fake gateway saw it."""

    id: str
    headers: dict[str, str]
    body: dict[str, Any]
    path: str
    started: float
    ended: float = 0.0


Behaviour = Callable[[Seen, web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class FakeGateway:
    """Streams the asked number of tokens, with nothing cached on a first turn and all but 64 tokens afterwards."""

    behaviour: Behaviour | None = None
    seen: list[Seen] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Seen(headers["x-request-id"], headers, body, request.path, time.monotonic())
        self.seen.append(seen)
        try:
            if self.behaviour is not None and (special := await self.behaviour(seen, request)) is not None:
                return special
            return await self.stream(seen, request)
        finally:
            seen.ended = time.monotonic()

    async def stream(self, seen: Seen, request: web.Request, *, cut: bool = False) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        tokens = seen.body["max_tokens"]
        await response.write(_event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}))
        for _ in range(tokens):
            await response.write(_event({"choices": [{"delta": {"content": "x"}}], "usage": None}))
        if cut:
            return response
        await response.write(_event({"choices": [{"delta": {}, "finish_reason": "length"}]}))
        prompt = seen.body["retinue_prompt"]["tokens"]
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": max(0, prompt - 64)},
        }
        await response.write(_event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        return response

    def of(self, request_id: str) -> Seen:
        [found] = [seen for seen in self.seen if seen.id == request_id]
        return found


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@asynccontextmanager
async def gateway(behaviour: Behaviour | None = None) -> AsyncIterator[FakeGateway]:
    fake = FakeGateway(behaviour)
    app = web.Application()
    app.router.add_post("/{namespace}/{pool}/v1/chat/completions", fake.handle)
    server = TestServer(app)
    await server.start_server()
    try:
        fake.url = str(server.make_url("/"))
        yield fake
    finally:
        await server.close()


def turn(name: str, session: str, gap: float = 0.0, parent: str | None = None, **more: Any) -> Request:
    values: dict[str, Any] = {
        "role": "main" if parent is None else "Explore",
        "model": "",
        "t": 0.0,
        "gap_kind": GapKind.TOOL,
        "in_tokens": 640,
        "out_tokens": 3,
        "runs": ((0, 10),),
        "block_size": 64,
        "scope": "s",
    }
    return Request(id=name, session=session, parent=parent, gap=gap, **{**values, **more})


def session(name: str, *turns: Request, start: float = 0.0) -> Session:
    return Session(name, turns[0].parent, turns[0].role, start, turns)


def trace_of(*sessions: Session) -> Trace:
    return make_trace("test", "test", sessions)


def family() -> Trace:
    """A parent that spawns two sub-agents after its first turn and waits for both before its second."""
    children = [
        session(
            f"c{i}",
            turn(f"c{i}/0", f"c{i}", parent="p", wait_for=("p/0",)),
            turn(f"c{i}/1", f"c{i}", 1.0 + i, parent="p"),
        )
        for i in range(2)
    ]
    parent = session("p", turn("p/0", "p"), turn("p/1", "p", 2.0, wait_for=("c0/1", "c1/1")), turn("p/2", "p", 1.0))
    return trace_of(parent, *children)


async def run(fake: FakeGateway, trace: Trace, **more: Any) -> ReplayResult:
    options = ReplayOptions(fake.url, "agents", "coder", **{"speed": SPEED, "backoff": 0.1, **more})
    return await asyncio.wait_for(Replay(trace, options).run(), timeout=30)


async def test_a_turn_waits_for_the_turn_before_it_and_the_gap() -> None:
    async with gateway() as fake:
        result = await run(
            fake, trace_of(session("a", turn("a/0", "a"), turn("a/1", "a", 5.0), turn("a/2", "a", 10.0)))
        )
        assert [seen.id for seen in fake.seen] == ["a/0", "a/1", "a/2"]
        for before, after, gap in (("a/0", "a/1", 5.0), ("a/1", "a/2", 10.0)):
            assert fake.of(after).started - fake.of(before).ended >= 0.9 * gap / SPEED
        first, second, _ = result.records
        assert second.due == pytest.approx(first.started + first.duration + 5.0 / SPEED)


async def test_sessions_start_at_their_own_times() -> None:
    async with gateway() as fake:
        late = session("late", turn("late/0", "late"), start=20.0)
        result = await run(fake, trace_of(late, session("early", turn("early/0", "early"))))
        assert [(record.session, record.error) for record in result.records] == [("early", None), ("late", None)]
        assert result.records[1].due == pytest.approx(20.0 / SPEED)
        assert result.records[1].started >= 20.0 / SPEED


async def test_long_gaps_can_be_cut() -> None:
    async with gateway() as fake:
        result = await run(fake, trace_of(session("a", turn("a/0", "a"), turn("a/1", "a", 1e9))), max_gap=1.0)
        assert len(result.records) == 2


async def test_a_parent_waits_for_its_subagents_and_they_for_the_turn_that_spawns_them() -> None:
    async with gateway() as fake:
        result = await run(fake, family())
        assert not result.summary().failed_sessions
        for child in ("c0/0", "c1/0"):
            assert fake.of(child).started >= fake.of("p/0").ended
        last = max(fake.of("c0/1").ended, fake.of("c1/1").ended)
        assert fake.of("p/1").started - last >= 0.9 * 2.0 / SPEED
        assert [seen.id for seen in fake.seen][-2:] == ["p/1", "p/2"]


async def test_the_whole_reference_session_runs_in_an_order_that_respects_every_wait() -> None:
    trace = reference_session()
    async with gateway() as fake:
        result = await run(fake, trace, speed=100_000.0)
        assert len(result.records) == 283
        assert result.summary().all.prompt_tokens == sum(r.in_tokens for r in trace.requests())
        position = {seen.id: i for i, seen in enumerate(fake.seen)}
        for request in trace.requests():
            assert all(position[waited] < position[request.id] for waited in request.wait_for)


async def test_headers_name_the_session_its_parent_and_its_last_turn() -> None:
    async with gateway() as fake:
        await run(fake, family())
        first, last, child = fake.of("p/0"), fake.of("p/2"), fake.of("c1/1")
        assert first.headers["x-session-id"] == "p"
        assert "x-parent-session-id" not in first.headers
        assert "x-session-final" not in first.headers
        assert last.headers["x-session-final"] == "true"
        assert (child.headers["x-session-id"], child.headers["x-parent-session-id"]) == ("c1", "p")
        assert child.headers["x-session-final"] == "true"


async def test_the_body_carries_block_runs_and_the_exact_output_length() -> None:
    async with gateway() as fake:
        await run(fake, family(), role_models={"Explore": "scout"})
        parent, child = fake.of("p/0"), fake.of("c0/0")
        assert parent.path == "/agents/coder/v1/chat/completions"
        assert (parent.body["model"], child.body["model"]) == ("primary", "scout")
        assert parent.body["retinue_prompt"] == {"scope": "s", "block_size": 64, "tokens": 640, "runs": [[0, 10]]}
        assert (parent.body["max_tokens"], parent.body["ignore_eos"], parent.body["stream"]) == (3, True, True)
        assert parent.body["stream_options"] == {"include_usage": True}


async def test_a_failed_session_stops_alone() -> None:
    async def refuse(seen: Seen, _: web.Request) -> web.StreamResponse | None:
        return web.json_response({"error": {"message": "too long"}}, status=400) if seen.id == "bad/1" else None

    async with gateway(refuse) as fake:
        bad = session("bad", turn("bad/0", "bad"), turn("bad/1", "bad"), turn("bad/2", "bad"))
        good = session("good", turn("good/0", "good"), turn("good/1", "good", 5.0))
        result = await run(fake, trace_of(bad, good))
        [failed] = result.summary().failed_sessions
        assert (failed.id, failed.answered, failed.error) == ("bad", 1, "request bad/1: HTTP 400: too long")
        assert {seen.id for seen in fake.seen} == {"bad/0", "bad/1", "good/0", "good/1"}


async def test_a_parent_goes_on_without_a_failed_subagent() -> None:
    async def refuse(seen: Seen, _: web.Request) -> web.StreamResponse | None:
        return web.Response(status=500, text="boom") if seen.id == "c0/0" else None

    async with gateway(refuse) as fake:
        result = await run(fake, family())
        assert [failed.id for failed in result.summary().failed_sessions] == ["c0"]
        assert fake.of("p/2").started > fake.of("c1/1").ended


async def test_subagents_of_a_failed_turn_are_not_started() -> None:
    async def refuse(seen: Seen, _: web.Request) -> web.StreamResponse | None:
        return web.Response(status=500, text="boom") if seen.id == "p/0" else None

    async with gateway(refuse) as fake:
        result = await run(fake, family())
        assert {seen.id for seen in fake.seen} == {"p/0"}
        errors = {failed.id: failed.error for failed in result.sessions}
        assert errors["c0"] == "was not started: the turn that spawns it failed"


async def test_a_passing_refusal_is_tried_again_and_counted() -> None:
    async def refuse_twice(_: Seen, __: web.Request) -> web.StreamResponse | None:
        return web.Response(status=503, text="draining") if len(fake.seen) <= 2 else None

    async with gateway(refuse_twice) as fake:
        result = await run(fake, trace_of(session("a", turn("a/0", "a"))))
        [record] = result.records
        assert (record.error, record.retries, record.status) == (None, 2, 200)


async def test_a_refusal_that_does_not_pass_ends_in_its_message() -> None:
    async def refuse(_: Seen, __: web.Request) -> web.StreamResponse | None:
        return web.Response(status=503, text="draining")

    async with gateway(refuse) as fake:
        result = await run(fake, trace_of(session("a", turn("a/0", "a"))), retries=2)
        assert len(fake.seen) == 3
        assert result.records[0].error == "HTTP 503: draining"


async def test_a_stream_that_is_cut_after_a_token_fails_and_is_not_repeated() -> None:
    async def cut(seen: Seen, request: web.Request) -> web.StreamResponse | None:
        return await fake.stream(seen, request, cut=True)

    async with gateway(cut) as fake:
        result = await run(fake, trace_of(session("a", turn("a/0", "a"))))
        assert len(fake.seen) == 1
        assert result.records[0].error == "the stream was cut: it has no end"


async def test_an_answer_of_the_wrong_length_is_an_error() -> None:
    async def shorten(seen: Seen, _: web.Request) -> web.StreamResponse | None:
        seen.body["max_tokens"] = 2
        return None

    async with gateway(shorten) as fake:
        result = await run(fake, trace_of(session("a", turn("a/0", "a"))))
        assert result.records[0].error == "the answer has 2 of 3 tokens"


async def test_an_answer_that_never_ends_times_out() -> None:
    release = asyncio.Event()

    async def hang(_: Seen, __: web.Request) -> web.StreamResponse | None:
        await release.wait()
        return None

    async with gateway(hang) as fake:
        result = await run(fake, trace_of(session("a", turn("a/0", "a"))), request_timeout=0.1)
        release.set()
        assert result.records[0].error == "no complete answer within 0.1 s"


async def test_sessions_still_open_at_the_end_of_the_run_count_as_failed() -> None:
    async with gateway() as fake:
        slow = session("slow", turn("slow/0", "slow"), turn("slow/1", "slow", 1e9))
        result = await run(fake, trace_of(slow, session("quick", turn("quick/0", "quick"))), run_timeout=0.5)
        [failed] = result.summary().failed_sessions
        assert (failed.id, failed.answered) == ("slow", 1)
        assert failed.error == "was still open after 0.5 s"


async def test_nobody_at_the_other_end_is_an_error_of_the_request() -> None:
    fake = FakeGateway(url="http://127.0.0.1:1")
    result = await run(fake, trace_of(session("a", turn("a/0", "a"))), retries=1)
    [record] = result.records
    assert record.status is None
    assert record.retries == 1
    assert record.error is not None


async def test_progress_and_records_can_be_followed_while_the_run_is_under_way() -> None:
    seen: list[tuple[str, int]] = []
    async with gateway() as fake:
        options = ReplayOptions(fake.url, "agents", "coder", speed=SPEED)
        replay = Replay(family(), options, on_record=lambda r: seen.append((r.id, replay.progress.answered)))
        assert replay.progress.hit_rate is None
        await asyncio.wait_for(replay.run(), timeout=30)
    assert [answered for _, answered in seen] == list(range(1, 8))
    progress = replay.progress
    assert (progress.finished_sessions, progress.open_sessions, progress.in_flight, progress.failed) == (3, 0, 0, 0)
    assert progress.hit_rate == pytest.approx((640 - 64) / 640)


async def test_cancelling_a_run_stops_all_its_sessions() -> None:
    async with gateway() as fake:
        slow = session("slow", turn("slow/0", "slow"), turn("slow/1", "slow", 1e9))
        answered = asyncio.Event()
        options = ReplayOptions(fake.url, "agents", "coder", speed=SPEED)
        task = asyncio.create_task(Replay(trace_of(slow), options, on_record=lambda _: answered.set()).run())
        await asyncio.wait_for(answered.wait(), timeout=10)
        before = asyncio.all_tasks()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not {t for t in asyncio.all_tasks() & before if "Replay._session" in repr(t.get_coro())}


def test_a_speed_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above zero"):
        ReplayOptions("http://gw", "agents", "coder", speed=0.0)


class TestStreamReading:
    USAGE = _event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}) + b"data: [DONE]\n\n"

    def test_the_first_token_is_not_the_announcement_of_the_role(self) -> None:
        reading = StreamReading()
        reading.feed(_event({"choices": [{"delta": {"role": "assistant", "content": ""}}]}), 1.0)
        assert reading.first_token is None
        reading.feed(_event({"choices": [{"delta": {"content": "a"}}]}), 2.0)
        reading.feed(self.USAGE, 3.0)
        answer = reading.answer(200, 4.0)
        assert (answer.first_token, answer.ended, answer.prompt_tokens, answer.completion_tokens) == (2.0, 3.0, 9, 2)
        assert answer.error is None

    def test_it_reads_the_same_however_the_bytes_are_split(self) -> None:
        whole = _event({"choices": [{"delta": {"content": "a" * 50}}]}) * 1_000 + self.USAGE
        for size in (1, 7, 4_096, len(whole)):
            reading = StreamReading()
            for start in range(0, len(whole), size):
                reading.feed(whole[start : start + size], float(start))
            answer = reading.answer(200, 0.0)
            assert (answer.error, answer.completion_tokens) == (None, 2)
            assert answer.first_token is not None

    def test_an_error_in_the_stream_is_reported_and_retried_only_without_a_token(self) -> None:
        error = _event({"error": {"message": "kv_transfer_failed"}}) + b"data: [DONE]\n\n"
        for token, retryable in ((b"", True), (_event({"choices": [{"delta": {"content": "a"}}]}), False)):
            reading = StreamReading()
            reading.feed(token + error, 1.0)
            answer = reading.answer(200, 2.0)
            assert answer.error == "error in the stream: kv_transfer_failed"
            assert answer.retryable is retryable


def record(name: str, parent: str | None = None, **more: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "role": "main", "model": "primary", "phase": "", "turn": 0, "compaction": False, "due": 0.0, "started": 0.1,
        "ttft": 0.2, "tpot": 0.01, "duration": 1.0, "in_tokens": 100, "out_tokens": 11, "prompt_tokens": 100,
        "cached_tokens": 90, "completion_tokens": 11, "status": 200, "retries": 0, "error": None,
    }  # fmt: skip
    return RequestRecord(id=name, session=name, parent=parent, **{**values, **more})


class TestSummary:
    def test_hit_rates_are_weighted_by_tokens_and_leave_out_what_failed(self) -> None:
        records = [
            record("a", prompt_tokens=900, cached_tokens=900),
            record("b", prompt_tokens=100, cached_tokens=0),
            record("c", parent="a", prompt_tokens=1_000, cached_tokens=500),
            record("d", prompt_tokens=0, cached_tokens=0, error="HTTP 400: no"),
        ]
        summary = summarise(records, [], speed=10.0, duration=60.0)
        assert (summary.main.hit_rate, summary.subagents.hit_rate, summary.all.hit_rate) == (0.9, 0.5, 0.7)
        assert summary.main.input_cost_ratio == pytest.approx(0.19)
        assert (summary.main.requests, summary.main.failed) == (3, 1)

    def test_times_are_given_in_wall_and_in_model_seconds(self) -> None:
        summary = summarise([record("a", ttft=0.25)], [], speed=12.0, duration=60.0)
        row: Any = summary.as_dict()
        assert (row["all"]["ttft"]["p50"], row["all_model_seconds"]["ttft"]["p50"]) == (0.25, 3.0)
        assert row["duration_model_seconds"] == 720.0
        line = json.loads(record("a", ttft=0.25).as_json(12.0))
        assert (line["ttft"], line["model_seconds"]["ttft"]) == (0.25, 3.0)

    def test_time_between_tokens_is_weighted_by_tokens(self) -> None:
        records = [record("a", tpot=0.01, completion_tokens=1_000), record("b", tpot=0.5, completion_tokens=3)]
        summary = summarise(records, [], speed=1.0, duration=1.0)
        assert (summary.all.itl.p95, summary.all.tpot.p95) == (0.01, 0.5)

    def test_an_empty_run_has_no_quantiles(self) -> None:
        summary = summarise([], [], speed=1.0, duration=0.0)
        assert (summary.all.ttft.p50, summary.all.hit_rate) == (None, 0.0)
        assert quantile([], 0.5) is None

    def test_quantiles_are_nearest_ranks(self) -> None:
        values = [(float(v), 1) for v in range(100, 0, -1)]
        assert (quantile(values, 0.5), quantile(values, 0.95)) == (50.0, 95.0)
