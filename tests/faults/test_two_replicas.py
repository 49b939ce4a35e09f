"""Two operator processes and one lease: never two writers, a quick change of leaders, whatever their clocks say.

Who wrote what and when comes from the API server's audit log, where each process has its identity in the User-Agent.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from retinue.conditions import epoch
from retinue.plan import Apply, Delete, Manager, Manifest, Plan
from retinue_emulator.faultproxy import Hold, Silence, SkewedDate
from retinue_emulator.loopback import AuditEvent, ClusterAccess, ControlPlane, eventually
from retinue_operator.access import Access
from retinue_operator.apply import Applier
from retinue_operator.cache import Cache
from retinue_operator.client import KubeClient
from retinue_operator.errors import ErrorClass, KubeError
from retinue_operator.fence import Fence
from retinue_operator.metrics import Metrics

from ..component.operatorprocess import LEASE, RBAC, UNHURRIED, Operator, holder, operator
from ..component.toy import POD_SPEC, tier
from .faultyserver import faulty

pytestmark = pytest.mark.component

SEED = 4
LEASE_LOST = 5
TIERS = 6
ROUNDS = int(os.environ.get("RETINUE_SOAK_ROUNDS", "2"))
NODE_CLASS: Manifest = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "NodeClass",
    "metadata": {"name": "two-replicas"},
    "spec": {"family": "CPU", "nodeSelector": {"node-role": "two-replicas"}},
}
DEFAULTS = ("--lease-duration=10", "--lease-renew-deadline=7", "--lease-retry-period=2")


@pytest.fixture
def account(cluster: ClusterAccess) -> Iterator[ControlPlane]:
    """The cluster with an audit log, the shipped rights, and nobody holding the lease."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("the API server of RETINUE_KUBECONFIG shows no audit log")
    cluster.kubectl("apply", "--server-side", "-f", str(RBAC))
    cluster.kubectl("delete", *LEASE, "--ignore-not-found")
    cluster.apply(NODE_CLASS)
    try:
        yield cluster
    finally:
        cluster.kubectl("delete", "nodeclass", NODE_CLASS["metadata"]["name"])


def servers(namespace: str, name: str, replicas: int) -> Manifest:
    """A tier of cache servers. No node takes their pods: they come and go as the operator writes."""
    made = tier(namespace, name, replicas)
    made["spec"] |= {"backend": "Simulated", "nodeClass": NODE_CLASS["metadata"]["name"]}
    return made


def writes(cluster: ControlPlane, namespace: str, name: str) -> list[AuditEvent]:
    """What this process wrote in the namespace, oldest first, without the lease, which two may rightly try."""
    return [
        event
        for event in cluster.audit_events()
        if event.namespace == namespace and event.user_agent.endswith(f"({name})") and event.resource != "leases"
    ]


def never_two_writers(cluster: ControlPlane, namespace: str, old: str, new: str) -> tuple[int, int]:
    """Asserts that the old leader wrote nothing after the new one began; how much each has written."""
    before, after = writes(cluster, namespace, old), writes(cluster, namespace, new)
    assert before
    assert after
    late = [event for event in before if event.time >= after[0].time]
    assert not late, f"{old} wrote after {new} had begun at {after[0].time}: {late}"
    return len(before), len(after)


@asynccontextmanager
async def busy(cluster: ControlPlane, namespace: str, chance: random.Random) -> AsyncIterator[None]:
    """A user resizes tiers without a pause, so that a leader always has something to write."""
    async with await KubeClient.connect(Access(cluster.kubeconfig)) as user:
        for number in range(TIERS):
            await user.apply(servers(namespace, f"t{number}", replicas=1), "user")

        async def resize() -> None:
            while True:
                manifest = servers(namespace, f"t{chance.randrange(TIERS)}", replicas=chance.randint(1, 4))
                await user.apply(manifest, "user")
                await asyncio.sleep(chance.uniform(0.02, 0.1))

        task = asyncio.create_task(resize())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def wrote(cluster: ControlPlane, namespace: str, leader: Operator, more: int = 5) -> None:
    """Returns once the process has written so much more."""
    before = len(writes(cluster, namespace, leader.name))

    async def probe() -> bool:
        if leader.process.returncode is not None:
            raise RuntimeError(f"{leader.name} has ended: {''.join(leader.log[-20:])}")
        return len(writes(cluster, namespace, leader.name)) >= before + more

    await eventually(probe, what=f"{leader.name} writes", interval=0.2)


async def test_a_leader_that_is_stopped_and_goes_on_never_writes_beside_its_successor(
    account: ControlPlane, namespace: str
) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    async with busy(account, namespace, chance):
        for number in range(ROUNDS):
            old, new = f"r{number}-old", f"r{number}-new"
            async with operator(account, old, namespace, *UNHURRIED) as first:
                await first.says('"running"')
                async with operator(account, new, namespace, *UNHURRIED) as second:
                    await second.says('"probes served"')
                    await wrote(account, namespace, first)
                    await asyncio.sleep(chance.uniform(0.0, 0.5))
                    first.process.send_signal(signal.SIGSTOP)
                    await second.says('"running"')
                    await wrote(account, namespace, second)
                    first.process.send_signal(signal.SIGCONT)
                    assert await first.ended() == LEASE_LOST
                    done = never_two_writers(account, namespace, old, new)
                    print(f"round {number}: {done[0]} writes by the old leader, then {done[1]} by the new one")
                    second.process.terminate()
                    assert await second.ended() == 0


async def test_a_leader_that_is_cut_off_stops_before_another_one_begins(account: ControlPlane, namespace: str) -> None:
    async with (
        faulty(account, SEED) as proxy,
        busy(account, namespace, random.Random(SEED)),
        operator(account, "cut-off", namespace, *UNHURRIED, server=proxy.url) as first,
    ):
        await first.says('"running"')
        async with operator(account, "standby", namespace, *UNHURRIED) as second:
            await second.says('"probes served"')
            await wrote(account, namespace, first)
            proxy.inject(Silence())
            assert await first.ended() == LEASE_LOST
            # Its end came first: the other one has not written anything yet.
            assert not writes(account, namespace, "standby")
            await second.says('"running"')
            await wrote(account, namespace, second)
            never_two_writers(account, namespace, "cut-off", "standby")


async def test_takeovers_take_seconds(account: ControlPlane, namespace: str) -> None:
    async with operator(account, "killed", namespace, *DEFAULTS) as first:
        await first.says('"running"')
        async with operator(account, "stopped", namespace, *DEFAULTS) as second:
            await second.says('"probes served"')
            first.process.kill()
            await takes_over(second, "kill -9", most=15)
            async with operator(account, "last", namespace, *DEFAULTS) as third:
                await third.says('"probes served"')
                second.process.terminate()
                await takes_over(third, "a graceful stop", most=5)
                assert await second.ended() == 0


async def takes_over(successor: Operator, end: str, most: float) -> None:
    """From the leader's end, just now, to a running successor in less than `most` seconds."""
    began = time.monotonic()
    await successor.says('"running"')
    taken = time.monotonic() - began
    print(f"takeover after {end}: {taken:.1f} s (at most {most:g})")
    assert taken < most


@pytest.mark.parametrize("ahead", [3 * 3600.0, -3 * 3600.0])
async def test_clocks_hours_apart_neither_keep_nor_lose_the_lease(
    account: ControlPlane, namespace: str, tmp_path: Path, ahead: float
) -> None:
    (clock := tmp_path / "ahead").write_text(str(ahead))
    async with operator(account, "skewed", namespace, *UNHURRIED, clock=clock) as first:
        await first.says('"running"')
        async with operator(account, "true", namespace, *UNHURRIED) as second:
            await second.says('"probes served"')
            lease = await asyncio.to_thread(account.get, *LEASE)
            # The lease says what its holder's clock says; nobody goes by that.
            assert abs(epoch(lease["spec"]["renewTime"]) - time.time() - ahead) < 60
            version = int(lease["spec"]["leaseTransitions"])
            await asyncio.to_thread(account.apply, servers(namespace, "warm", 1))

            async def written() -> Manifest:
                found = await asyncio.to_thread(account.get, "kvt/warm", f"--namespace={namespace}")
                conditions: list[Manifest] = found.get("status", {}).get("conditions") or []
                return conditions[0] if conditions else {}

            # What goes into the cluster is the API server's time.
            condition = await eventually(written, what="the tier has a status")
            assert abs(epoch(condition["lastTransitionTime"]) - time.time()) < 60

            async def renewed() -> bool:
                found = await asyncio.to_thread(account.get, *LEASE)
                return epoch(found["spec"]["renewTime"]) > epoch(lease["spec"]["renewTime"]) + 8

            await eventually(renewed, what="more than a whole duration passes")
            assert await asyncio.to_thread(holder, account) == "skewed"
            assert int((await asyncio.to_thread(account.get, *LEASE))["spec"]["leaseTransitions"]) == version
            first.process.kill()
            began = time.monotonic()
            await second.says('"running"')
            assert 1.0 < time.monotonic() - began < 12.0


async def test_what_the_network_delivers_late_meets_its_preconditions(account: ControlPlane, namespace: str) -> None:
    """The one thing that no process can prevent: a request that was sent in time and arrives after a change of leaders.

    Whatever takes an engine away is refused then, if the new leader has touched it.
    """
    async with faulty(account, SEED) as proxy:
        kubeconfig = account.service_account_kubeconfig("retinue-system", "retinue-operator", server=proxy.url)
        async with (
            await KubeClient.connect(Access(kubeconfig), fence=Fence()) as old,
            await KubeClient.connect(Access(account.kubeconfig)) as new,
        ):
            names = ("drained", "marked")
            pods = [await new.apply(pod(namespace, name, "true"), Manager.OPERATOR) for name in names]
            cache = Cache()
            for made in pods:
                cache.put(made)
            released = asyncio.Event()
            proxy.inject(Hold(released), lambda request: request.writes)
            uid = pods[0]["metadata"]["uid"]
            plan = Plan(
                apply=(Apply(mark(namespace, "marked", "false"), Manager.INSTANCE),),
                delete=(Delete("v1", "Pod", namespace, "drained", uid, grace_seconds=0),),
            )
            applier = Applier(old, cache, Metrics())
            late = asyncio.gather(applier.execute(Plan(apply=plan.apply)), applier.execute(Plan(delete=plan.delete)))

            async def under_way() -> bool:
                return proxy.count(lambda request: request.writes) >= 2

            await eventually(under_way, what="both writes are in the network")
            # The new leader takes both back into service.
            for name in names:
                await new.apply(taken_back(namespace, name), "the-new-leader")
            proxy.calm()
            released.set()
            outcomes = await late
            refused = {error.error_class for outcome in outcomes for error in outcome.errors}
            assert refused == {ErrorClass.CONFLICT}
            assert [len(outcome.errors) for outcome in outcomes] == [1, 1]
            for made in pods:
                live = await new.get("Pod", namespace, made["metadata"]["name"])
                assert live["metadata"]["uid"] == made["metadata"]["uid"]
                assert "deletionTimestamp" not in live["metadata"]
                assert live["metadata"]["labels"]["retinue.dev/routable"] == "true"


async def test_a_request_that_waits_for_its_connection_past_the_deadline_is_not_sent(
    account: ControlPlane, namespace: str
) -> None:
    fence = Fence()
    async with (
        faulty(account, SEED) as proxy,
        await KubeClient.connect(
            Access(account.service_account_kubeconfig("retinue-system", "retinue-operator", server=proxy.url)),
            fence=fence,
        ) as client,
    ):
        # All connections are taken by requests that get no answer.
        silence = proxy.inject(Silence(), lambda request: request.method == "GET")
        waiting = [asyncio.create_task(client.list("Pod", namespace)) for _ in range(100)]

        async def taken() -> bool:
            return silence.struck >= 100

        await eventually(taken, what="all connections are taken")
        queued = asyncio.create_task(client.apply(pod(namespace, "late", "true"), Manager.OPERATOR))
        await asyncio.sleep(0)
        fence.close()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(KubeError) as raised:
            await queued
        assert raised.value.error_class == ErrorClass.NOT_LEADING
        assert proxy.count(lambda request: request.writes) == 0
        # Reading is everybody's right.
        proxy.calm()
        assert (await client.list("Pod", namespace)).items == ()


async def test_an_api_server_whose_time_jumps_disturbs_nothing(account: ControlPlane, namespace: str) -> None:
    async with (
        faulty(account, SEED) as proxy,
        operator(account, "first", namespace, *UNHURRIED, server=proxy.url) as first,
    ):
        await first.says('"running"')
        await asyncio.to_thread(account.apply, servers(namespace, "warm", 2))
        for size, ahead in enumerate((7200.0, -7200.0, 0.0), start=3):
            proxy.calm()
            proxy.inject(SkewedDate(ahead), lambda request: not request.watch)
            await wrote_something(account, namespace, first, size)
        assert first.process.returncode is None
        assert await asyncio.to_thread(holder, account) == "first"


async def wrote_something(account: ControlPlane, namespace: str, leader: Operator, size: int) -> None:
    """Another size of the tier is answered by the leader."""
    before = len(writes(account, namespace, leader.name))
    await asyncio.to_thread(account.kubectl, "scale", "kvt/warm", f"--replicas={size}", "-n", namespace)

    async def probe() -> bool:
        return len(writes(account, namespace, leader.name)) > before

    await eventually(probe, what="the leader writes")


def pod(namespace: str, name: str, routable: str) -> Manifest:
    labels = {"app.kubernetes.io/managed-by": "retinue", "retinue.dev/routable": routable}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": POD_SPEC}


def mark(namespace: str, name: str, routable: str) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "labels": {"retinue.dev/routable": routable}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def taken_back(namespace: str, name: str) -> Manifest:
    manifest = mark(namespace, name, "true")
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": {"retinue.dev/drain-started": ""}}}
