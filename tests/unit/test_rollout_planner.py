"""The rollout planner in a fake world: it keeps its promises at every step and ends with what was asked for."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.api.pool import InstancePhase
from retinue.rollout.planner import Candidate, Step, next_step, victims

PENDING, STARTING, READY, DRAINING = (
    InstancePhase.PENDING,
    InstancePhase.STARTING,
    InstancePhase.READY,
    InstancePhase.DRAINING,
)


def candidate(name: str, phase: InstancePhase = READY, current: bool = True, **more: float | None) -> Candidate:
    return Candidate(name=name, phase=phase, current=current, **more)  # type: ignore[arg-type]


@dataclass
class Member:
    """One instance of the fake world: the revision it has and how many ticks it still starts or drains."""

    name: str
    index: int
    revision: int
    starting: int
    draining: int | None = None

    @property
    def ready(self) -> bool:
        return self.draining is None and self.starting == 0

    def candidate(self, revision: int) -> Candidate:
        phase = DRAINING if self.draining is not None else READY if self.starting == 0 else STARTING
        return Candidate(self.name, phase, self.revision == revision, index=self.index)


@dataclass
class World:
    """Executes steps; time advances in ticks. Delays and drain lengths come from endless iterators."""

    replicas: int
    surge: int
    unavailable: int
    delays: Iterator[int]
    drains: Iterator[int]
    revision: int = 0
    members: dict[str, Member] = field(default_factory=dict)
    made: int = 0

    def candidates(self) -> list[Candidate]:
        return [member.candidate(self.revision) for member in self.members.values()]

    def plan(self) -> Step:
        return next_step(self.replicas, self.surge, self.unavailable, self.candidates())

    def execute(self, step: Step) -> None:
        """Does what the step says, after checking that the step may be taken at all."""
        self.check(step)
        for name in step.reclaim:
            self.members[name].draining = None
        for name in step.drain:
            self.members[name].draining = next(self.drains)
        for name in step.remove:
            del self.members[name]
        for _ in range(step.create):
            name = f"i{self.made}"
            self.members[name] = Member(name, self.made, self.revision, next(self.delays))
            self.made += 1

    def check(self, step: Step) -> None:
        before = self.members
        touched = (*step.reclaim, *step.drain, *step.remove)
        assert len(set(touched)) == len(touched), "an instance is named twice"
        assert set(touched) <= set(before), "an instance that does not exist is named"
        assert all(before[name].ready for name in step.drain), "only what serves is drained"
        assert all(before[name].draining is None and not before[name].ready for name in step.remove), (
            "only what does not serve is removed undrained"
        )
        for name in step.reclaim:
            assert before[name].draining is not None
            assert before[name].revision == self.revision, "an outdated instance is taken back"
        ready = [member for member in before.values() if member.ready]
        left = len(ready) - len(step.drain)
        assert left >= min(self.replicas - self.unavailable, len(ready)), "too few ready instances are left"
        replacing = any(member.revision != self.revision for member in before.values())
        after = len(before) - len(step.remove) + step.create
        limit = max(len(before), self.replicas + self.surge)
        if replacing:
            assert after <= limit, f"{after} instances exist while replacing, {limit} may"
        if not replacing:
            live = [member for member in before.values() if member.draining is None]
            assert len(step.drain) + len(step.remove) <= max(0, len(live) - self.replicas), (
                "undisturbed ones are touched"
            )
            assert step.create + len(step.reclaim) <= max(0, self.replicas - len(live))

    def tick(self) -> None:
        """One unit of time: instances start, drains end."""
        for member in list(self.members.values()):
            if member.draining is not None:
                member.draining -= 1
                if member.draining <= 0:
                    del self.members[member.name]
            elif member.starting > 0:
                member.starting -= 1

    def run(self, limit: int = 400) -> None:
        """Until nothing is left to do, or fails when that takes too long."""
        for _ in range(limit):
            step = self.plan()
            if step.idle and all(member.ready for member in self.members.values()):
                return
            self.execute(step)
            self.tick()
        raise AssertionError(f"not quiet after {limit} ticks: {self.members}")

    def settled(self) -> bool:
        members = self.members.values()
        return len(members) == self.replicas and all(m.ready and m.revision == self.revision for m in members)


def world(replicas: int, surge: int, unavailable: int, delays: Iterable[int], drains: Iterable[int]) -> World:
    return World(replicas, surge, unavailable, itertools.cycle(delays), itertools.cycle(drains))


LIMITS = [(s, u) for s in range(3) for u in range(3) if (s, u) != (0, 0)]
EVENT = st.one_of(
    st.tuples(st.just("scale"), st.integers(0, 6)),
    st.tuples(st.just("revise"), st.integers(1, 3)),
    st.tuples(st.just("fail"), st.integers(0, 12)),
    st.tuples(st.just("vanish"), st.integers(0, 12)),
    st.tuples(st.just("wait"), st.integers(1, 8)),
)


@settings(max_examples=400, deadline=None)
@given(
    replicas=st.integers(0, 6),
    limits=st.sampled_from(LIMITS),
    delays=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    drains=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    events=st.lists(EVENT, max_size=8),
)
def test_every_step_keeps_the_promises_and_the_world_comes_to_rest(
    replicas: int, limits: tuple[int, int], delays: list[int], drains: list[int], events: list[tuple[str, int]]
) -> None:
    fake = world(replicas, *limits, delays, drains)
    fake.run()
    for verb, number in events:
        names = list(fake.members)
        if verb == "scale":
            fake.replicas = number
        elif verb == "revise":
            fake.revision = number
        elif verb == "fail" and names:
            failing = fake.members[names[number % len(names)]]
            failing.starting = 3
        elif verb == "vanish" and names:
            del fake.members[names[number % len(names)]]
        for _ in range(number if verb == "wait" else 1):
            fake.execute(fake.plan())
            fake.tick()
    fake.run()
    assert fake.settled()
    assert fake.plan().idle, "a settled world is left alone"


@pytest.mark.parametrize(("surge", "unavailable"), LIMITS)
@pytest.mark.parametrize("replicas", range(5))
def test_a_rollout_replaces_every_instance_and_never_more_than_allowed(
    replicas: int, surge: int, unavailable: int
) -> None:
    fake = world(replicas, surge, unavailable, [2, 0, 1], [3, 1])
    fake.run()
    old = set(fake.members)
    fake.revision = 1
    fake.run()
    assert fake.settled()
    assert old.isdisjoint(fake.members)


@pytest.mark.parametrize(("surge", "unavailable"), LIMITS)
def test_every_mix_of_up_to_three_instances_leads_to_the_goal(surge: int, unavailable: int) -> None:
    states = [
        Member("", 0, revision, starting, draining)
        for revision in (0, 1)
        for starting, draining in ((0, None), (2, None), (0, 2))
    ]
    for replicas in range(4):
        for count in range(4):
            for mix in itertools.combinations_with_replacement(states, count):
                fake = world(replicas, surge, unavailable, [1], [2])
                fake.revision, fake.made = 1, count
                fake.members = {f"i{n}": replace(member, name=f"i{n}", index=n) for n, member in enumerate(mix)}
                fake.run(limit=60)
                assert fake.settled(), (replicas, mix)


def test_a_settled_pool_is_left_alone() -> None:
    assert next_step(2, 1, 0, [candidate("a"), candidate("b")]) == Step()


def test_a_draining_instance_of_the_current_revision_is_taken_back_before_one_is_made() -> None:
    step = next_step(3, 1, 0, [candidate("a"), candidate("b", DRAINING)])
    assert step == Step(create=1, reclaim=("b",))


def test_the_most_valuable_draining_instance_is_taken_back_first() -> None:
    draining = [
        candidate("cheap", DRAINING, sessions=1, cached_tokens=10),
        candidate("dear", DRAINING, sessions=7, cached_tokens=90),
    ]
    assert next_step(1, 1, 0, draining).reclaim == ("dear",)


def test_an_outdated_draining_instance_is_not_taken_back() -> None:
    step = next_step(1, 1, 0, [candidate("a", DRAINING, current=False)])
    assert step == Step(create=1)


def test_while_replacing_draining_instances_count_against_the_surge() -> None:
    both = [candidate("a", DRAINING, current=False), candidate("b", DRAINING, current=False)]
    assert next_step(2, 0, 2, both) == Step()
    assert next_step(2, 1, 2, both) == Step(create=1)


def test_scaling_up_does_not_wait_for_a_draining_instance_of_the_same_revision() -> None:
    step = next_step(3, 0, 1, [candidate("a"), candidate("b")])
    assert step == Step(create=1)


def test_an_outdated_instance_that_does_not_serve_makes_room_at_once() -> None:
    step = next_step(2, 0, 1, [candidate("a"), candidate("old", STARTING, current=False)])
    assert step.remove == ("old",)
    assert step.create == 1


def test_an_outdated_instance_that_served_a_moment_ago_is_waited_for() -> None:
    faltering = candidate("a", STARTING, current=False, faltering=True)
    new = candidate("b", STARTING)
    assert next_step(1, 1, 0, [faltering]) == Step(create=1)
    assert next_step(1, 1, 0, [faltering, new]) == Step()
    assert next_step(1, 1, 0, [faltering, replace(new, phase=READY)]) == Step(drain=("a",))
    assert next_step(2, 1, 0, [faltering, candidate("c", current=False), replace(new, phase=READY)]).drain == ("a",)
    assert next_step(1, 0, 1, [faltering]) == Step(drain=("a",))


def test_no_outdated_instance_drains_while_its_replacement_starts() -> None:
    step = next_step(1, 1, 0, [candidate("old", current=False), candidate("new", STARTING)])
    assert step == Step()


def test_reclaiming_does_not_use_up_the_room_for_new_instances() -> None:
    members = [candidate("old", current=False), candidate("back", DRAINING)]
    step = next_step(3, 1, 0, members)
    assert step.reclaim == ("back",)
    assert step.create == 2


VICTIM_TABLE = [
    ("what does not serve goes before what serves", candidate("x", STARTING, sessions=9), candidate("y", sessions=0)),
    ("outdated before current", candidate("x", current=False, sessions=9), candidate("y", sessions=0)),
    ("fewest sessions", candidate("x", sessions=1, cached_tokens=99), candidate("y", sessions=2, cached_tokens=1)),
    ("least cached tokens", candidate("x", sessions=1, cached_tokens=5), candidate("y", sessions=1, cached_tokens=6)),
    ("known before unknown sessions", candidate("x", sessions=50), candidate("y")),
    ("known before unknown cache", candidate("x", sessions=1, cached_tokens=9), candidate("y", sessions=1)),
    ("youngest", candidate("x", created=20.0), candidate("y", created=10.0)),
    ("highest index", candidate("x", index=4), candidate("y", index=3)),
]


@pytest.mark.parametrize(("why", "first", "second"), VICTIM_TABLE, ids=[row[0] for row in VICTIM_TABLE])
def test_who_goes_first(why: str, first: Candidate, second: Candidate) -> None:
    assert [victim.name for victim in victims([second, first])] == ["x", "y"], why
    assert [victim.name for victim in victims([first, second])] == ["x", "y"], why


def test_scale_down_takes_the_first_victims_and_drains_only_those_that_serve() -> None:
    members = [
        candidate("a", sessions=3),
        candidate("b", sessions=0),
        candidate("c", PENDING),
        candidate("d", sessions=1),
    ]
    assert next_step(2, 1, 0, members) == Step(drain=("b",), remove=("c",))
