"""Random schedules of users, faults and an operator that dies: promises hold at each write; all ends as specified."""

import asyncio
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .actions import ACTIONS
from .world import SimulatedWorld

USUAL = ("let_time_pass", "deliver", "work")
STEPS = st.tuples(st.one_of(st.sampled_from(USUAL), st.sampled_from(sorted(ACTIONS))), st.integers(0, 7))


async def lived(seed: int, steps: Sequence[tuple[str, int]]) -> SimulatedWorld:
    """A world after these steps and the calm that follows."""
    world = SimulatedWorld(seed)
    for action, number in steps:
        await ACTIONS[action](world, number)
    world.measurer.mode = "quiet"
    await world.calm_down()
    return world


def test_an_undisturbed_world_comes_to_rest_as_its_specs_say() -> None:
    world = asyncio.run(lived(0, []))
    assert world.unfinished() == []
    assert len(world.cluster.pods()) == 6


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1_000_000), steps=st.lists(STEPS, max_size=80))
def test_promises_hold_whatever_happens(seed: int, steps: list[tuple[str, int]]) -> None:
    assert asyncio.run(lived(seed, steps)).unfinished() == []
