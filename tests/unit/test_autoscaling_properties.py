"""What holds for every history of metrics: bounds, budget, slow shrinking and only on knowledge, exact replay."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.api.agentgoals import AutoscalingMode, OnMissingUp
from retinue.autoscaling.decide import decide
from retinue.autoscaling.decision import Decision, LastGood, PoolState, Recommendation, State
from retinue.autoscaling.history import Record, Unreadable, dump_state, load_state, read, replay, write
from retinue.autoscaling.inputs import (
    Inputs,
    PoolInputs,
    PoolKind,
    PoolSignals,
    RoleInputs,
    RoleSignals,
    Signal,
    TierInputs,
    TierSignals,
)
from retinue.autoscaling.settings import Goals, Settings

NOW = 1_800_000_000.0
STEP = 15.0

anything = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(min_value=0.0, max_value=1e6),
    st.floats(min_value=0.0, max_value=1.0),
)
signals = st.builds(Signal, anything, st.one_of(st.none(), st.floats(min_value=0.0, max_value=300.0)))
fresh = st.builds(Signal, st.floats(min_value=0.0, max_value=1e6), st.just(1.0))
pool_signals = st.builds(PoolSignals, **{item.name: signals for item in fields(PoolSignals)})
role_signals = st.builds(RoleSignals, **{item.name: signals for item in fields(RoleSignals)})
tier_signals = st.builds(TierSignals, **{item.name: signals for item in fields(TierSignals)})
ages = st.lists(st.floats(min_value=0.0, max_value=2000.0), max_size=6).map(tuple)
optional_size = st.one_of(st.none(), st.floats(min_value=0.0, max_value=1e7))
money = st.one_of(st.none(), st.floats(min_value=0.0, max_value=100.0))


@st.composite
def pools(draw: st.DrawFn, name: str, kind: PoolKind, aggregated: bool = False) -> PoolInputs:
    low = draw(st.integers(0, 5))
    return PoolInputs(
        name=name,
        kind=kind,
        min=low,
        max=draw(st.integers(max(low, 1), 12)),
        current=draw(st.integers(0, 12)),
        ready_ages=draw(ages),
        starting_ages=draw(ages),
        draining=draw(st.integers(0, 1)),
        aggregated=aggregated,
        kv_tokens=draw(optional_size),
        host_tokens=draw(st.floats(min_value=0.0, max_value=1e7)),
        prefill_speed=draw(optional_size),
        slots=draw(st.one_of(st.none(), st.floats(min_value=0.0, max_value=500.0))),
        cost_per_hour=draw(money),
        placeable=draw(st.one_of(st.none(), st.integers(0, 5))),
        signals=draw(pool_signals),
    )


@st.composite
def tiers(draw: st.DrawFn) -> TierInputs:
    low = draw(st.integers(0, 3))
    return TierInputs(
        name="cold",
        min=low,
        max=draw(st.integers(max(low, 1), 6)),
        current=draw(st.integers(0, 6)),
        ready_ages=draw(ages),
        starting_ages=draw(ages),
        capacity_bytes=draw(optional_size),
        retention=draw(st.one_of(st.none(), st.floats(min_value=1.0, max_value=3600.0))),
        cost_per_hour=draw(money),
        signals=draw(tier_signals),
    )


@st.composite
def worlds(draw: st.DrawFn) -> Inputs:
    return Inputs(
        namespace="agents",
        agent_pool="coder",
        roles=(
            RoleInputs("primary", "coder-primary", "coder-primary", ("cold",), draw(optional_size), draw(role_signals)),
            RoleInputs("explorer", None, "coder-explorer", (), None, draw(role_signals)),
            RoleInputs("reviewer", "coder-primary", "coder-primary", (), None, draw(role_signals)),
        ),
        pools=(
            draw(pools("coder-primary", PoolKind.PREFILL)),
            draw(pools("coder-primary", PoolKind.DECODE)),
            draw(pools("coder-explorer", PoolKind.DECODE, aggregated=True)),
        ),
        tiers=(draw(tiers()),),
        goals=Goals(draw(st.floats(min_value=0.01, max_value=10.0)), draw(st.floats(min_value=0.001, max_value=1.0))),
        settings=Settings(
            mode=draw(st.sampled_from(list(AutoscalingMode))),
            missing_up=draw(st.sampled_from(list(OnMissingUp))),
            down_stabilization=draw(st.floats(min_value=0.0, max_value=600.0)),
            down_interval=draw(st.floats(min_value=0.0, max_value=300.0)),
        ),
        max_cost_per_hour=draw(money),
    )


times = st.floats(min_value=NOW - 1000.0, max_value=NOW)
pool_states = st.builds(
    PoolState,
    since=st.one_of(st.none(), times),
    last_evaluation=st.one_of(st.none(), times),
    last_up=st.one_of(st.none(), times),
    last_down=st.one_of(st.none(), times),
    recommendations=st.lists(st.builds(Recommendation, times, st.integers(0, 12)), max_size=4).map(tuple),
    hit_rate=st.one_of(st.none(), st.floats(min_value=0.0, max_value=1.0)),
)
keys = ("prefill/coder-primary", "decode/coder-primary", "decode/coder-explorer", "tier/cold")
states = st.builds(
    State,
    pools=st.dictionaries(st.sampled_from(keys), pool_states),
    last_good=st.dictionaries(
        st.sampled_from(["prefill/coder-primary/running", "role/primary/context_tokens", "decode/gone/waiting"]),
        st.builds(LastGood, st.floats(min_value=0.0, max_value=1e9), times),
    ),
)


@settings(max_examples=50, deadline=None)
@given(worlds(), states, st.floats(min_value=NOW - 100.0, max_value=NOW + 1000.0))
def test_a_recorded_decision_replays_to_the_same_bits(inputs: Inputs, state: State, now: float) -> None:
    decision = decide(inputs, state, now)
    line = write(Record(now, inputs, state, decision))
    assert "\n" not in line
    assert read(line) == Record(now, inputs, state, decision)
    again = replay(line)
    assert again == decision
    assert write(Record(now, inputs, state, again)) == line


@settings(max_examples=50, deadline=None)
@given(worlds(), states, st.floats(min_value=NOW - 100.0, max_value=NOW + 1000.0))
def test_every_target_is_within_bounds_and_budget(inputs: Inputs, state: State, now: float) -> None:
    decision = decide(inputs, state, now)
    assert (inputs.settings.mode is AutoscalingMode.OFF) == (not decision.targets)
    spent = least = 0.0
    for target, subject in zip(decision.targets, inputs.subjects, strict=False):
        assert target.key == subject.key
        assert subject.min <= target.desired <= subject.max
        spent += target.desired * (subject.cost_per_hour or 0.0)
        least += subject.min * (subject.cost_per_hour or 0.0)
        if subject.placeable is not None:
            assert target.desired <= max(subject.current + subject.placeable, subject.min)
    if inputs.max_cost_per_hour is not None:
        assert spent <= max(inputs.max_cost_per_hour, least) + 1e-6


@settings(max_examples=50, deadline=None)
@given(worlds(), states)
def test_nothing_shrinks_by_itself_more_than_one_step_or_without_knowing(inputs: Inputs, state: State) -> None:
    inputs = replace(
        inputs,
        max_cost_per_hour=None,
        pools=tuple(replace(pool, max=max(pool.max, pool.current)) for pool in inputs.pools),
    )
    for target in decide(inputs, state, NOW).targets[:3]:
        assert target.desired >= target.current - 1
        pool = next(pool for pool in inputs.pools if pool.key == target.key)
        if target.desired < target.current:
            for name in ("running", "waiting", "reporting"):
                signal: Signal = getattr(pool.signals, name)
                assert signal.value is not None
                assert signal.age is not None
                assert signal.age <= inputs.settings.fresh_age
            for role in inputs.roles_of(pool):
                assert role.signals.queued_prefill_tokens.value is not None


@settings(max_examples=50, deadline=None)
@given(worlds(), states, st.floats(min_value=0.0, max_value=1e7), st.floats(min_value=0.0, max_value=1e7))
def test_more_backlog_never_means_fewer_instances(inputs: Inputs, state: State, less: float, more: float) -> None:
    less, more = sorted((less, more))

    def with_backlog(tokens: float) -> Inputs:
        roles = tuple(
            replace(role, signals=replace(role.signals, queued_prefill_tokens=Signal(tokens, 1.0)))
            for role in inputs.roles
        )
        return replace(inputs, roles=roles, max_cost_per_hour=None)

    small, large = decide(with_backlog(less), state, NOW), decide(with_backlog(more), state, NOW)
    for few, many in zip(small.targets, large.targets, strict=True):
        assert few.desired <= many.desired, (few, many)


@dataclass(frozen=True)
class Moment:
    """What the metrics of one pool show for a while; None = Prometheus is away."""

    rounds: int
    prompt_rate: float | None
    hit_rate: float
    running: float
    backlog: float


moments = st.lists(
    st.builds(
        Moment,
        rounds=st.integers(1, 20),
        prompt_rate=st.one_of(st.none(), st.floats(min_value=0.0, max_value=200_000.0)),
        hit_rate=st.floats(min_value=0.0, max_value=1.0),
        running=st.floats(min_value=0.0, max_value=500.0),
        backlog=st.floats(min_value=0.0, max_value=1e7),
    ),
    min_size=1,
    max_size=6,
)


def moments_of(
    prompt_rate: float, hit_rate: float, running: float, backlog: float
) -> tuple[st.SearchStrategy[float], ...]:
    """Strategies for what a moment shows, up to these numbers and mostly at the ends, as swings have it."""
    return tuple(
        st.one_of(st.just(0.0), st.just(most), st.floats(min_value=0.0, max_value=most))
        for most in (prompt_rate, hit_rate, running, backlog)
    )


QUICK = Settings(startup_estimate=30.0, down_stabilization=60.0, down_interval=45.0)


def seen_inputs(
    moment: Moment, sizes: Mapping[PoolKind, int], born: Mapping[PoolKind, tuple[float, ...]], now: float
) -> Inputs:
    """The inputs of a world whose pools have these sizes; `born` are the times at which instances became ready."""
    known = moment.prompt_rate is not None

    def seen(value: float) -> Signal:
        return Signal(value, 1.0) if known else Signal()

    def pool(kind: PoolKind) -> PoolInputs:
        size = sizes[kind]
        return PoolInputs(
            name="p",
            kind=kind,
            min=1,
            max=10,
            current=size,
            ready_ages=tuple(now - time for time in born[kind][:size]),
            kv_tokens=1e6,
            prefill_speed=10_000.0,
            slots=50.0,
            cost_per_hour=4.0,
            signals=PoolSignals(
                prompt_rate=seen(moment.prompt_rate or 0.0),
                hit_rate=seen(moment.hit_rate),
                running=seen(moment.running),
                running_peak=seen(moment.running),
                waiting=seen(0.0),
                kv_use=seen(min(1.0, moment.running / (50.0 * size))),
                reporting=seen(float(size)),
            ),
        )

    role = RoleSignals(
        in_flight=seen(moment.running),
        queued_prefill_tokens=seen(moment.backlog),
        open_sessions=seen(20.0),
        context_tokens=seen(1e6),
    )
    return Inputs(
        "agents",
        "coder",
        (RoleInputs("primary", "p", "p", signals=role),),
        (pool(PoolKind.PREFILL), pool(PoolKind.DECODE)),
        settings=QUICK,
        max_cost_per_hour=60.0,
    )


@settings(max_examples=30, deadline=None)
@given(moments)
def test_in_any_history_pools_keep_their_limits_and_shrink_slowly(history: list[Moment]) -> None:
    sizes: dict[PoolKind, int] = {PoolKind.PREFILL: 1, PoolKind.DECODE: 1}
    born: dict[PoolKind, tuple[float, ...]] = {kind: tuple(NOW - 1e5 for _ in range(10)) for kind in sizes}
    state, now = State(), NOW
    last_down: dict[PoolKind, float] = {}
    for moment in history:
        for _ in range(moment.rounds):
            now += STEP
            inputs = seen_inputs(moment, sizes, born, now)
            decision = decide(inputs, load_state(dump_state(state)), now)
            state = decision.state
            assert sum(target.desired for target in decision.targets) * 4.0 <= 60.0
            for target in decision.targets:
                assert 1 <= target.desired <= 10
                if target.kind is PoolKind.PREFILL and moment.prompt_rate is not None:
                    assert target.desired >= min(2, target.needed)  # 1 M tokens of sessions, .8 M an instance
                if target.desired < target.current:
                    assert moment.prompt_rate is not None
                    assert target.current - target.desired == 1
                    assert now - last_down.get(target.kind, 0.0) >= QUICK.down_interval
                    last_down[target.kind] = now
                sizes[target.kind] = target.desired


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        Moment,
        rounds=st.just(80),
        prompt_rate=st.floats(min_value=0.0, max_value=200_000.0),
        hit_rate=st.floats(min_value=0.0, max_value=1.0),
        running=st.floats(min_value=0.0, max_value=500.0),
        backlog=st.just(0.0),
    )
)
def test_a_constant_load_does_not_make_a_pool_swing(moment: Moment) -> None:
    sizes: dict[PoolKind, int] = {PoolKind.PREFILL: 5, PoolKind.DECODE: 5}
    born: dict[PoolKind, tuple[float, ...]] = {kind: tuple(NOW - 1e5 for _ in range(5)) for kind in sizes}
    state, now = State(), NOW
    moves: dict[PoolKind, list[int]] = {kind: [] for kind in sizes}
    for _ in range(moment.rounds):
        now += STEP
        decision = decide(seen_inputs(moment, sizes, born, now), state, now)
        state = decision.state
        for target in decision.targets:
            kind, change = target.kind, target.desired - target.current
            born[kind] = (*born[kind][: target.desired], *(now for _ in range(max(change, 0))))
            sizes[kind] = target.desired
            if change:
                moves[kind].append(1 if change > 0 else -1)
    for kind, found in moves.items():
        turns = sum(a != b for a, b in pairwise(found))
        assert turns <= 1, (kind, found)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.builds(Moment, st.integers(1, 8), *(moments_of(20_000.0, 1.0, 500.0, 1e6))), min_size=2, max_size=40),
    st.floats(min_value=30.0, max_value=600.0),
)
def test_no_load_makes_a_pool_turn_more_often_than_the_window_of_scale_down_allows(
    history: list[Moment], window: float
) -> None:
    sizes: dict[PoolKind, int] = {PoolKind.PREFILL: 5, PoolKind.DECODE: 5}
    born: dict[PoolKind, tuple[float, ...]] = {kind: tuple(NOW - 1e5 for _ in range(10)) for kind in sizes}
    state, now = State(), NOW
    moves: dict[PoolKind, list[int]] = {kind: [] for kind in sizes}
    rounds = [moment for moment in history for _ in range(moment.rounds)]
    for number in range(240):
        now += STEP
        inputs = seen_inputs(rounds[number % len(rounds)], sizes, born, now)
        decision = decide(replace(inputs, settings=replace(QUICK, down_stabilization=window)), state, now)
        state = decision.state
        for target in decision.targets:
            sizes[target.kind] = target.desired
            if target.desired != target.current:
                moves[target.kind].append(1 if target.desired > target.current else -1)
    # A pool shrinks only where nothing within the window asked for more: between two turns down lies a whole one.
    most = 2 * (240 * STEP / window + 1)
    for kind, found in moves.items():
        assert sum(a != b for a, b in pairwise(found)) <= most, (kind, found)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(worlds(), states), min_size=1, max_size=5))
def test_records_replay_to_the_same_bits_in_another_process_with_another_order_of_hashes(
    moments: list[tuple[Inputs, State]],
) -> None:
    lines = [write(Record(NOW, inputs, state, decide(inputs, state, NOW))) for inputs, state in moments]
    code = (
        "import sys; from retinue.autoscaling.history import *\n"
        "for line in sys.stdin: r = read(line); print(write(Record(r.now, r.inputs, r.state, replay(line))))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(lines),
        env={**os.environ, "PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.splitlines() == lines


def test_an_unreadable_line_says_what_is_wrong() -> None:
    with pytest.raises(Unreadable, match="not a decision record"):
        read("{")
    with pytest.raises(Unreadable, match="version 7"):
        read('{"version": 7}')
    with pytest.raises(Unreadable, match="inputs"):
        read('{"version": 1, "now": 1.0}')


@pytest.mark.parametrize("text", [None, "", "{", '{"pools": 3}'])
def test_a_lost_state_is_an_empty_one(text: str | None) -> None:
    assert load_state(text) == State()


def test_a_state_survives_being_stored() -> None:
    state = State(
        pools={"prefill/p": PoolState(NOW, NOW + 1.5, None, NOW, (Recommendation(NOW, 3),), 0.1 + 0.2)},
        last_good={"prefill/p/running": LastGood(1 / 3, NOW)},
    )
    assert load_state(dump_state(state)) == state


@settings(max_examples=100, deadline=None)
@given(
    st.floats(min_value=0.0, max_value=200_000.0),
    st.floats(min_value=0.0, max_value=1.0),
    st.floats(min_value=0.0, max_value=2e7),
    st.floats(min_value=0.0, max_value=2e7),
    st.integers(1, 10),
)
def test_more_backlog_never_means_fewer_instances_in_a_measured_pool(
    rate: float, hit_rate: float, less: float, more: float, size: int
) -> None:
    sizes: dict[PoolKind, int] = dict.fromkeys((PoolKind.PREFILL, PoolKind.DECODE), size)
    born = dict.fromkeys(sizes, (0.0,) * size)
    quiet = PoolState(since=0.0, last_evaluation=NOW - STEP, hit_rate=0.9)
    state = State(pools={"prefill/p": quiet, "decode/p": quiet})

    def targets(backlog: float) -> list[int]:
        inputs = replace(seen_inputs(Moment(1, rate, hit_rate, 3.0, backlog), sizes, born, NOW), max_cost_per_hour=None)
        return [target.desired for target in decide(inputs, state, NOW).targets]

    few, many = targets(min(less, more)), targets(max(less, more))
    assert all(a <= b for a, b in zip(few, many, strict=True)), (few, many)


def decided(moment: Moment) -> Decision:
    sizes: dict[PoolKind, int] = {PoolKind.PREFILL: 1, PoolKind.DECODE: 1}
    born = dict.fromkeys(sizes, (0.0,))
    return decide(seen_inputs(moment, sizes, born, NOW), State(), NOW)


def test_the_inputs_in_the_record_are_those_that_decided() -> None:
    names = {entry.name for entry in decided(Moment(1, 1.0, 0.5, 1.0, 0.0)).inputs}
    assert {"prefill/p/prompt_rate", "decode/p/kv_use", "role/primary/context_tokens"} <= names
