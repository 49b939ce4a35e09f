"""One decision for all pools and tiers of an AgentPool: a pure function of inputs, state and time."""

from dataclasses import replace

from retinue.api.agentgoals import AutoscalingMode
from retinue.autoscaling.budget import allot, cost
from retinue.autoscaling.decision import Clamp, Decision, PoolState, State, Target
from retinue.autoscaling.decode import assess_decode
from retinue.autoscaling.inputs import Inputs, PoolInputs, PoolKind, TierInputs
from retinue.autoscaling.needs import MISSED, Assessment
from retinue.autoscaling.prefill import assess_prefill
from retinue.autoscaling.readings import Readings
from retinue.autoscaling.steps import Step, required_of, stale_or_missing, take_step
from retinue.autoscaling.tiers import assess_tier
from retinue.conditions import ConditionType, Finding, Reason

_LIMITS = (Reason.BUDGET_EXHAUSTED, Reason.COST_UNKNOWN, Reason.NO_CAPACITY, Reason.AT_MAXIMUM)
"""Clamps that leave a need unmet."""


def decide(inputs: Inputs, state: State, now: float) -> Decision:
    """Sizes for all pools and tiers at `now` (seconds since the epoch).

    Order: judge the numbers, let each law say what it needs, make one step per pool, fit all steps into the budget. The
    same arguments give the same decision, bit for bit; `decision.state` goes into the next call.
    """
    readings = Readings(inputs, state, now)
    assessed = {
        subject.key: _assess(subject, inputs, readings, _state_of(state, subject)) for subject in inputs.subjects
    }
    fresh = _metrics_fresh(inputs, assessed)
    mode = inputs.settings.mode
    if mode is AutoscalingMode.OFF:
        text = "autoscaling.mode is Off: replicas belong to the user"
        limited = Finding(ConditionType.SCALING_LIMITED, False, Reason.AUTOSCALING_OFF, text)
        return Decision(
            time=now,
            apply=False,
            reason=Reason.AUTOSCALING_OFF,
            message=text,
            targets=(),
            inputs=readings.used(),
            findings=(limited, fresh),
            cost_per_hour=_current_cost(inputs),
            # Whoever sizes the pools meanwhile, this law has not watched: its windows start again.
            state=State(last_good=readings.next_last_good()),
        )
    steps = [
        take_step(subject, assessed[subject.key], inputs, _state_of(state, subject), now) for subject in inputs.subjects
    ]
    allotment = allot(steps, inputs.max_cost_per_hour)
    targets = tuple(_target(step, allotment.granted, allotment.unknown_cost, inputs) for step in steps)
    apply = mode is AutoscalingMode.AUTO
    reason, message = _summary(targets)
    return Decision(
        time=now,
        apply=apply,
        reason=reason,
        message=message,
        targets=targets,
        inputs=readings.used(),
        findings=(_scaling_limited(targets, inputs), fresh),
        cost_per_hour=None
        if any(step.subject.cost_per_hour is None for step in steps)
        else cost(steps, {target.key: target.desired for target in targets}),
        state=State(
            pools={
                step.subject.key: _next_state(step, target, assessed[step.subject.key], inputs, readings, now, apply)
                for step, target in zip(steps, targets, strict=True)
            },
            last_good=readings.next_last_good(),
        ),
    )


def _assess(subject: PoolInputs | TierInputs, inputs: Inputs, readings: Readings, state: PoolState) -> Assessment:
    if isinstance(subject, TierInputs):
        return assess_tier(subject, inputs, readings)
    if subject.kind is PoolKind.PREFILL:
        return assess_prefill(subject, inputs, readings, state)
    return assess_decode(subject, inputs, readings, state)


def _state_of(state: State, subject: PoolInputs | TierInputs) -> PoolState:
    return state.pools.get(subject.key, PoolState())


def _target(step: Step, granted: dict[str, int], unknown_cost: frozenset[str], inputs: Inputs) -> Target:
    subject = step.subject
    desired = granted[subject.key]
    clamps = list(step.clamps)
    reason, message = step.reason, step.message
    if desired < step.wanted:
        if subject.key in unknown_cost:
            text = f"{step.wanted} wanted, but the cost of one is unknown: set costPerNodeHour of its node class"
            clamps.append(Clamp(Reason.COST_UNKNOWN, text))
        else:
            text = f"{step.wanted} wanted, {desired} fit into budget.maxCostPerHour of {inputs.max_cost_per_hour:g}"
            clamps.append(Clamp(Reason.BUDGET_EXHAUSTED, text))
    if clamps and _direction(desired, subject.current) != _direction(step.unlimited, subject.current):
        # The load would have moved it elsewhere: the limit is the reason for where it ends up.
        reason, message = clamps[-1].reason, clamps[-1].message
    return Target(subject.kind, subject.name, subject.current, step.needed, desired, reason, message, tuple(clamps))


def _direction(size: int, current: int) -> int:
    return (size > current) - (size < current)


def _next_state(
    step: Step,
    target: Target,
    assessment: Assessment,
    inputs: Inputs,
    readings: Readings,
    now: float,
    apply: bool,
) -> PoolState:
    state = step.state
    # A dry run moves nothing, so it must not remember moves.
    if apply and target.desired > target.current:
        state = replace(state, last_up=now)
    if apply and target.desired < target.current:
        state = replace(state, last_down=now)
    return replace(state, hit_rate=_remembered_hit_rate(step, state, assessment, inputs, readings))


def _remembered_hit_rate(
    step: Step, state: PoolState, assessment: Assessment, inputs: Inputs, readings: Readings
) -> float | None:
    if isinstance(step.subject, TierInputs) or assessment.overloaded:
        return state.hit_rate
    hit, traffic = readings.get(step.subject.key, "hit_rate"), readings.get(step.subject.key, "prompt_rate")
    if not hit.current or hit.value is None or not traffic.current or not traffic.value:
        return state.hit_rate
    if state.hit_rate is None:
        return min(hit.value, 1.0)
    passed = inputs.settings.evaluation_interval
    weight = passed / (passed + inputs.tuning.memory * inputs.settings.metrics_window)
    return state.hit_rate + weight * (min(hit.value, 1.0) - state.hit_rate)


def _summary(targets: tuple[Target, ...]) -> tuple[Reason, str]:
    ups = [target for target in targets if target.desired > target.current]
    downs = [target for target in targets if target.desired < target.current]
    moves = "; ".join(_sentence(target) for target in (*ups, *downs))
    if ups:
        return Reason.SCALING_UP, moves
    if downs:
        return Reason.SCALING_DOWN, moves
    # A missed goal, or else the first that is not simply well, so that one glance shows what stands in the way.
    missed = [target for target in targets if target.reason in MISSED]
    odd = next((target for target in (*missed, *targets) if target.reason is not Reason.WITHIN_GOALS), None)
    if odd is not None:
        return odd.reason, f"{odd.key} stays at {odd.current}: {odd.message}"
    return Reason.WITHIN_GOALS, "all pools and tiers have what they need"


def _sentence(target: Target) -> str:
    return f"{target.key} {target.current} -> {target.desired} ({target.reason.value}: {target.message})"


def _scaling_limited(targets: tuple[Target, ...], inputs: Inputs) -> Finding:
    least = sum(subject.min * (subject.cost_per_hour or 0.0) for subject in inputs.subjects)
    if inputs.max_cost_per_hour is not None and least > inputs.max_cost_per_hour:
        text = (
            f"replicas.min of all pools and tiers alone costs {least:g} per hour, budget.maxCostPerHour is "
            f"{inputs.max_cost_per_hour:g}: raise the budget or lower the minimums"
        )
        return Finding(ConditionType.SCALING_LIMITED, True, Reason.BUDGET_EXHAUSTED, text)
    for wanted in _LIMITS:
        for target in targets:
            for clamp in target.clamps:
                if clamp.reason is wanted:
                    text = f"{target.key}: {clamp.message}"
                    return Finding(ConditionType.SCALING_LIMITED, True, wanted, text)
    text = "every pool and tier may have what the load asks for"
    return Finding(ConditionType.SCALING_LIMITED, False, Reason.NOT_LIMITED, text)


def _metrics_fresh(inputs: Inputs, assessed: dict[str, Assessment]) -> Finding:
    if inputs.metrics_error is not None:
        text = f"{inputs.metrics_error}; nothing shrinks until metrics are back"
        return Finding(ConditionType.METRICS_FRESH, False, Reason.PROMETHEUS_UNREACHABLE, text)
    needed = {
        reading.name: reading
        for subject in inputs.subjects
        for reading in required_of(subject, assessed[subject.key].required)
    }
    unknown = stale_or_missing(tuple(needed.values()))
    if unknown is not None:
        text = f"{unknown.message}; what depends on them does not shrink"
        return Finding(ConditionType.METRICS_FRESH, False, unknown.reason, text)
    text = f"{len(needed)} signals are current"
    return Finding(ConditionType.METRICS_FRESH, True, Reason.METRICS_CURRENT, text)


def _current_cost(inputs: Inputs) -> float | None:
    total = 0.0
    for subject in inputs.subjects:
        if subject.cost_per_hour is None:
            return None
        total += subject.current * subject.cost_per_hour
    return total
