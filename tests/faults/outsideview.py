"""What somebody sees who only watches the API server and talks to engines, and the promises that he can check.

Some predicates are those of the simulation; here they are asked of what really happened, in the order of the API
server's versions. An operator may act on what was true a moment ago, so a pool's spec counts in each of the forms that
it had in the last seconds.
"""

import asyncio
import json
import random
import ssl
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from retinue.api import labels
from retinue.conditions import epoch_or_none
from retinue.plan import Manager, Manifest
from retinue.pool.snapshot import pod_view
from retinue_emulator.loopback import ControlPlane
from retinue_operator.cache import Cache
from retinue_operator.resources import OWN_KINDS, POD, identity

from ..component.manifests import SMALL_MODEL
from ..component.traffic import stream
from ..simulation.api import Change
from ..simulation.invariants import Moment, an_instance_has_one_revision, enough_instances_serve_on

_MODEL = str(SMALL_MODEL["name"])
DRAIN_SECONDS = 30.0
"""The drain timeout of all pools of the test."""
_LAG_SECONDS = 6.0
_SETTLE_SECONDS = 2.0
_CLOCK_SECONDS = 2.0
"""A drain's begin is written in whole seconds, and read by a clock that knows the server's to a second."""


@dataclass
class _World:
    """What the simulation's predicates want to know of a cluster."""

    view: Cache
    now: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)

    def pods(self) -> list[Manifest]:
        return self.view.select("Pod")


class OutsideView:
    """Watches one namespace; `broken` holds what was promised and not kept, in words.

    untouched: names of pools whose pods nobody has a reason to touch once they all serve (see `hands_off`).
    """

    def __init__(self, cluster: ControlPlane, namespace: str, untouched: frozenset[str]) -> None:
        self.broken: list[str] = []
        self.cache = Cache()
        self._cluster = cluster
        self._namespace = namespace
        self._untouched = untouched
        self._hands_off = False
        self._judging = True
        self._world = _World(self.cache)
        self._specs: defaultdict[tuple[str, str], deque[tuple[float, Manifest]]] = defaultdict(deque)
        self._deleted: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.streams = 0
        self.refused = 0

    def hands_off(self) -> None:
        """From now on the pods of the untouched pools must stay as they are."""
        self._hands_off = True

    def gone(self, pool: str) -> None:
        """The user deletes this pool: its pods go with it, whatever they do."""
        self._deleted.add(pool)

    def everything_goes(self) -> None:
        """The user deletes all there is."""
        self._judging = False

    async def __aenter__(self) -> "OutsideView":
        tls = ssl.create_default_context(cafile=str(self._cluster.ca_file))
        headers = {"Authorization": f"Bearer {self._cluster.admin_token}"}
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=2**20,
        )
        self._engines = aiohttp.ClientSession()
        ready = []
        for resource in (*OWN_KINDS, POD):
            begun = asyncio.Event()
            self._tasks.append(asyncio.create_task(self._watch(resource, begun)))
            ready.append(begun.wait())
        await asyncio.gather(*ready)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                self.broken.append(f"the view itself failed: {task.exception()!r}")
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._http.close()
        await self._engines.close()

    # --- requests to engines ------------------------------------------------------------------------------------------

    def drive(self, chance: random.Random, at_once: int) -> None:
        """Keeps so many streams open to routable engines until the view ends."""
        self._tasks += [asyncio.create_task(self._ask_on(chance)) for _ in range(at_once)]

    async def _ask_on(self, chance: random.Random) -> None:
        while True:
            pods = [pod for pod in self.cache.select("Pod", self._namespace) if _serves(pod)]
            if not pods:
                await asyncio.sleep(0.2)
                continue
            pod = chance.choice(pods)
            await self._ask(pod, chance.randint(500, 20_000))
            await asyncio.sleep(chance.uniform(0.0, 0.2))

    async def _ask(self, pod: Manifest, tokens: int) -> None:
        meta, began = pod["metadata"], asyncio.Event()
        base = f"http://{pod['status']['podIP']}:{labels.HTTP_PORT}/v1"
        self._world.requests[meta["uid"]] = self._world.requests.get(meta["uid"], 0) + 1
        error: str | None = None
        finished = False
        try:
            done = await stream(
                self._engines, base, meta["uid"], model=str(SMALL_MODEL["name"]), tokens=tokens, started=began
            )
            finished, error = done.finished, done.error
        except aiohttp.ClientError as lost:
            error = repr(lost)
        finally:
            self._world.requests[meta["uid"]] -= 1
        if not began.is_set():
            # It had just become unroutable, and its engine takes nothing new.
            self.refused += 1
            return
        self.streams += 1
        if not finished and self._judging and meta["labels"].get(labels.POOL) not in self._deleted:
            self.broken.append(f"no_request_is_cut: {meta['name']} after its first token: {error}")

    # --- what happens -------------------------------------------------------------------------------------------------

    async def _watch(self, resource: Any, begun: asyncio.Event) -> None:
        path = self._cluster.server + resource.path(self._namespace if resource.namespaced else "")
        query = {"labelSelector": resource.selector} if resource.selector else {}
        async with self._http.get(path, params=query) as answer:
            listed = await answer.json()
        for item in listed["items"] or []:
            self.cache.put({**item, "apiVersion": resource.api_version, "kind": resource.kind})
        begun.set()
        since = listed["metadata"]["resourceVersion"]
        while True:
            follow = {**query, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": since}
            async with self._http.get(path, params=follow) as answer:
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise RuntimeError(f"the watch of {resource.plural} ended: {event['object']}")
                    since = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        manifest = {**event["object"], "apiVersion": resource.api_version, "kind": resource.kind}
                        self._happened(event["type"], manifest)

    def _happened(self, type_: str, manifest: Manifest) -> None:
        kind, namespace, name = identity(manifest)
        before = self.cache.get(kind, namespace, name)
        gone = type_ == "DELETED"
        if kind == "Pod":
            self._check_before(before, None if gone else manifest)
        if gone:
            self.cache.remove(manifest)
        else:
            self.cache.put(manifest)
        if kind == "Pod":
            self._check(before, None if gone else self.cache.get(kind, namespace, name))
        elif not gone:
            self._remember(kind, manifest)

    def _remember(self, kind: str, manifest: Manifest) -> None:
        history = self._specs[kind, manifest["metadata"]["name"]]
        if not history or history[-1][1]["spec"] != manifest["spec"]:
            history.append((time.monotonic(), manifest))
            if len(history) > 20:
                history.popleft()

    def _judged(self, pod: Manifest) -> bool:
        pool = pod["metadata"].get("labels", {}).get(labels.POOL)
        # A cache server ends at once: its blocks are only a copy.
        return pool is not None and pool not in self._deleted and self._judging

    def _moment(self, before: Manifest | None, after: Manifest | None) -> Moment:
        self._world.now = time.time()
        change = Change(time.time(), Manager.INSTANCE, before, after)
        return Moment(change, self.cache, self._world, "quiet")  # type: ignore[arg-type]

    def _check_before(self, before: Manifest | None, after: Manifest | None) -> None:
        """What is judged by what was true before the change."""
        if before is None or after is None or not self._judged(after):
            return
        if not self._enough(self._moment(before, after), after):
            self.broken.append(f"enough_instances_serve_on: {after['metadata']['name']} became unroutable")

    def _check(self, before: Manifest | None, after: Manifest | None) -> None:
        pod = after if after is not None else before
        if pod is None or not self._judged(pod):
            return
        where = pod["metadata"]["name"]
        if not an_instance_has_one_revision(self._moment(before, after)):
            self.broken.append(f"an_instance_has_one_revision: {where}")
        if _ends(before, after) and not self._drained(before):
            self.broken.append(f"a_serving_instance_ends_only_drained: {where}")
        steady = pod["metadata"]["labels"][labels.POOL] in self._untouched
        if self._hands_off and steady and _touched(before, after):
            self.broken.append(f"an_undisturbed_instance_is_never_touched: {where}")

    def _enough(self, moment: Moment, pod: Manifest) -> bool:
        """The simulation's predicate, by any spec that the pool had in the last seconds."""
        if enough_instances_serve_on(moment):
            return True
        kind = {"decode": "DecodePool", "prefill": "PrefillPool"}[pod["metadata"]["labels"][labels.POOL_KIND]]
        name = pod["metadata"]["labels"][labels.POOL]
        now, history = time.monotonic(), list(self._specs[kind, name])
        recent = [
            spec
            for index, (_, spec) in enumerate(history)
            if index == len(history) - 1 or now - history[index + 1][0] < _LAG_SECONDS
        ]
        return any(enough_instances_serve_on(self._with(moment, spec)) for spec in recent)

    def _with(self, moment: Moment, pool: Manifest) -> Moment:
        view = Cache()
        for found in self.cache.select("Pod", self._namespace):
            view.put(found)
        view.put(pool)
        return Moment(moment.change, view, moment.cluster, moment.metrics)

    def _drained(self, before: Manifest | None) -> bool:
        """Whether a pod that served was drained when its deletion began: marked, and idle or at its time."""
        if before is None or not _ready(before):
            return True
        view = pod_view(before)
        if view.routable or view.drain_started is None:
            # Whole instances come down together when one of their pods failed; nothing fails here.
            return False
        elapsed = time.time() - view.drain_started + _CLOCK_SECONDS
        mates = self.cache.select("Pod", self._namespace, {labels.INSTANCE: view.instance})
        in_flight = sum(self._world.requests.get(mate["metadata"]["uid"], 0) for mate in mates)
        in_flight += self._world.requests.get(view.uid, 0) if not mates else 0
        idle = in_flight == 0 and elapsed >= _SETTLE_SECONDS
        return idle or elapsed >= DRAIN_SECONDS


def _serves(pod: Manifest) -> bool:
    view = pod_view(pod)
    return view.routable and _ready(pod) and view.rank == 0 and bool(pod["status"].get("podIP"))


def _ready(pod: Manifest) -> bool:
    view = pod_view(pod)
    return view.ready and not view.deleting and view.phase == "Running"


def _ends(before: Manifest | None, after: Manifest | None) -> bool:
    """Whether the deletion of the pod began with this change."""
    if before is None or before["metadata"].get("deletionTimestamp"):
        return False
    return after is None or epoch_or_none(after["metadata"].get("deletionTimestamp")) is not None


def _touched(before: Manifest | None, after: Manifest | None) -> bool:
    """Whether anything but its status changed."""
    if before is None or after is None:
        return True
    return any(before["metadata"].get(part) != after["metadata"].get(part) for part in ("uid", "labels", "annotations"))
