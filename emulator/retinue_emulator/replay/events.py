"""The one internal form of a trace: sessions of requests that say what each request waits for.

Every loader turns its format into this form and everything else (runner, oracle, statistics) reads only this form.

Words. A *session* is one agent's conversation; a sub-agent's session has a parent. A *family* is a root session with
all sessions below it. A *turn* is one request of a session. Turns of a session are sequential: a request always waits
for the one before it in its session, so that dependency is implied; ``Request.wait_for`` lists only the others (a
sub-agent's first turn waits for the turn that spawned it, a parent's next turn waits for its sub-agents).

Units. Times are seconds of model time, kept to the millisecond. Token counts are integers. A block id is scoped:
two blocks are the same if and only if scope and id are equal.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

Runs = tuple[tuple[int, int], ...]

MAIN_ROLE = "main"
"""Role of a session without a parent; sub-agents carry the role their trace names."""

_GOLDEN = 0.618034
"""Fractional part of the golden ratio, to six places as notes/agents.md 4.2 fixes it: an even, repeatable stagger."""


class GapKind(enum.Enum):
    """What a session did between two of its requests; retention is decided by it."""

    START = "start"
    TOOL = "tool"
    HUMAN = "human"
    SUBAGENT = "subagent"


class TraceError(ValueError):
    """A trace that is well-formed line by line but contradicts itself (unknown or circular waiting, repeated id)."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the model.

    ``t`` is the recorded start in seconds after the start of the ROOT session of its family (open loop);
    ``gap`` is the pause in seconds after everything it waits for has ended (closed loop).
    ``in_tokens`` may exceed ``block_size`` times the number of blocks in ``runs``; the surplus can never hit.
    ``seq`` is the position of the request in its source file: it breaks ties between equal times.
    """

    id: str
    session: str
    parent: str | None
    role: str
    model: str
    t: float
    gap: float
    gap_kind: GapKind
    in_tokens: int
    out_tokens: int
    runs: Runs
    block_size: int
    scope: str
    wait_for: tuple[str, ...] = ()
    compaction: bool = False
    phase: str = ""
    seq: int = 0

    @property
    def is_main(self) -> bool:
        """Whether the request belongs to a root session."""
        return self.parent is None

    def blocks(self) -> Iterator[int]:
        """Block ids of the prompt, first to last."""
        return itertools.chain.from_iterable(range(first, first + count) for first, count in self.runs)


@dataclass(frozen=True, slots=True)
class Session:
    """One agent's requests in order. ``start`` is the start of its family in seconds after the start of the trace."""

    id: str
    parent: str | None
    role: str
    start: float
    requests: tuple[Request, ...]

    @property
    def peak_tokens(self) -> int:
        """Largest prompt plus answer of the session: what its model's context window must hold."""
        return max((r.in_tokens + r.out_tokens for r in self.requests), default=0)


@dataclass(frozen=True)
class Trace:
    """Sessions in file order. Build it with :func:`make_trace`, which refuses a trace that could never finish."""

    name: str
    format: str
    sessions: tuple[Session, ...]

    def requests(self) -> Iterator[Request]:
        """All requests, session by session."""
        return itertools.chain.from_iterable(s.requests for s in self.sessions)

    def roots(self) -> tuple[Session, ...]:
        """Sessions without a parent, in file order."""
        return tuple(s for s in self.sessions if s.parent is None)

    def families(self) -> dict[str, tuple[Session, ...]]:
        """Root session id -> the sessions of its family, root first."""
        root_of = self.root_of()
        families: dict[str, list[Session]] = {s.id: [s] for s in self.roots()}
        for session in self.sessions:
            if session.parent is not None:
                families[root_of[session.id]].append(session)
        return {root: tuple(members) for root, members in families.items()}

    def root_of(self) -> dict[str, str]:
        """Session id -> id of the root of its family."""
        parents = {s.id: s.parent for s in self.sessions}
        found: dict[str, str] = {}
        for name in parents:
            top = name
            while (above := parents[top]) is not None:
                top = above
            found[name] = top
        return found

    def schedule(self) -> list[tuple[float, Request]]:
        """Open-loop order: (seconds after trace start, request) by time, then family, then position in the file."""
        root_of = self.root_of()
        index = {root.id: i for i, root in enumerate(self.roots())}
        events = [(s.start + r.t, index[root_of[s.id]], r.seq, r) for s in self.sessions for r in s.requests]
        events.sort(key=lambda e: e[:3])
        return [(when, request) for when, _, _, request in events]

    def with_starts(self, start: Callable[[int], float]) -> Trace:
        """The same trace with family number ``i`` starting at ``start(i)`` seconds."""
        starts = {root.id: start(i) for i, root in enumerate(self.roots())}
        root_of = self.root_of()
        sessions = tuple(replace(s, start=starts[root_of[s.id]]) for s in self.sessions)
        return replace(self, sessions=sessions)

    def staggered(self, ramp: float) -> Trace:
        """Families started over ``ramp`` seconds by the golden-ratio sequence, so that no two phases line up."""
        return self.with_starts(lambda n: stagger(n, ramp))

    def selected(self, roots: Iterable[str]) -> Trace:
        """Only the families with these root ids, in the order of the file."""
        wanted = set(roots)
        if unknown := wanted - {s.id for s in self.roots()}:
            raise TraceError(f"{self.name}: no session named {', '.join(sorted(unknown))}")
        root_of = self.root_of()
        return replace(self, sessions=tuple(s for s in self.sessions if root_of[s.id] in wanted))


def stagger(n: int, ramp: float) -> float:
    """Start of the n-th session: ``frac(n * 0.618034) * ramp`` (notes/agents.md 4.2), to the millisecond."""
    return round((n * _GOLDEN % 1.0) * ramp, 3)


def estimated_server_seconds(out_tokens: int) -> float:
    """Server time of a request whose trace did not record it: 2.5 s + out / 70.

    Fitted to the medians by output-length decile of the non-streaming rows of the kv-cache-tester traces
    (84 tokens: 3.4 s, 241: 6.0 s, 643: 13.0 s, 1,950: 25.5 s).
    """
    return round(2.5 + out_tokens / 70.0, 3)


def to_runs(ids: Iterable[int]) -> Runs:
    """Ascending neighbours folded into (first, count) runs; expands back to exactly the same list."""
    runs: list[tuple[int, int]] = []
    first = count = 0
    for block in ids:
        if count and block == first + count:
            count += 1
            continue
        if count:
            runs.append((first, count))
        first, count = block, 1
    if count:
        runs.append((first, count))
    return tuple(runs)


def combine(name: str, traces: Iterable[Trace]) -> Trace:
    """One trace from several; raises :class:`TraceError` if a session or request id occurs twice."""
    parts = list(traces)
    formats = sorted({part.format for part in parts})
    return make_trace(name, "+".join(formats), itertools.chain.from_iterable(part.sessions for part in parts))


def make_trace(name: str, format_name: str, sessions: Iterable[Session]) -> Trace:
    """A checked trace: ids unique, parents and waited-for requests known, and no circle of waiting."""
    trace = Trace(name=name, format=format_name, sessions=tuple(sessions))
    by_id: dict[str, Session] = {}
    for session in trace.sessions:
        if session.id in by_id:
            raise TraceError(f"{name}: session {session.id} occurs twice")
        by_id[session.id] = session
    _check_parents(name, by_id)
    _check_waiting(trace)
    return trace


def _check_parents(name: str, by_id: Mapping[str, Session]) -> None:
    for session in by_id.values():
        seen = {session.id}
        parent = session.parent
        while parent is not None:
            if parent not in by_id:
                raise TraceError(f"{name}: session {session.id} has parent {parent}, which is not in the trace")
            if parent in seen:
                raise TraceError(f"{name}: session {session.id} is its own ancestor")
            seen.add(parent)
            parent = by_id[parent].parent


def _check_waiting(trace: Trace) -> None:
    """Topological sort (Kahn) over implied and explicit waits; what is left over waits in a circle."""
    waits: dict[str, int] = {}
    followers: dict[str, list[str]] = {}
    for session in trace.sessions:
        previous: str | None = None
        for request in session.requests:
            if request.id in waits:
                raise TraceError(f"{trace.name}: request {request.id} occurs twice")
            needed = {*request.wait_for} | ({previous} if previous is not None else set())
            waits[request.id] = len(needed)
            for other in needed:
                followers.setdefault(other, []).append(request.id)
            previous = request.id
    for other, waiting in followers.items():
        if other not in waits:
            raise TraceError(f"{trace.name}: request {waiting[0]} waits for {other}, which is not in the trace")
    ready = [request for request, count in waits.items() if count == 0]
    done = 0
    while ready:
        done += 1
        for follower in followers.get(ready.pop(), ()):
            waits[follower] -= 1
            if waits[follower] == 0:
                ready.append(follower)
    if done != len(waits):
        stuck = min(request for request, count in waits.items() if count)
        raise TraceError(f"{trace.name}: request {stuck} waits, directly or not, for itself")
