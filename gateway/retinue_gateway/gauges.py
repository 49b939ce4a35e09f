"""The gateway's gauges: read from the live tables at each scrape, so that none can freeze or drift."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from retinue_gateway.directory import Instance, Route
from retinue_gateway.keys import RoleKey
from retinue_gateway.load import LoadBook
from retinue_gateway.metrics import ROLE_LABELS
from retinue_gateway.sessions import SessionTable
from retinue_gateway.table import RoutingTable


class StateCollector(Collector):
    """One sample per role that the routing table knows, and per role and instance; zero is said, not left out."""

    def __init__(self, table: RoutingTable, sessions: SessionTable, roles: LoadBook[RoleKey]) -> None:
        self._table = table
        self._sessions = sessions
        self._roles = roles

    def collect(self) -> Iterator[Metric]:
        in_flight = _family("requests_in_flight", "Requests accepted and not ended.")
        queued = _family("queued_prefill_tokens", "Prompt tokens of requests that wait for prefill or are in it.")
        open_sessions = _family("open_sessions", "Sessions that are open.")
        context = _family("open_session_context_tokens", "Summed context length of open sessions.")
        placed = _family("instance_sessions", "Open sessions whose cache is on the instance.", "retinue_instance")
        routable = _family("routable_instances", "Instances that may get new requests.", "stage")
        directory = self._table.current
        for key, route in directory.routes.items():
            labels = [key.namespace, key.agent_pool, key.role]
            load, held = self._roles.of(key), self._sessions.held_by_role(key)
            in_flight.add_metric(labels, load.in_flight)
            queued.add_metric(labels, load.queued_tokens)
            open_sessions.add_metric(labels, held.sessions)
            context.add_metric(labels, held.tokens)
            for stage in route.stages:
                routable.add_metric([*labels, stage], len(route.instances(stage)))
            for name, count in self._placed(route).items():
                placed.add_metric([*labels, name], count)
        yield from (in_flight, queued, open_sessions, context, placed, routable)

    def describe(self) -> list[Metric]:
        """Nothing: registering must not need a scrape."""
        return []

    def _placed(self, route: Route) -> dict[str, int]:
        """Sessions by instance name, for all instances of the role's pools, draining ones too. During a replacement two
        pods carry one name for a moment; their sessions add up, because a series must not appear twice."""
        counts: dict[str, int] = {}
        for instance in self._table.current.instances.values():
            if _belongs(instance, route):
                held = self._sessions.held_by_role_on_instance(route.key, instance.uid)
                counts[instance.name] = counts.get(instance.name, 0) + held.sessions
        return counts


def _belongs(instance: Instance, route: Route) -> bool:
    return (
        instance.namespace == route.key.namespace
        and instance.stage in route.stages
        and instance.pool == route.pool_of(instance.stage)
    )


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"retinue_gateway_{name}", text, labels=[*ROLE_LABELS, *labels])
