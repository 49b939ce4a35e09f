"""The gateway's Prometheus metrics, in a registry of their own, with exactly the children that exist."""

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from retinue_gateway.keys import RoleKey, Stage
from retinue_gateway.routing import MoveReason
from retinue_gateway.sessions import CloseReason
from retinue_gateway.upstream import RetryReason

ROLE_LABELS = ("namespace", "agent_pool", "role")
# What a role's requests can end with: pre-created, so that a rate over the first error is not lost.
CODES = ("200", "400", "404", "413", "499", "500", "502", "503", "504")
STAGES = ("prefill", "decode_first_token", "total")

# Seconds. A cached turn of an agent answers in a tenth of a second, a cold prompt of 150K tokens in a minute.
_FIRST_TOKEN_BOUNDS = (
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.5,
    10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 160.0, 640.0,
)  # fmt: skip
_PER_TOKEN_BOUNDS = (
    0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.06, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5,
    1.0, 2.5,
)  # fmt: skip
_STAGE_BOUNDS = (*_FIRST_TOKEN_BOUNDS, 1280.0, 2560.0)


@dataclass(frozen=True)
class RoleMetrics:
    """The children of one role."""

    started: Counter
    time_to_first_token: Histogram
    time_per_output_token: Histogram
    stage: dict[str, Histogram]
    prompt_tokens: Counter
    cached_tokens: Counter
    completion_tokens: Counter


class GatewayMetrics:
    """Counters and histograms; what is a state of now is in `gauges.py`.

    A role must be known (`role`, `keep_roles`) to be counted: a request that outlives its role leaves no series behind.

    latency_scale divides the bucket bounds of all latencies: an emulated cluster that runs ten times faster than real
    time answers within a tenth of the time, and its latencies would all fall into the lowest buckets.
    """

    def __init__(self, latency_scale: float = 1.0) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._roles: dict[RoleKey, RoleMetrics] = {}
        self._families: list[MetricWrapperBase] = []

        def counter(name: str, text: str, *labels: str) -> Counter:
            made = Counter(f"retinue_gateway_{name}", text, (*ROLE_LABELS, *labels), registry=self.registry)
            self._families.append(made)
            return made

        def histogram(name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histogram:
            made = Histogram(
                f"retinue_gateway_{name}",
                text,
                (*ROLE_LABELS, *labels),
                buckets=tuple(bound / latency_scale for bound in bounds),
                registry=self.registry,
            )
            self._families.append(made)
            return made

        self._started = counter("requests_started", "Requests accepted for a role.")
        self._requests = counter("requests", "Requests that ended, by status; 499: the client left.", "code")
        self._retries = counter("retries", "Attempts that failed before the first token and were repeated.", "reason")
        self._moves = counter(
            "session_moves", "Sessions that had to leave the instance with their cache.", "reason", "stage"
        )
        self._closed = counter("sessions_closed", "Sessions that are no longer open.", "reason")
        self._rejected = Counter(
            "retinue_gateway_rejected_requests",
            "Requests refused before their role was known, by error code.",
            ("code",),
            registry=self.registry,
        )
        self._prompt = counter("prompt_tokens", "Prompt tokens of answered requests.")
        self._cached = counter("cached_tokens", "Prompt tokens that came from a cache.")
        self._completion = counter("completion_tokens", "Tokens generated.")
        self._first_token = histogram(
            "time_to_first_token_seconds", "From the request's arrival to its first token.", _FIRST_TOKEN_BOUNDS
        )
        self._per_token = histogram(
            "time_per_output_token_seconds", "Mean time between tokens after the first.", _PER_TOKEN_BOUNDS
        )
        self._stage = histogram(
            "stage_seconds",
            "prefill: the prefill engine's answer, or an aggregated engine's first token; decode_first_token: from the"
            " decode request to its first token; total: from arrival to end.",
            _STAGE_BOUNDS,
            "stage",
        )

    def role(self, key: RoleKey) -> RoleMetrics:
        """The role's children, made on first use with all their label values at zero."""
        found = self._roles.get(key)
        if found is None:
            found = self._roles[key] = self._create(key)
        return found

    def ended(self, key: RoleKey, code: int) -> None:
        if key in self._roles:
            self._requests.labels(*_values(key), str(int(code))).inc()

    def retried(self, key: RoleKey, reason: RetryReason) -> None:
        if key in self._roles:
            self._retries.labels(*_values(key), reason).inc()

    def moved(self, key: RoleKey, stage: Stage, reason: MoveReason) -> None:
        if key in self._roles:
            self._moves.labels(*_values(key), reason, stage).inc()

    def closed(self, key: RoleKey, reason: CloseReason) -> None:
        if key in self._roles:
            self._closed.labels(*_values(key), reason).inc()

    def rejected(self, code: str) -> None:
        """A request that was refused before it was known which role it is for."""
        self._rejected.labels(code).inc()

    def keep_roles(self, roles: Iterable[RoleKey]) -> None:
        """Makes the children of these roles and removes those of all others: a child that stays behind keeps its last
        value for ever, and whoever sums over roles would count it."""
        wanted = frozenset(roles)
        for key in wanted:
            self.role(key)
        for key in self._roles.keys() - wanted:
            del self._roles[key]
            labels: dict[str, str] = dict(zip(ROLE_LABELS, _values(key), strict=True))
            for family in self._families:
                family.remove_by_labels(labels)

    def _create(self, key: RoleKey) -> RoleMetrics:
        values = _values(key)
        for code in CODES:
            self._requests.labels(*values, code)
        for retry in RetryReason:
            self._retries.labels(*values, retry)
        for close in CloseReason:
            self._closed.labels(*values, close)
        for move in MoveReason:
            for part in Stage:
                self._moves.labels(*values, move, part)
        return RoleMetrics(
            started=self._started.labels(*values),
            time_to_first_token=self._first_token.labels(*values),
            time_per_output_token=self._per_token.labels(*values),
            stage={stage: self._stage.labels(*values, stage) for stage in STAGES},
            prompt_tokens=self._prompt.labels(*values),
            cached_tokens=self._cached.labels(*values),
            completion_tokens=self._completion.labels(*values),
        )


def _values(key: RoleKey) -> tuple[str, str, str]:
    return (key.namespace, key.agent_pool, key.role)
