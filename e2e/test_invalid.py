"""What cannot work is refused with words: by the schema, by rules of CRDs, or by the operator in condition Valid."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retinue_emulator.loopback import LoopbackError

from .manifests import SMALL_MODEL, decode_pool, engine, pool_of
from .world import World, condition

Object = dict[str, Any]
API = "retinue.dev/v1alpha1"


def of(kind: str, spec: Object, name: str = "wrong") -> Object:
    """An object of a kind; its namespace comes with kubectl."""
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


def pool(**spec: Any) -> Object:
    """A decode pool that differs from a good one."""
    return decode_pool("", "wrong", **{"replicas": 1, **spec})


def prefill(**spec: Any) -> Object:
    """A prefill pool that differs from a good one."""
    return of("PrefillPool", {"model": SMALL_MODEL, "engine": engine(), "nodeClasses": ["h200"], "replicas": 1, **spec})


def agents(*roles: Object, **spec: Any) -> Object:
    """An AgentPool of these roles."""
    return of("AgentPool", {"roles": list(roles), **spec})


PRIMARY: Object = {"name": "primary", "type": "Primary", "decodePoolRef": {"name": "small"}}
REFUSED: dict[str, tuple[Object, str]] = {
    "a field that does not exist": (pool(replica=2), 'unknown field "spec.replica"'),
    "a negative number of instances": (pool(replicas=-1), "should be greater than or equal to 0"),
    "an engine that does not exist": (pool(engine={"type": "Llama"}), '"VLLM", "SGLang", "TensorRTLLM", "Simulated"'),
    "a rollout that cannot move": (
        prefill(rollout={"maxSurge": 0, "maxUnavailable": 0}),
        "maxSurge and maxUnavailable must not both be 0",
    ),
    "a drain timeout in words": (prefill(drain={"timeout": "soon"}), "must be a duration such as 500ms, 30s, 5m"),
    "an AgentPool without a primary role": (
        agents({**PRIMARY, "type": "SubAgent"}),
        "exactly one role of type Primary",
    ),
    "a role that nothing serves": (agents({"name": "primary", "type": "Primary"}), "set exactly one of decode"),
    "a hit rate in percent": (
        agents(PRIMARY, cache={"targetHitRate": "95%"}),
        'must be a ratio from 0 to 1 as a string, such as "0.95"',
    ),
    "a tier without a capacity": (of("KVCacheTier", {"medium": "HostMemory"}), "capacityPerMember is required"),
    "a tier that evicts into itself": (
        of("KVCacheTier", {"medium": "HostMemory", "capacityPerMember": "1Gi", "nextTier": "wrong"}),
        "a tier cannot evict into itself",
    ),
    "devices of a CPU class": (
        of(
            "NodeClass",
            {"family": "CPU", "nodeSelector": {"a": "b"}, "devices": {"extendedResource": "a.com/b", "perNode": 1}},
        ),
        "devices must be absent for family CPU",
    ),
    "a GPU class that says nothing of its devices": (
        of("NodeClass", {"family": "GPU", "nodeSelector": {"a": "b"}}),
        "devices is required for families GPU and LPX",
    ),
}


def test_what_the_schema_or_a_rule_forbids_is_refused_with_the_remedy(world: World, namespace: str) -> None:
    for what, (wrong, says) in REFUSED.items():
        place = () if wrong["kind"] == "NodeClass" else ("-n", namespace)
        wrong["metadata"].pop("namespace", None)
        with pytest.raises(LoopbackError) as refused:
            world.kubectl("apply", "-f", "-", *place, stdin=json.dumps(wrong))
        assert says in str(refused.value), what


async def test_what_only_the_operator_can_know_is_told_in_conditions(world: World, namespace: str) -> None:
    world.apply(
        decode_pool(namespace, "engine", 1, engine={"type": "TensorRTLLM"}),
        decode_pool(namespace, "model", 1, model={**SMALL_MODEL, "name": "gpt-oss-20c"}),
        decode_pool(namespace, "class", 1, nodeClasses=["h900"]),
        decode_pool(namespace, "tier", 1, kvCacheTiers=["lost"]),
        pool_of(namespace, "nowhere"),
        _in(namespace, of("KVCacheTier", {"medium": "HostMemory", "capacityPerMember": "1Gi", "nextTier": "b"}, "a")),
        _in(namespace, of("KVCacheTier", {"medium": "HostMemory", "capacityPerMember": "1Gi", "nextTier": "a"}, "b")),
    )
    told = {
        ("dp", "engine", "Valid", "NotSupported"): "spec.engine.type: TensorRTLLM cannot be launched by this version",
        ("dp", "model", "Valid", "UnknownModel"): "gpt-oss-20b",
        ("dp", "class", "Valid", "NodeClassMissing"): "h900",
        ("dp", "tier", "CacheConnected", "TierMissing"): "lost",
        ("kvt", "a", "Valid", "TierCycle"): "nextTier",
    }
    for (kind, name, type_, reason), words in told.items():
        found = await world.conditioned(namespace, kind, name, type_, "False", reason)
        assert words in found["message"], (kind, name)
        assert condition(world.get(kind, name, "-n", namespace), "Ready")["status"] == "False"
    ready = await world.conditioned(namespace, "agentpool", "solo", "Ready", "False")
    assert "nowhere" in ready["message"]
    assert not world.pods(namespace)


def _in(namespace: str, wrong: Object) -> Object:
    wrong["metadata"]["namespace"] = namespace
    return wrong
