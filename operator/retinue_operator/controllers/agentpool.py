"""Reconciles AgentPools: children as specified at every change, one autoscaling decision per evaluation interval."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog
from prometheus_client import Counter, Gauge

from retinue.agentpool.inputs import build_inputs
from retinue.agentpool.names import serving
from retinue.agentpool.plan import plan
from retinue.agentpool.snapshot import AgentPoolSnapshot, InstanceAge, Measurements
from retinue.api import AgentPool, DecodePool, PrefillPool, labels
from retinue.api.units import seconds
from retinue.autoscaling import history
from retinue.autoscaling.assemble import pool_signals, role_signals, tier_signals
from retinue.autoscaling.decide import decide
from retinue.autoscaling.decision import Decision, State
from retinue.autoscaling.inputs import PoolKind
from retinue.conditions import epoch
from retinue.plan import Key, Manifest, Plan
from retinue.pool.snapshot import drains
from retinue_operator.cache import Cache
from retinue_operator.controller import EVERY, World
from retinue_operator.controllers.fleet import fleet
from retinue_operator.controllers.measure import Measurer, scope_of_agent_pool
from retinue_operator.controllers.observe import parse, parse_all, tiers
from retinue_operator.metrics import Metrics
from retinue_operator.prometheus.poller import Poll

_LOG = structlog.stdlib.get_logger(__name__)
DEFAULT_GATEWAY = "http://retinue-gateway.retinue-system.svc:8080"


@dataclass(frozen=True)
class Evaluation:
    """The last decision about an AgentPool, what it remembers, and what it was based on.

    Kept in memory only: losing it delays shrinking by one stabilization window and harms nothing else.
    """

    time: float
    decision: Decision
    state: State
    measured: Measurements
    record: history.Record


class DecisionMetrics:
    """What Prometheus learns of decisions; None for both where no metrics registry is given."""

    def __init__(self, metrics: Metrics) -> None:
        names = ("namespace", "agent_pool")
        self.decisions = Counter(
            "retinue_operator_decisions_total", "Evaluations by reason.", (*names, "reason"), registry=metrics.registry
        )
        self.desired = Gauge(
            "retinue_operator_desired_replicas",
            "Replicas that the last decision wants.",
            (*names, "pool_kind", "pool"),
            registry=metrics.registry,
        )
        self.clamps = Counter(
            "retinue_operator_decision_clamps_total",
            "Limits that changed what the load asked for.",
            (*names, "reason"),
            registry=metrics.registry,
        )

    def observe(self, key: Key, decision: Decision) -> None:
        """Counts one decision."""
        self.decisions.labels(key.namespace, key.name, decision.reason.value).inc()
        for target in decision.targets:
            self.desired.labels(key.namespace, key.name, target.kind.value, target.name).set(target.desired)
            for clamp in target.clamps:
                self.clamps.labels(key.namespace, key.name, clamp.reason.value).inc()


class AgentPoolController:
    """One AgentPool at a time."""

    kind = "AgentPool"

    def __init__(self, measurer: Measurer | None) -> None:
        self._measurer = measurer
        self._evaluations: dict[Key, Evaluation] = {}
        self._metrics: DecisionMetrics | None = None

    def tell(self) -> Mapping[str, str]:
        """The last evaluation of each AgentPool, as in the history file."""
        return {str(key): history.write(last.record) for key, last in sorted(self._evaluations.items(), key=_named)}

    def keys_for(self, kind: str, obj: Manifest) -> Iterable[Key]:
        """Its children and their pods; pools and tiers that it refers to live in its namespace."""
        meta = obj["metadata"]
        namespace, owner = meta.get("namespace", ""), meta.get("labels", {}).get(labels.AGENT_POOL)
        if kind == "Pod" and owner:
            yield Key(self.kind, namespace, owner)
        if kind in ("PrefillPool", "DecodePool", "KVCacheTier"):
            yield Key(self.kind, namespace, EVERY)
        if kind == "NodeClass":
            yield Key(self.kind, "", EVERY)

    async def reconcile(self, key: Key, world: World) -> Plan | None:
        """Children, status, and a new decision when one is due."""
        cache = world.cache
        agent_pool = parse(AgentPool, cache.get(self.kind, key.namespace, key.name))
        if agent_pool is None or agent_pool.metadata.deletion_timestamp is not None:
            self._evaluations.pop(key, None)
            return None
        interval = seconds(agent_pool.spec.autoscaling.evaluation_interval)
        last = self._evaluations.get(key)
        now = world.now()
        due = last is None or now - last.time >= interval * 0.99
        if due:
            measured = await self._measure(agent_pool, world, interval)
            agent_pool = parse(AgentPool, cache.get(self.kind, key.namespace, key.name)) or agent_pool
            snapshot = _snapshot(agent_pool, world, measured)
            last = await self._evaluate(key, snapshot, last.state if last else State(), world)
        if last is None:
            return None
        snapshot = replace(_snapshot(agent_pool, world, last.measured), decision=last.decision, carry_out=due)
        made = plan(snapshot, world.now())
        return replace(made, requeue_after=max(0.05, last.time + interval - world.now()))

    async def _measure(self, agent_pool: AgentPool, world: World, interval: float) -> Measurements | None:
        if self._measurer is None:
            return None
        scope = scope_of_agent_pool(world.cache, agent_pool)
        poll = await self._measurer.measure(scope, world.now(), interval / 2)
        return _measurements(agent_pool, world.cache, poll)

    async def _evaluate(self, key: Key, snapshot: AgentPoolSnapshot, state: State, world: World) -> Evaluation:
        now = world.now()
        inputs = build_inputs(snapshot, now)
        decision = decide(inputs, state, now)
        if self._metrics is None:
            self._metrics = DecisionMetrics(world.metrics)
        self._metrics.observe(key, decision)
        record = history.Record(now, inputs, state, decision)
        if world.settings.history_file is not None:
            await keep_record(world.settings.history_file, history.write(record))
        evaluation = Evaluation(now, decision, decision.state, snapshot.measured or Measurements(), record)
        self._evaluations[key] = evaluation
        return evaluation


def _named(entry: tuple[Key, Evaluation]) -> str:
    return str(entry[0])


async def keep_record(path: Path, line: str) -> None:
    """Appends a line to the history; a full disk must not stop the autoscaler, so a failure is only logged."""
    try:
        await asyncio.to_thread(_append, path, line)
    except OSError as error:
        _LOG.warning("the decision is missing in the history file", file=str(path), error=str(error))


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _measurements(agent_pool: AgentPool, cache: Cache, poll: Poll) -> Measurements:
    namespace = agent_pool.metadata.namespace
    served = serving(agent_pool)
    prefill = {who.prefill for who in served if who.prefill}
    return Measurements(
        roles={who.role.name: role_signals(poll.samples, who.role.name) for who in served},
        prefill={name: pool_signals(poll.samples, PoolKind.PREFILL, name) for name in prefill},
        decode={who.decode: pool_signals(poll.samples, PoolKind.DECODE, who.decode) for who in served},
        tiers={name: tier_signals(poll.samples, name) for name in tiers(cache, namespace)},
        error=poll.error,
    )


def _snapshot(agent_pool: AgentPool, world: World, measured: Measurements | None) -> AgentPoolSnapshot:
    cache, namespace = world.cache, agent_pool.metadata.namespace
    seen = fleet(cache)
    return AgentPoolSnapshot(
        agent_pool=agent_pool,
        prefill_pools=parse_all(PrefillPool, cache.select("PrefillPool", namespace)),
        decode_pools=parse_all(DecodePool, cache.select("DecodePool", namespace)),
        tiers=tiers(cache, namespace),
        classes=seen.classes,
        nodes=seen.nodes,
        holds=seen.holds,
        ages=_ages(cache.select("Pod", namespace, {labels.AGENT_POOL: agent_pool.metadata.name})),
        measured=measured,
        decision=None,
        carry_out=False,
        gateway_url=world.settings.gateway_url or DEFAULT_GATEWAY,
    )


def _ages(pods: Iterable[Manifest]) -> dict[tuple[str, str], tuple[InstanceAge, ...]]:
    """The ages of instances by pool, from their leaders; an instance is as ready as its least ready pod."""
    members: dict[tuple[str, str], dict[str, list[Manifest]]] = {}
    for pod in pods:
        tags = pod["metadata"].get("labels", {})
        owner = tags.get(labels.POOL) or tags.get(labels.TIER)
        if owner and labels.POOL_KIND in tags and labels.INSTANCE in tags:
            pool = members.setdefault((tags[labels.POOL_KIND], owner), {})
            pool.setdefault(tags[labels.INSTANCE], []).append(pod)
    return {
        pool: tuple(_age(instances[name]) for name in sorted(instances) if _counts(instances[name]))
        for pool, instances in members.items()
    }


def _counts(pods: list[Manifest]) -> bool:
    """An instance whose pods all go is gone already."""
    return any(not pod["metadata"].get("deletionTimestamp") for pod in pods)


def _age(pods: list[Manifest]) -> InstanceAge:
    since = [_ready_since(pod) for pod in pods]
    known = [time for time in since if time is not None]
    return InstanceAge(
        created=min(epoch(pod["metadata"]["creationTimestamp"]) for pod in pods),
        ready_since=max(known) if len(known) == len(since) else None,
        draining=any(map(drains, pods)),
    )


def _ready_since(pod: Manifest) -> float | None:
    for condition in pod.get("status", {}).get("conditions", []):
        if condition.get("type") == "Ready" and condition.get("status") == "True":
            return epoch(condition["lastTransitionTime"])
    return None
