"""Asks Prometheus once for everybody: the samples of one AgentPool, or of one pool that belongs to none."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from retinue.api import AgentPool, DecodePool, PrefillPool, labels
from retinue.api.kvcachetier import Medium
from retinue.api.types import Metadata
from retinue.api.units import seconds
from retinue.autoscaling.inputs import PoolKind
from retinue.autoscaling.signals import PoolScope, Scope, queries
from retinue_operator.cache import Cache
from retinue_operator.controllers.observe import parse, parse_all, tiers
from retinue_operator.prometheus.client import PrometheusClient
from retinue_operator.prometheus.poller import Poll, collect

DEFAULT_WINDOW = 60.0
DEFAULT_INTERVAL = 15.0
RETRY_SECONDS = 5.0
"""Between two attempts to reach a Prometheus that said nothing."""


# Namespace and AgentPool; pools of a namespace that belong to none share an empty name.
_Owner = tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """The answers to all queries of a scope, and when they came (seconds since the epoch)."""

    poll: Poll
    time: float


class Measurer:
    """Keeps the last answer per scope while it is new, so that the pools of one AgentPool share their queries.

    While Prometheus says nothing to the queries of a scope, nobody waits for it: all get that error at once, and a poll
    in the background finds out when it answers again. Pools are placed, drained and replaced at their usual pace.
    """

    def __init__(self, client: PrometheusClient) -> None:
        self._client = client
        self._latest: dict[Scope, Measured] = {}
        self._asking: defaultdict[_Owner, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._silent: dict[_Owner, Measured] = {}
        self._attempts: dict[_Owner, asyncio.Task[Poll]] = {}

    async def measure(self, scope: Scope, now: float, max_age: float) -> Poll:
        """The newest answer; asks Prometheus if the last one is older than `max_age` seconds."""
        owner = (scope.namespace, scope.agent_pool)
        if owner in self._silent:
            return self._try_again(owner, scope, now)
        async with self._asking[owner]:
            # Whoever has waited here may know by now that there is nothing to wait for.
            if owner in self._silent:
                return self._silent[owner].poll
            known = self._latest.get(scope)
            if known is not None and now - known.time < max_age:
                return known.poll
            return await self._ask(owner, scope, now)

    async def _ask(self, owner: _Owner, scope: Scope, now: float) -> Poll:
        poll = await collect(self._client, queries(scope))
        self._forget_scopes_like(scope)
        self._latest[scope] = Measured(poll, now)
        if poll.silent:
            self._silent[owner] = self._latest[scope]
        else:
            self._silent.pop(owner, None)
        return poll

    def _try_again(self, owner: _Owner, scope: Scope, now: float) -> Poll:
        silent, attempt = self._silent[owner], self._attempts.get(owner)
        if now - silent.time >= RETRY_SECONDS and (attempt is None or attempt.done()):
            self._attempts[owner] = asyncio.create_task(self._ask(owner, scope, now))
        return silent.poll

    def _forget_scopes_like(self, scope: Scope) -> None:
        """A scope whose pools have changed replaces the older one of the same AgentPool."""
        mine = (scope.namespace, scope.agent_pool)
        for old in [
            known for known in self._latest if known.agent_pool and (known.namespace, known.agent_pool) == mine
        ]:
            del self._latest[old]


def scope_of_agent_pool(cache: Cache, agent_pool: AgentPool) -> Scope:
    """All pools and tiers that carry the AgentPool's label."""
    meta, spec = agent_pool.metadata, agent_pool.spec
    mine = {labels.AGENT_POOL: meta.name}
    prefill = parse_all(PrefillPool, cache.select("PrefillPool", meta.namespace, mine))
    decode = parse_all(DecodePool, cache.select("DecodePool", meta.namespace, mine))
    servers = tuple(
        sorted(
            name
            for name, tier in tiers(cache, meta.namespace).items()
            if tier.spec.medium == Medium.CONTEXT_STORAGE and tier.metadata.labels.get(labels.AGENT_POOL) == meta.name
        )
    )
    return Scope(
        namespace=meta.namespace,
        agent_pool=meta.name,
        pools=(
            *(PoolScope(PoolKind.PREFILL, name, pool.spec.engine.type) for name, pool in sorted(prefill.items())),
            *(PoolScope(PoolKind.DECODE, name, pool.spec.engine.type) for name, pool in sorted(decode.items())),
        ),
        tiers=servers,
        window=seconds(spec.autoscaling.metrics_window),
        ttft_goal=seconds(spec.slo.ttft.target),
        ttft_quantile=float(spec.slo.ttft.quantile),
        itl_quantile=float(spec.slo.itl.quantile),
    )


def scope_of_pool(cache: Cache, kind: PoolKind, pool: PrefillPool | DecodePool) -> Scope:
    """The scope of the AgentPool that the pool belongs to, else of the pool alone."""
    meta = pool.metadata
    owner = meta.labels.get(labels.AGENT_POOL)
    agent_pool = parse(AgentPool, cache.get("AgentPool", meta.namespace, owner)) if owner else None
    if agent_pool is not None:
        return scope_of_agent_pool(cache, agent_pool)
    alone = (PoolScope(kind, meta.name, pool.spec.engine.type),)
    return Scope(namespace=meta.namespace, agent_pool="", pools=alone, window=DEFAULT_WINDOW)


def scope_of_tier(cache: Cache, namespace: str, name: str, owner: str | None, servers: bool) -> Scope:
    """The scope of the AgentPool that the tier belongs to, else of the tier alone."""
    agent_pool = parse(AgentPool, cache.get("AgentPool", namespace, owner)) if owner else None
    if agent_pool is not None:
        return scope_of_agent_pool(cache, agent_pool)
    return Scope(namespace=namespace, agent_pool="", pools=(), tiers=(name,) if servers else (), window=DEFAULT_WINDOW)


def metrics_interval(cache: Cache, meta: Metadata) -> float:
    """Seconds between two looks at the metrics of an object: its AgentPool's evaluation interval, or the default."""
    owner = meta.labels.get(labels.AGENT_POOL)
    agent_pool = parse(AgentPool, cache.get("AgentPool", meta.namespace, owner)) if owner else None
    if agent_pool is None:
        return DEFAULT_INTERVAL
    return seconds(agent_pool.spec.autoscaling.evaluation_interval)
