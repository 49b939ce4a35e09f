"""The operator tells Prometheus of conditions, goals and sizes as the cache has them; what is missing has no sample."""

import itertools

from prometheus_client import CollectorRegistry

from retinue_operator.cache import Cache
from retinue_operator.objectmetrics import ObjectCollector
from retinue_operator.resources import resource_of

_VERSIONS = itertools.count(1)


def put(
    cache: Cache,
    kind: str,
    name: str,
    *,
    namespace: str = "agents",
    labels: dict[str, str] | None = None,
    **fields: object,
) -> dict[str, object]:
    metadata: dict[str, object] = {"name": name, "uid": f"{kind}-{name}", "resourceVersion": str(next(_VERSIONS))}
    if labels:
        metadata["labels"] = labels
    if namespace:
        metadata["namespace"] = namespace
    manifest = {"apiVersion": resource_of(kind).api_version, "kind": kind, "metadata": metadata, **fields}
    cache.put(manifest)
    return manifest


def registry(cache: Cache) -> CollectorRegistry:
    made = CollectorRegistry()
    made.register(ObjectCollector(cache))
    return made


def condition(type_: str, status: str, reason: str) -> dict[str, str]:
    return {"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": ""}


def test_each_condition_is_one_series_that_follows_the_object_and_goes_with_it() -> None:
    cache = Cache()
    put(cache, "DecodePool", "coder", spec={}, status={"conditions": [condition("Ready", "False", "Starting")]})
    metrics = registry(cache)
    labels = {"kind": "DecodePool", "namespace": "agents", "name": "coder", "type": "Ready"}
    starting = {**labels, "status": "False", "reason": "Starting"}
    healthy = {**labels, "status": "True", "reason": "Healthy"}
    assert metrics.get_sample_value("retinue_operator_condition", starting) == 1.0
    now = put(cache, "DecodePool", "coder", spec={}, status={"conditions": [condition("Ready", "True", "Healthy")]})
    assert metrics.get_sample_value("retinue_operator_condition", starting) is None
    assert metrics.get_sample_value("retinue_operator_condition", healthy) == 1.0
    cache.remove(now)
    assert metrics.get_sample_value("retinue_operator_condition", healthy) is None


def test_an_agent_pool_tells_its_goals_in_seconds_and_ratios() -> None:
    cache = Cache()
    put(
        cache,
        "AgentPool",
        "coder",
        spec={
            "cache": {"targetHitRate": "0.95"},
            "slo": {"ttft": {"quantile": "0.9", "target": "2s"}, "itl": {"target": "25ms"}, "attainment": "0.99"},
            "budget": {"maxCostPerHour": "900"},
        },
        status={"hitRate": "0.951", "costPerHour": "512", "ttftP95": "1.2s"},
    )
    metrics, labels = registry(cache), {"namespace": "agents", "agent_pool": "coder"}
    read = {
        name: metrics.get_sample_value(f"retinue_operator_{name}", labels)
        for name in (
            "target_hit_rate_ratio",
            "hit_rate_ratio",
            "cost_per_hour",
            "budget_max_cost_per_hour",
            "slo_attainment_ratio",
        )
    }
    assert list(read.values()) == [0.95, 0.951, 512.0, 900.0, 0.99]
    goal = "retinue_operator_slo_target_seconds"
    assert metrics.get_sample_value(goal, {**labels, "slo": "ttft", "quantile": "0.9"}) == 2.0
    assert metrics.get_sample_value(goal, {**labels, "slo": "itl", "quantile": ""}) == 0.025
    latency = "retinue_operator_slo_latency_seconds"
    assert metrics.get_sample_value(latency, {**labels, "slo": "ttft"}) == 1.2
    assert metrics.get_sample_value(latency, {**labels, "slo": "itl"}) is None


def test_pools_tiers_and_node_classes_tell_their_sizes() -> None:
    cache = Cache()
    put(
        cache,
        "PrefillPool",
        "coder-primary",
        labels={"retinue.dev/agent-pool": "coder"},
        spec={"replicas": 3},
        status={"readyReplicas": 2, "startingReplicas": 1, "draining": 0},
    )
    put(
        cache,
        "KVCacheTier",
        "warm",
        spec={"retention": {"toolGap": "5m"}},
        status={"capacity": "2Ti", "fill": "0.97", "evictionAge": "30s"},
    )
    put(cache, "NodeClass", "gb300", namespace="", spec={}, status={"devices": 72, "freeDevices": 8})
    metrics = registry(cache)
    pool = {"namespace": "agents", "pool_kind": "prefill", "pool": "coder-primary", "agent_pool": "coder"}
    instances = {
        state: metrics.get_sample_value("retinue_operator_pool_instances", {**pool, "state": state})
        for state in ("desired", "ready", "starting", "draining")
    }
    assert instances == {"desired": 3.0, "ready": 2.0, "starting": 1.0, "draining": None}
    tier = {"namespace": "agents", "tier": "warm"}
    assert metrics.get_sample_value("retinue_operator_tier_capacity_bytes", tier) == 2.0**41
    assert metrics.get_sample_value("retinue_operator_tier_fill_ratio", tier) == 0.97
    assert metrics.get_sample_value("retinue_operator_tier_eviction_age_seconds", tier) == 30.0
    assert metrics.get_sample_value("retinue_operator_tier_retention_seconds", tier) == 300.0
    free = {"node_class": "gb300", "state": "free"}
    assert metrics.get_sample_value("retinue_operator_node_class_devices", free) == 8.0


def test_what_a_status_does_not_have_makes_no_sample() -> None:
    cache = Cache()
    put(cache, "AgentPool", "new", spec={})
    put(cache, "KVCacheTier", "new", spec={})
    assert [sample for family in ObjectCollector(cache).collect() for sample in family.samples] == []
