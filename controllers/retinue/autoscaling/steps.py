"""From needs to one step of one pool or tier: up at once, down late, one at a time and never on ignorance."""

from dataclasses import dataclass, replace

from retinue.autoscaling.decision import Clamp, Freshness, PoolState, Recommendation
from retinue.autoscaling.inputs import Inputs, PoolInputs, TierInputs
from retinue.autoscaling.needs import MISSED, Assessment, Hold, Need
from retinue.autoscaling.readings import Reading
from retinue.conditions import Reason


@dataclass(frozen=True)
class Step:
    """What a pool or tier would do if capacity and budget were unlimited."""

    subject: PoolInputs | TierInputs
    needed: int
    unlimited: int
    """The step before bounds and free devices."""
    wanted: int
    reason: Reason
    message: str
    clamps: tuple[Clamp, ...]
    state: PoolState
    """With the recommendation of now; the times of moves are added when the move is certain."""


def take_step(
    subject: PoolInputs | TierInputs, assessment: Assessment, inputs: Inputs, state: PoolState, now: float
) -> Step:
    """The step of one pool or tier."""
    strongest = max(assessment.needs, key=lambda need: need.instances, default=None)
    needed = strongest.instances if strongest is not None else subject.current
    ignorance = _ignorance(subject, assessment.required)
    holds = [*ignorance, *assessment.holds]
    enough = max((need.shrink_to for need in assessment.needs), default=subject.current)
    recommended = max(enough, subject.current) if holds else enough
    state = _remember(state, recommended, inputs, now)
    if strongest is not None and needed > subject.current:
        return _limited(subject, needed, needed, strongest.reason, strongest.message, state)
    if not assessment.needs or enough >= subject.current:
        return _limited(subject, needed, subject.current, *_stay(assessment.needs, ignorance), state)
    hold = holds[0] if holds else _not_yet(subject, inputs, state, now)
    if hold is not None:
        return _limited(subject, needed, subject.current, hold.reason, hold.message, state)
    text = f"{enough} would do ({strongest.message})" if strongest is not None else f"{enough} would do"
    return _limited(subject, needed, subject.current - 1, Reason.LOAD_FELL, text, state)


def stale_or_missing(readings: tuple[Reading, ...]) -> Hold | None:
    """A hold that names the first readings that are not current; None if all are."""
    bad = [reading for reading in readings if not reading.current]
    if not bad:
        return None
    stale = all(reading.freshness is Freshness.LAST_GOOD for reading in bad)
    names = ", ".join(_describe(reading) for reading in bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    return Hold(Reason.METRICS_STALE if stale else Reason.METRICS_MISSING, f"{'old' if stale else 'missing'}: {names}")


def required_of(subject: PoolInputs | TierInputs, required: tuple[Reading, ...]) -> tuple[Reading, ...]:
    """The readings that can be expected: a pool without a ready instance has nobody to measure."""
    if subject.ready > 0:
        return required
    return tuple(reading for reading in required if not reading.name.startswith(f"{subject.key}/"))


def _ignorance(subject: PoolInputs | TierInputs, required: tuple[Reading, ...]) -> list[Hold]:
    holds: list[Hold] = []
    unknown = stale_or_missing(required_of(subject, required))
    if unknown is not None:
        holds.append(unknown)
    if not required:
        holds.append(Hold(Reason.METRICS_MISSING, "no role uses it, so nothing says what it needs"))
    if subject.ready == 0 and subject.current > 0:
        holds.append(Hold(Reason.NOTHING_READY, "no instance is ready, so nothing is measured"))
    reporting = next((reading for reading in required if reading.name == f"{subject.key}/reporting"), None)
    if reporting is not None and reporting.value is not None and reporting.value < subject.ready:
        text = f"{reporting.value:.0f} of {subject.ready} ready instances report metrics"
        holds.append(Hold(Reason.PARTLY_MEASURED, text))
    return holds


def _stay(needs: tuple[Need, ...], ignorance: list[Hold]) -> tuple[Reason, str]:
    if ignorance:
        return ignorance[0].reason, ignorance[0].message
    if not needs:
        return Reason.METRICS_MISSING, "nothing is known that says how many are needed"
    strongest = max(needs, key=lambda need: (need.instances, need.reason in MISSED))
    if strongest.reason in MISSED:
        # The size is right until what was asked for before is warm, but the goal is not met.
        return strongest.reason, strongest.message
    return Reason.WITHIN_GOALS, strongest.message


def _not_yet(subject: PoolInputs | TierInputs, inputs: Inputs, state: PoolState, now: float) -> Hold | None:
    settings = inputs.settings
    if subject.draining > 0:
        return Hold(Reason.DRAINING, f"{subject.draining} still draining: the effect is not to be seen yet")
    window = settings.down_stabilization
    if state.since is None or now - state.since < window:
        text = f"fewer would do, but not for {window:.0f} s yet"
        return Hold(Reason.STABILIZING, text)
    highest = max((entry.replicas for entry in state.recommendations), default=subject.current)
    if highest >= subject.current:
        return Hold(Reason.STABILIZING, f"{highest} were needed within the last {window:.0f} s")
    if state.last_up is not None and now - state.last_up < window:
        return Hold(Reason.STABILIZING, f"grew {now - state.last_up:.0f} s ago")
    if state.last_down is not None and now - state.last_down < settings.down_interval:
        text = f"one left {now - state.last_down:.0f} s ago, the next may after {settings.down_interval:.0f} s"
        return Hold(Reason.STABILIZING, text)
    return None


def _remember(state: PoolState, recommended: int, inputs: Inputs, now: float) -> PoolState:
    settings = inputs.settings
    backwards = state.last_evaluation is not None and now < state.last_evaluation
    hole = state.last_evaluation is not None and now - state.last_evaluation > settings.fresh_age
    if backwards or hole:
        # What the load was in between is unknown: the window starts again. Moves "in the future" are taken for now.
        state = replace(
            state,
            since=None,
            recommendations=(),
            last_up=None if state.last_up is None else min(state.last_up, now),
            last_down=None if state.last_down is None else min(state.last_down, now),
        )
    start = now - settings.down_stabilization
    kept = tuple(entry for entry in state.recommendations if entry.time >= start and entry.replicas > recommended)
    return replace(
        state,
        since=now if state.since is None else state.since,
        last_evaluation=now,
        recommendations=(*kept, Recommendation(now, recommended)),
    )


def _limited(
    subject: PoolInputs | TierInputs, needed: int, wanted: int, reason: Reason, message: str, state: PoolState
) -> Step:
    """Bounds first, then free devices. Bounds are the user's word: they hold at once and even without metrics."""
    unlimited = wanted
    clamps: list[Clamp] = []
    if wanted > subject.max:
        text = f"{wanted} wanted, replicas.max is {subject.max}: raise it to let the load have them"
        clamps.append(Clamp(Reason.AT_MAXIMUM, text))
        wanted = subject.max
    if wanted < subject.min:
        clamps.append(Clamp(Reason.AT_MINIMUM, f"{wanted} would do, replicas.min is {subject.min}"))
        wanted = subject.min
    if subject.placeable is not None:
        limit = max(subject.current + subject.placeable, subject.min)
        if wanted > limit:
            text = f"{wanted} wanted, free devices take {subject.placeable} more: add nodes or allow more node classes"
            clamps.append(Clamp(Reason.NO_CAPACITY, text))
            wanted = limit
    return Step(subject, needed, unlimited, wanted, reason, message, tuple(clamps), state)


def _describe(reading: Reading) -> str:
    if reading.age is None:
        return reading.name
    return f"{reading.name} ({reading.age:.0f} s)"
