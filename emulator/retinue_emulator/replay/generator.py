"""The reference session: a published 33-minute agent session rebuilt from integers, without any random source.

What was published: 33 minutes, 58 main turns, 225 sub-agent requests, a context that grows from 15K to 156K tokens, is
compacted to about 20K and goes on. What was not published (lengths and timing of sub-agents, server time, gaps) is set
to medians measured on recorded Claude Code sessions. Formulas and parameters: notes on agents, "deterministic
generator"; the same shape gives the same bytes at each run and on every machine.

Timeline: a main turn takes its server time; then either a tool gap passes or, after the turns named in ``waves``, two
sub-agents run side by side and the next main turn waits for both. A sub-agent's request and the gap after it take
``sub_step_ms``; the parent goes on after the last such gap.

Blocks: one numbering for all sessions. The first ids are the role prefix that every sub-agent of the role starts from;
each agent of each session then has a range of its own. A turn keeps all whole blocks of the turn before and adds new
ids; a compaction keeps the tools and system prompt and renumbers the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from retinue_emulator.replay.events import (
    MAIN_ROLE,
    GapKind,
    Request,
    Session,
    Trace,
    make_trace,
    stagger,
    to_runs,
)

SCOPE = "reference"
_AGENT_IDS = 1 << 15
_SESSION_IDS = 1 << 20


@dataclass(frozen=True)
class ReferenceShape:
    """Parameters of the session: tokens, counts, and times in milliseconds of model time."""

    growing_turns: int = 40
    first_tokens: int = 15_000
    peak_tokens: int = 156_000
    compacted_turns: int = 18
    compacted_tokens: int = 20_000
    end_tokens: int = 91_111
    kept_tokens: int = 13_000
    """Tools and system prompt: what survives the compaction."""
    main_out_tokens: int = 216
    main_server_ms: int = 6_100
    tool_gap_ms: int = 8_600
    waves: tuple[int, ...] = (4, 8, 12, 16, 20, 24, 28, 44, 48, 52)
    """Main turns (counted from 1) after which sub-agents run."""
    wave_width: int = 2
    sub_requests: int = 11
    long_every: int = 4
    """Every so-manyth sub-agent makes one request more: 15 x 11 + 5 x 12 = 225."""
    sub_first_tokens: int = 10_000
    sub_step_tokens: int = 4_000
    sub_prefix_tokens: int = 9_750
    sub_out_tokens: int = 233
    sub_step_ms: int = 10_560
    sub_server_ms: int = 3_100
    sub_role: str = "explorer"
    main_model: str = "large"
    sub_model: str = "small"
    block_size: int = 64

    def main_contexts(self) -> tuple[int, ...]:
        """Prompt tokens of every main turn: two straight ramps in integer arithmetic."""
        up, on = self.growing_turns - 1, self.compacted_turns - 1
        rise, again = self.peak_tokens - self.first_tokens, self.end_tokens - self.compacted_tokens
        growing = tuple(self.first_tokens + rise * k // up for k in range(self.growing_turns))
        return growing + tuple(self.compacted_tokens + again * k // on for k in range(self.compacted_turns))

    def subagent_requests(self, index: int) -> int:
        """Number of requests of sub-agent ``index`` (from 0, over the whole session)."""
        return self.sub_requests + (index % self.long_every == self.long_every - 1)

    def duration_ms(self) -> int:
        """From the first request to the end of the last tool gap, when nothing queues: 1,981,000 by default."""
        turns = self.growing_turns + self.compacted_turns
        longest = (
            max(self.subagent_requests(wave * self.wave_width + i) for i in range(self.wave_width))
            for wave in range(len(self.waves))
        )
        gaps = (turns - len(self.waves)) * self.tool_gap_ms
        return turns * self.main_server_ms + gaps + sum(longest) * self.sub_step_ms


DEFAULT_SHAPE = ReferenceShape()


def reference_session(n: int = 0, *, ramp: float = 0.0, shape: ReferenceShape = DEFAULT_SHAPE) -> Trace:
    """The reference session number ``n``, started at ``frac(n * 0.618034) * ramp`` seconds.

    All sessions have the same shape; their block ids differ except for the sub-agents' role prefix.
    """
    if n < 0:
        raise ValueError(f"session number must be zero or more, not {n}")
    return make_trace(f"reference-{n}", "agentic-mooncake", _Builder(shape, n, stagger(n, ramp)).build())


def reference_trace(count: int = 1, *, ramp: float = 0.0, shape: ReferenceShape = DEFAULT_SHAPE) -> Trace:
    """``count`` reference sessions started over ``ramp`` seconds."""
    sessions = [s for n in range(count) for s in _Builder(shape, n, stagger(n, ramp)).build()]
    return make_trace(f"reference-x{count}", "agentic-mooncake", sessions)


class _Context:
    """Block ids of one agent's prompt: a counter that never gives an id twice."""

    def __init__(self, first_id: int, block_size: int, prefix: range) -> None:
        self._next = first_id
        self._block_size = block_size
        self._ids: list[int] = list(prefix)

    def grow_to(self, tokens: int) -> None:
        """Append new ids until all whole blocks of ``tokens`` have one."""
        missing = max(0, tokens // self._block_size - len(self._ids))
        self._ids.extend(range(self._next, self._next + missing))
        self._next += missing

    def keep(self, tokens: int) -> None:
        """Forget everything after the whole blocks of the first ``tokens``."""
        del self._ids[tokens // self._block_size :]

    def runs(self) -> tuple[tuple[int, int], ...]:
        return to_runs(self._ids)


class _Builder:
    def __init__(self, shape: ReferenceShape, n: int, start: float) -> None:
        self._shape = shape
        self._name = f"reference-{n}"
        self._start = start
        self._first_id = (n + 1) * _SESSION_IDS
        self._seq = n * self._rows_per_session()
        self._subagents: list[Session] = []

    def _rows_per_session(self) -> int:
        shape = self._shape
        subs = sum(shape.subagent_requests(i) for i in range(len(shape.waves) * shape.wave_width))
        return shape.growing_turns + shape.compacted_turns + subs

    def build(self) -> list[Session]:
        """The main session, then its sub-agents in the order in which they start."""
        shape, clock = self._shape, 0
        context = _Context(self._first_id, shape.block_size, range(0))
        requests: list[Request] = []
        wait_for: tuple[str, ...] = ()
        for k, tokens in enumerate(shape.main_contexts()):
            compaction = k == shape.growing_turns
            if compaction:
                context.keep(shape.kept_tokens)
            context.grow_to(tokens)
            gap_ms, kind = self._main_gap(k, waited=bool(wait_for))
            requests.append(
                Request(
                    id=f"{self._name}/{k}",
                    session=self._name,
                    parent=None,
                    role=MAIN_ROLE,
                    model=shape.main_model,
                    t=clock / 1000,
                    gap=gap_ms / 1000,
                    gap_kind=kind,
                    in_tokens=tokens,
                    out_tokens=shape.main_out_tokens,
                    runs=context.runs(),
                    block_size=shape.block_size,
                    scope=SCOPE,
                    wait_for=wait_for,
                    compaction=compaction,
                    phase="growing" if k < shape.growing_turns else "compacted",
                    seq=self._take_seq(),
                )
            )
            clock += shape.main_server_ms
            wait_for = ()
            if k + 1 in shape.waves:
                wait_for, clock = self._wave(shape.waves.index(k + 1), requests[-1].id, clock)
            else:
                clock += shape.tool_gap_ms
        main = Session(self._name, None, MAIN_ROLE, self._start, tuple(requests))
        return [main, *self._subagents]

    def _main_gap(self, k: int, *, waited: bool) -> tuple[int, GapKind]:
        if k == 0:
            return 0, GapKind.START
        if waited:
            return self._shape.sub_step_ms - self._shape.sub_server_ms, GapKind.SUBAGENT
        return self._shape.tool_gap_ms, GapKind.TOOL

    def _wave(self, wave: int, spawner: str, clock: int) -> tuple[tuple[str, ...], int]:
        """Sub-agents of one wave, interleaved in time; returns what the parent waits for, and the end of the wave."""
        shape = self._shape
        indices = range(wave * shape.wave_width, (wave + 1) * shape.wave_width)
        counts = {i: shape.subagent_requests(i) for i in indices}
        contexts = {i: self._subagent_context(i) for i in indices}
        requests: dict[int, list[Request]] = {i: [] for i in indices}
        for step in range(max(counts.values())):
            for i in indices:
                if step >= counts[i]:
                    continue
                tokens = shape.sub_first_tokens + shape.sub_step_tokens * step
                contexts[i].grow_to(tokens)
                session = f"{self._name}/{shape.sub_role}-{i}"
                requests[i].append(
                    Request(
                        id=f"{session}/{step}",
                        session=session,
                        parent=self._name,
                        role=shape.sub_role,
                        model=shape.sub_model,
                        t=(clock + step * shape.sub_step_ms) / 1000,
                        gap=(shape.sub_step_ms - shape.sub_server_ms) / 1000 if step else 0.0,
                        gap_kind=GapKind.TOOL if step else GapKind.START,
                        in_tokens=tokens,
                        out_tokens=shape.sub_out_tokens,
                        runs=contexts[i].runs(),
                        block_size=shape.block_size,
                        scope=SCOPE,
                        wait_for=() if step else (spawner,),
                        phase=f"wave-{wave + 1}",
                        seq=self._take_seq(),
                    )
                )
        for turns in requests.values():
            self._subagents.append(Session(turns[0].session, self._name, shape.sub_role, self._start, tuple(turns)))
        return tuple(turns[-1].id for turns in requests.values()), clock + max(counts.values()) * shape.sub_step_ms

    def _subagent_context(self, index: int) -> _Context:
        prefix = range(self._shape.sub_prefix_tokens // self._shape.block_size)
        return _Context(self._first_id + (index + 1) * _AGENT_IDS, self._shape.block_size, prefix)

    def _take_seq(self) -> int:
        self._seq += 1
        return self._seq - 1
