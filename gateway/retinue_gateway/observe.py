"""Keeps the routing table as the cluster is: informers for pods and AgentPools of the served namespaces."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from retinue.api import labels
from retinue_gateway.cluster import Cluster
from retinue_gateway.directory import AgentPoolView, Instance, build_directory, read_agent_pool, read_instance
from retinue_gateway.table import RoutingTable
from retinue_gateway.watch import Informer

# Tier servers are managed too; what routes requests is only interested in engines.
_ENGINES = (
    f"{labels.MANAGED_BY}={labels.RETINUE},{labels.POOL_KIND} in ({labels.POOL_KIND_PREFILL},{labels.POOL_KIND_DECODE})"
)
# A burst of events (a rollout, a list after a disconnect) makes one new table, not one per event.
_COALESCE_SECONDS = 0.02
_LOG = structlog.get_logger(__name__)


class ClusterObserver:
    """Publishes a new directory after each change; nothing before all informers have listed once."""

    def __init__(
        self, cluster: Cluster, table: RoutingTable, *, namespaces: Sequence[str], on_publish: Callable[[], None]
    ) -> None:
        self._table = table
        self._on_publish = on_publish
        self._dirty = asyncio.Event()
        scopes = [f"/namespaces/{namespace}" for namespace in namespaces] or [""]
        self._pods: list[Informer[Instance]] = [
            Informer(
                cluster,
                f"/api/v1{scope}/pods",
                read=read_instance,
                on_change=self._dirty.set,
                label_selector=_ENGINES,
            )
            for scope in scopes
        ]
        self._agent_pools: list[Informer[AgentPoolView]] = [
            Informer(
                cluster,
                f"/apis/retinue.dev/v1alpha1{scope}/agentpools",
                read=read_agent_pool,
                on_change=self._dirty.set,
            )
            for scope in scopes
        ]

        self._informers: list[Informer[Instance] | Informer[AgentPoolView]] = [*self._pods, *self._agent_pools]

    async def run(self) -> None:
        """Follows the cluster until cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.run())
            group.create_task(self._publish_changes())

    def problems(self) -> list[str]:
        """What keeps the observer from its first complete view; empty afterwards."""
        waiting = [informer for informer in self._informers if not informer.synced]
        return [informer.error or "the first list has not come yet" for informer in waiting]

    async def _publish_changes(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(_COALESCE_SECONDS)
            self._dirty.clear()
            if self.problems():
                continue
            directory = build_directory(
                (pod for informer in self._pods for pod in informer.objects()),
                (pool for informer in self._agent_pools for pool in informer.objects()),
            )
            before = self._table.current
            if directory == before and self._table.synced:
                continue
            self._table.publish(directory)
            self._on_publish()
            _LOG.info(
                "routing table",
                agent_pools=len(directory.pools),
                roles=len(directory.routes),
                instances=len(directory.instances),
                routable=sum(instance.routable for instance in directory.instances.values()),
            )
