"""What one decision says, and what it hands to the next one."""

from dataclasses import dataclass, field
from enum import StrEnum

from retinue.autoscaling.inputs import PoolKind
from retinue.conditions import ConditionType, Finding, Reason


class Freshness(StrEnum):
    """How much a number is worth."""

    FRESH = "Fresh"
    LAST_GOOD = "LastGood"
    MISSING = "Missing"


@dataclass(frozen=True)
class LastGood:
    """The last value of a signal that was fresh, and when it was measured (seconds since the epoch)."""

    value: float
    time: float


@dataclass(frozen=True)
class Recommendation:
    """At `time` (seconds since the epoch) the load would have needed `replicas`."""

    time: float
    replicas: int


@dataclass(frozen=True)
class PoolState:
    """What the next decision about a pool or tier must remember."""

    since: float | None = None
    """Since when recommendations are remembered without a hole."""
    last_evaluation: float | None = None
    last_up: float | None = None
    last_down: float | None = None
    recommendations: tuple[Recommendation, ...] = ()
    """Within the stabilization window; those that a later and higher one outdoes are left out."""
    hit_rate: float | None = None
    """Smoothed hit rate in times without overload: what the cache does when it is allowed to work."""


@dataclass(frozen=True)
class State:
    """What survives between decisions. It lives in the cluster; a lost state only delays shrinking."""

    pools: dict[str, PoolState] = field(default_factory=dict)
    last_good: dict[str, LastGood] = field(default_factory=dict)


@dataclass(frozen=True)
class InputUsed:
    """One number that the decision read, and how old it was; no value and no age = missing."""

    name: str
    value: float | None
    age: float | None
    freshness: Freshness


@dataclass(frozen=True)
class Clamp:
    """A limit that changed what the load asked for."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Target:
    """What the decision says of one pool or tier."""

    kind: PoolKind
    name: str
    current: int
    needed: int
    """What the load asks for, before limits."""
    desired: int
    reason: Reason
    message: str
    clamps: tuple[Clamp, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.kind.value}/{self.name}"


@dataclass(frozen=True)
class Decision:
    """The outcome of one evaluation.

    `apply` says whether the targets are to be written (mode Auto) or only shown (DryRun); in mode Off there are none.
    """

    time: float
    apply: bool
    reason: Reason
    message: str
    targets: tuple[Target, ...]
    inputs: tuple[InputUsed, ...]
    findings: tuple[Finding, ...]
    cost_per_hour: float | None
    """Of all targets at their desired size; None if the cost of one is unknown."""
    state: State

    def target(self, kind: PoolKind, name: str) -> Target | None:
        return next((target for target in self.targets if target.kind is kind and target.name == name), None)

    def finding(self, type_: ConditionType) -> Finding | None:
        return next((finding for finding in self.findings if finding.type is type_), None)
