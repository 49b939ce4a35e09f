"""What the autoscaler decides in situations that a person can check by hand."""

from dataclasses import replace
from typing import Any

import pytest

from retinue.agentpool.status import decision_record
from retinue.api.agentgoals import AutoscalingMode, OnMissingUp
from retinue.autoscaling.decide import decide
from retinue.autoscaling.decision import Decision, LastGood, PoolState, Recommendation, State
from retinue.autoscaling.inputs import (
    MISSING,
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
from retinue.autoscaling.prefill import planned_miss
from retinue.autoscaling.settings import Goals, Settings, Tuning
from retinue.conditions import ConditionType, Reason

NOW = 1_800_000_000.0
WARM = 10_000.0


def seen(value: float, age: float = 1.0) -> Signal:
    return Signal(value, age)


def role_signals(**changes: Signal) -> RoleSignals:
    """Twenty sessions at rest: nothing queued, nothing in flight."""
    quiet = RoleSignals(
        ttft=Signal(None, 1.0),
        first_decode_time=Signal(None, 1.0),
        arrivals=seen(0.0),
        completions=seen(0.0),
        in_flight=seen(0.0),
        queued_prefill_tokens=seen(0.0),
        prompt_rate=seen(0.0),
        open_sessions=seen(20.0),
        context_tokens=seen(400_000.0),
    )
    return replace(quiet, **changes)


def pool_signals(**changes: Signal) -> PoolSignals:
    quiet = PoolSignals(
        prompt_rate=seen(0.0),
        hit_rate=Signal(None, 1.0),
        queue_time=Signal(None, 1.0),
        prefill_time=Signal(None, 1.0),
        inter_token_time=Signal(None, 1.0),
        running=seen(0.0),
        running_peak=seen(0.0),
        waiting=seen(0.0),
        kv_use=seen(0.0),
        prefill_speed=Signal(None, 1.0),
    )
    return replace(quiet, **changes)


def pool(kind: PoolKind, current: int, signals: PoolSignals | None = None, **changes: Any) -> PoolInputs:
    base = PoolInputs(
        name="coder-primary",
        kind=kind,
        min=1,
        max=10,
        current=current,
        ready_ages=(WARM,) * current,
        kv_tokens=1_000_000.0,
        prefill_speed=10_000.0,
        slots=50.0,
        cost_per_hour=4.0,
    )
    base = replace(base, **changes)
    found = signals if signals is not None else pool_signals()
    if found.reporting.missing:
        found = replace(found, reporting=seen(float(base.ready)))
    return replace(base, signals=found)


def world(
    prefill: int = 1,
    decode: int = 1,
    *,
    role: RoleSignals | None = None,
    prefill_signals: PoolSignals | None = None,
    decode_signals: PoolSignals | None = None,
    prefill_changes: dict[str, Any] | None = None,
    decode_changes: dict[str, Any] | None = None,
    **changes: Any,
) -> Inputs:
    base = Inputs(
        namespace="agents",
        agent_pool="coder",
        roles=(RoleInputs("primary", "coder-primary", "coder-primary", signals=role or role_signals()),),
        pools=(
            pool(PoolKind.PREFILL, prefill, prefill_signals, **(prefill_changes or {})),
            pool(PoolKind.DECODE, decode, decode_signals, **(decode_changes or {})),
        ),
        goals=Goals(ttft=2.0, itl=0.05),
    )
    return replace(base, **changes)


def quiet_for(seconds: float, replicas: int, now: float = NOW) -> PoolState:
    """A pool that was watched for so long and needed no more than `replicas` all the time."""
    return PoolState(
        since=now - seconds,
        last_evaluation=now - 15.0,
        recommendations=(Recommendation(now - 15.0, replicas),),
    )


def quiet_state(seconds: float = 400.0, replicas: int = 1) -> State:
    keys = ("prefill/coder-primary", "decode/coder-primary")
    return State(pools={key: quiet_for(seconds, replicas) for key in keys})


def desired(decision: Decision, kind: PoolKind) -> int:
    target = decision.target(kind, "coder-primary")
    assert target is not None
    return target.desired


def reason(decision: Decision, kind: PoolKind) -> Reason:
    target = decision.target(kind, "coder-primary")
    assert target is not None
    return target.reason


BUSY = pool_signals(prompt_rate=seen(70_000.0), hit_rate=seen(0.8), running=seen(2.0))
"""14,000 uncached tokens/s: 1.4 instances' worth of work, 4 at 35 %."""


class TestPrefill:
    def test_work_is_sized_at_the_target_utilisation(self) -> None:
        decision = decide(world(4, prefill_signals=BUSY), State(), NOW)
        target = decision.target(PoolKind.PREFILL, "coder-primary")
        assert target is not None
        assert (target.needed, target.desired, target.reason) == (4, 4, Reason.WITHIN_GOALS)

    def test_growth_jumps_to_what_is_needed(self) -> None:
        decision = decide(world(2, prefill_signals=BUSY), State(), NOW)
        # 2 warm ones, and the work of 2 more done by starting ones that count 0.8 each.
        assert desired(decision, PoolKind.PREFILL) == 2 + 3
        assert reason(decision, PoolKind.PREFILL) is Reason.PREFILL_WORK
        assert decision.reason is Reason.SCALING_UP

    def test_instances_that_start_are_not_asked_for_again(self) -> None:
        first = decide(world(2, prefill_signals=BUSY), State(), NOW)
        again = world(
            5, prefill_signals=BUSY, prefill_changes={"ready_ages": (WARM,) * 2, "starting_ages": (15.0,) * 3}
        )
        assert desired(decide(again, first.state, NOW + 15), PoolKind.PREFILL) == 5

    def test_the_measured_speed_counts_within_bounds_of_the_modelled(self) -> None:
        slow = replace(BUSY, prefill_speed=seen(100.0))
        decision = decide(world(8, prefill_signals=slow), State(), NOW)
        target = decision.target(PoolKind.PREFILL, "coder-primary")
        assert target is not None
        assert target.needed == 8  # half the modelled speed, not a hundredth

    def test_without_any_speed_nothing_grows(self) -> None:
        decision = decide(world(1, prefill_signals=BUSY, prefill_changes={"prefill_speed": None}), State(), NOW)
        assert desired(decision, PoolKind.PREFILL) == 1

    def test_a_backlog_adds_to_the_need(self) -> None:
        # 9,000,000 tokens x .2 / (10,000 x 90 s) = 2 instances more.
        role = role_signals(queued_prefill_tokens=seen(9_000_000.0))
        decision = decide(world(6, role=role, prefill_signals=BUSY), State(), NOW)
        target = decision.target(PoolKind.PREFILL, "coder-primary")
        assert target is not None
        assert (target.needed, target.message.split(" ")[0]) == (6, "9000000")

    def test_demand_that_fell_because_sessions_wait_does_not_shrink_the_pool(self) -> None:
        overload = pool_signals(prompt_rate=seen(5_000.0), hit_rate=seen(0.95), waiting=seen(100.0), running=seen(4.0))
        role = role_signals(queued_prefill_tokens=seen(100_000.0), arrivals=seen(0.1), completions=seen(0.1))
        decision = decide(world(4, role=role, prefill_signals=overload), quiet_state(), NOW)
        assert desired(decision, PoolKind.PREFILL) == 4
        assert reason(decision, PoolKind.PREFILL) is Reason.BACKLOG_TOO_OLD

    def test_a_long_prompt_that_is_being_served_is_not_a_backlog(self) -> None:
        # One 100,000 token prompt a minute: it is there now, and nobody queues behind it.
        signals = pool_signals(prompt_rate=seen(1_600.0), hit_rate=seen(0.9), running=seen(1.0), waiting_low=seen(0.0))
        role = role_signals(queued_prefill_tokens=seen(100_000.0), in_flight=seen(1.0))
        decision = decide(world(4, 4, role=role, prefill_signals=signals), quiet_state(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (3, 3)

    def test_arrivals_count_when_they_are_more_than_what_is_served(self) -> None:
        role = role_signals(arrivals=seen(4.0), completions=seen(1.0), prompt_rate=seen(70_000.0))
        decision = decide(world(4, role=role, prefill_signals=BUSY, prefill_changes={"max": 100}), State(), NOW)
        target = decision.target(PoolKind.PREFILL, "coder-primary")
        assert target is not None
        assert target.needed == 4 + 15  # 16 warm instances' worth, 12 of them by starting ones at 0.8

    def test_a_collapsed_hit_rate_is_not_fed_straight_into_the_need(self) -> None:
        assert planned_miss(0.3, 0.95, 3.0) == pytest.approx(0.15)
        assert planned_miss(0.3, None, 3.0) == pytest.approx(0.7)
        assert planned_miss(0.93, 0.95, 3.0) == pytest.approx(0.07)
        assert planned_miss(None, 0.95, 3.0) == pytest.approx(0.05)
        assert planned_miss(None, None, 3.0) == 1.0

    def test_the_hit_rate_is_remembered_in_quiet_times_only(self) -> None:
        state = State(pools={"prefill/coder-primary": PoolState(hit_rate=0.9)})
        calm = decide(world(4, prefill_signals=BUSY), state, NOW)
        late = role_signals(queued_prefill_tokens=seen(9_000_000.0))
        overloaded = decide(world(4, role=late, prefill_signals=BUSY), state, NOW)
        hit = calm.state.pools["prefill/coder-primary"].hit_rate
        assert hit is not None
        assert 0.8 < hit < 0.9
        assert overloaded.state.pools["prefill/coder-primary"].hit_rate == 0.9

    def test_the_pool_never_gets_smaller_than_what_holds_the_open_sessions(self) -> None:
        role = role_signals(context_tokens=seen(2_500_000.0))
        decision = decide(world(4, role=role), quiet_state(replicas=1), NOW)
        assert desired(decision, PoolKind.PREFILL) == 4
        grown = decide(world(1, role=role), State(), NOW)
        assert desired(grown, PoolKind.PREFILL) == 4  # 2.5 M / (1 M x .8)
        assert reason(grown, PoolKind.PREFILL) is Reason.CACHE_FLOOR

    def test_host_memory_lowers_the_floor(self) -> None:
        role = role_signals(context_tokens=seen(2_500_000.0))
        decision = decide(world(1, role=role, prefill_changes={"host_tokens": 3_000_000.0}), State(), NOW)
        assert desired(decision, PoolKind.PREFILL) == 1

    def test_sessions_of_unknown_size_against_an_unknown_capacity_hold_the_pool(self) -> None:
        decision = decide(world(4, prefill_changes={"kv_tokens": None}), quiet_state(), NOW)
        assert (desired(decision, PoolKind.PREFILL), reason(decision, PoolKind.PREFILL)) == (4, Reason.CACHE_FLOOR)


class TestLatency:
    SLOW = role_signals(ttft=seen(5.0), first_decode_time=seen(0.2))

    def test_a_long_prefill_queue_grows_prefill_only(self) -> None:
        signals = pool_signals(queue_time=seen(4.0), prefill_time=seen(0.8))
        decision = decide(world(2, 2, role=self.SLOW, prefill_signals=signals), State(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (3, 2)
        assert reason(decision, PoolKind.PREFILL) is Reason.TTFT_MISSED

    def test_slow_admission_to_decode_grows_decode_only(self) -> None:
        role = role_signals(ttft=seen(5.0), first_decode_time=seen(4.0))
        signals = pool_signals(queue_time=seen(0.5), prefill_time=seen(0.5))
        decision = decide(world(2, 2, role=role, prefill_signals=signals), State(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (2, 3)
        assert reason(decision, PoolKind.DECODE) is Reason.TTFT_MISSED

    def test_decode_is_not_blamed_for_a_prefill_pool_of_somebody_else(self) -> None:
        role = role_signals(ttft=seen(5.0), prefill_stage_time=seen(4.5), first_decode_time=seen(0.5))
        inputs = world(1, 2, role=role)
        decision = decide(replace(inputs, pools=inputs.pools[1:]), State(), NOW)
        assert desired(decision, PoolKind.DECODE) == 2

    def test_decode_does_not_shrink_while_a_prefill_pool_of_somebody_else_is_behind(self) -> None:
        role = role_signals(queued_prefill_tokens=seen(400_000.0), prompt_rate=seen(10_000.0))
        inputs = world(1, 3, role=role)
        decision = decide(replace(inputs, pools=inputs.pools[1:]), quiet_state(), NOW)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (3, Reason.BACKLOG_TOO_OLD)

    def test_a_prompt_that_is_slow_all_by_itself_grows_nothing(self) -> None:
        signals = pool_signals(queue_time=seen(0.1), prefill_time=seen(4.0), running=seen(1.0))
        decision = decide(world(2, 2, role=self.SLOW, prefill_signals=signals), State(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (2, 2)

    def test_prompts_that_share_an_instance_grow_prefill(self) -> None:
        signals = pool_signals(queue_time=seen(0.1), prefill_time=seen(4.0), running=seen(6.0))
        decision = decide(world(2, 2, role=self.SLOW, prefill_signals=signals), State(), NOW)
        assert desired(decision, PoolKind.PREFILL) == 3

    def test_the_next_step_waits_until_the_last_one_is_warm(self) -> None:
        signals = pool_signals(queue_time=seen(4.0), prefill_time=seen(0.8))
        for changes in ({"ready_ages": (WARM,), "starting_ages": (20.0,)}, {"ready_ages": (WARM, 30.0)}):
            decision = decide(world(2, role=self.SLOW, prefill_signals=signals, prefill_changes=changes), State(), NOW)
            assert desired(decision, PoolKind.PREFILL) == 2

    def test_slow_tokens_grow_decode(self) -> None:
        decision = decide(world(2, 4, decode_signals=pool_signals(inter_token_time=seen(0.08))), State(), NOW)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (5, Reason.ITL_MISSED)

    def test_a_gap_that_only_the_engines_coarse_buckets_see_is_no_miss(self) -> None:
        fast = role_signals(token_time=seen(0.02))
        signals = pool_signals(inter_token_time=seen(0.08))
        decision = decide(world(2, 4, role=fast, decode_signals=signals), State(), NOW)
        assert desired(decision, PoolKind.DECODE) == 4
        slow = role_signals(token_time=seen(0.06))
        decision = decide(world(2, 4, role=slow, decode_signals=signals), State(), NOW)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (5, Reason.ITL_MISSED)

    @pytest.mark.parametrize("token_time", [Signal(None, 1.0), Signal(0.02, 300.0), MISSING])
    def test_without_a_current_word_from_the_gateway_the_engines_gap_counts(self, token_time: Signal) -> None:
        signals = pool_signals(inter_token_time=seen(0.08))
        decision = decide(world(2, 4, role=role_signals(token_time=token_time), decode_signals=signals), State(), NOW)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (5, Reason.ITL_MISSED)

    def test_a_missed_goal_is_not_called_well_while_new_instances_warm_up(self) -> None:
        signals = pool_signals(inter_token_time=seen(0.08))
        inputs = world(
            2, 4, decode_signals=signals, decode_changes={"ready_ages": (WARM,) * 3, "starting_ages": (5.0,)}
        )
        decision = decide(inputs, State(), NOW)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (4, Reason.ITL_MISSED)
        assert decision.reason is Reason.ITL_MISSED
        assert decision.message == (
            "decode/coder-primary stays at 4: time between tokens 80 ms, goal 50 ms; "
            "what was asked for is not ready and warm yet"
        )

    def test_a_pool_near_its_goal_does_not_shrink(self) -> None:
        decision = decide(world(1, 4, decode_signals=pool_signals(inter_token_time=seen(0.045))), quiet_state(), NOW)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (4, Reason.LATENCY_TOO_HIGH)


class TestDecode:
    def test_concurrency_is_sized_from_the_busiest_moment_and_the_queue(self) -> None:
        signals = pool_signals(running=seen(10.0), running_peak=seen(100.0), waiting=seen(20.0))
        role = role_signals(in_flight=seen(30.0))
        decision = decide(world(1, 1, role=role, decode_signals=signals), State(), NOW)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (3, Reason.CONCURRENCY)

    def test_kv_memory_is_a_limit_of_its_own(self) -> None:
        signals = pool_signals(running=seen(4.0), kv_use=seen(0.9))
        role = role_signals(in_flight=seen(4.0))
        decision = decide(world(1, 2, role=role, decode_signals=signals), State(), NOW)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (3, Reason.KV_MEMORY)

    def test_decode_grows_for_requests_that_are_still_in_prefill(self) -> None:
        role = role_signals(in_flight=seen(200.0), queued_prefill_tokens=seen(100.0))
        decision = decide(world(1, 1, role=role), State(), NOW)
        # 200 x .7 / (50 x .8)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (4, Reason.CONCURRENCY)

    def test_decode_does_not_shrink_while_prefill_is_behind(self) -> None:
        role = role_signals(queued_prefill_tokens=seen(400_000.0))
        decision = decide(world(1, 3, role=role, prefill_signals=BUSY), quiet_state(), NOW)
        assert (desired(decision, PoolKind.DECODE), reason(decision, PoolKind.DECODE)) == (3, Reason.BACKLOG_TOO_OLD)

    def test_an_aggregated_pool_adds_up_prefill_and_decode(self) -> None:
        signals = replace(BUSY, running=seen(200.0), running_peak=seen(200.0))
        base = world()
        inputs = replace(
            base,
            roles=(replace(base.roles[0], prefill=None),),
            pools=(pool(PoolKind.DECODE, 1, signals, aggregated=True),),
        )
        target = decide(inputs, State(), NOW).target(PoolKind.DECODE, "coder-primary")
        assert target is not None
        assert (target.needed, target.reason) == (8, Reason.MIXED_LOAD)  # (1.4 + 200 / 50) / .7 = 7.7


class TestShrinking:
    def test_one_instance_goes_after_the_stabilization(self) -> None:
        decision = decide(world(4, 4), quiet_state(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (3, 3)
        assert reason(decision, PoolKind.PREFILL) is Reason.LOAD_FELL
        assert decision.reason is Reason.SCALING_DOWN

    def test_nothing_goes_before_the_load_was_low_for_the_whole_window(self) -> None:
        for state in (State(), quiet_state(200.0), quiet_state(replicas=4)):
            decision = decide(world(4, 4), state, NOW)
            assert desired(decision, PoolKind.PREFILL) == 4
            assert reason(decision, PoolKind.PREFILL) is Reason.STABILIZING

    def test_the_next_one_waits_for_the_interval(self) -> None:
        first = decide(world(4), quiet_state(), NOW)
        early = decide(world(3), first.state, NOW + 15)
        assert desired(early, PoolKind.PREFILL) == 3
        state, last = early.state, early
        for passed in range(30, 121, 15):
            last = decide(world(3), state, NOW + passed)
            state = last.state
        assert desired(last, PoolKind.PREFILL) == 2

    def test_nothing_goes_while_another_drains(self) -> None:
        decision = decide(world(4, prefill_changes={"draining": 1}), quiet_state(), NOW)
        assert (desired(decision, PoolKind.PREFILL), reason(decision, PoolKind.PREFILL)) == (4, Reason.DRAINING)

    def test_a_pause_of_the_operator_starts_the_window_again(self) -> None:
        decision = decide(world(4), quiet_state(), NOW + 3600)
        assert (desired(decision, PoolKind.PREFILL), reason(decision, PoolKind.PREFILL)) == (4, Reason.STABILIZING)

    def test_a_clock_that_was_set_back_starts_the_window_again(self) -> None:
        decision = decide(world(4), quiet_state(), NOW - 3600)
        assert desired(decision, PoolKind.PREFILL) == 4

    def test_the_minimum_holds(self) -> None:
        decision = decide(world(2, prefill_changes={"min": 2}), quiet_state(), NOW)
        assert (desired(decision, PoolKind.PREFILL), reason(decision, PoolKind.PREFILL)) == (2, Reason.AT_MINIMUM)


class TestIgnorance:
    def test_missing_metrics_never_shrink_a_pool(self) -> None:
        base = world(4, 4)
        inputs = replace(
            base,
            roles=tuple(replace(role, signals=RoleSignals()) for role in base.roles),
            pools=tuple(replace(found, signals=PoolSignals()) for found in base.pools),
            metrics_error="Prometheus at http://prometheus does not answer",
        )
        decision = decide(inputs, quiet_state(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (4, 4)
        assert decision.reason is Reason.METRICS_MISSING
        fresh = decision.finding(ConditionType.METRICS_FRESH)
        assert fresh is not None
        assert (fresh.status, fresh.reason) == (False, Reason.PROMETHEUS_UNREACHABLE)

    @pytest.mark.parametrize("signal", ["prompt_rate", "running", "waiting", "reporting"])
    def test_one_missing_signal_holds_its_pool(self, signal: str) -> None:
        inputs = world(4, 4)
        broken = replace(inputs.pools[0], signals=replace(inputs.pools[0].signals, **{signal: MISSING}))
        decision = decide(replace(inputs, pools=(broken, inputs.pools[1])), quiet_state(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (4, 3)
        assert reason(decision, PoolKind.PREFILL) is Reason.METRICS_MISSING
        fresh = decision.finding(ConditionType.METRICS_FRESH)
        assert fresh is not None
        assert f"prefill/coder-primary/{signal}" in fresh.message

    @pytest.mark.parametrize("signal", ["queued_prefill_tokens", "context_tokens"])
    def test_a_silent_gateway_holds_prefill(self, signal: str) -> None:
        decision = decide(world(4, role=role_signals(**{signal: MISSING})), quiet_state(), NOW)
        assert desired(decision, PoolKind.PREFILL) == 4

    def test_an_instance_that_does_not_report_holds_its_pool(self) -> None:
        signals = pool_signals(reporting=seen(3.0))
        decision = decide(world(4, prefill_signals=signals), quiet_state(), NOW)
        assert (desired(decision, PoolKind.PREFILL), reason(decision, PoolKind.PREFILL)) == (4, Reason.PARTLY_MEASURED)

    def test_old_numbers_still_grow_a_pool_up_to_the_maximum_age(self) -> None:
        busy = replace(BUSY, prompt_rate=seen(70_000.0, 100.0), hit_rate=seen(0.8, 100.0))
        decision = decide(world(1, prefill_signals=busy), State(), NOW)
        assert desired(decision, PoolKind.PREFILL) > 1
        fresh = decision.finding(ConditionType.METRICS_FRESH)
        assert fresh is not None
        assert (fresh.status, fresh.reason) == (False, Reason.METRICS_STALE)

    def test_the_last_good_numbers_count_after_prometheus_went_away(self) -> None:
        before = decide(world(1, 1), State(), NOW)
        busy = decide(world(1, prefill_signals=BUSY, max_cost_per_hour=8.0), before.state, NOW + 15)
        assert desired(busy, PoolKind.PREFILL) == 1  # no money
        blind = world(1)
        blind = replace(
            blind,
            roles=tuple(replace(role, signals=RoleSignals()) for role in blind.roles),
            pools=tuple(replace(found, signals=PoolSignals()) for found in blind.pools),
        )
        assert desired(decide(blind, busy.state, NOW + 60), PoolKind.PREFILL) > 1
        assert desired(decide(blind, busy.state, NOW + 600), PoolKind.PREFILL) == 1

    def test_hold_means_that_old_numbers_do_not_grow_a_pool(self) -> None:
        busy = replace(BUSY, prompt_rate=seen(70_000.0, 100.0))
        settings = Settings(missing_up=OnMissingUp.HOLD)
        assert desired(decide(world(1, prefill_signals=busy, settings=settings), State(), NOW), PoolKind.PREFILL) == 1

    def test_bounds_hold_even_without_metrics(self) -> None:
        inputs = world(1, prefill_signals=PoolSignals(), prefill_changes={"min": 3})
        decision = decide(inputs, State(), NOW)
        assert (desired(decision, PoolKind.PREFILL), reason(decision, PoolKind.PREFILL)) == (3, Reason.AT_MINIMUM)

    def test_every_input_is_reported_with_its_age_or_as_missing(self) -> None:
        state = State(last_good={"prefill/coder-primary/running": LastGood(7.0, NOW - 500.0)})
        inputs = world(1)
        gone = replace(inputs.pools[0], signals=replace(inputs.pools[0].signals, running=MISSING))
        decision = decide(replace(inputs, pools=(gone, inputs.pools[1])), state, NOW)
        used = {entry.name: entry for entry in decision.inputs}
        assert (used["prefill/coder-primary/running"].value, used["prefill/coder-primary/running"].age) == (None, 500.0)
        assert used["role/primary/open_sessions"].age == 1.0


class TestLimits:
    def test_the_maximum_is_reported_as_a_limit(self) -> None:
        decision = decide(world(2, prefill_signals=BUSY, prefill_changes={"max": 3}), State(), NOW)
        assert desired(decision, PoolKind.PREFILL) == 3
        limited = decision.finding(ConditionType.SCALING_LIMITED)
        assert limited is not None
        assert (limited.status, limited.reason) == (True, Reason.AT_MAXIMUM)

    def test_growth_stops_where_devices_end(self) -> None:
        decision = decide(world(2, prefill_signals=BUSY, prefill_changes={"placeable": 1}), State(), NOW)
        assert desired(decision, PoolKind.PREFILL) == 3
        limited = decision.finding(ConditionType.SCALING_LIMITED)
        assert limited is not None
        assert limited.reason is Reason.NO_CAPACITY

    def test_the_budget_is_shared_in_proportion(self) -> None:
        role = role_signals(in_flight=seen(200.0), context_tokens=seen(0.0))
        base = world(1, 1, role=role, prefill_signals=BUSY, max_cost_per_hour=24.0)
        decision = decide(base, State(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (3, 3)
        assert decision.cost_per_hour == 24.0
        limited = decision.finding(ConditionType.SCALING_LIMITED)
        assert limited is not None
        assert limited.reason is Reason.BUDGET_EXHAUSTED

    def test_nobody_loses_an_instance_for_the_growth_of_another(self) -> None:
        role = role_signals(in_flight=seen(400.0))
        base = world(4, 1, role=role, prefill_signals=BUSY, max_cost_per_hour=20.0)
        decision = decide(base, State(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (4, 1)

    def test_a_budget_that_was_lowered_is_kept_at_once(self) -> None:
        decision = decide(world(4, 4, max_cost_per_hour=20.0), State(), NOW)
        assert decision.cost_per_hour == 20.0
        assert decision.reason is Reason.SCALING_DOWN

    def test_a_budget_below_the_minimums_is_reported_even_without_load(self) -> None:
        decision = decide(world(1, 1, max_cost_per_hour=7.0), State(), NOW)
        assert (desired(decision, PoolKind.PREFILL), desired(decision, PoolKind.DECODE)) == (1, 1)
        limited = decision.finding(ConditionType.SCALING_LIMITED)
        assert limited is not None
        assert (limited.status, limited.reason) == (True, Reason.BUDGET_EXHAUSTED)
        assert limited.message == (
            "replicas.min of all pools and tiers alone costs 8 per hour, budget.maxCostPerHour is 7: "
            "raise the budget or lower the minimums"
        )

    def test_what_has_no_known_cost_does_not_grow_under_a_budget(self) -> None:
        base = world(1, prefill_signals=BUSY, prefill_changes={"cost_per_hour": None}, max_cost_per_hour=100.0)
        decision = decide(base, State(), NOW)
        assert (desired(decision, PoolKind.PREFILL), reason(decision, PoolKind.PREFILL)) == (1, Reason.COST_UNKNOWN)
        assert decision.cost_per_hour is None


class TestModes:
    def test_off_has_no_targets(self) -> None:
        off = Settings(mode=AutoscalingMode.OFF)
        decision = decide(world(1, prefill_signals=BUSY, settings=off), quiet_state(), NOW)
        assert (decision.targets, decision.apply, decision.reason) == ((), False, Reason.AUTOSCALING_OFF)

    def test_a_dry_run_says_what_it_would_do_and_remembers_no_move(self) -> None:
        dry = Settings(mode=AutoscalingMode.DRY_RUN)
        decision = decide(world(1, prefill_signals=BUSY, settings=dry), State(), NOW)
        assert desired(decision, PoolKind.PREFILL) > 1
        assert not decision.apply
        assert decision.state.pools["prefill/coder-primary"].last_up is None


class TestTiers:
    def tiers(self, servers: int, *, sessions: float = 400_000.0, **changes: Signal) -> Inputs:
        base = world(1, 1, role=role_signals(context_tokens=seen(sessions)))
        role = replace(base.roles[0], tiers=("cold",), kv_bytes_per_token=100_000.0)
        signals = TierSignals(capacity_bytes=seen(servers * 1e11), used_bytes=seen(1e9), reporting=seen(float(servers)))
        tier = TierInputs(
            name="cold",
            min=1,
            max=8,
            current=servers,
            ready_ages=(WARM,) * servers,
            capacity_bytes=1e11,
            retention=600.0,
            signals=replace(signals, **changes),
        )
        return replace(base, roles=(role,), tiers=(tier,))

    def target(self, inputs: Inputs, state: State) -> tuple[int, Reason]:
        found = decide(inputs, state, NOW).target(PoolKind.TIER, "cold")
        assert found is not None
        return found.desired, found.reason

    def test_servers_follow_what_open_sessions_hold(self) -> None:
        # 2 M tokens x 100 kB = 200 GB; a server takes 90.
        assert self.target(self.tiers(1, sessions=2e6), State()) == (3, Reason.SESSION_CACHE)

    def test_a_full_tier_that_evicts_too_early_grows(self) -> None:
        inputs = self.tiers(2, used_bytes=seen(1.9e11), eviction_age=seen(120.0))
        assert self.target(inputs, State()) == (3, Reason.EVICTED_TOO_EARLY)

    def test_an_eviction_long_ago_means_nothing_in_a_tier_with_room(self) -> None:
        inputs = self.tiers(2, used_bytes=seen(1e10), eviction_age=seen(120.0))
        assert self.target(inputs, State())[0] == 2

    def test_servers_leave_one_at_a_time_and_late(self) -> None:
        assert self.target(self.tiers(4), State()) == (4, Reason.STABILIZING)
        watched = State(pools={"tier/cold": quiet_for(400.0, 1)})
        assert self.target(self.tiers(4), watched) == (3, Reason.LOAD_FELL)

    def test_the_same_law_with_other_constants_is_part_of_the_inputs(self) -> None:
        inputs = replace(self.tiers(1, sessions=2e6), tuning=Tuning(tier_fill=0.5))
        assert self.target(inputs, State()) == (4, Reason.SESSION_CACHE)


def test_every_input_of_the_largest_agent_pool_fits_into_its_status() -> None:
    numbers = range(8)
    inputs = Inputs(
        "agents",
        "coder",
        roles=tuple(RoleInputs(f"r{n}", f"p{n}", f"p{n}") for n in numbers),
        pools=tuple(pool(kind, 1, name=f"p{n}") for n in numbers for kind in (PoolKind.PREFILL, PoolKind.DECODE)),
        tiers=tuple(TierInputs(f"t{n}", 1, 1, 1) for n in range(4)),
    )
    decision = decide(inputs, State(), NOW)
    record = decision_record(decision, AutoscalingMode.AUTO)
    assert [shown.name for shown in record.inputs] == [used.name for used in decision.inputs]
    assert len(record.targets) == 20
