"""The shape of the kind cluster: kind's configuration, the inventory of its nodes, and the values of the chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

SYSTEM_NAMESPACE = "retinue-system"
RELEASE = "retinue"
GATEWAY_NODE_PORT = 30080
PROMETHEUS_IMAGE = "retinue/prometheus"
_AUDIT_FOLDER = "/etc/kubernetes/audit"
_AUDIT_LOGS = "/var/log/kubernetes"
# A dead node is noticed after 20 s in place of 50: the kubelets report every 4.
_KUBELET = "kind: KubeletConfiguration\nfailCgroupV1: false\nnodeStatusUpdateFrequency: 4s\n"


@dataclass(frozen=True)
class Nodes:
    """The workers of a cluster: how many, and the file beside this module that says what they pretend to be."""

    workers: int
    file: str

    def inventory(self, cluster: str) -> str:
        """The inventory of the kind cluster `cluster`, as YAML text."""
        text = (files("retinue_emulator.kind") / self.file).read_text(encoding="utf-8")
        return Template(text).substitute(cluster=cluster)


TESTS = Nodes(5, "tests.yaml")
DEMO = Nodes(6, "demo.yaml")


def kind_config(*, gateway_port: int, audit: Path, workers: int) -> str:
    """kind's configuration: one control plane with an audit log and `workers` workers.

    gateway_port: the port on 127.0.0.1 that leads to the gateway's node port. audit: a folder with policy.yaml; the log
    is written to audit.log beside it.
    """
    api_server = {
        "audit-policy-file": f"{_AUDIT_FOLDER}/policy.yaml",
        "audit-log-path": f"{_AUDIT_LOGS}/audit.log",
        # The whole run in one file: a rotated one would be half a proof.
        "audit-log-maxsize": "2000",
    }
    volumes = [
        {"name": "audit-policy", "hostPath": _AUDIT_FOLDER, "mountPath": _AUDIT_FOLDER, "readOnly": True},
        {"name": "audit-log", "hostPath": _AUDIT_LOGS, "mountPath": _AUDIT_LOGS, "readOnly": False},
    ]
    cluster_configuration = {
        "kind": "ClusterConfiguration",
        "apiServer": {
            "extraArgs": [{"name": name, "value": value} for name, value in api_server.items()],
            "extraVolumes": volumes,
        },
        "controllerManager": {"extraArgs": [{"name": "node-monitor-grace-period", "value": "20s"}]},
    }
    control_plane = {
        "role": "control-plane",
        "extraPortMappings": [
            {"containerPort": GATEWAY_NODE_PORT, "hostPort": gateway_port, "listenAddress": "127.0.0.1"}
        ],
        "extraMounts": [
            {"hostPath": str(audit), "containerPath": _AUDIT_FOLDER, "readOnly": True},
            {"hostPath": str(audit), "containerPath": _AUDIT_LOGS},
        ],
    }
    return yaml.safe_dump(
        {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "kubeadmConfigPatches": [_KUBELET, yaml.safe_dump(cluster_configuration)],
            "nodes": [control_plane, *({"role": "worker"} for _ in range(workers))],
        },
        sort_keys=False,
    )


def values(cluster: str, *, speed: float, prometheus_tag: str, nodes: Nodes | None = TESTS) -> dict[str, Any]:
    """Values of the chart for a kind cluster: everything of its own, and emulated devices on the workers.

    speed: how many times faster than real the engines run; see the gateway's latencyScale. nodes None: the cluster is
    no kind cluster of ours, and its nodes keep the devices that they have.
    """
    on_first_worker: Mapping[str, Any] = {"nodeSelector": {"kubernetes.io/hostname": f"{cluster}-worker"}}
    return {
        "gateway": {
            "latencyScale": speed,
            "shutdownDelay": 2,
            "service": {"type": "NodePort", "nodePort": GATEWAY_NODE_PORT},
            **on_first_worker,
        },
        "prometheus": {
            "embedded": {
                "enabled": True,
                "image": {"repository": PROMETHEUS_IMAGE, "tag": prometheus_tag},
                "scrapeInterval": "1s",
                **on_first_worker,
            }
        },
        "priorityClass": {"create": True},
        "emulator": (
            {}
            if nodes is None
            else {"enabled": True, "inventory": nodes.inventory(cluster), "deviceClasses": ["gpu.nvidia.com"]}
        ),
    }
