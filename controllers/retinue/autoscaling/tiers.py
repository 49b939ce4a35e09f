"""How many servers a cache tier needs: what open sessions hold, and whether it evicts before its retention."""

from retinue.autoscaling.inputs import Inputs, TierInputs
from retinue.autoscaling.needs import Assessment, Hold, Need
from retinue.autoscaling.readings import Readings
from retinue.autoscaling.supply import settled, whole
from retinue.conditions import Reason

_FULL = 0.9
"""Only a tier that is at least this full evicts for lack of room; the gauge of the last eviction stays for ever."""


def assess_tier(tier: TierInputs, inputs: Inputs, readings: Readings) -> Assessment:
    """All needs and holds of a tier with servers."""
    roles = [role for role in inputs.roles if tier.name in role.tiers]
    needs: list[Need] = []
    holds: list[Hold] = []
    wanted = [
        tokens * role.kv_bytes_per_token
        for role in roles
        if (tokens := readings.value(role.key, "context_tokens")) is not None and role.kv_bytes_per_token is not None
    ]
    if any(role.kv_bytes_per_token is None for role in roles) or not tier.capacity_bytes:
        holds.append(
            Hold(Reason.SESSION_CACHE, "bytes per token or per server are unknown, so nobody can say what would fit")
        )
    elif wanted:
        each = tier.capacity_bytes * inputs.tuning.tier_fill
        servers = sum(wanted) / each
        text = f"open sessions hold {sum(wanted) / 2**30:.1f} GiB of KV, one server {each / 2**30:.1f} GiB"
        relaxed = whole(servers * (1.0 + inputs.tuning.down_tolerance))
        needs.append(Need(Reason.SESSION_CACHE, whole(servers), relaxed, f"{text}: {servers:.2f} servers"))
    needs.extend(_evictions(tier, inputs, readings))
    return Assessment(
        needs=tuple(needs),
        holds=tuple(holds),
        required=(
            *(readings.get(role.key, "context_tokens") for role in roles),
            *(readings.get(tier.key, name) for name in ("capacity_bytes", "used_bytes", "reporting")),
        ),
    )


def _evictions(tier: TierInputs, inputs: Inputs, readings: Readings) -> list[Need]:
    age, used = readings.value(tier.key, "eviction_age"), readings.value(tier.key, "used_bytes")
    capacity = readings.value(tier.key, "capacity_bytes")
    if tier.retention is None or age is None or used is None or not capacity or used < _FULL * capacity:
        return []
    if age <= 0 or age >= tier.retention:
        return []
    text = f"full, and evicts blocks unused for {age:.0f} s that should stay {tier.retention:.0f} s"
    ready = settled(tier, inputs.settings, inputs.tuning)
    servers = tier.current + 1 if ready else tier.current
    return [Need(Reason.EVICTED_TOO_EARLY, servers, servers, text)]
