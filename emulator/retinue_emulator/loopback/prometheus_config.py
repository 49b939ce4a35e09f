"""The Prometheus configuration: which pods are scraped, and which of their labels become labels of the series."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

POD_JOB = "retinue-pods"
POD_SELECTOR = "app.kubernetes.io/managed-by=retinue"
METRICS_PORT_NAME = "http"

# Pod label -> target label.
POD_LABELS = {
    "retinue.dev/agent-pool": "agent_pool",
    "retinue.dev/role": "role",
    "retinue.dev/pool": "pool",
    "retinue.dev/pool-kind": "pool_kind",
    # `instance` is Prometheus' own name for the scraped address.
    "retinue.dev/instance": "retinue_instance",
    "retinue.dev/node-class": "node_class",
    "retinue.dev/tier": "tier",
}


@dataclass(frozen=True)
class StaticTarget:
    """Something outside the cluster that is scraped at `address` (host:port) under /metrics.

    settings: more of its job, such as scheme, tls_config and authorization; those of the first target of a job count.
    """

    job: str
    address: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def render_config(*, kubeconfig: Path | None, targets: Sequence[StaticTarget], scrape_interval: str) -> str:
    """The text of prometheus.yml.

    `kubeconfig` is where pods are discovered, None for no discovery; `scrape_interval` is a Prometheus duration such
    as `1s`.
    """
    jobs: dict[str, list[str]] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for target in targets:
        jobs.setdefault(target.job, []).append(target.address)
        settings.setdefault(target.job, target.settings)
    scrape_configs: list[dict[str, Any]] = [
        {"job_name": job, "honor_labels": False, **settings[job], "static_configs": [{"targets": addresses}]}
        for job, addresses in jobs.items()
    ]
    if kubeconfig is not None:
        scrape_configs.insert(0, pod_job(kubeconfig))
    return yaml.safe_dump(
        {
            "global": {
                "scrape_interval": scrape_interval,
                "scrape_timeout": scrape_interval,
                "evaluation_interval": scrape_interval,
            },
            "scrape_configs": scrape_configs,
        },
        sort_keys=False,
    )


def pod_job(kubeconfig: Path) -> dict[str, Any]:
    """The scrape job for the pods that Retinue manages: those that run, have an address and a port named `http`.

    Discovery is by pod, not by endpoints, because EndpointSlices refuse loopback addresses.
    """
    return {
        "job_name": POD_JOB,
        "honor_labels": False,
        "kubernetes_sd_configs": [
            {
                "role": "pod",
                "kubeconfig_file": str(kubeconfig),
                "selectors": [{"role": "pod", "label": POD_SELECTOR}],
            }
        ],
        "relabel_configs": [
            _keep("__meta_kubernetes_pod_container_port_name", METRICS_PORT_NAME),
            _keep("__meta_kubernetes_pod_phase", "Running"),
            _keep("__meta_kubernetes_pod_ip", ".+"),
            _copy("__meta_kubernetes_namespace", "namespace"),
            _copy("__meta_kubernetes_pod_name", "pod"),
            *(_copy(_meta_label(label), name) for label, name in POD_LABELS.items()),
        ],
    }


def _meta_label(label: str) -> str:
    # Prometheus replaces every character that a label name cannot have.
    sanitized = "".join(character if character.isalnum() else "_" for character in label)
    return f"__meta_kubernetes_pod_label_{sanitized}"


def _keep(source: str, pattern: str) -> dict[str, Any]:
    return {"action": "keep", "source_labels": [source], "regex": pattern}


def _copy(source: str, target: str) -> dict[str, Any]:
    return {"action": "replace", "source_labels": [source], "target_label": target}
