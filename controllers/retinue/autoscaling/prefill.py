"""How many instances prefill needs: uncached tokens and backlog against measured speed, with room for the tail."""

from dataclasses import dataclass

from retinue.autoscaling.cachefloor import floor_need
from retinue.autoscaling.decision import PoolState
from retinue.autoscaling.inputs import Inputs, PoolInputs, RoleInputs
from retinue.autoscaling.latency import ttft_verdict
from retinue.autoscaling.needs import Assessment, Hold, Need
from retinue.autoscaling.readings import Readings
from retinue.autoscaling.supply import instances_for
from retinue.conditions import Reason

_LEAST_MISS = 0.01
"""A remembered miss rate below this is not used as a limit: its multiples would hide any change of the traffic."""


@dataclass(frozen=True)
class PrefillLoad:
    """The prefill work of a pool. None = unknown."""

    speed: float | None
    """Uncached tokens/s of one busy instance."""
    prompt_rate: float | None
    """Prompt tokens/s asked for."""
    miss: float
    """Share of them to plan as uncached."""
    backlog_tokens: float | None
    """Prompt tokens waiting or in prefill now."""
    backlog_age: float | None
    """Seconds that the backlog takes at the speed at which prompts are served now (Little's law)."""
    queued: bool = True
    """Whether requests queue all the time. Otherwise all of the backlog is being served, or nobody waits long."""

    @property
    def instances(self) -> float | None:
        """Fully busy instances' worth of arriving work."""
        if self.speed is None or self.prompt_rate is None:
            return None
        return self.prompt_rate * self.miss / self.speed


def assess_prefill(pool: PoolInputs, inputs: Inputs, readings: Readings, state: PoolState) -> Assessment:
    """All needs and holds of a pool that does prefill, a prefill pool or an aggregated decode pool."""
    load = measure(pool, inputs, readings, state)
    needs = work_needs(pool, load, inputs)
    holds: list[Hold] = []
    floor = floor_need(pool, inputs, readings)
    if isinstance(floor, Need):
        needs.append(floor)
    elif floor is not None:
        holds.append(floor)
    late = backlog_hold(load, inputs)
    if late is not None:
        holds.append(late)
    missed, near = ttft_verdict(pool, inputs, readings)
    roles = inputs.roles_of(pool)
    return Assessment(
        needs=(*needs, *missed),
        holds=(*holds, *near),
        required=(
            *(readings.get(role.key, name) for role in roles for name in ("queued_prefill_tokens", "context_tokens")),
            *(readings.get(pool.key, name) for name in ("prompt_rate", "running", "waiting", "reporting")),
        ),
        overloaded=late is not None,
    )


def measure(pool: PoolInputs, inputs: Inputs, readings: Readings, state: PoolState) -> PrefillLoad:
    """The load of a pool from what is known."""
    roles = inputs.roles_of(pool)
    served = readings.value(pool.key, "prompt_rate")
    offered = [rate for rate in (_offered(role, readings) for role in roles) if rate is not None]
    # Served tokens equal capacity in overload, arrivals fall when sessions wait: either alone is too low (evidence 5).
    rates = [rate for rate in (served, sum(offered) if offered else None) if rate is not None]
    backlog = readings.total([role.key for role in roles], "queued_prefill_tokens")
    if backlog is None:
        backlog = _engine_backlog(pool, roles, readings)
    return PrefillLoad(
        speed=_speed(pool, inputs, readings),
        prompt_rate=max(rates) if rates else None,
        miss=planned_miss(readings.value(pool.key, "hit_rate"), state.hit_rate, inputs.tuning.collapse_limit),
        backlog_tokens=backlog,
        backlog_age=backlog / served if backlog is not None and served else None,
        queued=readings.value(pool.key, "waiting_low") != 0.0,
    )


def planned_miss(hit_rate: float | None, remembered: float | None, collapse_limit: float) -> float:
    """The miss rate to plan with.

    A hit rate that collapses far below what the cache reached in quiet times is a symptom of overload: sessions lost
    their place. Planning with it in full would ask for instances that are idle once the cache is warm again.
    """
    known = [1.0 - min(rate, 1.0) for rate in (hit_rate, remembered) if rate is not None]
    if not known:
        return 1.0
    if hit_rate is None or remembered is None:
        return known[0]
    return min(known[0], collapse_limit * max(known[1], _LEAST_MISS))


def measure_elsewhere(role: RoleInputs, readings: Readings) -> PrefillLoad:
    """The load of a prefill pool that this decision does not size, as far as the gateway sees it for one role."""
    backlog, rate = (readings.value(role.key, name) for name in ("queued_prefill_tokens", "prompt_rate"))
    return PrefillLoad(
        speed=None,
        prompt_rate=rate,
        miss=1.0,
        backlog_tokens=backlog,
        backlog_age=backlog / rate if backlog is not None and rate else None,
    )


def backlog_hold(load: PrefillLoad, inputs: Inputs) -> Hold | None:
    """Says that a backlog is older than the latency goal, or that nothing is served, so that its age is unknown."""
    goal = inputs.goals.ttft
    if not load.backlog_tokens or not load.queued or (load.backlog_age is not None and load.backlog_age <= goal):
        return None
    age = "of unknown age" if load.backlog_age is None else f"about {load.backlog_age:.3g} s old"
    text = f"{load.backlog_tokens:.0f} prompt tokens wait for prefill, {age}; goal {goal:.3g} s"
    return Hold(Reason.BACKLOG_TOO_OLD, text)


def work_needs(pool: PoolInputs, load: PrefillLoad, inputs: Inputs) -> list[Need]:
    """Instances for arriving work at the target utilisation, and for working off the backlog besides."""
    settings, tuning = inputs.settings, inputs.tuning
    if load.speed is None:
        return []
    arriving = load.instances or 0.0
    steady = arriving / tuning.prefill_utilization
    needs: list[Need] = []
    if load.prompt_rate is not None:
        text = (
            f"{load.prompt_rate:.0f} prompt tokens/s, {load.miss:.1%} of them uncached, at {load.speed:.0f} tokens/s "
            f"an instance used to {tuning.prefill_utilization:.0%}"
        )
        needs.append(_need(Reason.PREFILL_WORK, steady, text, pool, inputs))
    if load.backlog_tokens is not None:
        seconds = max(inputs.goals.ttft, tuning.catch_up * settings.startup_estimate)
        catching_up = load.backlog_tokens * load.miss / (load.speed * seconds)
        text = f"{load.backlog_tokens:.0f} prompt tokens wait, to be done in {seconds:.3g} s besides new ones"
        needs.append(_need(Reason.PREFILL_BACKLOG, steady + catching_up, text, pool, inputs))
    return needs


def _need(reason: Reason, instances: float, text: str, pool: PoolInputs, inputs: Inputs) -> Need:
    settings, tuning = inputs.settings, inputs.tuning
    return Need(
        reason,
        instances_for(instances, pool, settings, tuning),
        instances_for(instances * (1.0 + tuning.down_tolerance), pool, settings, tuning),
        f"{text}: {instances:.2f} warm instances",
    )


def _offered(role: RoleInputs, readings: Readings) -> float | None:
    """Prompt tokens/s that a role asks for: requests started x mean prompt length of those that ended."""
    arrivals, completions = readings.value(role.key, "arrivals"), readings.value(role.key, "completions")
    tokens = readings.value(role.key, "prompt_rate")
    if arrivals is None or tokens is None or not completions:
        return None
    return arrivals * tokens / completions


def _engine_backlog(pool: PoolInputs, roles: tuple[RoleInputs, ...], readings: Readings) -> float | None:
    """Without the gateway: requests queued in the engines x mean context of open sessions."""
    waiting = readings.value(pool.key, "waiting")
    keys = [role.key for role in roles]
    sessions, tokens = readings.total(keys, "open_sessions"), readings.total(keys, "context_tokens")
    if waiting is None or not sessions or tokens is None:
        return None
    return waiting * tokens / sessions


def _speed(pool: PoolInputs, inputs: Inputs, readings: Readings) -> float | None:
    measured, modelled = readings.remembered(pool.key, "prefill_speed"), pool.prefill_speed
    if not measured or not modelled:
        return measured or modelled or None
    low, high = inputs.tuning.speed_low * modelled, inputs.tuning.speed_high * modelled
    return min(max(measured, low), high)
