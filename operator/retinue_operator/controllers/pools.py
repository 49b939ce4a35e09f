"""Reconciles PrefillPools and DecodePools: observes pods, nodes, tiers and metrics, asks the core for the next step."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from retinue.api import DecodePool, PrefillPool, labels
from retinue.api.decodepool import Serves
from retinue.autoscaling.assemble import instance_sessions, pool_signals
from retinue.autoscaling.inputs import PoolKind as MeasuredKind
from retinue.nodeclass.claims import TEMPLATE_KIND, template_from
from retinue.plan import Key, Manifest, Plan, earliest
from retinue.pool.plan import plan
from retinue.pool.snapshot import Pool, PoolKind, PoolMetrics, PoolSnapshot, pod_view
from retinue_operator.cache import Cache
from retinue_operator.controller import EVERY, WAITING, World, on_node
from retinue_operator.controllers.fleet import view_of
from retinue_operator.controllers.inflight import in_flight
from retinue_operator.controllers.measure import Measurer, metrics_interval, scope_of_pool
from retinue_operator.controllers.observe import parse, tiers


class PoolController:
    """One pool of one kind at a time."""

    def __init__(self, model: type[PrefillPool] | type[DecodePool], measurer: Measurer | None) -> None:
        self._model = model
        self._measurer = measurer
        self.kind = model.kind_info.kind
        self._pool_kind = PoolKind.PREFILL if model is PrefillPool else PoolKind.DECODE

    def keys_for(self, kind: str, obj: Manifest) -> Iterable[Key]:
        """Its pods, service and claim templates, tiers of its namespace, classes, and the nodes of its pods.

        A pod that goes and a node that changes may make room for others.
        """
        meta = obj["metadata"]
        tags, namespace = meta.get("labels", {}), meta.get("namespace", "")
        own = kind in ("Pod", "Service", TEMPLATE_KIND) and tags.get(labels.POOL_KIND) == self._pool_kind.value
        if own and labels.POOL in tags:
            yield Key(self.kind, namespace, tags[labels.POOL])
        if kind == "Pod" and meta.get("deletionTimestamp"):
            yield Key(self.kind, "", WAITING)
        if kind == "KVCacheTier":
            yield Key(self.kind, namespace, EVERY)
        if kind == "Node":
            yield Key(self.kind, "", WAITING)
            yield on_node(self.kind, meta["name"])
        if kind == "NodeClass":
            yield Key(self.kind, "", EVERY)

    async def reconcile(self, key: Key, world: World) -> Plan | None:
        """The next step of the pool."""
        cache = world.cache
        pool = parse(self._model, cache.get(self.kind, key.namespace, key.name))
        if pool is None or pool.metadata.deletion_timestamp is not None:
            return None
        mine = {labels.POOL: key.name, labels.POOL_KIND: self._pool_kind.value}
        draining = await in_flight(world.http, _pods(cache, pool, mine))
        metrics, again = await self._metrics(pool, world)
        pool = parse(self._model, cache.get(self.kind, key.namespace, key.name))
        if pool is None:
            return None
        # Nothing is awaited until what the plan takes is reserved: two pools must not be promised the same devices.
        view = view_of(cache)
        seen = view.now()
        snapshot = PoolSnapshot(
            kind=self._pool_kind,
            pool=pool,
            pods=tuple(pod_view(pod) for pod in _pods(cache, pool, mine)),
            classes=seen.classes,
            class_errors=seen.errors,
            nodes=seen.nodes,
            holds=seen.holds,
            tiers=tiers(cache, key.namespace),
            in_flight=draining,
            metrics=metrics,
            claim_templates=tuple(map(template_from, cache.owned_by(pool.metadata.uid, TEMPLATE_KIND))),
        )
        made = plan(snapshot, world.now())
        world.until_executed(view.reserve(made.apply))
        return replace(made, requeue_after=earliest(made.requeue_after, again))

    async def _metrics(self, pool: Pool, world: World) -> tuple[PoolMetrics | None, float | None]:
        """What Prometheus says of the pool, and when to ask again; (None, None) where there is none."""
        if self._measurer is None:
            return None, None
        kind = MeasuredKind(self._pool_kind.value)
        scope = scope_of_pool(world.cache, kind, pool)
        interval = metrics_interval(world.cache, pool.metadata)
        poll = await self._measurer.measure(scope, world.now(), interval / 2)
        signals = pool_signals(poll.samples, kind, pool.metadata.name)
        return (
            PoolMetrics(
                # What a decode engine gets from prefill is no hit: the prefill pool tells what was cached.
                hit_rate=signals.hit_rate.value if _does_prefill(pool) else None,
                ttft_p95=signals.ttft.value,
                itl_p95=signals.inter_token_time.value,
                sessions=instance_sessions(poll.samples),
                error=poll.error,
            ),
            interval,
        )


def _pods(cache: Cache, pool: Pool, mine: Mapping[str, str]) -> list[Manifest]:
    """The pods that carry the pool's labels or are owned by it: labels may have been changed by others."""
    meta = pool.metadata
    found = [*cache.select("Pod", meta.namespace, mine), *cache.owned_by(meta.uid, "Pod")]
    by_name = {pod["metadata"]["name"]: pod for pod in found}
    return [by_name[name] for name in sorted(by_name)]


def _does_prefill(pool: Pool) -> bool:
    return isinstance(pool, PrefillPool) or pool.spec.serves == Serves.PREFILL_AND_DECODE
