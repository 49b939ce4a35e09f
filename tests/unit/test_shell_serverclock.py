"""The time of day comes from the API server's answers, whatever the machine's own clock says."""

import email.utils

import pytest

from retinue_operator.serverclock import ServerClock

TRUTH = 1_800_000_000.0
HOUR = 3600.0


class Machine:
    """A machine with a clock that nobody can set, a wall clock that is wrong, and an API server that is right."""

    def __init__(self, skew: float = 0.0) -> None:
        self.uptime = 50.0
        self.skew = skew
        self.clock = ServerClock(lambda: self.truth + self.skew, lambda: self.uptime)

    @property
    def truth(self) -> float:
        return TRUTH + self.uptime

    def ask(self, takes: float = 0.01) -> None:
        since = self.uptime
        date = email.utils.formatdate(int(self.truth + takes / 2), usegmt=True)
        self.uptime += takes
        self.clock.heard(date, since)


@pytest.mark.parametrize("skew", [0.0, 3 * HOUR, -3 * HOUR, -TRUTH])
def test_one_answer_sets_a_wrong_clock_right(skew: float) -> None:
    machine = Machine(skew)
    machine.ask()
    assert machine.clock() == pytest.approx(machine.truth, abs=1.0)


def test_jumps_of_the_wall_clock_do_nothing() -> None:
    machine = Machine()
    machine.ask()
    before = machine.clock()
    for machine.skew in (5 * HOUR, -5 * HOUR):
        machine.uptime += 1.0
    assert machine.clock() - before == pytest.approx(2.0)


def test_many_answers_narrow_the_error_and_slow_ones_spoil_nothing() -> None:
    machine = Machine(HOUR)
    for number in range(40):
        machine.uptime += 0.73
        machine.ask(takes=30.0 if number % 5 == 0 else 0.01)
    assert machine.clock() == pytest.approx(machine.truth, abs=0.5)


@pytest.mark.parametrize("date", [None, "", "yesterday", "Wed, 99 Foo 2026 25:61:61 GMT"])
def test_an_answer_without_a_usable_date_is_ignored(date: str | None) -> None:
    machine = Machine()
    before = machine.clock()
    machine.clock.heard(date, machine.uptime)
    assert machine.clock() == before
