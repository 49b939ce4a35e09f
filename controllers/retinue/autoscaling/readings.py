"""Which of the numbers may be believed: fresh, the last good one, or none."""

from collections.abc import Iterable
from dataclasses import dataclass

from retinue.api.agentgoals import OnMissingUp
from retinue.autoscaling.decision import Freshness, InputUsed, LastGood, State
from retinue.autoscaling.inputs import Inputs, PoolInputs, RoleInputs, Signal, TierInputs

# What the laws read; everything else in the signals is for people. Only these are recorded and remembered.
_ROLE_SIGNALS = (
    "ttft",
    "prefill_stage_time",
    "first_decode_time",
    "token_time",
    "arrivals",
    "completions",
    "prompt_rate",
    "in_flight",
    "queued_prefill_tokens",
    "open_sessions",
    "context_tokens",
)
_POOL_SIGNALS = (
    "prompt_rate",
    "hit_rate",
    "prefill_speed",
    "queue_time",
    "prefill_time",
    "inter_token_time",
    "running",
    "running_peak",
    "waiting",
    "waiting_low",
    "kv_use",
    "reporting",
)
_TIER_SIGNALS = ("capacity_bytes", "used_bytes", "eviction_age", "reporting")


@dataclass(frozen=True)
class Reading:
    """A number with its age in seconds and worth. FRESH without a value: nothing happened that could be measured."""

    name: str
    value: float | None
    age: float | None
    freshness: Freshness

    @property
    def current(self) -> bool:
        """Whether this is a fresh value: what a decision to shrink needs."""
        return self.freshness is Freshness.FRESH and self.value is not None


class Readings:
    """All numbers of one evaluation, judged against the settings and the remembered state."""

    def __init__(self, inputs: Inputs, state: State, now: float) -> None:
        self._settings = inputs.settings
        self._last_good = state.last_good
        self._now = now
        self._readings: dict[str, Reading] = {}
        for role in inputs.roles:
            self._add(role, _ROLE_SIGNALS)
        for pool in inputs.pools:
            self._add(pool, _POOL_SIGNALS)
        for tier in inputs.tiers:
            self._add(tier, _TIER_SIGNALS)

    def get(self, key: str, signal: str) -> Reading:
        """The reading of a subject's signal; KeyError for a name that no law may read."""
        return self._readings[f"{key}/{signal}"]

    def value(self, key: str, signal: str) -> float | None:
        """The number to grow by: fresh, or the last good one if the settings allow that; None = unknown."""
        reading = self.get(key, signal)
        if reading.freshness is Freshness.LAST_GOOD and self._settings.missing_up is OnMissingUp.HOLD:
            return None
        return reading.value

    def total(self, keys: Iterable[str], signal: str) -> float | None:
        """The sum of what is known of a signal over subjects, a lower bound; None if nothing is known."""
        known = [value for value in (self.value(key, signal) for key in keys) if value is not None]
        return sum(known) if known else None

    def remembered(self, key: str, signal: str) -> float | None:
        """The value now, or the last one whatever its age: for facts that do not change by being old."""
        value = self.get(key, signal).value
        if value is not None:
            return value
        last = self._last_good.get(f"{key}/{signal}")
        return None if last is None else last.value

    def used(self) -> tuple[InputUsed, ...]:
        """Everything that the laws could read, for the record."""
        return tuple(InputUsed(r.name, r.value, r.age, r.freshness) for r in self._readings.values())

    def next_last_good(self) -> dict[str, LastGood]:
        """What to remember: fresh values replace older ones; subjects that are gone are forgotten."""
        kept: dict[str, LastGood] = {}
        for name, reading in self._readings.items():
            if reading.current and reading.value is not None and reading.age is not None:
                kept[name] = LastGood(reading.value, self._now - reading.age)
            elif name in self._last_good:
                kept[name] = self._last_good[name]
        return kept

    def _add(self, owner: RoleInputs | PoolInputs | TierInputs, names: Iterable[str]) -> None:
        key, signals = owner.key, owner.signals
        for signal in names:
            name = f"{key}/{signal}"
            self._readings[name] = self._judge(name, getattr(signals, signal))

    def _judge(self, name: str, signal: Signal) -> Reading:
        if signal.age is not None and signal.age <= self._settings.fresh_age:
            return Reading(name, signal.value, signal.age, Freshness.FRESH)
        candidates: list[tuple[float, float]] = []
        if signal.value is not None and signal.age is not None:
            candidates.append((signal.age, signal.value))
        last = self._last_good.get(name)
        if last is not None:
            # A clock that was set back must not make a number look newer than new.
            candidates.append((max(0.0, self._now - last.time), last.value))
        if not candidates:
            return Reading(name, None, signal.age, Freshness.MISSING)
        age, value = min(candidates)
        if age <= self._settings.max_age:
            return Reading(name, value, age, Freshness.LAST_GOOD)
        return Reading(name, None, age, Freshness.MISSING)
