"""The cache floor: the fewest instances that hold the context of all open sessions."""

from retinue.autoscaling.inputs import Inputs, PoolInputs, PoolKind
from retinue.autoscaling.needs import Hold, Need
from retinue.autoscaling.readings import Readings
from retinue.autoscaling.supply import whole
from retinue.conditions import Reason


def holds_prefixes(pool: PoolInputs) -> bool:
    """Whether sessions come back to this pool's instances for their cached prefix."""
    return pool.kind is PoolKind.PREFILL or pool.aggregated


def floor_need(pool: PoolInputs, inputs: Inputs, readings: Readings) -> Need | Hold | None:
    """ceil(context tokens of open sessions / tokens that one instance holds, filled to `cache_fill`).

    Below this number sessions throw each other out, come back cold and make more work than the pool can do
    (evidence 2). Host memory counts: what comes back from there is not computed again (evidence 11). A Hold says that
    there are sessions but no known capacity; None that nothing is known about sessions or none is open.
    """
    if not holds_prefixes(pool):
        return None
    tokens = readings.total([role.key for role in inputs.roles_of(pool)], "context_tokens")
    if not tokens:
        return None
    if not pool.kv_tokens:
        return Hold(
            Reason.CACHE_FLOOR,
            "how many tokens of KV an instance holds is unknown, so nobody can say whether fewer would hold the "
            f"{tokens:.0f} tokens of open sessions",
        )
    each = (pool.kv_tokens + pool.host_tokens) * inputs.tuning.cache_fill
    instances = whole(tokens / each)
    text = f"open sessions hold {tokens:.0f} tokens of context, one instance {each:.0f}"
    return Need(Reason.CACHE_FLOOR, instances, instances, text)
