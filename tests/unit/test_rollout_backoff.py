"""How long a failing instance waits, and when its failures are forgotten."""

import pytest

from retinue.rollout.backoff import HEALTHY_SECONDS, LIMIT_SECONDS, forgiven, restart_delay


def test_the_first_failure_costs_no_wait_and_further_ones_double_up_to_the_limit() -> None:
    assert [restart_delay(n) for n in range(9)] == [0, 0, 10, 20, 40, 80, 160, 300, 300]


def test_any_number_of_failures_waits_no_longer_than_the_limit() -> None:
    assert restart_delay(10**6) == LIMIT_SECONDS == 300


@pytest.mark.parametrize(
    ("restarts", "ready", "healthy_for", "expected"),
    [
        (3, True, HEALTHY_SECONDS, True),
        (3, True, HEALTHY_SECONDS - 1, False),
        (3, False, HEALTHY_SECONDS, False),
        (0, True, HEALTHY_SECONDS, False),
    ],
)
def test_failures_are_forgotten_after_ten_healthy_minutes(
    restarts: int, ready: bool, healthy_for: float, expected: bool
) -> None:
    assert forgiven(restarts, 1000.0, ready, 1000.0 + healthy_for) is expected
