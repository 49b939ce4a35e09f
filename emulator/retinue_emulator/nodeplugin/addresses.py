"""Gives every node and pod its own address out of one private part of 127.0.0.0/8."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from retinue_emulator.holding import hold

# The upper half of 127/8 is free on ordinary machines; 127.0.0.x and 127.0.1.1 (Debian host names) and 127.0.0.53
# (resolved) are not.
_AUTOMATIC = tuple(f"127.{second}.0.0/16" for second in range(64, 128))
_CLAIM_PORT = 9099
_NODE_SHARE = 16


class AddressError(RuntimeError):
    """No address can be given; the message says what to do."""


@dataclass
class AddressClaim:
    """The exclusive right of this process to one address range, held by a socket that dies with the process."""

    network: ipaddress.IPv4Network
    _socket: socket.socket

    def release(self) -> None:
        """Lets another plugin claim the range."""
        self._socket.close()


def claim_range(text: str | None) -> AddressClaim:
    """Claims the range `text` such as 127.64.0.0/16, or with None the first one that no other plugin holds.

    Raises:
        AddressError: not a usable range, or in use.
    """
    if text is None:
        for candidate in _AUTOMATIC:
            claim = _try_claim(ipaddress.IPv4Network(candidate))
            if claim is not None:
                return claim
        raise AddressError("all ranges from 127.64.0.0/16 to 127.127.0.0/16 are in use; stop another node plugin")
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise AddressError(f"{text!r} is not an address range: {error}; use one such as 127.64.0.0/16") from error
    if not network.is_loopback or network.prefixlen > 24:
        raise AddressError(f"{text} must lie in 127.0.0.0/8 and hold at least 256 addresses, such as 127.64.0.0/16")
    claim = _try_claim(network)
    if claim is None:
        raise AddressError(f"{text} is in use by another node plugin; choose another range or leave the option out")
    return claim


def _try_claim(network: ipaddress.IPv4Network) -> AddressClaim | None:
    holder = hold(str(network.network_address + 1), _CLAIM_PORT)
    return None if holder is None else AddressClaim(network, holder)


class AddressPool:
    """Hands out the addresses of a range in a circle, so that an address that came back is used again last.

    The first sixteenth of the range is for nodes, the rest for pods.
    """

    def __init__(self, network: ipaddress.IPv4Network) -> None:
        self._base = network.network_address
        self._first_pod = network.num_addresses // _NODE_SHARE
        self._end = network.num_addresses - 1
        self._next_node = 2
        self._cursor = self._first_pod
        self._used: set[int] = set()

    def node_address(self) -> str:
        """An address for a node; nodes keep theirs.

        Raises:
            AddressError: there are more nodes than the range has room for.
        """
        if self._next_node >= self._first_pod:
            raise AddressError(f"the address range has room for {self._first_pod - 2} nodes; use a larger one")
        self._next_node += 1
        return str(self._base + self._next_node - 1)

    def skip(self, address: str) -> None:
        """Goes on after an address that a pod of an earlier run still shows, so that nobody else gets it soon."""
        offset = self._offset(address)
        if self._first_pod <= offset < self._end:
            self._cursor = max(self._cursor, offset + 1)

    def take(self) -> str:
        """An address for a pod.

        Raises:
            AddressError: all addresses are taken.
        """
        room = self._end - self._first_pod
        for _ in range(room):
            offset = self._first_pod + (self._cursor - self._first_pod) % room
            self._cursor = offset + 1
            if offset not in self._used:
                self._used.add(offset)
                return str(self._base + offset)
        raise AddressError("all pod addresses are taken; use a larger address range or fewer pods")

    def give_back(self, address: str) -> None:
        """Ends the use of an address; one that was not taken is ignored."""
        self._used.discard(self._offset(address))

    def _offset(self, address: str) -> int:
        try:
            return int(ipaddress.IPv4Address(address)) - int(self._base)
        except ValueError:
            return -1
