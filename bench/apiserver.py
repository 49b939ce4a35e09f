"""A bare client of the API server: many requests at once with no logic, and what the server counted itself."""

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from retinue_emulator.loopback import ControlPlane

Manifest = dict[str, Any]
T = TypeVar("T")

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
IN_FLIGHT = 32
_WRITE_VERBS = frozenset({"POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"})

# (verb, resource, subresource) as the API server labels its requests; server-side apply is a verb of its own there.
Request = tuple[str, str, str]


class Api:
    """One connection pool as cluster admin."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    @classmethod
    @asynccontextmanager
    async def open(cls, cluster: ControlPlane) -> AsyncIterator["Api"]:
        """Closes its connections at the end of the block."""
        context = ssl.create_default_context(cafile=str(cluster.ca_file))
        connector = aiohttp.TCPConnector(limit=2 * IN_FLIGHT + 8, ssl=context)
        headers = {"Authorization": f"Bearer {cluster.admin_token}", "Accept": "application/json"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(cluster.server, connector=connector, headers=headers, timeout=timeout) as http:
            yield cls(http)

    async def send(self, method: str, path: str, body: Any = None, type_: str = "application/json") -> Manifest:
        """One request; raises RuntimeError for a status of 400 or more."""
        data = None if body is None else json.dumps(body).encode()
        async with self._http.request(method, path, data=data, headers={"Content-Type": type_}) as answer:
            content = await answer.read()
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {answer.status} {content[:300].decode(errors='replace')}")
        parsed: Manifest = json.loads(content)
        return parsed

    async def items(self, path: str, page: int = 1000) -> list[Manifest]:
        """All objects of a collection."""
        found: list[Manifest] = []
        token = ""
        while True:
            mark = "&" if "?" in path else "?"
            answer = await self.send("GET", f"{path}{mark}limit={page}" + (f"&continue={token}" if token else ""))
            found += answer["items"]
            token = answer["metadata"].get("continue", "")
            if not token:
                return found

    async def watch(self, path: str, seen: Callable[[str, Manifest], None]) -> None:
        """Calls `seen(type, object)` for every event from now on, until cancelled."""
        version = (await self.send("GET", f"{path}?limit=1"))["metadata"]["resourceVersion"]
        while True:
            query = f"{path}?watch=true&resourceVersion={version}&allowWatchBookmarks=true"
            async with self._http.get(query) as answer:
                answer.raise_for_status()
                # Lines may be long: read chunks, split ourselves.
                rest = b""
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in filter(None, lines):
                        event = json.loads(line)
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            seen(event["type"], event["object"])

    async def requests(self) -> Counter[Request]:
        """How many requests the API server has answered so far, watches at their end."""
        async with self._http.get("/metrics") as answer:
            text = await answer.text()
        wanted = "\n".join(line for line in text.splitlines() if line.startswith("apiserver_request_total"))
        counted: Counter[Request] = Counter()
        for family in text_string_to_metric_families(f"# TYPE apiserver_request_total counter\n{wanted}\n"):
            for sample in family.samples:
                tags = sample.labels
                if tags.get("dry_run"):
                    continue
                counted[tags["verb"], tags["resource"], tags["subresource"]] += int(sample.value)
        return counted


def writes(counted: Counter[Request]) -> Counter[Request]:
    """Only what writes; reviews of tokens and rights write nothing."""
    return Counter(
        {
            request: count
            for request, count in counted.items()
            if request[0] in _WRITE_VERBS and not request[1].endswith("reviews") and count
        }
    )


async def many(work: Iterable[Callable[[], Awaitable[T]]], in_flight: int = IN_FLIGHT) -> list[T]:
    """Runs all calls, so many at a time; the results in their order. The first failure ends it."""
    queue = list(enumerate(work))
    results: dict[int, T] = {}
    position = 0

    async def worker() -> None:
        nonlocal position
        while position < len(queue):
            index, call = queue[position]
            position += 1
            results[index] = await call()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(in_flight, len(queue))):
            group.create_task(worker())
    return [results[index] for index in range(len(queue))]
