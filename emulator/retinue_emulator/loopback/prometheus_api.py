"""Asks a Prometheus server, wherever it runs: instant queries and targets of its HTTP API."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from .errors import LoopbackError

_QUERY_SECONDS = 30.0


@dataclass(frozen=True)
class Sample:
    """One series of an instant query: its labels, value (NaN and infinities as floats) and time (Unix seconds)."""

    labels: Mapping[str, str]
    value: float
    time: float


@dataclass(frozen=True)
class PrometheusApi:
    """The server at the base URL `url`. `remedy` is what to look at when it does not answer."""

    url: str
    remedy: str

    async def query(self, promql: str) -> list[Sample]:
        """Evaluates an instant query now.

        Returns one sample per series, [] when there is none; a scalar is one sample without labels. Raises
        LoopbackError when the server cannot be reached or refuses the query.
        """
        data = await self._get("/api/v1/query", {"query": promql})
        if data["resultType"] == "scalar":
            return [_sample({}, data["result"])]
        return [_sample(series["metric"], series["value"]) for series in data["result"]]

    async def active_targets(self) -> list[dict[str, Any]]:
        """What is scraped now, as the HTTP API describes targets (labels, scrapeUrl, health, lastError)."""
        data = await self._get("/api/v1/targets", {"state": "active"})
        targets: list[dict[str, Any]] = data["activeTargets"]
        return targets

    async def _get(self, path: str, parameters: dict[str, str]) -> dict[str, Any]:
        limits = aiohttp.ClientTimeout(total=_QUERY_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=limits, trust_env=False) as session,
                session.get(f"{self.url}{path}", params=parameters) as response,
            ):
                answer: dict[str, Any] = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise LoopbackError(f"Prometheus at {self.url} does not answer ({error})", self.remedy) from error
        if answer.get("status") != "success":
            raise LoopbackError(f"Prometheus refused {parameters}", str(answer.get("error", "it gave no reason")))
        data: dict[str, Any] = answer["data"]
        return data


def _sample(labels: Mapping[str, str], point: Sequence[Any]) -> Sample:
    text = str(point[1])
    value = {"+Inf": math.inf, "-Inf": -math.inf}.get(text)
    return Sample(labels, float(text) if value is None else value, float(point[0]))
