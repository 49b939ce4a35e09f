"""Waits until a child process answers its health check, or says why it never will."""

import asyncio
import re
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp

from .errors import LoopbackError, PortTakenError
from .process import ChildProcess

_POLL_SECONDS = 0.05
_REQUEST_SECONDS = 5.0


def trusting(ca_certificate: Path) -> ssl.SSLContext:
    """A TLS context that trusts this CA and no other."""
    return ssl.create_default_context(cafile=str(ca_certificate))


async def wait_healthy(
    child: ChildProcess,
    url: str,
    *,
    timeout: float,
    tls: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Returns once `url` answers 200.

    Raises PortTakenError when the child ended because its port is in use, and LoopbackError when it ended for another
    reason or does not answer within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    reason = "no answer"
    connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
    limits = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
    # Proxy settings of the environment are never for the loopback interface.
    async with aiohttp.ClientSession(connector=connector, timeout=limits, trust_env=False) as session:
        while True:
            raise_if_ended(child)
            try:
                async with session.get(url, headers=headers) as response:
                    if response.status == 200:
                        return
                    reason = f"HTTP {response.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
            if time.monotonic() >= deadline:
                raise LoopbackError(
                    f"{child.name} is not ready after {timeout:.0f} s ({reason})",
                    f"see {child.log} for what it waits for",
                )
            await asyncio.sleep(_POLL_SECONDS)


def raise_if_ended(child: ChildProcess) -> None:
    """Raises LoopbackError with the last words of a child that has ended; returns when it runs."""
    code = child.exit_code()
    if code is None:
        return
    tail = child.log_tail(40)
    if re.search(r"address already in use", tail):
        raise PortTakenError(f"a port of {child.name} was taken by another process", "start it again")
    how = f"signal {-code}" if code < 0 else f"status {code}"
    lines = [line for line in tail.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "it wrote nothing"
    raise LoopbackError(f"{child.name} ended with {how}", f"see {child.log}; its last line: {last}")
