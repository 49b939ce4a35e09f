"""A real Kubernetes control plane and Prometheus on 127.0.0.1, built from Go modules, for tests and the demo."""

from .access import ClusterAccess, KubectlError
from .audit import AuditEvent
from .build import ensure_tools
from .controlplane import ControlPlane
from .errors import LoopbackError
from .prometheus import PrometheusServer
from .prometheus_api import PrometheusApi, Sample
from .prometheus_config import StaticTarget
from .waiting import eventually

__all__ = [
    "AuditEvent",
    "ClusterAccess",
    "ControlPlane",
    "KubectlError",
    "LoopbackError",
    "PrometheusApi",
    "PrometheusServer",
    "Sample",
    "StaticTarget",
    "ensure_tools",
    "eventually",
]
