"""What Prometheus learns of the custom resources: conditions, goals and sizes, read from the cache at each scrape.

Alerts and dashboards are built on these. Only the leader has a cache, so a standby exposes none of them; an object that
is gone leaves no series behind. A value that a status does not have makes no sample: missing is never zero.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from retinue.api.labels import AGENT_POOL
from retinue.api.units import quantity, seconds
from retinue.plan import Manifest
from retinue_operator.cache import Cache
from retinue_operator.resources import OWN_KINDS

_PREFIX = "retinue_operator_"
_POOL_STATES = {
    "ready": "readyReplicas",
    "starting": "startingReplicas",
    "draining": "drainingReplicas",
}


class ObjectCollector(Collector):
    """Gauges of all objects of our kinds. Values are in seconds, bytes, ratios and the currency of NodeClasses."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing, so that registering reads no cache."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families as they are now."""
        yield self._conditions()
        yield from self._agent_pools()
        yield self._pools()
        yield from self._tiers()
        yield self._node_classes()

    def _conditions(self) -> GaugeMetricFamily:
        text = "1 for the status and the reason that a condition has now."
        family = _family("condition", text, "kind", "namespace", "name", "type", "status", "reason")
        for resource in OWN_KINDS:
            for manifest in self._cache.select(resource.kind):
                for condition in _status(manifest).get("conditions") or []:
                    values = [condition["type"], condition["status"], condition.get("reason", "")]
                    family.add_metric([resource.kind, *_name(manifest), *values], 1.0)
        return family

    def _agent_pools(self) -> Sequence[GaugeMetricFamily]:
        names = ("namespace", "agent_pool")
        target = _family("target_hit_rate_ratio", "spec.cache.targetHitRate of an AgentPool.", *names)
        hit_rate = _family("hit_rate_ratio", "status.hitRate of an AgentPool.", *names)
        cost = _family("cost_per_hour", "status.costPerHour of an AgentPool.", *names)
        budget = _family("budget_max_cost_per_hour", "spec.budget.maxCostPerHour of an AgentPool.", *names)
        goal = _family("slo_target_seconds", "Latency goal at its quantile.", *names, "slo", "quantile")
        latency = _family("slo_latency_seconds", "Latency now, at the quantile of the goal.", *names, "slo")
        attainment = _family("slo_attainment_ratio", "Share of the time in which the goals are to be met.", *names)
        for manifest in self._cache.select("AgentPool"):
            labels, spec, status = list(_name(manifest)), manifest["spec"], _status(manifest)
            slo = spec.get("slo") or {}
            _add(target, labels, (spec.get("cache") or {}).get("targetHitRate"))
            _add(hit_rate, labels, status.get("hitRate"))
            _add(cost, labels, status.get("costPerHour"))
            _add(budget, labels, (spec.get("budget") or {}).get("maxCostPerHour"))
            _add(attainment, labels, slo.get("attainment"))
            for name in ("ttft", "itl"):
                wanted = slo.get(name) or {}
                if "target" in wanted:
                    goal.add_metric([*labels, name, str(wanted.get("quantile", ""))], seconds(wanted["target"]))
                if status.get(f"{name}P95"):
                    latency.add_metric([*labels, name], seconds(status[f"{name}P95"]))
        return target, hit_rate, cost, budget, goal, latency, attainment

    def _pools(self) -> GaugeMetricFamily:
        text = "Instances of a pool by state; state=desired is spec.replicas."
        family = _family("pool_instances", text, "namespace", "pool_kind", "pool", "agent_pool", "state")
        for kind, short in (("PrefillPool", "prefill"), ("DecodePool", "decode")):
            for manifest in self._cache.select(kind):
                namespace, name = _name(manifest)
                owner = (manifest["metadata"].get("labels") or {}).get(AGENT_POOL, "")
                labels = [namespace, short, name, owner]
                _add(family, [*labels, "desired"], manifest["spec"].get("replicas"))
                for state, field in _POOL_STATES.items():
                    _add(family, [*labels, state], _status(manifest).get(field))
        return family

    def _tiers(self) -> Sequence[GaugeMetricFamily]:
        names = ("namespace", "tier")
        capacity = _family("tier_capacity_bytes", "status.capacity of a KVCacheTier.", *names)
        fill = _family("tier_fill_ratio", "Used bytes / capacity of a KVCacheTier.", *names)
        age = _family("tier_eviction_age_seconds", "status.evictionAge of a KVCacheTier.", *names)
        wanted = _family("tier_retention_seconds", "spec.retention.toolGap of a KVCacheTier.", *names)
        for manifest in self._cache.select("KVCacheTier"):
            labels, status = list(_name(manifest)), _status(manifest)
            if status.get("capacity"):
                capacity.add_metric(labels, float(quantity(status["capacity"])))
            _add(fill, labels, status.get("fill"))
            if status.get("evictionAge"):
                age.add_metric(labels, seconds(status["evictionAge"]))
            retention = (manifest["spec"].get("retention") or {}).get("toolGap")
            if retention:
                wanted.add_metric(labels, seconds(retention))
        return capacity, fill, age, wanted

    def _node_classes(self) -> GaugeMetricFamily:
        family = _family("node_class_devices", "Devices of a NodeClass by state.", "node_class", "state")
        for manifest in self._cache.select("NodeClass"):
            name = manifest["metadata"]["name"]
            _add(family, [name, "total"], _status(manifest).get("devices"))
            _add(family, [name, "free"], _status(manifest).get("freeDevices"))
        return family


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(_PREFIX + name, text, labels=list(labels))


def _add(family: GaugeMetricFamily, labels: Sequence[str], value: Any) -> None:
    if value is not None and value != "":
        family.add_metric(list(labels), float(value))


def _name(manifest: Manifest) -> tuple[str, str]:
    return manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def _status(manifest: Manifest) -> dict[str, Any]:
    return manifest.get("status") or {}
