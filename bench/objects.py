"""The objects that benchmarks make: nodes, a class, pools, and the statuses that a kubelet would write."""

from typing import Any

Manifest = dict[str, Any]

CLASS = "bench-gpu"
GPU = "nvidia.com/gpu"
PER_NODE = 8
NODES_PER_RACK = 16
GROUP = "/apis/retinue.dev/v1alpha1"
POOL_KIND = "DecodePool"
POOLS = "decodepools"
_MODEL = {"name": "gpt-oss-20b", "precision": "MXFP4", "kvPrecision": "FP8", "contextWindow": 131072}


def node_class() -> Manifest:
    """The class of all nodes of a benchmark."""
    return {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": "NodeClass",
        "metadata": {"name": CLASS},
        "spec": {"family": "GPU", "preset": "b200", "nodeSelector": {"bench": "gpu"}, "costPerNodeHour": "48"},
    }


def node(number: int) -> Manifest:
    """A Ready node of eight devices in a rack of sixteen nodes."""
    name, rack = f"node-{number:05d}", f"rack-{number // NODES_PER_RACK:04d}"
    amounts = {GPU: str(PER_NODE), "cpu": "128", "memory": "1Ti", "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"bench": "gpu", "kubernetes.io/hostname": name, "topology.kubernetes.io/rack": rack},
        },
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": _SOME_TIME}
            ],
        },
    }


def pool(namespace: str, name: str, replicas: int, pods: int, devices: int) -> Manifest:
    """An aggregated pool of `replicas` instances of `pods` pods with `devices` devices each."""
    return {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": POOL_KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "serves": "PrefillAndDecode",
            "model": _MODEL,
            "engine": {"type": "Simulated"},
            "nodeClasses": [CLASS],
            # More pods than one only come with whole nodes.
            "parallelism": {"tensor": devices} if pods == 1 else {"data": pods * PER_NODE, "expert": pods * PER_NODE},
            "replicas": replicas,
            "drain": {"timeout": "5s"},
        },
    }


def running(pod: Manifest, address: str, now: str) -> Manifest:
    """The status of a pod whose containers run and are ready."""
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": now,
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": now}
            for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        ],
        "containerStatuses": _containers(pod, {"running": {"startedAt": now}}),
    }


def failed(pod: Manifest, now: str) -> Manifest:
    """The status of a pod whose containers have exited with 1."""
    return {
        "phase": "Failed",
        "conditions": [
            {"type": kind, "status": "False", "lastTransitionTime": now, "reason": "PodFailed"}
            for kind in ("ContainersReady", "Ready")
        ],
        "containerStatuses": _containers(
            pod, {"terminated": {"exitCode": 1, "reason": "Error", "startedAt": now, "finishedAt": now}}
        ),
    }


def is_ready(found: Manifest) -> bool:
    """Whether the condition Ready of its status is True."""
    conditions = found.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _containers(pod: Manifest, state: Manifest) -> list[Manifest]:
    running = "running" in state
    unread = {"restartCount": 0, "image": "", "imageID": ""}
    return [
        {"name": container["name"], "ready": running, "started": running, "state": state, **unread}
        for container in pod["spec"]["containers"]
    ]


_SOME_TIME = "2026-01-01T00:00:00Z"
