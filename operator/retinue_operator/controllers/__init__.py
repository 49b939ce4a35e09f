"""The glue of each kind: observes through the cache, asks the core for a plan, and leaves the rest to the runtime."""

from collections.abc import Sequence

from retinue.api import DecodePool, PrefillPool
from retinue_operator.controller import Controller
from retinue_operator.controllers.agentpool import AgentPoolController
from retinue_operator.controllers.kvcachetier import KVCacheTierController
from retinue_operator.controllers.measure import Measurer
from retinue_operator.controllers.nodeclass import NodeClassController
from retinue_operator.controllers.pools import PoolController
from retinue_operator.prometheus.client import PrometheusClient
from retinue_operator.settings import Settings


def all_controllers(settings: Settings) -> Sequence[Controller]:
    """One controller per kind; they share one view of Prometheus, if an address is set."""
    prometheus = settings.prometheus()
    measurer = Measurer(PrometheusClient(prometheus)) if prometheus is not None else None
    return (
        NodeClassController(),
        KVCacheTierController(measurer),
        PoolController(PrefillPool, measurer),
        PoolController(DecodePool, measurer),
        AgentPoolController(measurer),
    )
