"""Operator processes as users start them, beside the test cluster."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from retinue_emulator.loopback import ClusterAccess, eventually

RBAC = Path(__file__).resolve().parents[2] / "deploy" / "rbac-operator.yaml"
LEASE = ("lease/retinue-operator", "--namespace=retinue-system")
DURATION = 3.0
# Short, but not so short that a busy machine loses the lease by itself.
UNHURRIED = ("--lease-duration=7", "--lease-renew-deadline=5", "--lease-retry-period=0.5")
# Changes the clock itself, before anything of the operator has been imported.
_WRONG_CLOCK = """
import pathlib, time
offset, true = pathlib.Path({offset!r}), time.time
time.time = lambda: true() + float(offset.read_text())
from retinue_operator import cli
cli.main()
"""


class Operator:
    """One operator process and its log."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process
        self.log: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode())

    async def says(self, text: str, timeout: float = 30.0) -> str:
        async def probe() -> str | None:
            assert self.process.returncode is None or text in "".join(self.log), "".join(self.log)
            return next((line for line in self.log if text in line), None)

        found = await eventually(probe, what=f"{self.name} says {text!r}", timeout=timeout)
        assert found is not None
        return found

    async def ended(self) -> int:
        code = await asyncio.wait_for(self.process.wait(), 30)
        await self._reading
        return code


@asynccontextmanager
async def operator(
    access: ClusterAccess, name: str, namespace: str, *flags: str, server: str = "", clock: Path | None = None
) -> AsyncIterator[Operator]:
    """An operator process with short lease times, which later flags override.

    server: the address of a proxy to go through. clock: a file with the seconds by which its wall clock is ahead, which
    may change at any time.
    """
    account = ("retinue-system", "retinue-operator")
    kubeconfig = await asyncio.to_thread(access.service_account_kubeconfig, *account, server=server)
    program = ("-c", _WRONG_CLOCK.format(offset=str(clock))) if clock is not None else ("-m", "retinue_operator")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        "run",
        f"--kubeconfig={kubeconfig}",
        f"--namespaces={namespace}",
        f"--identity={name}",
        "--http-host=127.0.0.1",
        "--http-port=0",
        f"--lease-duration={DURATION}",
        "--lease-renew-deadline=2",
        "--lease-retry-period=0.3",
        *flags,
        stderr=asyncio.subprocess.PIPE,
    )
    started = Operator(name, process)
    try:
        yield started
    finally:
        if process.returncode is None:
            process.kill()
        await started.ended()
        # Shown by pytest when the test fails.
        print(f"the last of {name}'s log:", *started.log[-40:], sep="\n")


def holder(access: ClusterAccess) -> str:
    return str(access.get(*LEASE)["spec"]["holderIdentity"])
