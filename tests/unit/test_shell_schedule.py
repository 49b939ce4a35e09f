"""The schedule of the work queue: one run per key at a time, no wake-up lost, the earliest wish wins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from retinue_operator.schedule import Pace, Schedule

KEYS = st.sampled_from(["a", "b", "c"])
PACE = Pace(min_gap=0.5, base_delay=1.0, max_delay=8.0)


def schedule(pace: Pace = PACE, random: float = 0.999999) -> Schedule[str]:
    return Schedule(pace, lambda: random)


def taken(work: Schedule[str], now: float) -> str | None:
    found = work.take(now)
    return None if found is None else found[0]


def test_adding_a_key_twice_before_it_starts_is_one_run() -> None:
    work = schedule()
    work.add("a", 0.0)
    work.add("a", 0.0)
    assert taken(work, 0.0) == "a"
    work.finish("a", 0.1)
    assert taken(work, 100.0) is None


def test_the_earliest_wish_wins_whatever_the_order() -> None:
    work = schedule()
    work.add("a", 0.0, delay=10)
    work.add("a", 0.0, delay=2)
    work.add("a", 0.0, delay=5)
    assert work.next_due() == 2
    assert taken(work, 1.9) is None
    assert taken(work, 2.0) == "a"
    work.finish("a", 2.0)
    assert work.next_due() is None


def test_a_key_added_while_it_runs_runs_again_after_the_gap() -> None:
    work = schedule()
    work.add("a", 0.0)
    assert taken(work, 0.0) == "a"
    work.add("a", 0.1)
    assert taken(work, 0.2) is None
    work.finish("a", 1.0)
    assert taken(work, 1.4) is None
    assert taken(work, 1.5) == "a"


def test_a_burst_after_a_run_waits_for_the_gap_and_is_one_run() -> None:
    work = schedule()
    work.add("a", 0.0)
    assert taken(work, 0.0) == "a"
    work.finish("a", 0.0)
    for moment in (0.1, 0.2, 0.3):
        work.add("a", moment)
    assert taken(work, 0.4) is None
    assert taken(work, 0.5) == "a"
    work.finish("a", 0.5)
    assert taken(work, 9.0) is None


def test_keys_become_due_in_order_of_time() -> None:
    work = schedule()
    work.add("a", 0.0, delay=3)
    work.add("b", 0.0, delay=1)
    work.add("c", 0.0, delay=2)
    assert [taken(work, 5.0) for _ in range(3)] == ["b", "c", "a"]


def test_back_off_doubles_up_to_the_limit_and_is_forgotten_after_success() -> None:
    work = schedule()
    assert [round(work.back_off("a"), 2) for _ in range(5)] == [1, 2, 4, 8, 8]
    assert round(work.back_off("b"), 2) == 1
    work.succeeded("a")
    assert round(work.back_off("a"), 2) == 1


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 2000))
def test_jitter_never_leaves_the_upper_half_of_the_back_off(random: float, failures: int) -> None:
    work = schedule(random=random)
    for _ in range(min(failures, 40)):
        work.back_off("a")
    whole = min(PACE.base_delay * 2.0 ** min(failures, 40), PACE.max_delay)
    assert whole / 2 <= work.back_off("a") <= whole


def test_depth_counts_what_is_due_and_neither_running_nor_delayed() -> None:
    work = schedule()
    work.add("a", 0.0)
    work.add("b", 0.0)
    work.add("c", 0.0, delay=60)
    assert work.depth(0.0) == 2
    assert taken(work, 0.0) == "a"
    assert work.depth(0.0) == 1


def test_finishing_a_key_that_does_not_run_is_an_error() -> None:
    with pytest.raises(KeyError):
        schedule().finish("a", 0.0)


class AnyOrder(RuleBasedStateMachine):
    """Whatever the order of adds, starts, ends and the passing of time, the promises hold."""

    def __init__(self) -> None:
        super().__init__()
        self.work = schedule()
        self.now = 0.0
        self.running: set[str] = set()
        # Keys that were added and have not started since, with the earliest time they were wished for.
        self.owed: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    @rule(key=KEYS, delay=st.sampled_from([0.0, 0.1, 0.7, 5.0]))
    def add(self, key: str, delay: float) -> None:
        self.work.add(key, self.now, delay)
        self.owed[key] = min(self.owed.get(key, float("inf")), self.now + delay)

    @rule()
    def take(self) -> None:
        found = self.work.take(self.now)
        if found is None:
            late = [
                key for key, wish in self.owed.items() if key not in self.running and self.due(key, wish) <= self.now
            ]
            assert not late, f"{late} should have started"
            return
        key, due = found
        assert key not in self.running, "two runs of one key at once"
        assert key in self.owed, "a run that nobody wished for"
        assert due <= self.now
        assert self.now >= self.ended.get(key, float("-inf")) + PACE.min_gap - 1e-9
        del self.owed[key]
        self.running.add(key)

    def due(self, key: str, wish: float) -> float:
        return max(wish, self.ended.get(key, float("-inf")) + PACE.min_gap) + 1e-9

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.running)))
        self.work.finish(key, self.now)
        self.running.remove(key)
        self.ended[key] = self.now

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.work.waiting == set(self.owed)
        assert self.work.running == self.running

    @invariant()
    def a_waiting_key_has_a_time_to_wake_up(self) -> None:
        idle = set(self.owed) - self.running
        assert (self.work.next_due() is not None) == bool(idle)


TestAnyOrder = AnyOrder.TestCase
