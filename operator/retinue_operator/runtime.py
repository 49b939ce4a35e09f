"""The life of the operator process: lease, first list, event source, workers and sweeps, until it is told to stop."""

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import structlog

from retinue.access.files import Unusable
from retinue.plan import Key, Manifest
from retinue_operator import preflight
from retinue_operator.access import Access, AccessError
from retinue_operator.apply import Applier
from retinue_operator.cache import Cache
from retinue_operator.client import KubeClient
from retinue_operator.controller import Controller, World
from retinue_operator.credentials import Credentials
from retinue_operator.debug import DebugServer, Tells
from retinue_operator.dispatch import Dispatcher
from retinue_operator.events import Recorder
from retinue_operator.fence import Fence
from retinue_operator.health import Check, Heartbeat
from retinue_operator.http import ProbeServer
from retinue_operator.leader import Elector, LeaseLost
from retinue_operator.metrics import Metrics
from retinue_operator.objectmetrics import ObjectCollector
from retinue_operator.preflight import Exit, StartError
from retinue_operator.queue import WorkQueue
from retinue_operator.reconciler import Reconciler
from retinue_operator.resources import WATCHED
from retinue_operator.schedule import Entry
from retinue_operator.serverclock import ServerClock
from retinue_operator.settings import Settings
from retinue_operator.source import Source
from retinue_operator.status import StatusWriter
from retinue_operator.sweep import Sweeper

_LOG = structlog.stdlib.get_logger(__name__)
_READ_TIMEOUT = aiohttp.ClientTimeout(total=10, sock_connect=3)


class Runtime:
    """One operator process with its controllers. `run()` returns the exit code; `stop()` ends it gracefully.

    wall: this machine's clock, which counts only until the API server has told its own time.
    """

    def __init__(
        self, settings: Settings, controllers: Sequence[Controller], wall: Callable[[], float] = time.time
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.cache = Cache()
        self._controllers = tuple(controllers)
        self._wall = wall
        self._clock = ServerClock(wall)
        self._access = Access(settings.kubeconfig, settings.context)
        self._stop = asyncio.Event()
        self._heartbeat = Heartbeat()
        self._elector: Elector | None = None
        self._queue: WorkQueue | None = None
        self.sweeper: Sweeper | None = None
        self.probes: ProbeServer | None = None

    def stop(self) -> None:
        """Asks for a graceful stop; returns at once."""
        self._stop.set()

    async def run(self) -> Exit:
        """Runs until `stop()`. Raises StartError when it cannot start."""
        terms = self.settings.lease_terms()
        async with AsyncExitStack() as stack:
            fence = Fence(linger=terms.duration - terms.renew_deadline)
            client = await self._connect(stack, fence)
            # With connections of its own: renewals wait behind no other request, and not for the fence.
            lease = await self._connect(stack, None)
            version = await preflight.check(client, self._access.source())
            _LOG.info("starting", server=client.server, kubernetes=version, identity=self.settings.identity)
            await self._serve_probes(stack)
            elector = Elector(
                lease,
                terms,
                self.settings.identity,
                fence=fence if self.settings.leader_election else None,
                wall=self._wall,
            )
            self._elector = elector
            background = [asyncio.create_task(self._heartbeat.run(), name="heartbeat")]
            stack.push_async_callback(_cancel, background)
            if self.settings.leader_election:
                if not await self._unless_stopped(elector.acquire()):
                    return Exit.OK
                background.append(asyncio.create_task(elector.hold(), name="lease"))
            self.metrics.leader.set(1)
            try:
                code = await self._lead(client, background)
            finally:
                self.metrics.leader.set(0)
                await _cancel(background)
            if code == Exit.OK:
                await elector.release()
            _LOG.info("stopped", code=int(code))
            return code

    async def _connect(self, stack: AsyncExitStack, fence: Fence | None) -> KubeClient:
        try:
            client = await KubeClient.connect(
                self._access,
                self.metrics.request,
                fence=fence,
                identity=self.settings.identity,
                dated=self._clock.heard,
            )
        except AccessError as error:
            raise StartError(str(error), Exit.NO_ACCESS) from error
        return await stack.enter_async_context(client)

    async def _lead(self, client: KubeClient, background: list[asyncio.Task[None]]) -> Exit:
        async with aiohttp.ClientSession(timeout=_READ_TIMEOUT) as http:
            world = World(self.cache, client, http, self.metrics, self.settings, self._clock)
            recorder = Recorder(client, self.metrics, self._clock, self.settings.identity)
            statuses = StatusWriter(client, self.cache, self.metrics)
            applier = Applier(client, self.cache, self.metrics)
            reconciler = Reconciler(self._controllers, world, applier, statuses, recorder)
            queue = WorkQueue(
                reconciler, workers=self.settings.workers, pace=self.settings.pace(), metrics=self.metrics
            )
            self._queue = queue
            dispatcher = Dispatcher(self._controllers, self.cache, queue.add)
            self.sweeper = self._make_sweeper(client, dispatcher)
            self.cache.subscribe(dispatcher.changed)
            # The workers start after the first complete list: nobody plans from half a picture.
            if not await self._unless_stopped(self.sweeper.first(), *background):
                return self._verdict(background)
            # What was just read stays: the collector need not look through thousands of objects again and again, which
            # would stop everything for a good part of a second each time.
            gc.collect()
            gc.freeze()
            source = Source(
                self._access,
                self._feed,
                self.metrics,
                namespaces=self.settings.namespaces,
                silence=self.settings.watch_silence,
                gap=self.sweeper.missed,
                identity=self.settings.identity,
            )
            working = {
                "source": asyncio.create_task(source.run(), name="source"),
                "queue": asyncio.create_task(queue.run(), name="queue"),
                "sweep": asyncio.create_task(self.sweeper.run(), name="sweep"),
                "events": asyncio.create_task(recorder.run(), name="events"),
            }
            _LOG.info("running", kinds=[controller.kind for controller in self._controllers])
            await self._unless_stopped(_for_ever(), *background, *working.values())
            code = self._verdict([*background, *working.values()])
            if code == Exit.OK:
                finished = await queue.stop(self.settings.stop_grace)
                _LOG.info("workers stopped", finished=finished)
                await recorder.flush(min(2.0, self.settings.stop_grace))
            # Without the lease nothing may be written any more: running reconciles are cancelled where they are.
            await _cancel(list(working.values()))
            return code

    def _make_sweeper(self, client: KubeClient, dispatcher: Dispatcher) -> Sweeper:
        return Sweeper(
            client,
            self.cache,
            dispatcher,
            self.metrics,
            namespaces=self.settings.namespaces,
            interval=self.settings.sweep_interval,
        )

    def _feed(self, type_: str | None, manifest: Manifest) -> None:
        if type_ == "DELETED":
            self.cache.remove(manifest)
        else:
            self.cache.put(manifest)

    async def _unless_stopped(self, work: Coroutine[Any, Any, None], *others: asyncio.Task[None]) -> bool:
        """Waits for `work` and raises what it raises; False when a stop was asked for or another task ended first."""
        own = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({own, stopping, *others}, return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set() or any(other.done() for other in others):
                return False
            own.result()
            return True
        finally:
            await _cancel([own, stopping])

    def _verdict(self, tasks: Sequence[asyncio.Task[None]]) -> Exit:
        """The exit code when the wait has ended: something has failed, or a stop was asked for."""
        for task in tasks:
            if not task.done() or task.cancelled():
                continue
            error = task.exception()
            if isinstance(error, LeaseLost):
                _LOG.error("lease lost, ending at once", error=str(error))
                return Exit.LEASE_LOST
            _LOG.error("task ended", task=task.get_name(), exc_info=error)
            return Exit.FAILED
        return Exit.OK

    async def _serve_probes(self, stack: AsyncExitStack) -> None:
        self.metrics.gauge("queue_depth", "Keys that are due and wait for a worker.", self._depth)
        self.metrics.gauge("workers_busy", "Reconciles that run.", self._busy)
        self.metrics.gauge("event_loop_worst_lag_seconds", "Longest stall seen.", lambda: self._heartbeat.worst_lag)
        self.metrics.gauges("cache_objects", "Objects in the cache.", "kind", self._counts)
        self.metrics.registry.register(ObjectCollector(self.cache))
        live = [Check("event-loop", self._heartbeat.failure), Check("lease", self._lease_failure)]
        ready = [Check("event-loop", self._heartbeat.failure), Check("sync", self._sync_failure)]
        settings = self.settings
        try:
            credentials = Credentials(
                settings.http_tls_cert_file, settings.http_tls_key_file, settings.metrics_token_file
            )
        except Unusable as error:
            raise StartError(str(error), Exit.USAGE) from error
        probes = ProbeServer(settings.http_host, settings.http_port, live, ready, self.metrics.registry, credentials)
        try:
            await probes.start()
        except OSError as error:
            where = f"{self.settings.http_host}:{self.settings.http_port}"
            raise StartError(
                f"cannot listen on {where}: {error.strerror}; choose another --http-port", Exit.USAGE
            ) from error
        stack.push_async_callback(probes.stop)
        self.probes = probes
        _LOG.info("probes served", host=self.settings.http_host, port=probes.port)
        if self.settings.debug_port:
            await self._serve_debug(stack)

    async def _serve_debug(self, stack: AsyncExitStack) -> None:
        tellers = [controller for controller in self._controllers if isinstance(controller, Tells)]
        kinds = [resource.kind for resource in WATCHED]
        debug = DebugServer(self.settings.debug_port, self._entries, self.cache, kinds, tellers)
        try:
            await debug.start()
        except OSError as error:
            where = f"127.0.0.1:{self.settings.debug_port}"
            raise StartError(
                f"cannot listen on {where}: {error.strerror}; choose another --debug-port", Exit.USAGE
            ) from error
        stack.push_async_callback(debug.stop)
        _LOG.info("debug pages served", port=debug.port)

    def _entries(self) -> list[Entry[Key]]:
        return self._queue.entries() if self._queue is not None else []

    def _depth(self) -> float:
        return self._queue.depth() if self._queue is not None else 0

    def _busy(self) -> float:
        return self._queue.busy() if self._queue is not None else 0

    def _counts(self) -> list[tuple[str, float]]:
        return [(resource.kind, self.cache.count(resource.kind)) for resource in WATCHED]

    def _lease_failure(self) -> str | None:
        age = self._elector.renewal_age() if self._elector is not None else None
        if age is None or age <= self.settings.lease_duration:
            return None
        return f"the lease was renewed {age:.1f} s ago"

    def _sync_failure(self) -> str | None:
        if self.sweeper is not None:
            return None if self.sweeper.synced else "the first list is not complete"
        age = self._elector.candidate_age() if self._elector is not None else None
        if age is None:
            return "the lease was not read yet"
        # A standby is ready when it could take over: it sees the lease.
        return None if age <= 3 * self.settings.lease_duration else f"the lease was read {age:.1f} s ago"


async def _for_ever() -> None:
    await asyncio.Event().wait()


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
