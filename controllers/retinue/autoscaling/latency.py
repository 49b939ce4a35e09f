"""Which stage makes a role miss its time to first token, and so which pool has to grow."""

from dataclasses import dataclass
from enum import StrEnum

from retinue.autoscaling.inputs import Inputs, PoolInputs, PoolKind, RoleInputs
from retinue.autoscaling.needs import Hold, Need
from retinue.autoscaling.readings import Readings
from retinue.autoscaling.supply import settled, whole
from retinue.conditions import Reason


class Stage(StrEnum):
    """Where a request waits before its first token. The value reads well in a sentence."""

    QUEUE = "the prefill queue"
    SHARED_PREFILL = "prefill shared with other requests"
    LONE_PREFILL = "the prefill of the prompt alone"
    FIRST_DECODE = "KV transfer and admission to decode"


@dataclass(frozen=True)
class Blame:
    """The stage that takes the largest part of a role's time to first token."""

    stage: Stage
    seconds: float
    ttft: float


def blame(role: RoleInputs, inputs: Inputs, readings: Readings) -> Blame | None:
    """The slowest stage of a role now; None if its time to first token or all of its stages are not current."""
    ttft = readings.get(role.key, "ttft")
    if not ttft.current or ttft.value is None:
        return None
    kind = PoolKind.DECODE if role.prefill is None else PoolKind.PREFILL
    pool = inputs.pool(kind, role.decode if role.prefill is None else role.prefill)
    stages: list[tuple[float, Stage]] = []
    if pool is not None:
        running = readings.value(pool.key, "running")
        shared = running is not None and running > pool.ready
        _stage(stages, Stage.QUEUE, readings, pool.key, "queue_time")
        _stage(stages, Stage.SHARED_PREFILL if shared else Stage.LONE_PREFILL, readings, pool.key, "prefill_time")
    if role.prefill is not None:
        if not stages:
            # The pool belongs to somebody else, or its engines are silent: what the gateway saw keeps decode from
            # being blamed for it.
            _stage(stages, Stage.LONE_PREFILL, readings, role.key, "prefill_stage_time")
        _stage(stages, Stage.FIRST_DECODE, readings, role.key, "first_decode_time")
    if not stages:
        return None
    seconds, stage = max(stages, key=lambda entry: entry[0])
    return Blame(stage, seconds, ttft.value)


def ttft_verdict(pool: PoolInputs, inputs: Inputs, readings: Readings) -> tuple[list[Need], list[Hold]]:
    """What missed or nearly missed times to first token mean for this pool.

    A single prompt that takes longer than the goal all by itself gets no faster with more instances: nothing follows.
    """
    needs: list[Need] = []
    holds: list[Hold] = []
    goal = inputs.goals.ttft
    for role in inputs.roles_of(pool):
        found = blame(role, inputs, readings)
        if found is None or not _concerns(found.stage, pool, role):
            continue
        text = f"role {role.name}: first token after {found.ttft:.3g} s, goal {goal:.3g} s, mostly {found.stage.value}"
        if found.ttft > goal:
            needs.append(_step(Reason.TTFT_MISSED, text, pool, inputs))
        if found.ttft > inputs.tuning.latency_slack * goal:
            holds.append(Hold(Reason.LATENCY_TOO_HIGH, text))
    return needs, holds


def itl_verdict(pool: PoolInputs, inputs: Inputs, readings: Readings) -> tuple[list[Need], list[Hold]]:
    """What a missed or nearly missed time between tokens means for this decode pool."""
    goal = inputs.goals.itl
    gap = _time_between_tokens(pool, inputs, readings)
    if gap is None or gap <= inputs.tuning.latency_slack * goal:
        return [], []
    text = f"time between tokens {gap * 1000:.3g} ms, goal {goal * 1000:.3g} ms"
    needs = [_step(Reason.ITL_MISSED, text, pool, inputs)] if gap > goal else []
    return needs, [Hold(Reason.LATENCY_TOO_HIGH, text)]


def _time_between_tokens(pool: PoolInputs, inputs: Inputs, readings: Readings) -> float | None:
    """The smaller of what the engines and the gateway say; None if the engines say nothing current.

    Both are quantiles of histograms, right to a bucket only. Engines have one bucket from 10 to 25 ms (vLLM): a goal
    within it would seem missed as soon as one gap in twenty is above 10 ms. The gateway's buckets are finer there.
    """
    engines = readings.get(pool.key, "inter_token_time")
    if not engines.current or engines.value is None:
        return None
    requests = [readings.get(role.key, "token_time") for role in inputs.roles_of(pool)]
    known = [reading.value for reading in requests if reading.current and reading.value is not None]
    return min(engines.value, max(known)) if known else engines.value


def _step(reason: Reason, text: str, pool: PoolInputs, inputs: Inputs) -> Need:
    # A new instance first makes latency worse, as its cache is empty: one step, then wait until it is warm.
    if settled(pool, inputs.settings, inputs.tuning):
        instances = pool.current + max(1, whole(inputs.tuning.latency_step * pool.current))
        return Need(reason, instances, instances, text)
    return Need(reason, pool.current, pool.current, f"{text}; what was asked for is not ready and warm yet")


def _concerns(stage: Stage, pool: PoolInputs, role: RoleInputs) -> bool:
    if stage is Stage.FIRST_DECODE:
        return pool.kind is PoolKind.DECODE
    if stage is Stage.LONE_PREFILL:
        return False
    return pool.kind is (PoolKind.DECODE if role.prefill is None else PoolKind.PREFILL)


def _stage(stages: list[tuple[float, Stage]], stage: Stage, readings: Readings, key: str, signal: str) -> None:
    reading = readings.get(key, signal)
    if reading.current and reading.value is not None:
        stages.append((reading.value, stage))
