"""Random schedules: what happens to a world, step by step, and what must be true in the end."""

import asyncio
import functools
from collections.abc import Sequence

from hypothesis import strategies as st

from .actions import ACTIONS
from .world import SimulatedWorld

Step = tuple[str, int]
_USUAL = ("let_time_pass", "deliver", "work")
STEPS = st.tuples(st.one_of(st.sampled_from(_USUAL), st.sampled_from(sorted(ACTIONS))), st.integers(0, 7))
SEEDS = st.integers(0, 1_000_000)


@functools.cache
def settled() -> SimulatedWorld:
    """A world at rest, in which all is as specified."""
    world = SimulatedWorld(0)
    asyncio.run(world.calm_down())
    return world


async def lived(world: SimulatedWorld, steps: Sequence[Step]) -> list[str]:
    """What is unfinished after these steps and the calm that follows; empty when all is as specified.

    Raises BrokenPromise at the first write that breaks an invariant.
    """
    await happened(world, steps)
    world.measurer.mode = "quiet"
    await world.calm_down()
    return world.unfinished()


async def happened(world: SimulatedWorld, steps: Sequence[Step]) -> None:
    """The steps alone: invariants are checked at each write, but nothing is asked of the end."""
    for action, number in steps:
        await ACTIONS[action](world, number)
