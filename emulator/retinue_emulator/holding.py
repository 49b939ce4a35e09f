"""Claims a number or an address among processes that do not know each other, for as long as the process lives."""

import socket


def hold(host: str, port: int) -> socket.socket | None:
    """A socket that nobody else can have until it is closed or its process ends; None if somebody has it.

    A UDP socket: it cannot meet a TCP server on the same address and port, and has no TIME_WAIT.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        holder.bind((host, port))
    except OSError:
        holder.close()
        return None
    return holder
