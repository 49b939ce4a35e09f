"""Runs random schedules for a while on all cores: `python -m tests.simulation --seconds 60 --seed 7`.

Most check promises at every write only; every fifth is followed until the cluster has come to rest. A counterexample
is shrunk and printed with all that is needed to make a named test case of it.
"""

import argparse
import asyncio
import os
import secrets
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import structlog
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

from .conftest import drop
from .schedules import SEEDS, STEPS, Step, happened, lived, settled
from .world import SimulatedWorld

_BATCH = 50
_ENDS = st.sampled_from((False, False, False, False, True))


@dataclass(frozen=True)
class Batch:
    """What became of some schedules: how many, and the shrunk counterexample in words, if there was one."""

    schedules: int
    steps: int
    counterexample: str = ""


def batch(number: int) -> Batch:
    """Runs some schedules that follow from `number` alone."""
    structlog.configure(processors=[drop], cache_logger_on_first_use=False)
    schedules = done = 0

    @seed(number)
    @settings(
        max_examples=_BATCH,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    @given(world_seed=SEEDS, fresh=st.booleans(), to_the_end=_ENDS, steps=st.lists(STEPS, min_size=10, max_size=60))
    def run(world_seed: int, fresh: bool, to_the_end: bool, steps: list[Step]) -> None:
        nonlocal schedules, done
        schedules += 1
        done += len(steps)
        world = SimulatedWorld(world_seed, like=None if fresh else settled())
        if to_the_end:
            assert asyncio.run(lived(world, steps)) == []
        else:
            asyncio.run(happened(world, steps))

    try:
        run()
    except HypothesisException:
        raise
    except BaseException:
        return Batch(schedules, done, traceback.format_exc())
    return Batch(schedules, done)


def main() -> int:
    """The exit status: 1 if a counterexample was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to run (default: 60)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000), help="what the schedules follow from")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    options = parser.parse_args()
    print(f"simulation: seed {options.seed}, {options.jobs} processes, {options.seconds:g} s", flush=True)
    began = told = time.monotonic()
    schedules = steps = 0
    with ProcessPoolExecutor(options.jobs) as pool:
        numbers = iter(range(options.seed * 1000, sys.maxsize))
        running = [pool.submit(batch, next(numbers)) for _ in range(options.jobs)]
        while running:
            found = running.pop(0).result()
            schedules, steps = schedules + found.schedules, steps + found.steps
            elapsed = time.monotonic() - began
            if found.counterexample:
                print(f"simulation: a counterexample after {schedules} schedules\n{found.counterexample}")
                pool.shutdown(cancel_futures=True)
                return 1
            if elapsed < options.seconds:
                running.append(pool.submit(batch, next(numbers)))
            if time.monotonic() - told >= 10 or not running:
                told = time.monotonic()
                rate = 60 * schedules / elapsed
                print(f"simulation: {schedules} schedules of {steps} steps, {rate:.0f} a minute, all held", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
