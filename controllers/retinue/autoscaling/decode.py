"""How many instances decode needs: requests at once, KV memory, and what prefill is about to hand over."""

from retinue.autoscaling.decision import PoolState
from retinue.autoscaling.inputs import Inputs, PoolInputs, PoolKind
from retinue.autoscaling.latency import itl_verdict, ttft_verdict
from retinue.autoscaling.needs import Assessment, Hold, Need
from retinue.autoscaling.prefill import PrefillLoad, assess_prefill, backlog_hold, measure, measure_elsewhere
from retinue.autoscaling.readings import Readings
from retinue.autoscaling.supply import whole
from retinue.conditions import Reason


def assess_decode(pool: PoolInputs, inputs: Inputs, readings: Readings, state: PoolState) -> Assessment:
    """All needs and holds of a decode pool; an aggregated one also answers for its prefill."""
    slow, near = itl_verdict(pool, inputs, readings)
    needs = [*_concurrency(pool, inputs, readings), *_memory(pool, inputs, readings), *slow]
    required = [readings.get(pool.key, name) for name in ("running", "waiting", "kv_use", "reporting")]
    if pool.aggregated:
        prefill = assess_prefill(pool, inputs, readings, state)
        mixed = _mixed(pool, inputs, readings, state)
        return Assessment(
            needs=(*prefill.needs, *needs, *mixed),
            holds=(*prefill.holds, *near),
            required=tuple(dict.fromkeys((*prefill.required, *required))),
            overloaded=prefill.overloaded,
        )
    missed, late = ttft_verdict(pool, inputs, readings)
    gateway = [
        readings.get(role.key, name)
        for role in inputs.roles_of(pool)
        for name in ("in_flight", "queued_prefill_tokens")
    ]
    return Assessment(
        needs=(*needs, *missed),
        holds=(*_upstream_backlog(pool, inputs, readings), *near, *late),
        required=(*gateway, *required),
    )


def active(pool: PoolInputs, readings: Readings) -> float | None:
    """Requests that decode or wait for decode in this pool, at the busiest moment of the window."""
    running = [readings.value(pool.key, name) for name in ("running_peak", "running")]
    known = [value for value in running if value is not None]
    waiting = readings.value(pool.key, "waiting")
    if not known and waiting is None:
        return None
    return max(known, default=0.0) + (waiting or 0.0)


def upstream(pool: PoolInputs, inputs: Inputs, readings: Readings) -> float:
    """Requests that are still in prefill and will decode here: decode has to start with prefill (evidence 8)."""
    if pool.aggregated:
        return 0.0
    roles = inputs.roles_of(pool)
    in_flight = readings.total([role.key for role in roles], "in_flight")
    here = readings.total([pool.key], "running"), readings.total([pool.key], "waiting")
    if in_flight is not None:
        return max(0.0, in_flight - sum(part or 0.0 for part in here))
    prefill = [found for role in roles if (found := inputs.pool(PoolKind.PREFILL, role.prefill)) is not None]
    keys = list(dict.fromkeys(found.key for found in prefill))
    return (readings.total(keys, "running") or 0.0) + (readings.total(keys, "waiting") or 0.0)


def _concurrency(pool: PoolInputs, inputs: Inputs, readings: Readings) -> list[Need]:
    now = active(pool, readings)
    if not pool.slots or (now is None and not upstream(pool, inputs, readings)):
        return []
    coming = inputs.tuning.upstream_share * upstream(pool, inputs, readings)
    each = pool.slots * inputs.tuning.decode_slots_use
    text = f"{now or 0:.0f} requests decode or wait, {coming:.0f} come from prefill, one instance takes {each:.0f}"
    return [_need(Reason.CONCURRENCY, ((now or 0.0) + coming) / each, text, inputs)]


def _memory(pool: PoolInputs, inputs: Inputs, readings: Readings) -> list[Need]:
    use = readings.value(pool.key, "kv_use")
    if use is None:
        return []
    held = use * (readings.value(pool.key, "reporting") or pool.ready)
    text = f"running requests hold {use:.0%} of KV memory"
    keys = [role.key for role in inputs.roles_of(pool)]
    sessions, tokens = readings.total(keys, "open_sessions"), readings.total(keys, "context_tokens")
    if pool.kv_tokens and sessions and tokens is not None:
        waiting = readings.value(pool.key, "waiting") or 0.0
        coming = waiting + inputs.tuning.upstream_share * upstream(pool, inputs, readings)
        held += coming * tokens / sessions / pool.kv_tokens
        text += f", {coming:.0f} more of {tokens / sessions:.0f} tokens each are coming"
    return [_need(Reason.KV_MEMORY, held / inputs.tuning.decode_kv_use, text, inputs)]


def _mixed(pool: PoolInputs, inputs: Inputs, readings: Readings, state: PoolState) -> list[Need]:
    """Prefill and decode take turns on the same devices, so their loads add up."""
    prefill, requests = measure(pool, inputs, readings, state).instances, active(pool, readings)
    if prefill is None or requests is None or not pool.slots:
        return []
    decode = requests / pool.slots
    text = f"prefill keeps {prefill:.2f} instances busy and decode {decode:.2f}"
    return [_need(Reason.MIXED_LOAD, (prefill + decode) / inputs.tuning.mixed_utilization, text, inputs)]


def _upstream_backlog(pool: PoolInputs, inputs: Inputs, readings: Readings) -> list[Hold]:
    """While prefill is behind, a quiet decode pool says nothing: its requests are still upstream."""
    found: dict[str, PrefillLoad] = {}
    for role in inputs.roles_of(pool):
        prefill = inputs.pool(PoolKind.PREFILL, role.prefill)
        if prefill is not None:
            found[prefill.key] = measure(prefill, inputs, readings, PoolState())
        else:
            found[role.key] = measure_elsewhere(role, readings)
    holds = (backlog_hold(load, inputs) for load in found.values())
    return [hold for hold in holds if hold is not None]


def _need(reason: Reason, instances: float, text: str, inputs: Inputs) -> Need:
    relaxed = instances * (1.0 + inputs.tuning.down_tolerance)
    return Need(reason, whole(instances), whole(relaxed), f"{text}: {instances:.2f} instances")
