"""How busy the simulated engines on this node are, from their own metrics."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from retinue_emulator.nodeplugin.apiserver import JsonObject

from .holders import Holder

_LOGGER = logging.getLogger(__name__)

# vLLM's names, which the simulated engine serves.
_RUNNING = "vllm:num_requests_running"
_KV_USAGE = "vllm:kv_cache_usage_perc"

_SCRAPE_SECONDS = 2.0
_PORT_NAME = "http"


@dataclass(frozen=True)
class Load:
    """What an engine did over the last samples.

    busy: share of the samples with a running request, 0 to 1. kv: mean share of the KV memory in use, 0 to 1.
    """

    busy: float
    kv: float


@dataclass(frozen=True)
class Sample:
    """One scrape: requests in execution, and the share of the KV memory that they hold."""

    running: float
    kv: float


class LoadWindow:
    """The last samples of each engine container; `samples` of them make the mean, as DCGM averages over its interval.

    At a look every three seconds that is some ten seconds.

    An engine that was not scraped last time has no load: it has just started, hangs, or is gone.
    """

    def __init__(self, samples: int = 4) -> None:
        self._length = samples
        self._samples: dict[Holder, deque[Sample]] = {}

    def take(self, scraped: Mapping[Holder, Sample]) -> None:
        """Adds one round of scrapes."""
        self._samples = {
            holder: deque((*self._samples.get(holder, ()), sample), maxlen=self._length)
            for holder, sample in scraped.items()
        }

    def load(self, holder: Holder) -> Load | None:
        """The engine's load; None when its container serves no engine metrics."""
        samples = self._samples.get(holder)
        if not samples:
            return None
        count = len(samples)
        return Load(sum(s.running > 0 for s in samples) / count, sum(s.kv for s in samples) / count)


def engine_url(pod: JsonObject, container: str) -> str | None:
    """Where the metrics of a pod's container are served; None without an address or a port named http."""
    address = pod.get("status", {}).get("podIP")
    found = next((item for item in pod["spec"]["containers"] if item["name"] == container), None)
    ports = found.get("ports", []) if found is not None else []
    port = next((item["containerPort"] for item in ports if item.get("name") == _PORT_NAME), None)
    if not address or port is None:
        return None
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/metrics"


def parse_sample(text: str) -> Sample | None:
    """The numbers in an exposition; None when it is not an engine's.

    Raises:
        ValueError: the text is not in the exposition format.
    """
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for item in family.samples:
            if item.name in (_RUNNING, _KV_USAGE):
                values[item.name] = values.get(item.name, 0.0) + item.value
    if _RUNNING not in values:
        return None
    return Sample(values[_RUNNING], min(1.0, values.get(_KV_USAGE, 0.0)))


async def scrape(
    session: aiohttp.ClientSession, pods: Iterable[JsonObject], holders: Iterable[Holder]
) -> dict[Holder, Sample]:
    """One sample per container that holds devices and serves engine metrics; one that does not answer is left out."""
    by_name = {(pod["metadata"]["namespace"], pod["metadata"]["name"]): pod for pod in pods}
    found: dict[Holder, Sample] = {}
    for holder in sorted(set(holders)):
        pod = by_name.get((holder.namespace, holder.pod))
        url = engine_url(pod, holder.container) if pod is not None else None
        if url is None:
            continue
        try:
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=_SCRAPE_SECONDS)) as response:
                response.raise_for_status()
                sample = parse_sample(await response.text())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            _LOGGER.info("%s of %s/%s has no metrics: %s", holder.container, holder.namespace, holder.pod, error)
            continue
        if sample is not None:
            found[holder] = sample
    return found
