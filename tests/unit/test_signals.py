"""The table of canonical signals: names that fit the dataclasses, PromQL that a person can check."""

from dataclasses import fields
from pathlib import Path

import pytest

from retinue.api.pool import EngineType
from retinue.autoscaling.assemble import instance_sessions, pool_signals, role_signals, tier_signals
from retinue.autoscaling.inputs import MISSING, PoolKind, PoolSignals, RoleSignals, Signal, TierSignals
from retinue.autoscaling.signals import PoolScope, Query, Sample, Scope, Subject, queries

GOLDEN = Path(__file__).parent / "golden" / "signals.promql"


def scope(engine: EngineType = EngineType.SIMULATED, window: float = 60.0) -> Scope:
    return Scope(
        namespace="agents",
        agent_pool="coder",
        pools=(
            PoolScope(PoolKind.PREFILL, "coder-primary", engine),
            PoolScope(PoolKind.DECODE, "coder-primary", engine),
            PoolScope(PoolKind.DECODE, "coder-explorer", engine),
        ),
        tiers=("cold",),
        window=window,
    )


def rendered(found: tuple[Query, ...]) -> str:
    ages = dict.fromkeys((query.subject.value, query.age) for query in found)
    values = "".join(f"# {query.name}\n{query.promql}\n\n" for query in found)
    return values + "".join(f"# age of {subject}\n{text}\n\n" for subject, text in ages)


def test_the_queries_of_an_agent_pool_are_as_in_the_golden_file() -> None:
    both = scope()
    mixed = Scope(
        both.namespace,
        both.agent_pool,
        (*both.pools[:2], PoolScope(PoolKind.DECODE, "coder-explorer", EngineType.SGLANG)),
        both.tiers,
    )
    assert rendered(queries(mixed)) == GOLDEN.read_text()


@pytest.mark.parametrize("engine", list(EngineType))
def test_every_query_names_a_field_of_its_subject(engine: EngineType) -> None:
    allowed = {
        Subject.POOL: {item.name for item in fields(PoolSignals)},
        Subject.ROLE: {item.name for item in fields(RoleSignals)},
        Subject.TIER: {item.name for item in fields(TierSignals)},
        Subject.INSTANCE: {"sessions"},
    }
    for query in queries(scope(engine)):
        prefix, name = query.name.split(".")
        assert prefix == query.subject.value
        assert name in allowed[query.subject]


def test_every_field_has_a_query_for_the_simulated_engine() -> None:
    names = {query.name for query in queries(scope())}
    for subject, kind in ((Subject.POOL, PoolSignals), (Subject.ROLE, RoleSignals), (Subject.TIER, TierSignals)):
        assert {f"{subject.value}.{item.name}" for item in fields(kind)} <= names


@pytest.mark.parametrize("engine", list(EngineType))
def test_every_selector_is_pinned_to_the_namespace(engine: EngineType) -> None:
    for query in queries(scope(engine)):
        for text in (query.promql, query.age):
            assert text.count("{") == text.count('namespace="agents"')


def test_a_window_of_part_seconds_is_written_in_milliseconds() -> None:
    assert any("[7500ms]" in query.promql for query in queries(scope(window=7.5)))


def test_dots_in_names_do_not_match_other_characters() -> None:
    odd = Scope("agents", "coder", (PoolScope(PoolKind.DECODE, "a.b", EngineType.VLLM),))
    assert any('pool=~"a\\\\.b"' in query.promql for query in queries(odd))


def test_samples_find_their_pool_role_and_tier() -> None:
    samples = {
        "pool.running": [
            Sample({"pool_kind": "prefill", "pool": "p"}, 3.0, 1.0),
            Sample({"pool_kind": "decode", "pool": "p"}, 5.0, 2.0),
        ],
        "pool.hit_rate": [Sample({"pool_kind": "prefill", "pool": "p"}, float("nan"), 1.0)],
        "role.ttft": [Sample({"role": "primary"}, 0.7, 1.5)],
        "tier.used_bytes": [Sample({"tier": "cold"}, 12.0, 0.5)],
        "instance.sessions": [
            Sample({"retinue_instance": "p-prefill-0"}, 4.0, 1.0),
            Sample({"retinue_instance": "p-prefill-1"}, float("nan"), 1.0),
        ],
    }
    prefill = pool_signals(samples, PoolKind.PREFILL, "p")
    assert prefill.running == Signal(3.0, 1.0)
    assert pool_signals(samples, PoolKind.DECODE, "p").running == Signal(5.0, 2.0)
    assert prefill.hit_rate == Signal(None, 1.0)
    assert not prefill.hit_rate.missing
    assert prefill.waiting == MISSING
    assert role_signals(samples, "primary").ttft == Signal(0.7, 1.5)
    assert tier_signals(samples, "cold").used_bytes == Signal(12.0, 0.5)
    assert instance_sessions(samples) == {"p-prefill-0": 4}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.0])
def test_what_no_signal_can_be_is_no_value(value: float) -> None:
    assert Signal(value, 1.0) == Signal(None, 1.0)


@pytest.mark.parametrize("age", [None, float("nan"), -1.0])
def test_a_value_of_unknown_age_is_missing(age: float | None) -> None:
    assert Signal(1.0, age) == MISSING
