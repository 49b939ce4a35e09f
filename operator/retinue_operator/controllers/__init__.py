"""The glue of each kind: observes through the cache, asks the core for a plan, and leaves the rest to the runtime."""

from collections.abc import Sequence
from contextlib import AsyncExitStack

from retinue.api import DecodePool, PrefillPool
from retinue_operator.controller import Controller
from retinue_operator.controllers.agentpool import AgentPoolController
from retinue_operator.controllers.kvcachetier import KVCacheTierController
from retinue_operator.controllers.measure import Measurer
from retinue_operator.controllers.nodeclass import NodeClassController
from retinue_operator.controllers.pools import PoolController
from retinue_operator.prometheus.client import PrometheusClient
from retinue_operator.settings import Settings


def all_controllers(settings: Settings, stack: AsyncExitStack) -> Sequence[Controller]:
    """One controller per kind; they share one view of Prometheus, if an address is set. The stack closes its client."""
    prometheus = settings.prometheus()
    measurer = None
    if prometheus is not None:
        client = PrometheusClient(prometheus)
        stack.push_async_callback(client.close)
        measurer = Measurer(client)
    return (
        NodeClassController(),
        KVCacheTierController(measurer),
        PoolController(PrefillPool, measurer),
        PoolController(DecodePool, measurer),
        AgentPoolController(measurer),
    )
