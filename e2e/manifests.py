"""Pools and AgentPools for the e2e tests: simulated engines, small enough for emulated nodes on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
Object = dict[str, Any]
MODEL = {"name": "minimax-m2.5", "precision": "FP8", "kvPrecision": "FP8", "contextWindow": 196608}
SMALL_MODEL = {"name": "gpt-oss-20b", "precision": "MXFP4", "kvPrecision": "FP8", "contextWindow": 131072}
SPEED = 12.0
FAST = {
    "evaluationInterval": "2s",
    "metricsWindow": "8s",
    "startupEstimate": "8s",
    "scaleDown": {"stabilization": "12s", "interval": "4s"},
    "onMissingMetrics": {"maxAge": "10s"},
}


def engine(speed: float = SPEED, *args: str, **more: Any) -> Object:
    """A simulated engine that runs `speed` times as fast as real and is up at once."""
    return {"type": "Simulated", "args": [f"--speed={speed:g}", "--cold-start-seconds=1", *args], **more}


def decode_pool(namespace: str, name: str, replicas: int, **spec: Any) -> Object:
    """An aggregated pool of the small model, one device an instance, that belongs to no AgentPool."""
    return {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": "DecodePool",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "serves": "PrefillAndDecode",
            "model": SMALL_MODEL,
            "engine": engine(),
            "nodeClasses": ["h200"],
            "replicas": replicas,
            "drain": {"timeout": "120s"},
            **spec,
        },
    }


def pool_of(namespace: str, pool: str, name: str = "solo") -> Object:
    """An AgentPool whose only role refers to an existing decode pool; nobody sizes it."""
    return {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": "AgentPool",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "roles": [{"name": "primary", "type": "Primary", "decodePoolRef": {"name": pool}}],
            "autoscaling": {"mode": "Off"},
        },
    }


def agent_pool(namespace: str, *, mode: str = "Auto", most: int = 2) -> Object:
    """An AgentPool with a primary role over prefill and decode pools, a sub-agent role, and two tiers."""
    shape = {
        "parallelism": {"tensor": 4, "expert": 4},
        "replicas": {"min": 1, "max": most},
        "drain": {"timeout": "60s"},
    }
    return {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": "AgentPool",
        "metadata": {"name": "coder", "namespace": namespace},
        "spec": {
            "roles": [
                {
                    "name": "primary",
                    "type": "Primary",
                    "model": MODEL,
                    "engine": engine(),
                    "prefill": {"nodeClasses": ["h200"], **shape},
                    "decode": {"nodeClasses": ["h200"], **shape},
                    "kvCacheTiers": ["warm", "cold"],
                },
                {
                    "name": "explorer",
                    "type": "SubAgent",
                    "model": SMALL_MODEL,
                    "engine": engine(),
                    "decode": {"nodeClasses": ["b200"], "replicas": {"min": 1, "max": 2}, "drain": {"timeout": "60s"}},
                },
            ],
            "tiers": [
                {"name": "warm", "spec": {"medium": "HostMemory", "capacityPerMember": "2Gi"}},
                {
                    "name": "cold",
                    "replicas": {"min": 1, "max": 2},
                    "spec": {
                        "medium": "ContextStorage",
                        "backend": "Simulated",
                        "capacityPerMember": "512Gi",
                        "nodeClass": "storage",
                    },
                },
            ],
            "slo": {"ttft": {"target": "2s"}, "itl": {"target": "20ms"}},
            "autoscaling": {"mode": mode, **FAST},
        },
    }


def small_agent_pool(namespace: str, *, mode: str = "Off", most: int = 2, **spec: Any) -> Object:
    """The same with the small model in all pools: every instance takes one device."""
    made = agent_pool(namespace, mode=mode, most=most)
    primary = made["spec"]["roles"][0]
    primary["model"] = SMALL_MODEL
    for stage in ("prefill", "decode"):
        del primary[stage]["parallelism"]
    made["spec"].update(spec)
    return made


def node_classes(speed: float = SPEED) -> list[Object]:
    """The classes of the kind cluster's nodes: those of the examples, with times `speed` times as fast as real."""
    classes = list(yaml.safe_load_all((EXAMPLES / "node-classes" / "nodeclasses.yaml").read_text()))
    for found in classes:
        found["metadata"]["annotations"]["retinue.dev/time-scale"] = f"{speed:g}"
    return classes
