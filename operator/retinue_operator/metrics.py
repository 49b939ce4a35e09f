"""What the operator tells Prometheus about itself: one registry, names and labels in one place."""

from collections.abc import Callable, Iterable
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from retinue.plan import Key

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PREFIX = "retinue_operator_"

# A second series for each counter and histogram that nobody queries.
cast(Callable[[], None], disable_created_metrics)()


class Metrics:
    """The operator's metric families; controllers register their own in `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconciles = self._counter("reconciles_total", "Reconciles by kind and result.", "kind", "result")
        self.reconcile_seconds = self._histogram("reconcile_seconds", "Duration of one reconcile.", "kind")
        self.queue_latency = self._histogram("queue_latency_seconds", "Time from due to start of a reconcile.")
        self.writes = self._counter("writes_total", "Writes by kind, verb and result.", "kind", "verb", "result")
        self.skipped = self._counter("writes_skipped_total", "Writes that were not needed.", "kind", "verb", "why")
        self.requests = self._counter("api_requests_total", "Requests to the API server.", "verb", "kind", "code")
        self.request_seconds = self._histogram("api_request_seconds", "Duration of API requests.", "verb")
        self.events = self._counter("events_total", "Kubernetes Events by outcome.", "outcome")
        self.sweeps = self._counter("sweeps_total", "Truth sweeps by result.", "result")
        self.corrections = self._counter("sweep_corrections_total", "Cached objects that a sweep corrected.", "kind")
        self.source_restarts = self._counter("source_restarts_total", "Times the event source had to start again.")
        self.leader = Gauge(_PREFIX + "leader", "1 while this process holds the lease.", registry=self.registry)

    def request(self, verb: str, kind: str, code: int, seconds: float) -> None:
        """Observes one API request (see client.Observer)."""
        self.requests.labels(verb, kind, str(code)).inc()
        self.request_seconds.labels(verb).observe(seconds)

    def started(self, key: Key, latency: float) -> None:
        """Observes the start of a reconcile (see queue.QueueMetrics)."""
        del key
        self.queue_latency.observe(latency)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(_PREFIX + name, text, labels, buckets=_SECONDS, registry=self.registry)

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Registers a gauge that is read at each scrape."""
        Gauge(_PREFIX + name, text, registry=self.registry).set_function(read)

    def gauges(self, name: str, text: str, label: str, read: Callable[[], Iterable[tuple[str, float]]]) -> None:
        """Registers gauges with one label that are read at each scrape."""
        self.registry.register(_Scraped(_PREFIX + name, text, label, read))


class _Scraped(Collector):
    """Gauges computed when somebody asks, so that they cannot disagree with what they describe."""

    def __init__(self, name: str, text: str, label: str, read: Callable[[], Iterable[tuple[str, float]]]) -> None:
        self._family = (name, text, [label])
        self._read = read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        name, text, labels = self._family
        family = GaugeMetricFamily(name, text, labels=labels)
        for value, number in self._read():
            family.add_metric([value], number)
        return [family]
