"""A scheduler and a kubelet for thousands of fake nodes: binds what is released, and makes it run, in bulk."""

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bench.apiserver import STRATEGIC, Api
from bench.objects import GPU, PER_NODE, Manifest, is_ready, running

# (type, object): told of every pod event after it was looked at here.
Listener = Callable[[str, Manifest], None]
_WORKERS = 24
# Nobody listens there, so that an operator that asks a draining engine is refused at once.
_ADDRESS = "127.0.0.99"


class BulkKubelet:
    """Follows all pods of the cluster; `pods` is what there is, by namespace and name."""

    def __init__(self, api: Api, nodes: int) -> None:
        self._api = api
        self._free = {f"node-{number:05d}": PER_NODE for number in range(nodes)}
        self._placed: dict[str, tuple[str, int]] = {}
        self._work: asyncio.Queue[tuple[str, Manifest]] = asyncio.Queue()
        self._ended: set[str] = set()
        self.pods: dict[tuple[str, str], Manifest] = {}
        self.listeners: list[Listener] = []

    @classmethod
    @asynccontextmanager
    async def running(cls, api: Api, nodes: int) -> AsyncIterator["BulkKubelet"]:
        """Works until the end of the block."""
        kubelet = cls(api, nodes)
        tasks = [asyncio.create_task(kubelet._follow())]
        tasks += [asyncio.create_task(kubelet._serve()) for _ in range(_WORKERS)]
        try:
            yield kubelet
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def ready(self) -> int:
        """How many pods are Ready."""
        return sum(is_ready(pod) for pod in self.pods.values())

    async def _follow(self) -> None:
        await self._api.watch("/api/v1/pods", self._seen)

    def _seen(self, type_: str, pod: Manifest) -> None:
        meta, spec = pod["metadata"], pod["spec"]
        key = meta["namespace"], meta["name"]
        if type_ == "DELETED":
            self.pods.pop(key, None)
            node, amount = self._placed.pop(meta["uid"], ("", 0))
            if node:
                self._free[node] += amount
        else:
            self.pods[key] = pod
            if meta.get("deletionTimestamp"):
                self._once("end", pod)
            elif not spec.get("nodeName"):
                if not spec.get("schedulingGates"):
                    self._once("bind", pod)
            elif pod["status"].get("phase") == "Pending":
                self._once("run", pod)
        for listener in self.listeners:
            listener(type_, pod)

    def _once(self, what: str, pod: Manifest) -> None:
        mark = f"{what} {pod['metadata']['uid']}"
        if mark not in self._ended:
            self._ended.add(mark)
            self._work.put_nowait((what, pod))

    async def _serve(self) -> None:
        while True:
            what, pod = await self._work.get()
            # A pod that is gone meanwhile needs nothing any more.
            with contextlib.suppress(RuntimeError):
                await self._do(what, pod)

    async def _do(self, what: str, pod: Manifest) -> None:
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        if what == "end":
            await self._api.send("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})
        elif what == "bind":
            amount = int(pod["spec"]["containers"][0]["resources"]["limits"][GPU])
            # Insertion order: the first node that has room.
            node = next(name for name, free in self._free.items() if free >= amount)
            self._free[node] -= amount
            if not self._free[node]:
                del self._free[node]
                self._free[node] = 0
            self._placed[meta["uid"]] = node, amount
            target = {"apiVersion": "v1", "kind": "Node", "name": node}
            binding = {"metadata": {"name": meta["name"], "uid": meta["uid"]}, "target": target}
            await self._api.send("POST", f"{path}/binding", binding)
        else:
            await self._api.send("PATCH", f"{path}/status", {"status": running(pod, _ADDRESS, wire_now())}, STRATEGIC)


def wire_now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
