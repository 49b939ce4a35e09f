"""The table of canonical signals: for each its name, its PromQL and the labels that say whose it is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from retinue.api.pool import EngineType
from retinue.autoscaling import promql
from retinue.autoscaling.engine_metrics import ENGINE_METRICS, EngineMetrics, Series
from retinue.autoscaling.inputs import PoolKind
from retinue.autoscaling.promql import Grouping


class Subject(StrEnum):
    """Whose signal it is. The value is the prefix of the query's name."""

    POOL = "pool"
    ROLE = "role"
    TIER = "tier"
    INSTANCE = "instance"


SUBJECT_LABELS: dict[Subject, tuple[str, ...]] = {
    Subject.POOL: ("pool_kind", "pool"),
    Subject.ROLE: ("role",),
    Subject.TIER: ("tier",),
    Subject.INSTANCE: ("retinue_instance",),
}


@dataclass(frozen=True)
class Query:
    """One canonical signal of all subjects of a kind at once."""

    name: str
    """Such as pool.hit_rate: subject and field of the signals dataclass."""
    subject: Subject
    promql: str
    age: str
    """PromQL of the seconds since the subject was scraped last, with the same labels."""
    idle: bool = False
    """Whether no answer about a freshly scraped subject means that nothing happened, rather than missing."""

    def key(self, labels: Mapping[str, str]) -> str | None:
        """The subject's key, such as prefill/coder-primary; None if a label is absent."""
        parts = [labels.get(label, "") for label in SUBJECT_LABELS[self.subject]]
        return "/".join(parts) if all(parts) else None


@dataclass(frozen=True)
class Sample:
    """One number of one subject. `value` NaN = nothing happened; `age` = seconds since the subject was scraped."""

    labels: Mapping[str, str]
    value: float
    age: float


@dataclass(frozen=True)
class PoolScope:
    """A pool to measure, and the engine that its instances run."""

    kind: PoolKind
    name: str
    engine: EngineType


@dataclass(frozen=True)
class Scope:
    """What of a cluster one AgentPool's queries are about."""

    namespace: str
    agent_pool: str
    pools: tuple[PoolScope, ...]
    tiers: tuple[str, ...] = ()
    """Names of tiers that run servers."""
    window: float = 60.0
    """Seconds; at least four scrape intervals."""
    ttft_goal: float = 2.0
    """Seconds; a queue that was empty once within them holds nobody who waited longer."""
    ttft_quantile: float = 0.95
    itl_quantile: float = 0.95


# The same few scopes are asked for at every interval.
@lru_cache(maxsize=1024)
def queries(scope: Scope) -> tuple[Query, ...]:
    """All queries of one AgentPool: a few dozen, however many pools it has."""
    found = list(_role_queries(scope))
    for engine in EngineType:
        names = [pool.name for pool in scope.pools if pool.engine is engine]
        if names:
            found.extend(_pool_queries(scope, ENGINE_METRICS[engine], names))
    if scope.tiers:
        found.extend(_tier_queries(scope))
    return tuple(found)


def _pool_queries(scope: Scope, engine: EngineMetrics, names: Iterable[str]) -> Iterable[Query]:
    matchers = f'namespace="{_quoted(scope.namespace)}",pool=~"{_any_of(names)}"'
    group = Grouping(matchers, SUBJECT_LABELS[Subject.POOL], scope.window)
    age = promql.age(engine.running, group)

    def query(name: str, expression: str, *, idle: bool = False) -> Query:
        return Query(f"pool.{name}", Subject.POOL, expression, age, idle)

    prompt, cached = promql.rate(engine.prompt_tokens, group), promql.rate(engine.cached_tokens, group)
    if engine.computed_tokens is None:
        computed = promql.difference(prompt, cached)
    else:
        computed = promql.rate(engine.computed_tokens, group)
    running = promql.total((engine.running,), group)
    yield query("computed_rate", computed)
    yield query("cached_rate", cached)
    yield query("prompt_rate", prompt)
    yield query("hit_rate", promql.ratio(cached, prompt), idle=True)
    yield query("generation_rate", promql.rate(engine.generated_tokens, group))
    yield query("queue_time", promql.quantile(engine.queue_time, group, scope.ttft_quantile), idle=True)
    yield query("prefill_time", promql.quantile(engine.prefill_time, group, scope.ttft_quantile), idle=True)
    if engine.transfer_time is not None:
        transfer = promql.quantile(engine.transfer_time, group, scope.ttft_quantile)
        yield query("transfer_time", transfer, idle=True)
    yield query("inter_token_time", promql.quantile(engine.inter_token_time, group, scope.itl_quantile), idle=True)
    yield query("ttft", promql.quantile(engine.ttft, group, scope.ttft_quantile), idle=True)
    yield query("running", running)
    yield query("running_peak", promql.peak(running, scope.window))
    waiting = promql.total(engine.waiting, group)
    yield query("waiting", waiting)
    yield query("waiting_low", promql.low(waiting, scope.ttft_goal))
    yield query("kv_use", promql.mean(engine.kv_use, group))
    yield query("prefill_speed", promql.ratio(computed, promql.busy(engine.prefill_time, group)), idle=True)
    yield query("reporting", promql.instances(engine.running, group))
    if engine.host_hit_tokens is not None:
        host = promql.rate(engine.host_hit_tokens, group)
        yield query("host_hit_rate", promql.ratio(host, prompt), idle=True)
    if engine.host_capacity_bytes is not None:
        yield query("host_capacity_bytes", promql.extreme("sum", engine.host_capacity_bytes, group))
    if engine.host_used_bytes is not None:
        yield query("host_used_bytes", promql.extreme("sum", engine.host_used_bytes, group))
    if engine.host_eviction_age is not None:
        yield query("host_eviction_age", promql.extreme("min", engine.host_eviction_age, group))


def _role_queries(scope: Scope) -> Iterable[Query]:
    matchers = f'namespace="{_quoted(scope.namespace)}",agent_pool="{_quoted(scope.agent_pool)}"'
    group = Grouping(matchers, SUBJECT_LABELS[Subject.ROLE], scope.window)
    sessions = _gateway("open_sessions")
    age = promql.age(sessions, group)

    def query(name: str, expression: str, *, idle: bool = False) -> Query:
        return Query(f"role.{name}", Subject.ROLE, expression, age, idle)

    def stage(name: str) -> str:
        series = Series("retinue_gateway_stage_seconds", f'stage="{name}"')
        return promql.quantile(series, group, scope.ttft_quantile)

    prompt, cached = (promql.rate(_gateway(f"{kind}_tokens_total"), group) for kind in ("prompt", "cached"))
    ttft = promql.quantile(_gateway("time_to_first_token_seconds"), group, scope.ttft_quantile)
    token_time = promql.quantile(_gateway("time_per_output_token_seconds"), group, scope.itl_quantile)
    yield query("ttft", ttft, idle=True)
    yield query("prefill_stage_time", stage("prefill"), idle=True)
    yield query("first_decode_time", stage("decode_first_token"), idle=True)
    yield query("token_time", token_time, idle=True)
    yield query("arrivals", promql.rate(_gateway("requests_started_total"), group))
    yield query("completions", promql.rate(_gateway("requests_total"), group))
    yield query("in_flight", promql.extreme("sum", _gateway("requests_in_flight"), group))
    yield query("queued_prefill_tokens", promql.extreme("sum", _gateway("queued_prefill_tokens"), group))
    yield query("prompt_rate", prompt)
    yield query("cached_rate", cached)
    yield query("completion_tokens_rate", promql.rate(_gateway("completion_tokens_total"), group))
    yield query("hit_rate", promql.ratio(cached, prompt), idle=True)
    yield query("open_sessions", promql.extreme("sum", sessions, group))
    yield query("context_tokens", promql.extreme("sum", _gateway("open_session_context_tokens"), group))
    per_instance = Grouping(matchers, SUBJECT_LABELS[Subject.INSTANCE], scope.window)
    held = _gateway("instance_sessions")
    yield Query(
        "instance.sessions",
        Subject.INSTANCE,
        promql.extreme("sum", held, per_instance),
        promql.age(held, per_instance),
    )


def _tier_queries(scope: Scope) -> Iterable[Query]:
    matchers = f'namespace="{_quoted(scope.namespace)}",tier=~"{_any_of(scope.tiers)}"'
    group = Grouping(matchers, SUBJECT_LABELS[Subject.TIER], scope.window)
    up = Series("retinue_tier_up")
    age = promql.age(up, group)

    def query(name: str, expression: str, *, idle: bool = False) -> Query:
        return Query(f"tier.{name}", Subject.TIER, expression, age, idle)

    lookups = promql.rate(Series("retinue_tier_lookup_tokens_total"), group)
    hits = promql.rate(Series("retinue_tier_hit_tokens_total"), group)
    yield query("capacity_bytes", promql.extreme("sum", Series("master_total_capacity_bytes"), group))
    yield query("used_bytes", promql.extreme("sum", Series("master_allocated_bytes"), group))
    yield query("hit_rate", promql.ratio(hits, lookups), idle=True)
    yield query("lookup_rate", lookups)
    yield query("eviction_age", promql.extreme("min", Series("retinue_tier_eviction_age_seconds"), group))
    yield query("reporting", promql.instances(up, group))


def _gateway(name: str) -> Series:
    return Series(f"retinue_gateway_{name}")


def _any_of(names: Iterable[str]) -> str:
    return "|".join(sorted({_quoted(re.escape(name).replace("\\-", "-")) for name in names}))


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
