"""The session table: what is open, what it sums up to, what is forgotten."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from retinue_gateway.keys import RoleKey, SessionKey, Stage
from retinue_gateway.sessions import CloseReason, Held, Session, SessionTable

PRIMARY = RoleKey("agents", "coder", "primary")
EXPLORER = RoleKey("agents", "coder", "explorer")


@dataclass
class Bench:
    """A table, what it reported as closed, and a clock."""

    idle: float = 10.0
    memory: float = 100.0
    capacity: int = 1000
    now: float = 0.0
    closed: list[tuple[str, CloseReason]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.table = SessionTable(
            idle_timeout=self.idle,
            memory=self.memory,
            capacity=self.capacity,
            on_close=lambda session, reason: self.closed.append((session.key.id, reason)),
        )

    def begin(
        self, name: str, tokens: int = 100, *, role: RoleKey = PRIMARY, parent: str | None = None, final: bool = False
    ) -> Session:
        key = SessionKey(role, name)
        return self.table.begin(key, parent=parent, context_tokens=tokens, final=final, now=self.now)

    def turn(self, name: str, tokens: int = 100, *, role: RoleKey = PRIMARY, final: bool = False) -> Session:
        session = self.begin(name, tokens, role=role, final=final)
        self.table.end(session, context_tokens=tokens, now=self.now)
        return session

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.table.expire(self.now)


def test_a_session_is_open_from_its_first_request_on() -> None:
    bench = Bench()
    session = bench.begin("s", 100)
    assert bench.table.held_by_role(PRIMARY) == Held(1, 100)
    bench.table.end(session, context_tokens=130, now=1)
    assert bench.table.held_by_role(PRIMARY) == Held(1, 130)


def test_a_failed_request_keeps_the_length_that_it_asked_with() -> None:
    bench = Bench()
    session = bench.begin("s", 100)
    bench.table.end(session, context_tokens=None, now=1)
    assert bench.table.held_by_role(PRIMARY) == Held(1, 100)


def test_the_final_request_closes_the_session_when_all_its_requests_have_ended() -> None:
    bench = Bench()
    running = bench.begin("s")
    bench.turn("s", final=True)
    assert bench.table.held_by_role(PRIMARY).sessions == 1
    bench.table.end(running, context_tokens=100, now=1)
    assert bench.table.held_by_role(PRIMARY).sessions == 0
    assert len(bench.table) == 0
    assert bench.closed == [("s", CloseReason.FINAL)]


def test_an_idle_session_closes_but_its_place_is_remembered_for_a_while() -> None:
    bench = Bench(idle=10, memory=100)
    bench.table.place(bench.turn("s"), Stage.DECODE, "uid")
    bench.pass_time(10)
    assert bench.table.held_by_role(PRIMARY) == Held()
    assert bench.table.held_by_instance("uid") == Held()
    assert bench.closed == [("s", CloseReason.IDLE)]
    bench.pass_time(50)
    assert bench.turn("s").placement == {Stage.DECODE: "uid"}
    assert bench.table.held_by_instance("uid") == Held(1, 100)
    bench.pass_time(110)
    assert len(bench.table) == 0


def test_a_session_with_a_request_in_flight_is_not_idle() -> None:
    bench = Bench(idle=10)
    bench.begin("s")
    bench.pass_time(1000)
    assert bench.table.held_by_role(PRIMARY).sessions == 1


def test_a_full_table_forgets_closed_sessions_first_then_the_longest_idle() -> None:
    bench = Bench(idle=10, capacity=2)
    bench.turn("closed")
    bench.pass_time(10)
    bench.turn("old")
    bench.pass_time(1)
    bench.turn("new")
    assert {session.key.id for session in bench.table} == {"old", "new"}
    bench.turn("newest")
    assert {session.key.id for session in bench.table} == {"new", "newest"}
    assert ("old", CloseReason.EVICTED) in bench.closed


def test_a_parent_is_found_in_another_role_of_the_same_agent_pool() -> None:
    bench = Bench()
    parent = bench.turn("main")
    assert bench.table.parent_of(bench.begin("sub", role=EXPLORER, parent="main")) is parent
    elsewhere = RoleKey("agents", "writer", "primary")
    assert bench.table.parent_of(bench.begin("sub", role=elsewhere, parent="main")) is None


def test_sessions_of_a_removed_role_are_forgotten() -> None:
    bench = Bench()
    bench.turn("s")
    bench.turn("t", role=EXPLORER)
    bench.table.keep_roles([EXPLORER])
    assert {session.key.id for session in bench.table} == {"t"}
    assert bench.closed == [("s", CloseReason.ROLE_GONE)]


class TableAgainstPlainSums(RuleBasedStateMachine):
    """Whatever happens, the table's sums are what counting all its sessions gives, and its bounds hold."""

    @initialize(capacity=st.integers(1, 6))
    def start(self, capacity: int) -> None:
        self.bench = Bench(idle=10, memory=20, capacity=capacity)
        self.running: list[Session] = []

    @rule(
        name=st.sampled_from("abcdefgh"),
        role=st.sampled_from([PRIMARY, EXPLORER]),
        tokens=st.integers(0, 1000),
        parent=st.none() | st.sampled_from("abcdefgh"),
        final=st.booleans(),
    )
    def begin(self, name: str, role: RoleKey, tokens: int, parent: str | None, final: bool) -> None:
        session = self.bench.begin(name, tokens, role=role, parent=parent, final=final)
        self.running.append(session)
        found = self.bench.table.parent_of(session)
        assert found is None or found is not session

    @precondition(lambda self: self.running)
    @rule(data=st.data(), stage=st.sampled_from(Stage), uid=st.sampled_from(["u1", "u2", "u3"]))
    def place(self, data: st.DataObject, stage: Stage, uid: str) -> None:
        self.bench.table.place(data.draw(st.sampled_from(self.running)), stage, uid)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.none() | st.integers(0, 1000))
    def end(self, data: st.DataObject, tokens: int | None) -> None:
        session = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.bench.table.end(session, context_tokens=tokens, now=self.bench.now)

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.bench.pass_time(seconds)

    @rule(keep=st.sets(st.sampled_from([PRIMARY, EXPLORER])))
    def keep_roles(self, keep: set[RoleKey]) -> None:
        self.bench.table.keep_roles(keep)

    @invariant()
    def sums_are_right(self) -> None:
        table = self.bench.table
        opened = [session for session in table if session.open]
        for role in (PRIMARY, EXPLORER):
            mine = [session for session in opened if session.key.role == role]
            assert table.held_by_role(role) == _sum(mine)
            for uid in ("u1", "u2", "u3"):
                there = [session for session in mine if uid in session.placement.values()]
                assert table.held_by_role_on_instance(role, uid) == _sum(there)
        for uid in ("u1", "u2", "u3"):
            assert table.held_by_instance(uid) == _sum([s for s in opened if uid in s.placement.values()])

    @invariant()
    def running_sessions_are_kept_and_the_rest_is_bounded(self) -> None:
        kept = {id(session) for session in self.bench.table}
        assert {id(session) for session in self.running} <= kept
        assert len(self.bench.table) <= max(self.bench.capacity, len({id(session) for session in self.running}))


def _sum(sessions: list[Session]) -> Held:
    return Held(len(sessions), sum(session.context_tokens for session in sessions))


TestTableAgainstPlainSums = TableAgainstPlainSums.TestCase
TestTableAgainstPlainSums.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
