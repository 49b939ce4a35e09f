"""Model time, and when an emulator that wakes late counts as behind."""

from __future__ import annotations

import time

import pytest

from retinue_emulator.engine.clock import ALLOWED_SHARE, WINDOW_SECONDS, Clock, LagWatch


def test_model_time_runs_speed_times_as_fast_as_the_wall() -> None:
    wall = [100.0]
    clock = Clock(12.0, lambda: wall[0])
    assert clock.now() == 0
    wall[0] += 2.5
    assert clock.now() == 30.0
    assert clock.wall(30.0) == 2.5


def test_a_speed_that_stands_still_is_refused() -> None:
    with pytest.raises(ValueError, match="speed must be above 0"):
        Clock(0)


def test_short_hiccups_are_counted_but_tolerated() -> None:
    watch = LagWatch()
    for second in range(600):
        watch.record(float(second), 0.2 if second % 2 == 0 else 0.0)
    assert watch.behind_total == 300
    assert watch.worst_seconds == 0.2
    assert watch.lag_seconds == 0.0
    assert not watch.behind


def test_losing_a_quarter_of_a_window_is_falling_behind_and_stays_so() -> None:
    watch = LagWatch()
    lost, now = 0.0, 0.0
    while lost <= ALLOWED_SHARE * WINDOW_SECONDS:
        assert not watch.behind
        now, lost = now + 0.6, lost + 0.5
        watch.record(now, 0.5)
    assert watch.behind
    assert watch.verdict is not None
    assert "lower the speed or the load" in watch.verdict
    watch.record(now + 1_000, 0.0)
    assert watch.behind


def test_one_long_stall_is_falling_behind() -> None:
    watch = LagWatch()
    watch.record(50.0, 3.0)
    assert watch.behind


async def test_the_watch_sees_a_blocked_event_loop() -> None:
    clock = Clock(5.0)
    clock.start_watch()
    clock.start_watch()
    await clock.sleep(0.5)
    time.sleep(0.3)  # noqa: ASYNC251 - blocking the loop is what is under test
    deadline = time.monotonic() + 5
    while clock.watch.behind_total == 0:
        assert time.monotonic() < deadline, "the watch never noticed"
        await clock.sleep(0.05)
    assert clock.watch.worst_seconds >= 0.1
    assert not clock.watch.behind
    await clock.stop_watch()
