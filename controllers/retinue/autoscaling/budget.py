"""Fits the wanted sizes of all pools and tiers together into what an hour may cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from retinue.autoscaling.steps import Step

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Allotment:
    """What the budget grants: instances by key, and which growth failed because a cost is unknown."""

    granted: dict[str, int]
    unknown_cost: frozenset[str]


def allot(steps: Sequence[Step], max_cost_per_hour: float | None) -> Allotment:
    """Grants what fits, at least every minimum, which is the user's word too.

    What is there and still wanted goes first, so that nobody loses a warm cache for another's growth. Growth is granted
    one by one to whoever has the smallest share of what it wants: prefill and decode grow together, as one without the
    other serves nobody. If even what is there costs too much (the budget was lowered), the one with the largest share
    gives. A pool of unknown cost cannot grow under a budget.
    """
    wanted = {step.subject.key: step.wanted for step in steps}
    if max_cost_per_hour is None:
        return Allotment(wanted, frozenset())
    granted = {step.subject.key: max(step.subject.min, min(step.subject.current, step.wanted)) for step in steps}
    unknown = frozenset(
        step.subject.key
        for step in steps
        if step.subject.cost_per_hour is None and step.wanted > granted[step.subject.key]
    )
    while cost(steps, granted) > max_cost_per_hour + _ROUNDING:
        payers = [s for s in steps if s.subject.cost_per_hour and granted[s.subject.key] > s.subject.min]
        if not payers:
            return Allotment(granted, unknown)
        richest = max(payers, key=lambda step: _share(step, granted))
        granted[richest.subject.key] -= 1
    while True:
        spent = cost(steps, granted)
        growing = [
            step
            for step in steps
            if step.subject.cost_per_hour is not None
            and granted[step.subject.key] < step.wanted
            and spent + step.subject.cost_per_hour <= max_cost_per_hour + _ROUNDING
        ]
        if not growing:
            return Allotment(granted, unknown)
        poorest = min(growing, key=lambda step: _share(step, granted))
        granted[poorest.subject.key] += 1


def cost(steps: Sequence[Step], sizes: dict[str, int]) -> float:
    """Money per hour of these sizes; what has no known cost counts as free."""
    return sum(sizes[step.subject.key] * (step.subject.cost_per_hour or 0.0) for step in steps)


def _share(step: Step, granted: dict[str, int]) -> float:
    return granted[step.subject.key] / max(step.wanted, 1)
