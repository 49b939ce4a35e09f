"""An operator as it runs, without its process: real cache, dispatcher, schedule, controllers, reconciler and writers.

What a watch tells it waits in a backlog until the simulation delivers, loses or repeats it. It can die at any request.
"""

import functools
import random
from collections import deque
from types import TracebackType
from typing import Any, Self

from retinue.api import DecodePool, PrefillPool
from retinue.autoscaling.signals import SUBJECT_LABELS, Query, Sample, Scope, queries
from retinue.plan import Key, Manifest
from retinue_operator.apply import Applier
from retinue_operator.cache import Cache
from retinue_operator.controller import World
from retinue_operator.controllers.agentpool import AgentPoolController
from retinue_operator.controllers.kvcachetier import KVCacheTierController
from retinue_operator.controllers.nodeclass import NodeClassController
from retinue_operator.controllers.pools import PoolController
from retinue_operator.dispatch import Dispatcher
from retinue_operator.errors import ErrorClass, classify
from retinue_operator.events import Recorder
from retinue_operator.metrics import Metrics
from retinue_operator.prometheus.poller import Poll
from retinue_operator.queue import Next
from retinue_operator.reconciler import Reconciler
from retinue_operator.resources import WATCHED
from retinue_operator.schedule import Pace, Schedule
from retinue_operator.settings import Settings
from retinue_operator.status import StatusWriter

from .api import Change, MemoryApi
from .cluster import Cluster

_NUMBERS = (0.0, 0.5, 1.0, 7.0, 300.0, 2e6, -3.0, 1e300, float("nan"), float("inf"), -float("inf"))
_SETTINGS = Settings(lease_namespace="retinue-system", identity="simulated")


class Killed(BaseException):
    """The process ended in the middle of something."""


class _Strict(Reconciler):
    """A reconciler that remembers defects: errors that nobody foresaw."""

    defect: Exception | None = None

    def _failed(self, key: Key, error: Exception) -> tuple[str, Next]:
        if classify(error) is ErrorClass.UNEXPECTED:
            self.defect = error
        return super()._failed(key, error)


class OperatorProcess:
    """One life of the operator. It lists everything in a `sweep`; between sweeps it learns by `deliver` only."""

    def __init__(self, api: MemoryApi, cluster: Cluster, chance: random.Random, measurer: "FakeMeasurer") -> None:
        self._api = api
        self._cluster = cluster
        self.cache = Cache()
        self.backlog: deque[Change] = deque()
        self._schedule: Schedule[Key] = Schedule(Pace(), chance.random)
        metrics = Metrics()
        world = World(self.cache, api, _Engines(cluster), metrics, _SETTINGS, lambda: cluster.now)  # type: ignore[arg-type]
        recorder = Recorder(api, metrics, lambda: cluster.now, "simulated")  # type: ignore[arg-type]
        real: Any = measurer
        controllers = (
            NodeClassController(),
            KVCacheTierController(real),
            PoolController(PrefillPool, real),
            PoolController(DecodePool, real),
            AgentPoolController(real),
        )
        applier, statuses = Applier(api, self.cache, metrics), StatusWriter(api, self.cache, metrics)  # type: ignore[arg-type]
        self._reconciler = _Strict(controllers, world, applier, statuses, recorder)
        self._dispatcher = Dispatcher(controllers, self.cache, self._add)
        self.cache.subscribe(self._dispatcher.changed)

    async def sweep(self) -> None:
        """Complete lists correct the cache, and everything is looked at again."""
        for resource in WATCHED:
            listing = await self._api.list(resource.kind)
            self.cache.replace(resource.kind, listing.items, listing.resource_version)
        self._dispatcher.everything()

    def deliver(self, count: int) -> None:
        """The next `count` events of the watch arrive."""
        for _ in range(min(count, len(self.backlog))):
            self._feed(self.backlog.popleft())

    def lose(self, count: int) -> None:
        """The next `count` events never arrive."""
        for _ in range(min(count, len(self.backlog))):
            self.backlog.popleft()

    def repeat(self) -> None:
        """The next event arrives now, and once more later on."""
        if self.backlog:
            self._feed(self.backlog[0])

    async def work(self, limit: int) -> int:
        """Reconciles up to `limit` keys that are due; how many there were. Raises what nobody foresaw."""
        done = 0
        while done < limit and (taken := self._schedule.take(self._cluster.now)) is not None:
            key, done = taken[0], done + 1
            outcome = await self._reconciler(key)
            if self._reconciler.defect is not None:
                raise self._reconciler.defect
            self._schedule.finish(key, self._cluster.now)
            self._follow(key, outcome)
        return done

    def idle(self) -> bool:
        """Whether it knows everything and has nothing to do before the next interval."""
        due = self._schedule.next_due()
        return not self.backlog and (due is None or due > self._cluster.now)

    def _follow(self, key: Key, outcome: Next) -> None:
        if not outcome.failed:
            self._schedule.succeeded(key)
            if outcome.after is not None:
                self._add(key, outcome.after)
        else:
            delay = self._schedule.back_off(key)
            self._add(key, delay if outcome.after is None else outcome.after)

    def _add(self, key: Key, delay: float) -> None:
        self._schedule.add(key, self._cluster.now, delay)

    def _feed(self, change: Change) -> None:
        if change.after is not None:
            self.cache.put(change.after)
        elif change.before is not None:
            self.cache.remove(change.before)


class FakeMeasurer:
    """Prometheus as the autoscaler sees it: `mode` says what it answers.

    down: nothing. quiet: fresh numbers of no load. wild: numbers out of the hat, some missing, stale or no number.
    """

    def __init__(self, chance: random.Random) -> None:
        self.mode = "quiet"
        self._chance = chance

    async def measure(self, scope: Scope, now: float, max_age: float) -> Poll:
        """Samples of all queries of a scope."""
        del now, max_age
        if self.mode == "down":
            return Poll(error="Prometheus: nobody there", silent=True)
        if self.mode == "quiet":
            return _quiet(scope)
        samples: dict[str, list[Sample]] = {}
        for query in queries(scope):
            samples.setdefault(query.name, []).extend(self._sample(tags) for tags in _subjects(query, scope))
        return Poll(samples={name: [s for s in found if s is not None] for name, found in samples.items()})

    def _sample(self, tags: dict[str, str]) -> Sample | None:
        if self._chance.random() < 0.15:
            return None
        value = self._chance.choice(_NUMBERS)
        return Sample(tags, value, self._chance.choice((0.5, 5.0, 500.0)))


@functools.lru_cache(maxsize=1024)
def _quiet(scope: Scope) -> Poll:
    return Poll(
        samples={
            query.name: [Sample(tags, float("nan") if query.idle else 0.0, 1.0) for tags in _subjects(query, scope)]
            for query in queries(scope)
        }
    )


def _subjects(query: Query, scope: Scope) -> list[dict[str, str]]:
    names = SUBJECT_LABELS[query.subject]
    if query.subject == "pool":
        return [dict(zip(names, (pool.kind.value, pool.name), strict=True)) for pool in scope.pools]
    if query.subject == "tier":
        return [dict(zip(names, (tier,), strict=True)) for tier in scope.tiers]
    if query.subject == "role":
        return [dict(zip(names, (role,), strict=True)) for role in ("primary", "explorer")]
    return []


class _Engines:
    """The engines' metric pages, as an HTTP session would read them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, url: str, **_: Any) -> "_Page":
        """The page of the pod at this address."""
        address = url.removeprefix("http://").partition(":")[0]
        pods: list[Manifest] = self._cluster.pods()
        pod = next((p for p in pods if (p.get("status") or {}).get("podIP") == address), None)
        return _Page(None if pod is None else self._cluster.requests.get(pod["metadata"]["uid"], 0))


class _Page:
    """An answer with a text exposition; its own `content`, too."""

    def __init__(self, running: int | None) -> None:
        self.status = 404 if running is None else 200
        self._left = f"vllm:num_requests_running {running}\nvllm:num_requests_waiting 0\n".encode()

    @property
    def content(self) -> Self:
        """The body as a stream."""
        return self

    async def readany(self) -> bytes:
        """What is left of the body."""
        part, self._left = self._left, b""
        return part

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
