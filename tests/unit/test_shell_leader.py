"""Leader election against a scripted API server and clock: at most one leader, quick hand-over, safe loss."""

import asyncio
import copy
from collections.abc import Callable
from typing import Any, cast

import pytest

from retinue.plan import Manifest
from retinue_operator.client import KubeClient
from retinue_operator.errors import ApiDown, Conflict, NotFound
from retinue_operator.leader import Elector, LeaseLost, LeaseTerms

TERMS = LeaseTerms("lease", "ns", duration=15, renew_deadline=10, retry_period=2)


class LeaseServer:
    """The part of the API server that an election needs: one object with compare-and-swap."""

    def __init__(self) -> None:
        self.lease: Manifest | None = None
        self.version = 0
        self.down = False
        self.before_replace: Callable[[], None] = lambda: None

    async def get(self, *_: str) -> Manifest:
        self._check()
        if self.lease is None:
            raise NotFound("no lease")
        return copy.deepcopy(self.lease)

    async def create(self, manifest: Manifest) -> Manifest:
        self._check()
        if self.lease is not None:
            raise Conflict("exists")
        return self._store(manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        self._check()
        self.before_replace()
        assert self.lease is not None
        if manifest["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("changed")
        return self._store(manifest)

    @property
    def holder(self) -> Any:
        return self.lease and self.lease["spec"]["holderIdentity"]

    def _check(self) -> None:
        if self.down:
            raise ApiDown("down")

    def _store(self, manifest: Manifest) -> Manifest:
        self.version += 1
        self.lease = copy.deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return self.lease


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def elector(server: LeaseServer, clock: Clock, holder: str, terms: LeaseTerms = TERMS) -> Elector:
    return Elector(cast(KubeClient, server), terms, holder, clock)


async def tries(candidate: Elector) -> bool:
    """One attempt, as `acquire` and `hold` make them."""
    return await candidate._attempt()


async def test_the_first_candidate_gets_the_lease_and_the_second_waits() -> None:
    server, clock = LeaseServer(), Clock()
    one, two = elector(server, clock, "one"), elector(server, clock, "two")
    assert await tries(one)
    assert not await tries(two)
    assert (one.leading, two.leading, server.holder) == (True, False, "one")


async def test_a_lease_that_is_renewed_is_never_taken() -> None:
    server, clock = LeaseServer(), Clock()
    one, two = elector(server, clock, "one"), elector(server, clock, "two")
    for _ in range(40):
        assert await tries(one)
        assert not await tries(two)
        clock.now += 2


async def test_a_silent_leader_is_replaced_after_the_duration_by_the_own_clock_of_the_candidate() -> None:
    server, clock = LeaseServer(), Clock()
    one, two = elector(server, clock, "one"), elector(server, clock, "two")
    await tries(one)
    clock.now = 100
    # The candidate has just come: it does not know how old the lease is and waits a whole duration.
    assert not await tries(two)
    clock.now = 114
    assert not await tries(two)
    clock.now = 115.1
    assert await tries(two)
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1
    assert not await tries(one)
    assert not one.leading


async def test_a_released_lease_is_taken_at_once() -> None:
    server, clock = LeaseServer(), Clock()
    one, two = elector(server, clock, "one"), elector(server, clock, "two")
    await tries(one)
    await one.release()
    assert not one.leading
    assert await tries(two)


async def test_two_candidates_that_race_for_a_free_lease_never_both_win() -> None:
    server, clock = LeaseServer(), Clock()
    first = elector(server, clock, "gone")
    await tries(first)
    await first.release()
    one, two = elector(server, clock, "one"), elector(server, clock, "two")

    def overtaken() -> None:
        server.before_replace = lambda: None
        server.version += 1
        assert server.lease is not None
        server.lease["spec"]["holderIdentity"] = "two"
        server.lease["metadata"]["resourceVersion"] = str(server.version)

    server.before_replace = overtaken
    assert not await tries(one)
    assert await tries(two)
    assert (one.leading, two.leading) == (False, True)


async def test_release_never_gives_back_what_another_one_holds() -> None:
    server, clock = LeaseServer(), Clock()
    one = elector(server, clock, "one")
    await tries(one)
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "two"
    await one.release()
    assert server.holder == "two"


async def test_a_leader_that_cannot_renew_gives_up_before_anybody_may_take_over() -> None:
    quick = LeaseTerms("lease", "ns", duration=0.3, renew_deadline=0.2, retry_period=0.02)
    server = LeaseServer()
    one = Elector(cast(KubeClient, server), quick, "one")
    await one.acquire()
    loop = asyncio.get_running_loop()
    renewed = loop.time()
    server.down = True
    with pytest.raises(LeaseLost):
        await one.hold()
    assert not one.leading
    assert loop.time() - renewed < quick.duration


async def test_a_short_outage_costs_nothing() -> None:
    quick = LeaseTerms("lease", "ns", duration=2.0, renew_deadline=1.0, retry_period=0.01)
    server = LeaseServer()
    one = Elector(cast(KubeClient, server), quick, "one")
    await one.acquire()
    holding = asyncio.create_task(one.hold())
    server.down = True
    await asyncio.sleep(0.05)
    server.down = False
    seen = server.version
    async with asyncio.timeout(5):
        while server.version <= seen:  # noqa: ASYNC110 - the scripted server has no event to wait for
            await asyncio.sleep(0.005)
    assert one.leading
    assert not holding.done()
    holding.cancel()


async def test_a_lease_taken_by_somebody_else_ends_the_leadership_at_once() -> None:
    quick = LeaseTerms("lease", "ns", duration=2.0, renew_deadline=1.0, retry_period=0.01)
    server = LeaseServer()
    one = Elector(cast(KubeClient, server), quick, "one")
    await one.acquire()
    assert server.lease is not None
    server.lease["spec"]["holderIdentity"] = "two"
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(one.hold(), 5)


@pytest.mark.parametrize(("duration", "deadline", "retry"), [(10, 10, 2), (15, 2, 2), (15, 10, 0)])
def test_terms_without_a_safety_margin_are_refused(duration: float, deadline: float, retry: float) -> None:
    with pytest.raises(ValueError, match="retry period < renew deadline < duration"):
        LeaseTerms("lease", "ns", duration, deadline, retry)


async def test_a_lease_that_was_slow_to_get_is_renewed_before_leading_begins() -> None:
    server, clock = LeaseServer(), Clock()
    one = elector(server, clock, "one", TERMS)
    # Two slow answers, longer than the deadline and longer than half of it; the third is quick.
    delays = iter([11.0, 6.0, 0.5])
    get = server.get

    async def slow(*names: str) -> Manifest:
        clock.now += next(delays)
        return await get(*names)

    server.get = slow  # type: ignore[method-assign]
    await one.acquire()
    assert one.leading
    assert one.renewal_age() == 0.5
    assert next(delays, None) is None
    assert server.holder == "one"
