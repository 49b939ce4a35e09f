"""Events that tell of conditions which flipped between two reconciles."""

from collections.abc import Iterable, Mapping

from retinue.api.types import Condition
from retinue.conditions import ConditionType, Finding, find
from retinue.plan import Event, EventType


def transitions(
    before: Iterable[Condition], findings: Iterable[Finding], watched: Mapping[ConditionType, bool]
) -> tuple[Event, ...]:
    """One event per watched condition whose status or reason has changed; a warning unless it has turned good.

    `watched` says which status of each type is good. A condition that is good from the start, or unknown, is no news.
    """
    known = list(before)
    events: list[Event] = []
    for finding in findings:
        good = watched.get(finding.type)
        old = find(known, finding.type)
        if good is None or finding.status is None or (old is None and finding.status is good):
            continue
        if old is not None and old.status == finding.status_text and old.reason == finding.reason.value:
            continue
        type_ = EventType.NORMAL if finding.status is good else EventType.WARNING
        events.append(Event(type_, finding.reason.value, f"{finding.type.value}: {finding.message}"))
    return tuple(events)
