"""Conditions: merged by type, moved in time only by a flip of the status."""

from retinue.conditions import ConditionType, Finding, Reason, epoch, find, merge, timestamp

READY = Finding(ConditionType.READY, True, Reason.HEALTHY, "well")
NOT_READY = Finding(ConditionType.READY, False, Reason.STARTING, "none yet")


def test_a_new_condition_carries_the_time_of_its_first_finding() -> None:
    (condition,) = merge([], [READY], 3, 60.0)
    assert condition.to_wire() == {
        "type": "Ready",
        "status": "True",
        "reason": "Healthy",
        "message": "well",
        "observedGeneration": 3,
        "lastTransitionTime": "1970-01-01T00:01:00Z",
    }


def test_another_reason_or_message_alone_does_not_move_the_transition_time() -> None:
    before = merge([], [READY], 1, 60.0)
    other = Finding(ConditionType.READY, True, Reason.SCALING_UP, "1 of 2")
    (condition,) = merge(before, [other], 2, 120.0)
    assert (condition.reason, condition.message, condition.observed_generation) == ("ScalingUp", "1 of 2", 2)
    assert condition.last_transition_time == timestamp(60.0)


def test_a_flip_moves_the_transition_time() -> None:
    (condition,) = merge(merge([], [READY], 1, 60.0), [NOT_READY], 1, 120.0)
    assert (condition.status, condition.last_transition_time) == ("False", timestamp(120.0))


def test_a_condition_without_a_finding_is_dropped_and_the_rest_is_ordered_by_type() -> None:
    valid = Finding(ConditionType.VALID, None, Reason.ACCEPTED, "")
    placed = Finding(ConditionType.PLACED, True, Reason.ALL_PLACED, "")
    merged = merge(merge([], [READY], 1, 1.0), [valid, placed], 1, 2.0)
    assert [(c.type, c.status) for c in merged] == [("Placed", "True"), ("Valid", "Unknown")]
    assert find(merged, ConditionType.READY) is None


def test_merging_the_same_findings_again_changes_nothing() -> None:
    once = merge([], [READY, Finding(ConditionType.VALID, True, Reason.ACCEPTED, "")], 1, 1.0)
    assert merge(once, [READY, Finding(ConditionType.VALID, True, Reason.ACCEPTED, "")], 1, 99.0) == once


def test_a_message_longer_than_the_schema_allows_is_cut() -> None:
    (condition,) = merge([], [Finding(ConditionType.READY, False, Reason.NO_FIT, "x" * 9000)], 1, 1.0)
    assert len(condition.message) == 4096


def test_times_survive_the_way_to_the_wire_and_back() -> None:
    assert epoch(timestamp(1_700_000_000.9)) == 1_700_000_000.0
    assert epoch("2026-01-02T03:04:05.678901Z") == epoch("2026-01-02T03:04:05Z") + 0.678901


def test_reasons_are_names_that_kubernetes_accepts_and_differ() -> None:
    values = [reason.value for reason in Reason]
    assert all(value.isalnum() and value[0].isupper() for value in values)
    assert len(set(values)) == len(values)
