"""The plugin's own HTTP server: health, metrics, the clock's verdict, and faults for programs that have no kubectl."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .apiserver import ApiError
from .faults import FaultError

if TYPE_CHECKING:
    from .plugin import NodePlugin


class StatusServer:
    """GET /healthz, /metrics, /behind; PUT and DELETE /faults/nodes/NAME and /faults/pods/NAMESPACE/NAME.

    A PUT has the fault as its body, such as `down` or `slow-start=30s`. Faults are taken on a loopback address only,
    because nobody is authenticated here.
    """

    def __init__(self, plugin: NodePlugin, host: str, port: int) -> None:
        self._plugin = plugin
        self._host = host
        self._registry = CollectorRegistry()
        self._registry.register(self)
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/behind", self._behind)
        for method in ("PUT", "DELETE") if _is_loopback(host) else ():
            app.router.add_route(method, "/faults/nodes/{name}", self._node_fault)
            app.router.add_route(method, "/faults/pods/{namespace}/{name}", self._pod_fault)
        self._runner = web.AppRunner(app, access_log=None)
        self._port = port

    @property
    def port(self) -> int:
        """The bound port."""
        return self._port

    async def start(self) -> None:
        """Listens. Raises OSError when the port is taken."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Closes the socket."""
        await self._runner.cleanup()

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering reads no values."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The plugin's numbers at this moment."""
        plugin, watch = self._plugin, self._plugin.clock.watch
        nodes = GaugeMetricFamily("retinue_nodeplugin_nodes", "Emulated nodes by power.", labels=["power"])
        off = sum(node.faults.off for node in plugin.nodes.values())
        nodes.add_metric(["on"], len(plugin.nodes) - off)
        nodes.add_metric(["off"], off)
        yield nodes
        pods = GaugeMetricFamily("retinue_nodeplugin_pods", "Pods that are looked after.", labels=["node"])
        devices = GaugeMetricFamily("retinue_nodeplugin_devices", "Devices.", labels=["node", "state"])
        for node in plugin.nodes.values():
            pods.add_metric([node.name], node.pod_count)
            ledger = node.host.ledger
            held = sum(len(devices) for devices in ledger.holders().values())
            devices.add_metric([node.name, "held"], held)
            devices.add_metric([node.name, "healthy"], sum(ledger.allocatable().values()))
            devices.add_metric([node.name, "all"], sum(ledger.capacity().values()))
        yield pods
        yield devices
        requests = CounterMetricFamily(
            "retinue_nodeplugin_api_requests", "Requests to the API server.", labels=["method", "code"]
        )
        for (method, code), count in sorted(plugin.api.requests.items()):
            requests.add_metric([method, code], count)
        yield requests
        renewals = sum(node.lease_renewals for node in plugin.nodes.values())
        yield CounterMetricFamily("retinue_nodeplugin_lease_renewals", "Node leases renewed.", value=renewals)
        yield CounterMetricFamily(
            "retinue_nodeplugin_status_writes", "Pod statuses written.", value=plugin.status_writes
        )
        yield GaugeMetricFamily("retinue_sim_clock_lag_seconds", "How late the last tick was.", value=watch.lag_seconds)
        yield CounterMetricFamily("retinue_sim_behind", "Ticks later than the tolerance.", value=watch.behind_total)

    async def _healthz(self, _: web.Request) -> web.Response:
        failure = self._plugin.failure
        if failure is not None:
            return web.Response(status=500, text=f"{type(failure).__name__}: {failure}\n")
        return web.Response(text="ok\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _behind(self, _: web.Request) -> web.Response:
        watch = self._plugin.clock.watch
        return web.json_response(
            {
                "behind": watch.behind,
                "verdict": watch.verdict,
                "lagSeconds": watch.lag_seconds,
                "worstSeconds": watch.worst_seconds,
                "lateTicks": watch.behind_total,
                "speed": self._plugin.clock.speed,
            }
        )

    async def _node_fault(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._plugin.nodes:
            return web.json_response({"error": f"no node {name} here"}, status=404)
        try:
            await self._plugin.set_node_fault(name, await _fault(request))
        except (FaultError, ApiError) as error:
            return _refused(error)
        return web.Response(status=204)

    async def _pod_fault(self, request: web.Request) -> web.Response:
        where = request.match_info
        try:
            await self._plugin.set_pod_fault(where["namespace"], where["name"], await _fault(request))
        except (FaultError, ApiError) as error:
            return _refused(error)
        return web.Response(status=204)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _fault(request: web.Request) -> str | None:
    return None if request.method == "DELETE" else (await request.text()).strip()


def _refused(error: FaultError | ApiError) -> web.Response:
    return web.json_response({"error": str(error)}, status=error.status if isinstance(error, ApiError) else 400)
