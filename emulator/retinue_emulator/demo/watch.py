"""Watches the AgentPool through the API server and Prometheus, and reads the operator's record of decisions."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import aiohttp

from retinue.api import GROUP, VERSION
from retinue.api.units import seconds
from retinue.autoscaling import history
from retinue_emulator.loopback import LoopbackError
from retinue_emulator.loopback import Sample as Measured
from retinue_emulator.loopback.health import trusting

from .timeline import Move, PoolSample, RoleSample, Sample, TierSample, Timeline

JsonObject = Mapping[str, Any]
_REQUEST_SECONDS = 10.0
_TTFT = "retinue_gateway_time_to_first_token_seconds"
_ITL = "vllm:inter_token_latency_seconds"
_PLURALS = ("agentpools", "prefillpools", "decodepools", "kvcachetiers")


@dataclass(frozen=True)
class ApiReader:
    """How the API server is read: base URL, token and CA where it wants them, and what to look at on errors."""

    url: str
    token: str | None
    ca_file: Path | None
    remedy: str


class Asked(Protocol):
    """A Prometheus."""

    async def query(self, promql: str) -> list[Measured]:
        """See PrometheusApi.query."""
        ...


class Watcher:
    """Takes samples of one AgentPool: `async with Watcher(...) as watcher: await watcher.observe()`.

    window: wall seconds over which latency quantiles are taken.
    """

    def __init__(self, api: ApiReader, prometheus: Asked, namespace: str, agent_pool: str, window: float) -> None:
        self.timeline = Timeline()
        self._api = api
        self._prometheus = prometheus
        self._namespace = namespace
        self._agent_pool = agent_pool
        self._queries = {name: _slowest(name, namespace, agent_pool, window) for name in (_TTFT, _ITL)}
        self._session: aiohttp.ClientSession | None = None
        self._decision: JsonObject = {}
        self._zero = time.monotonic()
        self._zero_epoch = time.time()

    async def __aenter__(self) -> Self:
        # As the user whose kubeconfig the demo prints: what the tables show is what kubectl would show.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=trusting(self._api.ca_file) if self._api.ca_file else True),
            headers={"Authorization": f"Bearer {self._api.token}"} if self._api.token else {},
            timeout=aiohttp.ClientTimeout(total=_REQUEST_SECONDS),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    def start_clock(self) -> None:
        """The load begins now: samples from here on have times from zero, those before it negative ones."""
        now = time.monotonic()
        self.timeline.shift(now - self._zero)
        self._zero, self._zero_epoch = now, time.time()

    async def observe(self) -> Sample:
        """One sample, which is also appended to the timeline."""
        reading = asyncio.gather(*map(self._list, _PLURALS))
        asking = asyncio.gather(*map(self._quantile, (_TTFT, _ITL)))
        lists = dict(zip(_PLURALS, await reading, strict=True))
        ttft, itl = await asking
        own = next((item for item in lists["agentpools"] if item["metadata"]["name"] == self._agent_pool), {})
        sample = read_sample(
            time.monotonic() - self._zero,
            own,
            lists["prefillpools"],
            lists["decodepools"],
            lists["kvcachetiers"],
        )
        # The status rounds latencies to milliseconds, which is coarse when time runs fast.
        sample = replace(sample, ttft_p95=ttft or sample.ttft_p95, itl_p95=itl or sample.itl_p95)
        self.timeline.add(sample)
        self._note_moves(own)
        return sample

    def take_decisions(self, record: str) -> None:
        """Replaces the moves by those in the operator's complete record, which also has what came between samples."""
        if record:
            self.timeline.moves = list(read_moves(record.splitlines(), self._zero_epoch))

    def _note_moves(self, agent_pool: JsonObject) -> None:
        decision = agent_pool.get("status", {}).get("lastDecision") or {}
        if decision.get("mode") != "Auto" or decision == self._decision:
            return
        self._decision = decision
        self.timeline.moves.extend(
            Move(
                at=time.monotonic() - self._zero,
                key=target["name"],
                before=target["current"],
                after=target["desired"],
                reason=target["reason"],
                message=target.get("message", ""),
                clamps=tuple(target.get("clamps", [])),
            )
            for target in decision.get("targets", [])
            if target["current"] != target["desired"]
        )

    async def _quantile(self, name: str) -> float | None:
        """None without traffic, and while Prometheus does not answer: it may be stopped on purpose."""
        try:
            samples = await self._prometheus.query(self._queries[name])
        except LoopbackError:
            return None
        return next((sample.value for sample in samples if math.isfinite(sample.value)), None)

    async def _list(self, plural: str) -> list[JsonObject]:
        if self._session is None:
            raise RuntimeError("use the watcher as an async context manager")
        url = f"{self._api.url}/apis/{GROUP}/{VERSION}/namespaces/{self._namespace}/{plural}"
        try:
            async with self._session.get(url) as response:
                answer = await response.json()
                if response.status != 200:
                    raise LoopbackError(f"the API server refuses {plural}", str(answer.get("message", response.status)))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise LoopbackError(
                f"the API server does not answer ({error or type(error).__name__})", self._api.remedy
            ) from error
        items: list[JsonObject] = answer["items"]
        return items


def _slowest(histogram: str, namespace: str, agent_pool: str, window: float) -> str:
    """PromQL: the 95th percentile of the role where it is highest."""
    chosen = f'{histogram}_bucket{{namespace="{namespace}",agent_pool="{agent_pool}"}}[{round(window * 1000)}ms]'
    return f"max(histogram_quantile(0.95, sum by (role, le) (rate({chosen}))))"


def read_sample(
    at: float,
    agent_pool: JsonObject,
    prefill_pools: Iterable[JsonObject],
    decode_pools: Iterable[JsonObject],
    tiers: Iterable[JsonObject],
) -> Sample:
    """One sample from the objects as the API server returns them; what is not there yet is None or left out."""
    status = agent_pool.get("status", {})
    sessions = status.get("sessions", {})
    pools = [_pool("prefill", item) for item in prefill_pools] + [_pool("decode", item) for item in decode_pools]
    return Sample(
        at=at,
        pools=tuple(sorted(pools, key=lambda pool: (pool.role != "primary", pool.role, pool.kind != "prefill"))),
        tiers=tuple(_tier(item) for item in tiers),
        roles=tuple(
            RoleSample(role["name"], role.get("model", ""), role.get("ready", False), _number(role.get("hitRate")))
            for role in status.get("roles", [])
        ),
        open_sessions=sessions.get("open"),
        context_tokens=sessions.get("contextTokens"),
        hit_rate=_number(status.get("hitRate")),
        ttft_p95=_seconds(status.get("ttftP95")),
        itl_p95=_seconds(status.get("itlP95")),
        cost_per_hour=_number(status.get("costPerHour")),
        decision=_decision(status.get("lastDecision") or {}),
    )


def read_moves(lines: Iterable[str], zero: float) -> Iterable[Move]:
    """The changes of size in the operator's record; `zero` is the epoch second at which the load began.

    A last line that is cut off, because it is being written, is left out.
    """
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("version") != history.VERSION:
            raise LoopbackError("the record of decisions has another version", "use one version of Retinue only")
        decision = record["decision"]
        if not decision["apply"]:
            continue
        for target in decision["targets"]:
            if target["current"] != target["desired"]:
                yield Move(
                    at=record["now"] - zero,
                    key=f"{target['kind']}/{target['name']}",
                    before=target["current"],
                    after=target["desired"],
                    reason=target["reason"],
                    message=target["message"],
                    clamps=tuple(clamp["reason"] for clamp in target["clamps"]),
                )


def _pool(kind: str, item: JsonObject) -> PoolSample:
    status = item.get("status", {})
    phases = Counter(instance["phase"] for instance in status.get("instances", []))
    labels = item["metadata"].get("labels", {})
    ready, why = _condition(status, "Ready")
    return PoolSample(
        kind=kind,
        name=item["metadata"]["name"],
        role=labels.get("retinue.dev/role", ""),
        desired=item["spec"].get("replicas", 0),
        pending=phases["Pending"],
        starting=phases["Starting"],
        ready=phases["Ready"],
        draining=phases["Draining"],
        is_ready=ready and phases["Ready"] > 0,
        why=why,
    )


def _tier(item: JsonObject) -> TierSample:
    spec, status = item["spec"], item.get("status", {})
    return TierSample(
        name=item["metadata"]["name"],
        medium=spec["medium"],
        members=status.get("members", 0),
        desired=spec.get("replicas", 0),
        fill=_number(status.get("fill")),
        hit_rate=_number(status.get("hitRate")),
        capacity=str(status.get("capacity", "")),
        is_ready=_condition(status, "Ready")[0],
    )


def _condition(status: JsonObject, type_: str) -> tuple[bool, str]:
    for condition in status.get("conditions", []):
        if condition["type"] == type_:
            return condition["status"] == "True", f"{condition['reason']}: {condition.get('message', '')}"
    return False, "no status yet"


def _decision(decision: JsonObject) -> str:
    if not decision:
        return ""
    message = decision.get("message", "")
    return f"{decision['reason']}: {message}" if message else str(decision["reason"])


def _number(text: object) -> float | None:
    return None if text is None else float(str(text))


def _seconds(text: object) -> float | None:
    return None if text is None else seconds(str(text))
