"""How many instances a need takes: starting and cold ones do less than a warm one, and are asked for once."""

import math

from retinue.autoscaling.inputs import PoolInputs, TierInputs
from retinue.autoscaling.settings import Settings, Tuning

# Far above any bound of the API, so that a wild number stays a number.
_CEILING = 1_000_000.0
# Sums of floats that are meant to be whole must not round up to one more.
_ROUNDING = 1e-9


def whole(instances: float) -> int:
    """Instances rounded up, without asking for one more because of a rounding error."""
    return math.ceil(min(max(instances, 0.0), _CEILING) - _ROUNDING)


def credit(age: float, settings: Settings, tuning: Tuning) -> float:
    """What an instance that has been ready for `age` seconds counts against a warm one, 0..1."""
    warm_up = tuning.warm_up * settings.startup_estimate
    if age >= warm_up:
        return 1.0
    return tuning.starting_credit + (1.0 - tuning.starting_credit) * max(age, 0.0) / warm_up


def instances_for(need: float, pool: PoolInputs, settings: Settings, tuning: Tuning) -> int:
    """Instances to have for work that `need` warm instances would do.

    What the ready ones cannot do yet is divided among starting ones. The number is absolute: an instance that was asked
    for before and is still starting is part of it, so the same shortage is never asked for twice, and the surplus goes
    away as caches warm up.
    """
    warm = sum(credit(age, settings, tuning) for age in pool.ready_ages)
    if need <= warm + _ROUNDING:
        return whole(need)
    return pool.ready + whole((need - warm) / tuning.starting_credit)


def settled(pool: PoolInputs | TierInputs, settings: Settings, tuning: Tuning) -> bool:
    """Whether all wanted instances are ready and warm: only then does a measured latency speak of the present size."""
    return (
        not pool.starting_ages
        and pool.draining == 0
        and pool.ready == pool.current
        and all(credit(age, settings, tuning) >= 1.0 for age in pool.ready_ages)
    )
