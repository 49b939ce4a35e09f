"""From the samples of a poll to the signals of each pool, role and tier."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

from retinue.autoscaling.inputs import MISSING, PoolKind, PoolSignals, RoleSignals, Signal, TierSignals, key
from retinue.autoscaling.signals import SUBJECT_LABELS, Sample, Subject

Samples = Mapping[str, Sequence[Sample]]
"""By the name of the query, such as pool.hit_rate."""

_Signals = TypeVar("_Signals", PoolSignals, RoleSignals, TierSignals)


def pool_signals(samples: Samples, kind: PoolKind, name: str) -> PoolSignals:
    """The signals of one prefill or decode pool; what no sample tells is missing."""
    return _collect(PoolSignals, Subject.POOL, samples, key(kind, name))


def role_signals(samples: Samples, role: str) -> RoleSignals:
    """The signals of one role."""
    return _collect(RoleSignals, Subject.ROLE, samples, role)


def tier_signals(samples: Samples, tier: str) -> TierSignals:
    """The signals of one tier that runs servers."""
    return _collect(TierSignals, Subject.TIER, samples, tier)


def instance_sessions(samples: Samples) -> dict[str, int]:
    """Open sessions by instance, as far as known: what a victim would lose."""
    found: dict[str, int] = {}
    for sample in samples.get("instance.sessions", ()):
        signal, name = Signal(sample.value, sample.age), sample.labels.get("retinue_instance")
        if name and signal.value is not None:
            found[name] = round(signal.value)
    return found


def _collect(cls: type[_Signals], subject: Subject, samples: Samples, wanted: str) -> _Signals:
    labels = SUBJECT_LABELS[subject]
    found: dict[str, Signal] = {}
    for item in fields(cls):
        found[item.name] = next(
            (
                Signal(sample.value, sample.age)
                for sample in samples.get(f"{subject.value}.{item.name}", ())
                if "/".join(sample.labels.get(label, "") for label in labels) == wanted
            ),
            MISSING,
        )
    return cls(**found)
