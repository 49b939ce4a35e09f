"""Conditions of an AgentPool that sum up those of its pools and tiers, so that one `kubectl describe` finds trouble."""

from collections.abc import Iterable, Iterator

from retinue.agentpool.names import serving, tier_name
from retinue.agentpool.snapshot import AgentPoolSnapshot
from retinue.api import DecodePool, KVCacheTier, PrefillPool
from retinue.conditions import ConditionType, Finding, Reason, find

Child = PrefillPool | DecodePool | KVCacheTier


def child_findings(snapshot: AgentPoolSnapshot) -> tuple[Finding, ...]:
    """Placed, CacheConnected and Degraded over the pools and tiers that serve the roles; () while there are none.

    The first child in trouble speaks for all, in its own words and with its own reason.
    """
    children = tuple(_children(snapshot))
    if not children:
        return ()
    placed = _all_true(children, ConditionType.PLACED, Reason.ALL_PLACED, "every pool has its instances placed")
    cache = _all_true(children, ConditionType.CACHE_CONNECTED, Reason.TIERS_CONNECTED, "every pool has its tiers")
    trouble = _told(children, ConditionType.DEGRADED, "True")
    degraded = Finding(ConditionType.DEGRADED, True, *trouble) if trouble else None
    healthy = Finding(ConditionType.DEGRADED, False, Reason.HEALTHY, "no pool or tier is degraded")
    return (placed, cache, degraded or healthy)


def _children(snapshot: AgentPoolSnapshot) -> Iterator[Child]:
    """The pools and tiers behind the roles, each once, those of others included."""
    served = serving(snapshot.agent_pool)
    for name in dict.fromkeys(who.prefill for who in served if who.prefill):
        if name in snapshot.prefill_pools:
            yield snapshot.prefill_pools[name]
    for name in dict.fromkeys(who.decode for who in served):
        if name in snapshot.decode_pools:
            yield snapshot.decode_pools[name]
    tiers = (tier_name(snapshot.agent_pool, name) for who in served for name in who.owner.kv_cache_tiers)
    for name in dict.fromkeys(tiers):
        if name in snapshot.tiers:
            yield snapshot.tiers[name]


def _all_true(children: Iterable[Child], type_: ConditionType, good: Reason, message: str) -> Finding:
    pools = tuple(child for child in children if not isinstance(child, KVCacheTier))
    for status, verdict in (("False", False), ("Unknown", None)):
        told = _told(pools, type_, status)
        if told is not None:
            return Finding(type_, verdict, *told)
    if any(find(pool.status.conditions, type_) is None for pool in pools):
        return Finding(type_, None, Reason.STARTING, "not every pool was looked at yet")
    return Finding(type_, True, good, message)


def _told(children: Iterable[Child], type_: ConditionType, status: str) -> tuple[Reason, str] | None:
    """Reason and message of the first child whose condition has that status."""
    for child in children:
        condition = find(child.status.conditions, type_)
        if condition is not None and condition.status == status:
            # A reason of the operator itself (a refused write) is none of the core's.
            known = condition.reason in set(Reason)
            text = condition.message if known else f"{condition.reason}: {condition.message}"
            reason = Reason(condition.reason) if known else Reason.INSTANCE_FAILED
            return reason, f"{child.kind_info.kind} {child.metadata.name}: {text}"
    return None
