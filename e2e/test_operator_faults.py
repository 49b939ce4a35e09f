"""The operator is killed, cut off or robbed of its lease: somebody acts again soon, and engines never notice."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from retinue_emulator.loopback import LoopbackError

from .manifests import decode_pool
from .world import World, uids

pytestmark = pytest.mark.alone

ACTS_WITHIN = 15.0
LEASE_LOST = 5
"""Exit code of an operator that has lost its lease."""


async def test_a_killed_operator_acts_again_within_fifteen_seconds(world: World, namespace: str) -> None:
    pool = await Pool.made(world, namespace)
    try:
        leader = world.leader()
        world.kill_container(world.node_of(leader), leader, world.release.namespace)
        took = await pool.acts()
        world.figure("leading container killed to a change acted on", took, "s", "lease 10 s, renewed every 2 s")
        assert took < ACTS_WITHIN

        leader = await _led(world)
        namespaced = ("-n", world.release.namespace)
        world.kubectl("delete", "pod", leader, *namespaced, "--force", "--grace-period=0", "--wait=false")
        took = await pool.acts()
        world.figure("leading pod force-deleted to a change acted on", took, "s", "a standby takes over")
        assert took < ACTS_WITHIN
        assert await _led(world) != leader

        await world.settled()
        for pod in world.system_pods("operator"):
            world.kill_container(world.node_of(pod), pod, world.release.namespace)
        took = await pool.acts()
        world.figure("all operator containers killed to a change acted on", took, "s", "containers start again")
        assert took < 2 * ACTS_WITHIN
        await pool.kept()
    finally:
        await world.settled()


async def test_a_standby_takes_over_from_a_leader_whose_node_stops(world: World, namespace: str) -> None:
    pool = await Pool.made(world, namespace)
    leader = await _led(world)
    node, restarts = world.node_of(leader), world.restarts("operator")
    with _paused(world, node):
        took = await pool.acts()
        assert await _led(world) != leader
    world.figure("leader's node gone to a change acted on", took, "s", "docker pause; lease 10 s, renewed every 2 s")
    assert took < ACTS_WITHIN

    # When it wakes up it may still believe that it leads; it must see that it does not and end, whole.
    async def ended() -> bool:
        return world.restarts("operator").get(leader, 0) > restarts[leader]

    await world.until(ended, "the former leader has ended itself", timeout=60)
    await world.settled()
    assert world.leader() != leader
    await pool.kept()


async def test_a_leader_that_is_robbed_of_its_lease_ends_and_it_is_taken_back(world: World, namespace: str) -> None:
    pool = await Pool.made(world, namespace)
    leader, restarts = await _led(world), world.restarts("operator")
    began, stolen = time.monotonic(), {"holderIdentity": "thief", "leaseDurationSeconds": 8}
    stolen["renewTime"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    lease = (f"{world.release.name}-operator", "-n", world.release.namespace)
    world.kubectl("patch", "lease", *lease, "--type=merge", "-p", json.dumps({"spec": stolen}))
    seen: list[set[str]] = []

    async def taken_back() -> bool:
        # Asked before the lease, or the one that takes it back meanwhile would be seen beside the thief.
        leading, holder = _say_that_they_lead(world), world.leader()
        if holder == "thief":
            seen.append(leading)
        return holder in world.system_pods("operator")

    await world.until(taken_back, "an operator has taken the lease back", timeout=60)
    world.figure("stolen lease (8 s) to taken back", time.monotonic() - began, "s")
    assert seen
    assert all(len(leading) <= 1 for leading in seen), "two say that they lead"
    # The robbed one stopped writing at its next renewal.
    assert seen[-1] == set()

    async def started_again() -> bool:
        return world.restarts("operator")[leader] > restarts[leader]

    # The kubelet takes its time when the test before has ended the same container.
    await world.until(started_again, "the robbed one has started again", timeout=120)
    assert world.restarts("operator")[leader] == restarts[leader] + 1
    ended = world.system_pods("operator")[leader]["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert ended["exitCode"] == LEASE_LOST
    await pool.acts()
    await pool.kept()
    await world.settled()


class Pool:
    """A pool whose first instance must be left alone, grown and shrunk by one to see that somebody acts."""

    def __init__(self, world: World, namespace: str) -> None:
        self._world, self._namespace = world, namespace
        self._first: set[str] = set()
        self._size = 1

    @classmethod
    async def made(cls, world: World, namespace: str) -> "Pool":
        """Returns once its first instance is ready."""
        world.apply(decode_pool(namespace, "calm", 1))
        await world.replicas(namespace, "dp", "calm", 1)
        pool = cls(world, namespace)
        pool._first = uids(world.pods(namespace))
        return pool

    async def acts(self) -> float:
        """Seconds from now until one more instance is made, which is asked for now."""
        began = time.monotonic()
        self._size += 1
        self._world.kubectl("scale", "dp", "calm", "-n", self._namespace, f"--replicas={self._size}")

        async def made() -> bool:
            return len(self._world.pods(self._namespace)) == self._size

        await self._world.until(made, "the operator acts on a change", timeout=60, interval=0.2)
        return time.monotonic() - began

    async def kept(self) -> None:
        """Asserts that its instances are all there, and that the first is still the same."""
        await self._world.replicas(self._namespace, "dp", "calm", self._size)
        assert self._first <= uids(self._world.pods(self._namespace))


@contextmanager
def _paused(world: World, node: str) -> Iterator[None]:
    world.machine().engine("pause", node)
    try:
        yield
    finally:
        world.machine().engine("unpause", node)


async def _led(world: World) -> str:
    """The leading pod, once one of those that exist leads."""

    async def found() -> str | None:
        holder = world.leader()
        return holder if holder in world.system_pods("operator") else None

    leader: str = await world.until(found, "an operator leads", timeout=60)
    return leader


def _say_that_they_lead(world: World) -> set[str]:
    leading = set()
    for pod in world.system_pods("operator"):
        try:
            if "retinue_operator_leader 1.0" in world.operator_metrics(pod):
                leading.add(pod)
        except LoopbackError:
            continue  # It ends itself just now.
    return leading
