"""The choice of an instance: cache first, then balance."""

from hypothesis import given
from hypothesis import strategies as st

from retinue_gateway.routing import Candidate, Choice, ChoiceReason, Policy, choose

POLICY = Policy()


def pick(
    *candidates: Candidate,
    sticky: str | None = None,
    parent: str | None = None,
    stateful: bool = True,
    policy: Policy = POLICY,
) -> Choice | None:
    return choose(candidates, sticky=sticky, parent=parent, stateful=stateful, policy=policy)


def uid(choice: Choice | None) -> str | None:
    return choice.uid if choice else None


def test_a_session_stays_even_when_its_instance_is_busy() -> None:
    busy = Candidate("a", "a", in_flight=50, queued_tokens=2_000_000, placed_tokens=9_000_000)
    assert pick(busy, Candidate("b", "b"), sticky="a") == Choice("a", ChoiceReason.STICKY)


def test_a_session_leaves_only_a_queue_beyond_the_spill_limit_and_only_for_a_much_shorter_one() -> None:
    spill = Policy(spill_queue_tokens=100_000)
    long = Candidate("a", "a", queued_tokens=200_000)
    assert pick(long, Candidate("b", "b"), sticky="a", policy=spill) == Choice("b", ChoiceReason.LEAST_LOADED, True)
    also_long = Candidate("b", "b", queued_tokens=150_000)
    assert uid(pick(long, also_long, sticky="a", policy=spill)) == "a"
    assert uid(pick(Candidate("a", "a", queued_tokens=90_000), Candidate("b", "b"), sticky="a", policy=spill)) == "a"


def test_a_new_session_goes_where_least_context_lives() -> None:
    full = Candidate("a", "a", placed_tokens=2_000_000, placed_sessions=20)
    assert uid(pick(full, Candidate("b", "b", placed_tokens=500_000, placed_sessions=30))) == "b"


def test_a_request_without_a_session_looks_at_the_queues_only() -> None:
    full = Candidate("a", "a", placed_tokens=2_000_000)
    assert uid(pick(full, Candidate("b", "b", in_flight=1), stateful=False)) == "a"


def test_ties_go_to_the_instance_with_fewer_sessions() -> None:
    assert uid(pick(Candidate("a", "a", placed_sessions=2), Candidate("b", "b", placed_sessions=1))) == "b"


def test_a_sub_agent_starts_with_its_parent_unless_the_queue_there_is_too_long() -> None:
    home = Candidate("a", "a", queued_tokens=20_000, placed_tokens=150_000)
    assert pick(home, Candidate("b", "b"), parent="a") == Choice("a", ChoiceReason.PARENT)
    crowded = Candidate("a", "a", queued_tokens=60_000)
    assert uid(pick(crowded, Candidate("b", "b"), parent="a")) == "b"


candidates = st.lists(
    st.builds(
        Candidate,
        uid=st.sampled_from("abcdef"),
        name=st.just("n"),
        in_flight=st.integers(0, 100),
        queued_tokens=st.integers(0, 1_000_000),
        placed_tokens=st.integers(0, 10_000_000),
        placed_sessions=st.integers(0, 100),
    ),
    unique_by=lambda candidate: candidate.uid,
    max_size=6,
)
names = st.none() | st.sampled_from("abcdef")
policies = st.builds(Policy, st.floats(0, 2), st.integers(0, 100_000), st.none() | st.integers(1, 1_000_000))


@given(candidates, names, names, st.booleans(), policies)
def test_some_candidate_is_chosen_whenever_there_is_one_and_the_order_does_not_matter(
    found: list[Candidate], sticky: str | None, parent: str | None, stateful: bool, policy: Policy
) -> None:
    chosen = pick(*found, sticky=sticky, parent=parent, stateful=stateful, policy=policy)
    assert (chosen is None) == (not found)
    if chosen is None:
        return
    assert chosen.uid in {candidate.uid for candidate in found}
    renamed = [Candidate(**{**vars(c), "name": c.uid}) for c in found]
    forward = pick(*renamed, sticky=sticky, parent=parent, stateful=stateful, policy=policy)
    backward = pick(*reversed(renamed), sticky=sticky, parent=parent, stateful=stateful, policy=policy)
    assert forward == backward


@given(candidates, names, policies)
def test_a_session_never_leaves_a_routable_instance_unless_spilling_is_on(
    found: list[Candidate], sticky: str | None, policy: Policy
) -> None:
    chosen = pick(*found, sticky=sticky, policy=policy)
    there = sticky in {candidate.uid for candidate in found}
    if chosen is not None and there and policy.spill_queue_tokens is None:
        assert chosen == Choice(str(sticky), ChoiceReason.STICKY)
    if chosen is not None and chosen.overloaded:
        assert there
        assert chosen.uid != sticky


@given(candidates)
def test_many_new_sessions_spread_evenly_by_context(found: list[Candidate]) -> None:
    if not found:
        return
    placed = dict.fromkeys((candidate.uid for candidate in found), 0)
    for _ in range(5 * len(placed)):
        now = [Candidate(uid, uid, placed_tokens=tokens) for uid, tokens in placed.items()]
        chosen = pick(*now)
        assert chosen is not None
        placed[chosen.uid] += 20_000
    assert set(placed.values()) == {100_000}
