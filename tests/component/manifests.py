"""AgentPools and pools for the component tests, small enough for the emulated cluster and fast enough for a test."""

from typing import Any

MODEL = {"name": "minimax-m2.5", "precision": "FP8", "kvPrecision": "FP8", "contextWindow": 196608}
SMALL_MODEL = {"name": "gpt-oss-20b", "precision": "MXFP4", "kvPrecision": "FP8", "contextWindow": 131072}
FAST = {
    "evaluationInterval": "1s",
    "metricsWindow": "4s",
    "startupEstimate": "5s",
    "scaleDown": {"stabilization": "6s", "interval": "2s"},
    "onMissingMetrics": {"maxAge": "5s"},
}


def agent_pool(namespace: str, *, mode: str = "Auto", most: int = 4) -> dict[str, Any]:
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
                    "engine": {"type": "Simulated"},
                    "prefill": {"nodeClasses": ["h100"], **shape},
                    "decode": {"nodeClasses": ["h200"], **shape},
                    "kvCacheTiers": ["warm", "cold"],
                },
                {
                    "name": "explorer",
                    "type": "SubAgent",
                    "model": SMALL_MODEL,
                    "engine": {"type": "Simulated"},
                    "decode": {"nodeClasses": ["b200"], "replicas": {"min": 1, "max": 2}, "drain": {"timeout": "60s"}},
                },
            ],
            "tiers": [
                {"name": "warm", "spec": {"medium": "HostMemory", "capacityPerMember": "64Gi"}},
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
            "slo": {"ttft": {"target": "500ms"}, "itl": {"target": "5ms"}},
            "autoscaling": {"mode": mode, **FAST},
        },
    }


def decode_pool(namespace: str, name: str, replicas: int, **spec: Any) -> dict[str, Any]:
    """An aggregated pool of the small model that belongs to no AgentPool."""
    return {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": "DecodePool",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "serves": "PrefillAndDecode",
            "model": SMALL_MODEL,
            "engine": {"type": "Simulated"},
            "nodeClasses": ["b200"],
            "replicas": replicas,
            "drain": {"timeout": "60s"},
            **spec,
        },
    }
