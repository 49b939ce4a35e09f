"""Reconciles KVCacheTiers: server pods where the medium has them, and a status from pools, pods and metrics."""

from collections.abc import Iterable
from dataclasses import replace

from retinue.api import DecodePool, KVCacheTier, PrefillPool, labels
from retinue.api.kvcachetier import Medium
from retinue.autoscaling.assemble import Samples, pool_signals, tier_signals
from retinue.autoscaling.inputs import PoolKind, Signal
from retinue.kvcachetier.plan import plan
from retinue.kvcachetier.snapshot import TierMetrics, TierSnapshot, User, server_view
from retinue.plan import Key, Manifest, Plan, earliest
from retinue_operator.cache import Cache
from retinue_operator.controller import EVERY, World
from retinue_operator.controllers.fleet import fleet
from retinue_operator.controllers.measure import Measurer, metrics_interval, scope_of_tier
from retinue_operator.controllers.observe import parse, parse_all, tiers


class KVCacheTierController:
    """One tier at a time."""

    kind = "KVCacheTier"

    def __init__(self, measurer: Measurer | None) -> None:
        self._measurer = measurer

    def keys_for(self, kind: str, obj: Manifest) -> Iterable[Key]:
        """Its servers, the other tiers and the pools of its namespace, nodes and classes."""
        meta = obj["metadata"]
        tags, namespace = meta.get("labels", {}), meta.get("namespace", "")
        if kind in ("Pod", "Service") and labels.TIER in tags:
            yield Key(self.kind, namespace, tags[labels.TIER])
        if kind in ("KVCacheTier", "PrefillPool", "DecodePool"):
            yield Key(self.kind, namespace, EVERY)
        if kind in ("Node", "NodeClass"):
            yield Key(self.kind, "", EVERY)

    async def reconcile(self, key: Key, world: World) -> Plan | None:
        """The next step of the tier."""
        cache = world.cache
        tier = parse(KVCacheTier, cache.get(self.kind, key.namespace, key.name))
        if tier is None or tier.metadata.deletion_timestamp is not None:
            return None
        users = _users(cache, key)
        metrics, again = await self._metrics(tier, users, world)
        seen = fleet(cache)
        name = tier.spec.node_class or ""
        snapshot = TierSnapshot(
            tier=tier,
            servers=tuple(
                sorted(
                    (server_view(pod) for pod in cache.select("Pod", key.namespace, {labels.TIER: key.name})),
                    key=lambda server: server.index,
                )
            ),
            users=users,
            others={other: object_ for other, object_ in tiers(cache, key.namespace).items() if other != key.name},
            node_class=seen.classes.get(name),
            class_error=seen.errors.get(name),
            nodes=seen.nodes,
            holds=seen.holds,
            metrics=metrics,
        )
        made = plan(snapshot, world.now())
        return replace(made, requeue_after=earliest(made.requeue_after, again))

    async def _metrics(
        self, tier: KVCacheTier, users: tuple[User, ...], world: World
    ) -> tuple[TierMetrics | None, float | None]:
        if self._measurer is None:
            return None, None
        meta = tier.metadata
        servers = tier.spec.medium == Medium.CONTEXT_STORAGE
        owner = meta.labels.get(labels.AGENT_POOL)
        scope = scope_of_tier(world.cache, meta.namespace, meta.name, owner, servers)
        interval = metrics_interval(world.cache, meta)
        poll = await self._measurer.measure(scope, world.now(), interval / 2)
        measured = _servers(poll.samples, meta.name) if servers else _host_memory(poll.samples, users)
        return replace(measured, error=poll.error), interval


def _users(cache: Cache, key: Key) -> tuple[User, ...]:
    """The pools of the namespace that name the tier."""
    prefill = parse_all(PrefillPool, cache.select("PrefillPool", key.namespace))
    decode = parse_all(DecodePool, cache.select("DecodePool", key.namespace))
    pools: list[PrefillPool | DecodePool] = [*prefill.values(), *decode.values()]
    return tuple(
        User(pool.kind_info.kind, pool.metadata.name, pool.status.ready_replicas or 0, pool.spec.replicas)
        for pool in pools
        if key.name in pool.spec.kv_cache_tiers
    )


def _servers(samples: Samples, name: str) -> TierMetrics:
    signals = tier_signals(samples, name)
    return TierMetrics(
        used=signals.used_bytes.value, hit_rate=signals.hit_rate.value, eviction_age=signals.eviction_age.value
    )


def _host_memory(samples: Samples, users: tuple[User, ...]) -> TierMetrics:
    """Over all engines that hold the tier: fill added up, the shortest eviction age, hits weighted by tokens."""
    found = [
        pool_signals(samples, PoolKind.PREFILL if user.kind == "PrefillPool" else PoolKind.DECODE, user.name)
        for user in users
    ]
    used = [signals.host_used_bytes.value for signals in found if signals.host_used_bytes.value is not None]
    ages = [signals.host_eviction_age.value for signals in found if signals.host_eviction_age.value is not None]
    weighted = [
        (rate, prompt)
        for signals in found
        if (rate := _known(signals.host_hit_rate)) is not None and (prompt := _known(signals.prompt_rate)) is not None
    ]
    prompt_rate = sum(prompt for _, prompt in weighted)
    return TierMetrics(
        used=sum(used) if used else None,
        hit_rate=sum(rate * prompt for rate, prompt in weighted) / prompt_rate if prompt_rate > 0 else None,
        eviction_age=min(ages) if ages else None,
    )


def _known(signal: Signal) -> float | None:
    return signal.value
