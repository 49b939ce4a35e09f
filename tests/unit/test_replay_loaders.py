"""Loaders: every format becomes the internal form, and every mistake is named by file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from retinue_emulator.replay import agentic, curate, data
from retinue_emulator.replay.events import GapKind, Trace, TraceError
from retinue_emulator.replay.load import Format, load
from retinue_emulator.replay.rows import TraceFormatError


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def weka_turn(t: float, tokens: int, **more: Any) -> dict[str, Any]:
    blocks = list(range(1, tokens // 64 + 1))
    row = {"t": t, "type": "n", "model": "big", "in": tokens, "out": 70, "hash_ids": blocks, "api_time": 5.0}
    return {**row, "input_types": ["tool_result"], **more}


def weka_session(*requests: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "w", "models": ["big"], "block_size": 64, "hash_id_scope": "local", "requests": [*requests], **more}


def subagent(t: float, duration_ms: int | None, *requests: dict[str, Any], **more: Any) -> dict[str, Any]:
    row = {"t": t, "type": "subagent", "agent_id": "agent_001", "subagent_type": "Explore", "duration_ms": duration_ms}
    return {**row, "status": "completed", "requests": [*requests], **more}


class TestMooncake:
    def test_every_row_is_a_session_at_its_own_time(self, tmp_path: Path) -> None:
        trace = load(
            lines(
                tmp_path / "m.jsonl",
                {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
                {"timestamp": 2500, "input_length": 600, "output_length": 7, "hash_ids": [0, 9]},
            )
        )
        assert trace.format == "mooncake"
        assert [when for when, _ in trace.schedule()] == [0.0, 2.5]
        first, second = trace.requests()
        assert first.runs == ((0, 3),)
        assert second.runs == ((0, 1), (9, 1))
        assert (first.block_size, first.in_tokens, first.out_tokens) == (512, 1100, 5)
        assert first.scope == second.scope

    def test_turns_of_a_multi_turn_session_carry_what_came_before(self, tmp_path: Path) -> None:
        trace = load(
            lines(
                tmp_path / "m.jsonl",
                {"session_id": "a", "timestamp": 1000, "input_length": 1024, "output_length": 512, "hash_ids": [1, 2]},
                {"session_id": "b", "timestamp": 1500, "input_length": 512, "output_length": 1, "hash_ids": [1]},
                {"session_id": "a", "delay": 4000, "input_length": 512, "output_length": 9, "hash_ids": [7]},
            )
        )
        assert trace.format == "mooncake-multi-turn"
        a, b = trace.sessions
        assert (a.start, b.start) == (1.0, 1.5)
        later = a.requests[1]
        assert later.in_tokens == 1024 + 512 + 512
        assert later.gap == 4.0
        ids = list(later.blocks())
        assert (ids[:2], ids[3:]) == ([1, 2], [7])
        assert ids[2] not in (1, 2, 7), "the answer fills a block of its own"

    def test_a_later_turn_without_any_time_is_refused(self, tmp_path: Path) -> None:
        path = lines(
            tmp_path / "m.jsonl",
            {"session_id": "a", "timestamp": 0, "input_length": 1, "output_length": 1},
            {"session_id": "a", "input_length": 1, "output_length": 1},
        )
        with pytest.raises(TraceFormatError, match=r"m\.jsonl:2: field delay: is missing"):
            load(path)


class TestWeka:
    def test_plain_ids_and_runs_are_the_same_session(self, tmp_path: Path) -> None:
        session = weka_session(weka_turn(0.0, 640), weka_turn(20.0, 6400))
        plain = load(lines(tmp_path / "plain.json", session))
        for turn in session["requests"]:
            turn["hash_ids"] = [[1, len(turn["hash_ids"])]]
        assert load(lines(tmp_path / "runs.json", session)).sessions == plain.sessions

    def test_a_pretty_printed_session_loads(self, tmp_path: Path) -> None:
        path = tmp_path / "pretty.json"
        path.write_text(json.dumps(weka_session(weka_turn(0.0, 640)), indent=2))
        assert len(list(load(path).requests())) == 1

    def test_gaps_run_from_the_end_of_the_turn_before(self, tmp_path: Path) -> None:
        trace = load(
            lines(
                tmp_path / "w.json",
                weka_session(
                    weka_turn(0.0, 640),
                    weka_turn(20.0, 1280),
                    weka_turn(60.0, 1280, input_types=["text"], api_time=None),
                    weka_turn(90.0, 1280),
                ),
            )
        )
        start, tool, human, after_unknown = trace.sessions[0].requests
        assert (start.gap, start.gap_kind) == (0.0, GapKind.START)
        assert (tool.gap, tool.gap_kind) == (15.0, GapKind.TOOL)
        assert (human.gap, human.gap_kind) == (35.0, GapKind.HUMAN)
        assert after_unknown.gap == pytest.approx(30.0 - (2.5 + 70 / 70)), "estimated where api_time is missing"

    def test_a_parent_waits_for_its_subagent_and_the_subagent_for_the_turn_that_spawned_it(
        self, tmp_path: Path
    ) -> None:
        trace = load(
            lines(
                tmp_path / "w.json",
                weka_session(
                    weka_turn(0.0, 640),
                    subagent(106.0, 100_000, weka_turn(0.0, 640), weka_turn(50.0, 1280)),
                    weka_turn(110.0, 1280),
                ),
            )
        )
        main, child = trace.sessions
        assert (child.parent, child.role) == ("w", "Explore")
        assert child.requests[0].wait_for == (main.requests[0].id,)
        assert child.requests[0].gap == 1.0
        assert main.requests[1].wait_for == (child.requests[-1].id,)
        assert (main.requests[1].gap, main.requests[1].gap_kind) == (4.0, GapKind.SUBAGENT)
        assert {r.scope for r in trace.requests()} == {"w"}, "sub-agents share the parent's numbering"
        assert child.requests[1].t == 156.0, "the open-loop time is the row's time plus the request's own"

    def test_nobody_waits_for_a_subagent_launched_in_the_background(self, tmp_path: Path) -> None:
        row = subagent(6.0, None, weka_turn(0.0, 640), status="async_launched")
        trace = load(lines(tmp_path / "w.json", weka_session(weka_turn(0.0, 640), row, weka_turn(10.0, 1280))))
        main, child = trace.sessions
        assert main.requests[1].wait_for == ()
        assert child.requests[0].wait_for == (main.requests[0].id,)

    def test_a_fall_to_under_half_from_a_large_context_is_a_compaction(self, tmp_path: Path) -> None:
        turns = [weka_turn(0.0, 150_000), weka_turn(20.0, 33_000), weka_turn(40.0, 16_000)]
        trace = load(lines(tmp_path / "w.json", weka_session(*turns)))
        assert [r.compaction for r in trace.requests()] == [False, True, False]

    def test_a_wrong_field_deep_inside_is_named(self, tmp_path: Path) -> None:
        bad = subagent(6.0, 1, weka_turn(0.0, 640, out="many"))
        path = lines(tmp_path / "w.json", weka_session(weka_turn(0.0, 640)), weka_session(weka_turn(0.0, 640), bad))
        with pytest.raises(TraceFormatError) as caught:
            load(path)
        assert (caught.value.line, caught.value.field) == (2, "requests[1].requests[0].out")


class TestQwen:
    def row(self, chat: int, parent: int, when: float, **more: Any) -> dict[str, Any]:
        lengths = {"input_length": 100, "output_length": 70, "hash_ids": [1, 2, 3]}
        return {
            "chat_id": chat,
            "parent_chat_id": parent,
            "timestamp": when,
            "turn": 1,
            "type": "text",
            **lengths,
        } | more

    def test_chats_are_linked_to_sessions_by_their_parents(self, tmp_path: Path) -> None:
        trace = load(
            lines(
                tmp_path / "q.jsonl",
                self.row(5, -1, 10.0),
                self.row(6, -1, 11.0),
                self.row(7, 5, 40.0),
                self.row(8, 7, 90.0),
            )
        )
        assert trace.format == "qwen"
        assert [[r.id for r in s.requests] for s in trace.sessions] == [
            ["chat-5/5", "chat-5/7", "chat-5/8"],
            ["chat-6/6"],
        ]
        second = trace.sessions[0].requests[1]
        assert (second.t, second.gap, second.block_size) == (30.0, 26.5, 16)

    def test_a_chat_whose_parent_was_cut_from_the_trace_starts_a_session(self, tmp_path: Path) -> None:
        trace = load(lines(tmp_path / "q.jsonl", self.row(7, 5, 40.0)))
        assert [s.id for s in trace.sessions] == ["chat-7"]

    def test_a_repeated_chat_is_refused(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "q.jsonl", self.row(7, -1, 1.0), self.row(7, -1, 2.0))
        with pytest.raises(TraceFormatError, match=r":2: field chat_id: 7 occurs twice"):
            load(path)

    def test_a_missing_parent_field_is_named(self, tmp_path: Path) -> None:
        row = self.row(7, -1, 1.0)
        del row["parent_chat_id"]
        with pytest.raises(TraceFormatError, match=r":1: field parent_chat_id"):
            load(lines(tmp_path / "q.jsonl", row))


class TestAgenticMooncake:
    def row(self, request: str, session: str, **more: Any) -> dict[str, Any]:
        lengths = {"input_length": 128, "output_length": 5, "hash_ids": [1, 2]}
        return {"request_id": request, "session_id": session, **lengths, **more}

    def test_foreign_rows_load_without_our_extensions(self, tmp_path: Path) -> None:
        trace = load(
            lines(
                tmp_path / "a.jsonl",
                self.row("p1", "p", timestamp=5000, prefix_reset=True, branches=["c1"]),
                self.row("c1", "c", wait_for=["p1"], delay=200, prefix_reset=True),
                self.row("p2", "p", wait_for=["p1", "c1"], tool_wait_ms=1500),
                self.row("p3", "p", wait_for=["p2"], delay=100, tool_wait_ms=900),
            )
        )
        parent, child = trace.sessions
        assert (parent.start, child.parent) == (5.0, "p")
        assert child.requests[0].gap == 0.2
        waiting = parent.requests[1]
        assert (waiting.wait_for, waiting.gap, waiting.gap_kind) == (("c1",), 1.5, GapKind.SUBAGENT)
        last = parent.requests[2]
        assert (last.wait_for, last.gap, last.gap_kind) == ((), 1.0, GapKind.TOOL)

    @pytest.mark.parametrize("compact", [False, True])
    @pytest.mark.parametrize("name", [data.TRACE_0712, data.DEMO_SESSIONS])
    def test_what_is_written_loads_as_the_same_sessions(self, tmp_path: Path, name: str, compact: bool) -> None:
        trace = load(data.path(name)).staggered(600.0)
        agentic.write(trace, tmp_path / "a.jsonl", compact=compact)
        back = load(tmp_path / "a.jsonl")
        assert back.format == "agentic-mooncake"
        assert by_id(back) == by_id(trace)

    def test_no_written_row_comes_before_the_turn_before_it(self) -> None:
        trace = load(data.path(data.DEMO_SESSIONS))
        seen: set[str] = set()
        for line in agentic.dump(trace, compact=True):
            row = json.loads(line)
            position = row["wait_for"][:1]
            assert row["prefix_reset"] or set(position) <= seen
            seen.add(row["request_id"])
        assert len(seen) == len(list(trace.requests()))

    def test_an_unknown_gap_kind_is_refused_with_the_ones_there_are(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", self.row("p1", "p", gap_kind="nap"))
        with pytest.raises(TraceFormatError, match="field gap_kind: must be one of start, tool, human, subagent"):
            load(path)

    def test_waiting_for_an_unknown_request_is_refused(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", self.row("p1", "p", wait_for=["gone"]))
        with pytest.raises(TraceError, match="p1 waits for gone, which is not in the trace"):
            load(path)

    def test_waiting_in_a_circle_is_refused(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "a.jsonl", self.row("p1", "p", wait_for=["c1"]), self.row("c1", "c", wait_for=["p1"]))
        with pytest.raises(TraceError, match="waits, directly or not, for itself"):
            load(path)


class TestAzure:
    def test_records_are_arrivals_without_prefixes(self, tmp_path: Path) -> None:
        path = tmp_path / "azure.csv"
        path.write_text(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:17:03.9799600,4808,10\n"
            "2023-11-16 18:17:05.0319600,3180,8\n"
        )
        trace = load(path)
        assert trace.format == "azure"
        assert [(when, r.in_tokens, r.out_tokens, r.runs) for when, r in trace.schedule()] == [
            (0.0, 4808, 10, ()),
            (1.052, 3180, 8, ()),
        ]

    @pytest.mark.parametrize(
        ("record", "field"),
        [
            ("2023-11-16 18:17:03.9,many,1", "ContextTokens"),
            ("yesterday,1,1", "TIMESTAMP"),
            ("2023-11-16 18:17:03.9,1", "GeneratedTokens"),
        ],
    )
    def test_a_bad_record_is_named(self, tmp_path: Path, record: str, field: str) -> None:
        path = tmp_path / "azure.csv"
        path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,1\n{record}\n")
        with pytest.raises(TraceFormatError) as caught:
            load(path)
        assert (caught.value.line, caught.value.field) == (3, field)


class TestDetection:
    def test_gzip_is_recognised_by_content(self, tmp_path: Path) -> None:
        path = tmp_path / "no-suffix"
        path.write_bytes(gzip.compress(b'{"timestamp":0,"input_length":1,"output_length":1}\n'))
        assert load(path).format == "mooncake"

    def test_an_empty_file_an_unknown_object_and_broken_json_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "t.jsonl"
        for content, problem in (
            ("", r"t\.jsonl:1: is empty"),
            ('{"a":1}', "none of the known trace formats"),
            ('{"timestamp":0,"input_length":1,"output_length":1}\n{oops\n', r"t\.jsonl:2: is not JSON"),
            ('{"timestamp":0,"input_length":-1,"output_length":1}', "field input_length: must be zero or more"),
            ('{"timestamp":0,"input_length":1.5,"output_length":1}', "field input_length: must be a whole number"),
            ('{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[1,-2]}', r"field hash_ids\[1\]"),
        ):
            path.write_text(content)
            with pytest.raises(TraceFormatError, match=problem):
                load(path)

    def test_a_named_format_says_what_is_missing(self, tmp_path: Path) -> None:
        path = lines(tmp_path / "t.jsonl", {"a": 1})
        with pytest.raises(TraceFormatError, match="field chat_id: is missing"):
            load(path, Format.QWEN)

    def test_a_limit_reads_only_the_first_rows(self) -> None:
        assert len(load(data.path(data.MOONCAKE_CONVERSATION), limit=10).sessions) == 10


class TestPackagedData:
    def test_the_oracle_sessions_have_the_published_totals(self) -> None:
        trace = load(data.path(data.SESSIONS_64))
        assert len(trace.roots()) == 64
        assert len(list(trace.requests())) == 3_574
        assert sum(r.in_tokens for r in trace.requests()) == 454_800_719

    def test_the_demo_sessions_fit_the_demo(self) -> None:
        trace = load(data.path(data.DEMO_SESSIONS))
        families = trace.families()
        assert len(families) >= 24
        assert "trace_0712" in families
        assert sum(len(family) > 1 for family in families.values()) >= 3
        for family in families.values():
            assert max(r.t for s in family for r in s.requests) <= curate.MAX_SECONDS
            for session in family:
                limit = curate.MAX_MAIN_TOKENS if session.parent is None else curate.MAX_SUBAGENT_TOKENS
                assert session.peak_tokens <= limit

    def test_trace_0712_is_the_same_raw_and_among_the_demo_sessions(self) -> None:
        raw = load(data.path(data.TRACE_0712)).sessions[0]
        demo = load(data.path(data.DEMO_SESSIONS)).selected(["trace_0712"]).sessions[0]
        assert [(r.id, r.t, r.gap, r.in_tokens, r.runs) for r in raw.requests] == [
            (r.id, r.t, r.gap, r.in_tokens, r.runs) for r in demo.requests
        ]

    @pytest.mark.parametrize(
        "name", [data.SESSIONS_64, data.DEMO_SESSIONS, data.TRACE_0712, data.MOONCAKE_CONVERSATION]
    )
    def test_packaged_files_are_gzip_without_name_and_time(self, name: str) -> None:
        head = data.path(name).read_bytes()[:10]
        assert (head[3], head[4:8]) == (0, bytes(4))

    def test_an_unknown_packaged_trace_is_refused_with_the_names_there_are(self) -> None:
        with pytest.raises(FileNotFoundError, match="there are sessions-64"):
            data.path("nope")


class TestCuration:
    def test_an_excerpt_ends_with_a_main_turn_after_a_subagent_within_the_limits(self) -> None:
        session = weka_session(
            weka_turn(0.0, 640),
            subagent(106.0, 100_000, weka_turn(0.0, 640)),
            weka_turn(110.0, 1280),
            weka_turn(5_000.0, 1280),
        )
        part = curate.excerpt(session)
        assert part is not None
        assert part["excerpt"] == {"first_rows": 3, "of_rows": 4}
        assert part["requests"] == session["requests"][:3]

    def test_a_session_that_cannot_be_cut_to_fit_is_left_out(self) -> None:
        too_big = subagent(106.0, 100_000, weka_turn(0.0, curate.MAX_SUBAGENT_TOKENS))
        assert curate.excerpt(weka_session(weka_turn(0.0, 640), too_big, weka_turn(110.0, 1280))) is None

    def test_spread_takes_even_distances_in_the_order_of_peaks(self) -> None:
        sessions = [weka_session(weka_turn(0.0, 64 * peak), id=f"s{peak:02}") for peak in range(30, 0, -1)]
        assert [s["id"] for s in curate.spread(sessions, 3)] == ["s06", "s16", "s26"]


def by_id(trace: Trace) -> dict[str, Any]:
    return {session.id: session for session in trace.sessions}
