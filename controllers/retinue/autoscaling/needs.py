"""The common form of what the laws find out: needs that raise a pool, and holds that keep it from shrinking."""

from dataclasses import dataclass

from retinue.autoscaling.readings import Reading
from retinue.conditions import Reason

MISSED = frozenset({Reason.TTFT_MISSED, Reason.ITL_MISSED, Reason.EVICTED_TOO_EARLY})
"""Reasons of needs that speak of a goal which is missed now."""


@dataclass(frozen=True)
class Need:
    """One law's answer: so many instances, and why."""

    reason: Reason
    instances: int
    shrink_to: int
    """The number that would still be enough with the tolerance for shrinking; at least `instances`."""
    message: str


@dataclass(frozen=True)
class Hold:
    """A reason not to shrink, because less would not do or because nobody can know."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Assessment:
    """All that the laws say of one pool or tier."""

    needs: tuple[Need, ...] = ()
    required: tuple[Reading, ...] = ()
    """The readings without which the pool must not shrink."""
    holds: tuple[Hold, ...] = ()
    overloaded: bool = False
    """A backlog is older than the latency goal or of unknown age: the hit rate of now says nothing of the cache."""
