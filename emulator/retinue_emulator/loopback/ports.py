"""Free ports on 127.0.0.1, chosen so that neither outgoing connections nor reconnecting clients can take them."""

import random
import socket
from collections.abc import Callable
from pathlib import Path

from retinue_emulator.holding import hold

HOST = "127.0.0.1"
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DEFAULT_EPHEMERAL = (32768, 60999)
_LOWEST = 20000
_FEWEST_CANDIDATES = 1000
_CLAIMS: list[socket.socket] = []


def ephemeral_range() -> tuple[int, int]:
    """First and last port the kernel gives to outgoing connections."""
    try:
        low, high = _RANGE_FILE.read_text().split()
    except (OSError, ValueError):
        return _DEFAULT_EPHEMERAL
    return int(low), int(high)


def candidate_ports(ephemeral: tuple[int, int]) -> range:
    """Ports to choose from, outside the ephemeral range where there are enough of them.

    Inside it, a client that keeps reconnecting to a server that is down may be given the server's own port as its
    source port, connect to itself, and so keep the server from coming back. That happens in tests which stop the API
    server.
    """
    low, high = ephemeral
    for candidates in (range(_LOWEST, min(low, 65536)), range(max(high + 1, _LOWEST), 65536)):
        if len(candidates) >= _FEWEST_CANDIDATES:
            return candidates
    return range(_LOWEST, 65536)


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers written in Go set this too: a port in TIME_WAIT is free for them.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def claim(port: int) -> bool:
    """Whether the port is free and was not chosen here before, by this process or one that still runs; now it is."""
    claimed = hold(HOST, port) if is_free(port) else None
    if claimed is None:
        return False
    _CLAIMS.append(claimed)
    return True


def pick_ports(
    count: int,
    *,
    candidates: range | None = None,
    free: Callable[[int], bool] = claim,
    rng: random.Random | None = None,
) -> list[int]:
    """`count` distinct free ports in random order, claimed from others that choose here (see `claim`).

    Somebody else may still take one before it is used: whoever starts a server should be ready to choose again.
    Raises OSError when there are not enough free ports.
    """
    ports = list(candidates if candidates is not None else candidate_ports(ephemeral_range()))
    (rng or random.SystemRandom()).shuffle(ports)
    chosen: list[int] = []
    for port in ports:
        if len(chosen) == count:
            break
        if free(port):
            chosen.append(port)
    if len(chosen) < count:
        raise OSError(f"only {len(chosen)} of {count} ports are free on {HOST}")
    return chosen
