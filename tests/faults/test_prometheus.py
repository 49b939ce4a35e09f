"""A real Prometheus behind a network that misbehaves: a poll ends in time, says what failed, and invents no number."""

import time

import pytest

from retinue.api.pool import EngineType
from retinue.autoscaling.inputs import PoolKind
from retinue.autoscaling.signals import PoolScope, Query, Scope, queries
from retinue_emulator.faultproxy import Delay, Fault, FaultProxy, HalfBody, LostAnswer, Refuse, Reset, Silence
from retinue_emulator.loopback import PrometheusServer
from retinue_operator.prometheus.client import PrometheusClient, PrometheusSettings
from retinue_operator.prometheus.poller import collect

pytestmark = pytest.mark.component

SEED = 11
TIMEOUT = 2.0


def wanted() -> tuple[Query, ...]:
    """What an AgentPool with one pool asks for."""
    pool = PoolScope(PoolKind.DECODE, "coder-primary", EngineType.SIMULATED)
    return queries(Scope(namespace="agents", agent_pool="coder", pools=(pool,), window=60.0))


@pytest.mark.parametrize(
    ("fault", "silent"),
    [
        (Refuse(429, retry_after=1), False),
        (Refuse(500), False),
        (Refuse(503), False),
        (Reset(), True),
        (LostAnswer(), True),
        (HalfBody(), True),
        (Silence(), True),
        (Delay(2 * TIMEOUT), True),
    ],
    ids=repr,
)
async def test_a_poll_in_which_everything_fails_is_an_error_and_the_next_one_is_fine(
    prometheus: PrometheusServer, fault: Fault, silent: bool
) -> None:
    async with (
        FaultProxy(prometheus.url, seed=SEED) as proxy,
        PrometheusClient(PrometheusSettings(proxy.url, timeout=TIMEOUT)) as client,
    ):
        proxy.inject(fault)
        began = time.monotonic()
        poll = await collect(client, wanted(), deadline=2 * TIMEOUT)
        assert time.monotonic() - began < 3 * TIMEOUT
        assert poll.error is not None
        assert poll.error.startswith("Prometheus: ")
        assert poll.silent is silent
        assert poll.samples == {}
        # Nobody is asked more than once for each question.
        assert proxy.count() <= len({text for query in wanted() for text in (query.promql, query.age)})
        proxy.calm()
        again = await collect(client, wanted(), deadline=30.0)
        assert again.error is None
        assert again.failures == {}


@pytest.mark.parametrize("fault", [Refuse(503), HalfBody(), Delay(2 * TIMEOUT)], ids=repr)
async def test_what_fails_in_part_is_named_and_the_rest_counts(prometheus: PrometheusServer, fault: Fault) -> None:
    print(f"seed {SEED}")
    async with (
        FaultProxy(prometheus.url, seed=SEED) as proxy,
        PrometheusClient(PrometheusSettings(proxy.url, timeout=TIMEOUT)) as client,
    ):
        rule = proxy.inject(fault, share=0.3)
        poll = await collect(client, wanted(), deadline=30.0)
        assert rule.struck > 0
        names = {query.name for query in wanted()}
        if isinstance(fault, HalfBody):
            # A connection that breaks is taken for all: the others are not asked any more.
            assert poll.error is not None or poll.failures
            return
        assert poll.error is None
        assert poll.failures
        assert set(poll.failures) < names
        assert set(poll.samples) >= names - set(poll.failures)
