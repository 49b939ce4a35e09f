"""kopf as the event source: it watches what the cache holds and hands every event over, nothing else.

kopf runs in a thread with an event loop of its own, because at its end it cancels every task of the loop it lives in,
and because an end of it (a 401 that stays, a defect) must be a restart with a fresh list, not the end of the process.
"""

import asyncio
import contextlib
import datetime
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import aiohttp
import kopf
import structlog

from retinue.plan import Manifest
from retinue_operator.access import Access, AccessError, authorization, user_agent
from retinue_operator.errors import one_line
from retinue_operator.metrics import Metrics
from retinue_operator.resources import WATCHED, Resource

_LOG = structlog.stdlib.get_logger(__name__)

# Called in the main loop with the event type (None while listing) and the object.
Sink = Callable[[str | None, Manifest], None]
# Called in the main loop when the watch of a kind has begun anew with a list.
Gap = Callable[[Resource], None]

_RESTART_GAP = 1.0
_LONGEST_GAP = 30.0
_STOP_PATIENCE = 5.0
_LOGIN_LIFETIME = datetime.timedelta(hours=12)


class EndlessBackoffs:
    """1, 2, 4 ... 30 seconds with jitter, for ever, and anew for each request: an outage is waited for."""

    def __iter__(self) -> Iterator[float]:
        delay = 1.0
        while True:
            yield delay * random.uniform(0.5, 1.0)
            delay = min(delay * 2, _LONGEST_GAP)


class NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last-handled copy and computes no essence: only on.event handlers exist."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


class NoProgress(kopf.ProgressStorage):
    """Keeps no handler state, so that kopf has no reason to annotate anything."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


def kopf_settings(resources: Sequence[Resource], silence: float) -> kopf.OperatorSettings:
    """The settings for a kopf that only watches; reasons in the comments. silence: seconds, see Source."""
    settings = kopf.OperatorSettings()
    # Finite back-offs would end kopf in an API outage of a minute. Endless ones would block a worker at a forbidden
    # PATCH, but this kopf never writes.
    settings.networking.error_backoffs = EndlessBackoffs()
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    # Spread, so that not all watches of all replicas reconnect in the same second.
    settings.watching.server_timeout = random.randint(300, 600)
    settings.watching.connect_timeout = 10
    # A connection that a firewall or a dead peer forgot says nothing for ever; a living one at least a bookmark.
    settings.watching.inactivity_timeout = silence
    settings.watching.reconnect_backoff = 1.0
    # A list of thousands of objects in one piece is held twice at its peak. A chunk whose token has expired ends kopf,
    # which is then started again.
    settings.watching.chunk_size = 500
    for resource in resources:
        if resource.selector:
            key = (resource.group, resource.version, resource.plural)
            settings.watching.label_selectors[key] = resource.selector
    # Our handlers return at once: few workers do, and idle ones need not linger.
    settings.queueing.worker_limit = 500
    settings.queueing.idle_timeout = 0.2
    settings.queueing.exit_timeout = 1.0
    settings.persistence.finalizer = "retinue.dev/never-used"
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # Kinds and namespaces are fixed at the start: no rights on CRDs and namespaces are needed.
    settings.scanning.disabled = True
    settings.execution.max_workers = 1
    settings.process.ultimate_exiting_timeout = None
    return settings


class Source:
    """Feeds `sink` with the events of all watched kinds while `run()` runs.

    silence: after so many seconds without a word a watch is made anew. The API server sends a bookmark a minute.
    gap: told of each list that a watch begins with. kopf hands over what the list has, but not what it lacks, so
    whoever keeps a cache must look for what was deleted before. identity: for the API server's audit log.
    """

    def __init__(
        self,
        access: Access,
        sink: Sink,
        metrics: Metrics,
        *,
        namespaces: Sequence[str] = (),
        silence: float = 70.0,
        gap: Gap = lambda _: None,
        identity: str = "",
    ) -> None:
        self._access = access
        self._sink = sink
        self._gap = gap
        self._agent = user_agent(identity)
        self._metrics = metrics
        self._namespaces = tuple(namespaces)
        self._silence = silence
        self._logged_in = float("-inf")

    async def run(self) -> None:
        """Watches until cancelled; starts kopf again, with a fresh list, whenever it ends."""
        gap = _RESTART_GAP
        while True:
            started = time.monotonic()
            error = await self._watch_once()
            gap = _RESTART_GAP if time.monotonic() - started > 2 * _LONGEST_GAP else min(gap * 2, _LONGEST_GAP)
            self._metrics.source_restarts.inc()
            _LOG.error("event source ended, starting it again", error=error, seconds=gap)
            await asyncio.sleep(gap)

    async def _watch_once(self) -> str:
        """Runs one kopf in one thread until it ends by itself; cancelled, it stops it and waits for it."""
        main = asyncio.get_running_loop()
        ended: asyncio.Future[str] = main.create_future()
        inner = asyncio.new_event_loop()
        stop = asyncio.Event()

        def finish(text: str) -> None:
            if not ended.done():
                ended.set_result(text)

        def body() -> None:
            text = "it stopped"
            try:
                asyncio.set_event_loop(inner)
                inner.run_until_complete(self._operate(main, stop))
            except BaseException as error:
                text = one_line(error)
            finally:
                inner.close()
                # The main loop is closed already if this thread was left behind.
                with contextlib.suppress(RuntimeError):
                    main.call_soon_threadsafe(finish, text)

        thread = threading.Thread(target=body, name="kopf", daemon=True)
        thread.start()
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            # The loop may have been closed by the thread just now.
            with contextlib.suppress(RuntimeError):
                inner.call_soon_threadsafe(stop.set)
            _, unfinished = await asyncio.wait([ended], timeout=_STOP_PATIENCE)
            if unfinished:
                _LOG.warning("event source did not stop in time, leaving its thread behind")
            raise

    async def _operate(self, main: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        await kopf.operator(
            registry=self._registry(main),
            settings=kopf_settings(WATCHED, self._silence),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=stop,
        )

    def _registry(self, main: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        async def login(**_: Any) -> kopf.AiohttpSession:
            return await self._login(main)

        kopf.on.login(registry=registry, id="login")(login)
        for resource in WATCHED:
            kopf.on.event(
                group=resource.group,
                version=resource.version,
                plural=resource.plural,
                registry=registry,
                id=f"feed-{resource.plural}",
            )(self._feeder(main, resource))
        return registry

    def _feeder(self, main: asyncio.AbstractEventLoop, resource: Resource) -> Any:
        async def feed(event: Any, **_: Any) -> None:
            manifest = {**event["object"], "apiVersion": resource.api_version, "kind": resource.kind}
            main.call_soon_threadsafe(self._sink, event["type"], manifest)

        return feed

    async def _login(self, main: asyncio.AbstractEventLoop) -> kopf.AiohttpSession:
        """Called at the start and after each 401: the credentials as they are now, for kopf."""
        # Refused again at once: the token is not rotated yet, or the API server cannot check tokens while it starts.
        if time.monotonic() - self._logged_in < _LONGEST_GAP:
            await asyncio.sleep(random.uniform(1.0, 3.0))
        while True:
            try:
                configuration = await self._access.load()
                break
            except AccessError as error:
                _LOG.error("credentials not readable", error=one_line(error))
                await asyncio.sleep(_LONGEST_GAP / 2)
        self._logged_in = time.monotonic()
        scheme, credentials = authorization(configuration)
        server = str(configuration.host)
        login = kopf.ConnectionInfo(
            server=server,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            scheme=scheme,
            token=credentials,
        )
        return kopf.AiohttpSession(
            server=server,
            aiohttp_session=aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=login.as_ssl_context()),
                headers={**login.as_http_headers(), "User-Agent": self._agent},
                proxy=configuration.proxy,
                trust_env=False,
                trace_configs=[self._trace(main)],
            ),
            # Also makes each login a new one: kopf never takes back credentials that were refused once, although an
            # API server that has just restarted may refuse good ones.
            expiration=datetime.datetime.now(datetime.UTC) + _LOGIN_LIFETIME,
        )

    def _trace(self, main: asyncio.AbstractEventLoop) -> aiohttp.TraceConfig:
        async def ended(_: object, __: object, done: aiohttp.TraceRequestEndParams) -> None:
            if done.method == "GET" and done.response.status == 200 and not {"watch", "continue"} & set(done.url.query):
                for resource in WATCHED:
                    if _lists(done.url.path, resource):
                        main.call_soon_threadsafe(self._gap, resource)

        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(ended)
        return trace


def _lists(path: str, resource: Resource) -> bool:
    """Whether a GET of this path lists the resource, in one namespace or all."""
    everywhere = resource.path()
    root, _, plural = everywhere.rpartition("/")
    place = path.removeprefix(f"{root}/namespaces/")
    return path == everywhere or (place != path and place.endswith(f"/{plural}") and place.count("/") == 1)
