"""Asks a draining instance itself what it still serves: a drain must not depend on Prometheus."""

import asyncio
import math
from collections.abc import Iterable, Mapping

import aiohttp

from retinue.api import labels
from retinue.plan import Manifest
from retinue.pool.snapshot import drains
from retinue_operator.bodies import read_at_most

# Requests that an engine runs or keeps waiting, by the names of notes/autoscaling.md 1.1.
_GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "sglang:num_running_reqs",
    "sglang:num_queue_reqs",
    "trtllm_num_requests_running",
    "trtllm_num_requests_waiting",
)
_LARGEST_EXPOSITION = 2**23
_TIMEOUT = aiohttp.ClientTimeout(total=3.0)


async def in_flight(session: aiohttp.ClientSession, pods: Iterable[Manifest]) -> dict[str, int | None]:
    """Running and waiting requests per draining instance; None where its engine gives no answer."""
    leaders = [pod for pod in pods if _is_draining_leader(pod)]
    counts = await asyncio.gather(*(_count(session, pod) for pod in leaders))
    return {pod["metadata"]["labels"][labels.INSTANCE]: count for pod, count in zip(leaders, counts, strict=True)}


def _is_draining_leader(pod: Manifest) -> bool:
    meta: Mapping[str, Mapping[str, str]] = pod["metadata"]
    return drains(pod) and labels.INSTANCE in meta.get("labels", {}) and meta["labels"].get(labels.RANK) == "0"


async def _count(session: aiohttp.ClientSession, pod: Manifest) -> int | None:
    address = pod.get("status", {}).get("podIP")
    if not address:
        return None
    try:
        url = f"http://{address}:{labels.HTTP_PORT}/metrics"
        # The image is a tenant's: it must not send the operator elsewhere, nor fill its memory.
        async with session.get(url, timeout=_TIMEOUT, allow_redirects=False) as answer:
            if answer.status != 200:
                return None
            exposition = await read_at_most(answer, _LARGEST_EXPOSITION)
            return None if exposition is None else requests_in(exposition.decode())
    except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
        return None


def requests_in(exposition: str) -> int | None:
    """Running plus waiting requests in a text exposition; None if it has none of the known gauges."""
    total, seen = 0.0, False
    for line in exposition.splitlines():
        name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
        if name in _GAUGES:
            value = rest.rsplit(" ", 1)[-1]
            try:
                total += float(value)
            except ValueError:
                continue
            seen = True
    # An engine that counts what no number is has not answered.
    return round(total) if seen and math.isfinite(total) else None
