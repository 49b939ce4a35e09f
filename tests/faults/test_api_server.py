"""The operator behind a network and an API server that misbehave: it converges, does not hammer, and says what is."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import structlog
from structlog.testing import capture_logs

from retinue_emulator.faultproxy import (
    Delay,
    Expire,
    Fault,
    HalfBody,
    LateAnswer,
    LoseEvents,
    LostAnswer,
    OldEvents,
    Refuse,
    RepeatEvents,
    Request,
    Reset,
    Silence,
)
from retinue_emulator.loopback import ClusterAccess, ControlPlane, LoopbackError, eventually

from ..component.toy import Running, Toy, running, still, tier
from .faultyserver import CRDS, Watches, faulty, no_watch, writes

pytestmark = pytest.mark.component

SEED = 20261125
TROUBLED_SECONDS = 3.0
MOST_REQUESTS_A_SECOND = 30
"""Of one object with five children whose every write fails, at the quickest back-off that the tests set (1 s)."""


@dataclass(frozen=True)
class Trouble:
    """A fault of requests, how often it strikes, and the class under which the operator counts it (None: none)."""

    name: str
    fault: Fault
    matches: Callable[[Request], bool] = no_watch
    share: float = 0.5
    told: str | None = "ApiDown"


TROUBLES = (
    Trouble("latency", Delay(0.3), share=1.0, told=None),
    Trouble("slow-writes", Delay(1.0), writes, share=1.0, told=None),
    Trouble("late-answers", LateAnswer(0.5), told=None),
    Trouble("throttled", Refuse(429, retry_after=1), told="Throttled"),
    Trouble("500", Refuse(500)),
    Trouble("503", Refuse(503)),
    Trouble("resets", Reset()),
    Trouble("lost-answers", LostAnswer(), writes),
    Trouble("half-bodies", HalfBody()),
    Trouble("conflict-storm", Refuse(409), writes, share=0.7, told="Conflict"),
)


def failures(op: Running, reason: str) -> float:
    """Writes and reconciles that failed for this reason."""
    metrics = op.runtime.metrics
    return sum(
        sample.value
        for family in (*metrics.writes.collect(), *metrics.reconciles.collect())
        for sample in family.samples
        if sample.name.endswith("_total") and sample.labels["result"] == reason
    )


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
async def test_it_converges_under_faults_is_not_frantic_and_says_so(
    cluster: ClusterAccess, namespace: str, trouble: Trouble
) -> None:
    async with (
        faulty(cluster, SEED) as proxy,
        running(cluster, namespace, Toy(), server=proxy.url) as op,
    ):
        # It runs, with its watches: what a start is like behind faults is another question.
        await op.apply(tier(namespace, replicas=1))
        await op.settled(replicas=1)
        rule = proxy.inject(trouble.fault, trouble.matches, share=trouble.share)
        since = time.monotonic()
        await op.apply(tier(namespace, replicas=4))

        async def struck() -> bool:
            return rule.struck >= 4 and time.monotonic() - since >= TROUBLED_SECONDS

        await eventually(struck, what=f"the fault has struck; {proxy.tally()}")
        rate = proxy.count(since=since) / (time.monotonic() - since)
        assert rate <= MOST_REQUESTS_A_SECOND, proxy.tally(since)
        await op.settled(replicas=4)
        await op.kubectl("scale", "kvt/warm", "--replicas=1")
        await op.settled(replicas=1)
        if trouble.told is not None:
            assert failures(op, trouble.told) > 0
        proxy.calm()
        await op.kubectl("scale", "kvt/warm", "--replicas=2")
        await op.settled(replicas=2)
        await still(op.writes, what=f"no more writes; {proxy.tally()}")
        pods = await op.get("pods")
        live = [pod["metadata"]["name"] for pod in pods["items"] if "deletionTimestamp" not in pod["metadata"]]
        assert live == ["warm-0", "warm-1"]


@pytest.mark.parametrize("fault", [Refuse(503), Refuse(429, retry_after=1), Reset(), Refuse(409)], ids=repr)
async def test_while_nothing_works_at_all_it_asks_in_moderation_and_logs_why(
    cluster: ClusterAccess, namespace: str, fault: Fault
) -> None:
    async with faulty(cluster, SEED) as proxy, running(cluster, namespace, Toy(), server=proxy.url) as op:
        await op.apply(tier(namespace, replicas=1))
        await op.settled(replicas=1)
        # No server says 409 to a reader.
        rule = proxy.inject(fault, writes if fault == Refuse(409) else no_watch)
        with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as log:
            await op.apply(tier(namespace, replicas=4))

            async def struck() -> bool:
                return rule.struck >= 1

            await eventually(struck, what="the fault has struck")
            since = time.monotonic()

            async def long_enough() -> bool:
                return time.monotonic() - since >= 2 * TROUBLED_SECONDS

            await eventually(long_enough, what="time passes")
        rate = proxy.count(since=since) / (time.monotonic() - since)
        print(f"{fault}: {rate:.1f} requests a second while nothing works")
        assert 0 < rate <= MOST_REQUESTS_A_SECOND
        told = [entry for entry in log if entry["event"] == "write failed" and entry["name"] == "warm"]
        assert told
        assert {entry["reason"] for entry in told} <= {"ApiDown", "Throttled", "Conflict"}
        proxy.calm()
        await op.settled(replicas=4)


async def test_a_half_open_watch_is_given_up_and_made_anew(cluster: ClusterAccess, namespace: str) -> None:
    async with (
        faulty(cluster, SEED) as proxy,
        running(cluster, namespace, Toy(), server=proxy.url, watch_silence=2.0) as op,
    ):
        await op.apply(tier(namespace))
        await op.settled()
        rule = proxy.inject(Silence(), lambda request: request.watch, times=50)
        await op.kubectl("scale", "kvt/warm", "--replicas=3")

        async def silent() -> bool:
            return rule.struck >= 1

        await eventually(silent, what="the watch of the tier says nothing any more")
        # No sweep comes (an hour): only a new watch can tell of the change.
        proxy.calm()
        await op.settled(replicas=3)


async def test_a_watch_that_expired_begins_with_a_list_and_misses_nothing(
    cluster: ClusterAccess, namespace: str
) -> None:
    async with faulty(cluster, SEED) as proxy, running(cluster, namespace, Toy(), server=proxy.url) as op:
        await op.apply(tier(namespace))
        await op.settled()
        rules = [proxy.inject(Expire(), Watches(plural), times=3) for plural in ("kvcachetiers", "pods")]
        lists = proxy.count(lambda request: request.method == "GET" and not request.watch)
        for replicas in (3, 1, 2):
            await op.kubectl("scale", "kvt/warm", f"--replicas={replicas}")
            await op.settled(replicas=replicas)
        assert all(rule.struck >= 1 for rule in rules)
        assert proxy.count(lambda request: request.method == "GET" and not request.watch) > lists


async def test_lost_events_are_found_by_the_sweep_and_counted(cluster: ClusterAccess, namespace: str) -> None:
    async with (
        faulty(cluster, SEED) as proxy,
        running(cluster, namespace, Toy(), server=proxy.url, sweep_interval=1.0) as op,
    ):
        rule = proxy.inject(LoseEvents(), lambda request: request.watch)
        await op.apply(tier(namespace))
        await op.settled()
        await op.kubectl("scale", "kvt/warm", "--replicas=3")
        await op.settled(replicas=3)
        await op.kubectl("delete", "pod/warm-1", "--wait=false")

        async def again() -> bool:
            pod = await op.get("pod", "warm-1")
            return "deletionTimestamp" not in pod["metadata"]

        await eventually(again, what="the pod exists again")
        assert rule.struck >= 1
        assert op.runtime.metrics.corrections.labels("KVCacheTier")._value.get() >= 1


@pytest.mark.parametrize("fault", [RepeatEvents(), OldEvents()], ids=repr)
async def test_events_that_come_again_change_nothing(cluster: ClusterAccess, namespace: str, fault: Fault) -> None:
    async with faulty(cluster, SEED) as proxy, running(cluster, namespace, Toy(), server=proxy.url) as op:
        rule = proxy.inject(fault, lambda request: request.watch)
        await op.apply(tier(namespace))
        for replicas in (3, 1, 4, 2):
            await op.kubectl("scale", "kvt/warm", f"--replicas={replicas}")
            await op.settled(replicas=replicas)
        assert rule.struck >= 8
        await still(op.writes, what=f"no more writes; {proxy.tally()}")
        pods = {pod["metadata"]["name"] for pod in (await op.get("pods"))["items"]}
        cached = {pod["metadata"]["name"] for pod in op.runtime.cache.select("Pod", namespace)}
        assert cached == pods


async def test_half_an_event_starts_the_watches_anew(cluster: ClusterAccess, namespace: str) -> None:
    async with faulty(cluster, SEED) as proxy, running(cluster, namespace, Toy(), server=proxy.url) as op:
        await op.apply(tier(namespace))
        await op.settled()
        rule = proxy.inject(HalfBody(), Watches("kvcachetiers"), times=1)
        await op.kubectl("scale", "kvt/warm", "--replicas=3")
        await op.settled(replicas=3)
        assert rule.struck == 1


async def test_an_etcd_that_is_killed_and_started_on_its_data_is_survived() -> None:
    async with ControlPlane() as own:
        own.kubectl("apply", "--server-side", "-f", str(CRDS))
        own.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(CRDS))
        own.kubectl("create", "namespace", "agents")
        async with running(own, "agents", Toy(), sweep_interval=2.0) as op:
            await op.apply(tier("agents"))
            await op.settled()
            uids = {pod["metadata"]["uid"] for pod in (await op.get("pods"))["items"]}
            own.kill("etcd")

            async def out() -> bool:
                try:
                    await op.kubectl("get", "--raw", "/readyz")
                except LoopbackError:
                    return True
                return False

            await eventually(out, what="the API server is not ready")
            await own.start_component("etcd")
            await own.wait_ready()
            await op.kubectl("scale", "kvt/warm", "--replicas=3")
            await op.settled(replicas=3)
            await op.sweeps(1)
            # What was there before was neither made again nor touched.
            assert uids <= {pod["metadata"]["uid"] for pod in (await op.get("pods"))["items"]}
