"""external.metrics.k8s.io for a HorizontalPodAutoscaler, served by a pod of the test from the release's Prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .manifests import Object
from .world import PROMETHEUS, World

_NAME = "external-metrics"
_API_SERVICE = "v1beta1.external.metrics.k8s.io"
_SCRIPT = Path(__file__).parent / "fixtures" / "external_metrics.py"


@contextmanager
def external_metrics(world: World, namespace: str, queries: dict[str, str]) -> Iterator[None]:
    """The API with these metrics (name to PromQL with $namespace and $matchers), for as long as the context lasts."""
    image = world.get("daemonset", f"{world.release.name}-emulator", "-n", world.release.namespace)
    container = image["spec"]["template"]["spec"]["containers"][0]
    try:
        world.apply(*_server(world, namespace, container["image"], queries))
        # First the server, then its registration: an API that does not answer holds up the deletion of namespaces.
        world.kubectl("wait", "deployment", _NAME, "-n", namespace, "--for=condition=Available", "--timeout=90s")
        world.apply(_registration(namespace))
        world.kubectl("wait", "apiservice", _API_SERVICE, "--for=condition=Available", "--timeout=60s")
        yield
    finally:
        world.kubectl("delete", "apiservice", _API_SERVICE, "--ignore-not-found")


def _server(world: World, namespace: str, image: str, queries: dict[str, str]) -> list[Object]:
    labels = {"app": _NAME}
    metadata = {"name": _NAME, "namespace": namespace}
    host, port = PROMETHEUS.split(":")
    variables = {
        "PROMETHEUS": f"http://{host}.{world.release.namespace}.svc:{port}",
        "QUERIES": json.dumps(queries),
    }
    container = {
        "name": "server",
        "image": image,
        "command": ["python", "/script/external_metrics.py", "/tmp/server.pem"],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "ports": [{"containerPort": 8443}],
        "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
        "volumeMounts": [{"name": "script", "mountPath": "/script"}],
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "containers": [container],
        "volumes": [{"name": "script", "configMap": {"name": _NAME}}],
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {_SCRIPT.name: _SCRIPT.read_text()}},
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"port": 443, "targetPort": 8443}]},
        },
    ]


def _registration(namespace: str) -> Object:
    group, version = "external.metrics.k8s.io", "v1beta1"
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": _API_SERVICE},
        "spec": {
            "group": group,
            "version": version,
            "service": {"namespace": namespace, "name": _NAME},
            "insecureSkipTLSVerify": True,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
        },
    }
