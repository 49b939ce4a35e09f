"""Ports are free, distinct and outside the range from which outgoing connections get theirs."""

import random
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_emulator.loopback.ports import HOST, candidate_ports, claim, ephemeral_range, is_free, pick_ports


@given(low=st.integers(1, 65535), size=st.integers(0, 65535))
def test_candidates_avoid_the_ephemeral_range_whenever_enough_ports_are_left(low: int, size: int) -> None:
    high = min(65535, low + size)
    candidates = candidate_ports((low, high))
    assert len(candidates) >= 1000
    assert candidates[0] >= 20000
    assert candidates[-1] <= 65535
    overlaps = candidates[0] <= high and low <= candidates[-1]
    assert not overlaps or (low - 20000 < 1000 and 65535 - high < 1000)


def test_chosen_ports_are_distinct_and_can_be_listened_on() -> None:
    ports = pick_ports(5)
    low, high = ephemeral_range()
    assert len(set(ports)) == 5
    assert all(is_free(port) for port in ports)
    assert all(not low <= port <= high for port in ports)


def test_a_port_somebody_listens_on_is_not_free() -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(OSError, match="only 0 of 1 ports are free"):
            pick_ports(1, candidates=range(port, port + 1))


def test_taken_ports_are_passed_over() -> None:
    ports = pick_ports(2, candidates=range(100, 104), free=lambda port: port % 2 == 0, rng=random.Random(1))
    assert sorted(ports) == [100, 102]


def test_what_another_process_chose_is_passed_over_while_it_runs() -> None:
    code = f"from {claim.__module__} import pick_ports; print(*pick_ports(1), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        port = int(other.stdout.readline())
        assert is_free(port)
        assert not claim(port)
        other.stdin.close()
    assert claim(port)
    assert not claim(port)


def test_two_choosers_rarely_meet() -> None:
    choices = [pick_ports(5, free=lambda _port: True, rng=random.Random(seed)) for seed in range(10)]
    assert len({port for ports in choices for port in ports}) > 40
