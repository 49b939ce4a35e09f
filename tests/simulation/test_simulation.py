"""Random schedules of users, faults and an operator that dies: promises hold at each write; all ends as specified."""

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .schedules import SEEDS, STEPS, Step, lived, settled
from .world import SimulatedWorld


def test_an_undisturbed_world_comes_to_rest_as_its_specs_say() -> None:
    assert settled().unfinished() == []
    assert len(settled().cluster.pods()) == 6


def test_a_copy_of_a_world_goes_on_by_itself() -> None:
    before = settled().cluster.pods()
    world = SimulatedWorld(7, like=settled())
    assert asyncio.run(lived(world, [("edit_pool", 3), ("work", 7)])) == []
    assert len(world.cluster.pods()) == 7
    assert settled().cluster.pods() == before


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=SEEDS, fresh=st.booleans(), steps=st.lists(STEPS, max_size=80))
def test_promises_hold_whatever_happens(seed: int, fresh: bool, steps: list[Step]) -> None:
    assert asyncio.run(lived(SimulatedWorld(seed, like=None if fresh else settled()), steps)) == []
