"""One operator process after another, each killed at a moment that a seed chooses."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinue_emulator.faultproxy import FaultProxy, Meet, Request, Rule

from .faultyserver import writes

_ZYGOTE = Path(__file__).parent / "zygote.py"
_HOURS = 3600.0
_LOOK_SECONDS = 0.02
_IDLE_SECONDS = 1.0
_LONGEST_SECONDS = 10.0
SKEWS = (0.0, 0.0, 5 * _HOURS, -5 * _HOURS)
"""By how much a life's wall clock is wrong, in seconds."""


@dataclass(frozen=True)
class Death:
    """When a life ends: at its `count`th write or request of any kind, before or after the server has got it; if that
    does not come, as soon as it has nothing to do. Or `after` so many seconds since its first request."""

    of: str
    count: int
    answered: bool
    after: float
    skew: float


def deaths(chance: random.Random) -> Death:
    """The next one. Most are at one of the first writes, where there is something half done."""
    of = chance.choices(("write", "request", "time"), (0.7, 0.15, 0.15))[0]
    count = chance.choice((1, 1, 2, 2, 3, 4, 5, 6, 8, 11)) if of == "write" else chance.randint(1, 60)
    after = chance.uniform(0.0, 2.0) if of == "time" else _LONGEST_SECONDS
    return Death(of, count, chance.random() < 0.5, after, chance.choice(SKEWS))


class Lives:
    """Starts operator processes with `argv` behind a proxy, and kills them."""

    def __init__(self, zygote: asyncio.subprocess.Process, proxy: FaultProxy, argv: list[str], log: Path) -> None:
        self._zygote = zygote
        self._proxy = proxy
        self._argv = argv
        self._log = log
        self.pid: int | None = None
        self.died = Counter[str]()
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._born: asyncio.Queue[int] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    async def start(self, skew: float = 0.0) -> int:
        """A new life; its process id."""
        assert self._zygote.stdin is not None
        order = {"argv": self._argv, "log": str(self._log), "skew": skew}
        self._zygote.stdin.write(json.dumps(order).encode() + b"\n")
        self.pid = await self._born.get()
        return self.pid

    async def live_and_die(self, death: Death) -> None:
        """One life, to its end by SIGKILL."""
        pid = await self.start(death.skew)
        ended = self._ended[pid]
        rule = self._proxy.inject(Meet(lambda _: _kill(pid), death.answered), _Nth(death))
        try:
            how = await self._until_dead(death, ended)
            _kill(pid)
            code = await ended
        finally:
            self._remove(rule)
        self.died[how if code == -signal.SIGKILL else f"by itself with {code}"] += 1

    async def _until_dead(self, death: Death, ended: asyncio.Future[int]) -> str:
        """Returns when the life is over or must end now; how, in words."""
        born, begun = time.monotonic(), None
        while not ended.done():
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            last = self._proxy.seen[-1].time if self._proxy.seen else 0.0
            if begun is None and last > born:
                begun = now
            if begun is not None and now - begun >= death.after:
                return "between requests"
            if begun is not None and death.of != "time" and now - last >= _IDLE_SECONDS:
                return "with nothing to do"
        return f"at a {death.of}"

    async def end(self, sig: signal.Signals = signal.SIGTERM) -> int:
        """Ends the life that goes on; its exit code."""
        if self.pid is None:
            return 0
        ended = self._ended[self.pid]
        if not ended.done():
            os.kill(self.pid, sig)
        return await ended

    def alive(self) -> bool:
        """Whether there is one that runs."""
        return self.pid is not None and not self._ended[self.pid].done()

    async def close(self) -> None:
        """Ends everything."""
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        await self._zygote.wait()
        await self._reading

    async def _read(self) -> None:
        assert self._zygote.stdout is not None
        async for line in self._zygote.stdout:
            told: dict[str, Any] = json.loads(line)
            if "pid" in told:
                self._ended[told["pid"]] = asyncio.get_running_loop().create_future()
                self._born.put_nowait(told["pid"])
            else:
                self._ended[told["ended"]].set_result(told["code"])

    def _remove(self, rule: Rule) -> None:
        if rule in self._proxy.program:
            self._proxy.program.remove(rule)


class _Nth:
    """Matches exactly one request: the one at which a life ends."""

    def __init__(self, death: Death) -> None:
        self._death = death
        self._left = death.count

    def __call__(self, request: Request) -> bool:
        if self._death.of == "time" or request.watch or (self._death.of == "write" and not writes(request)):
            return False
        self._left -= 1
        return self._left == 0


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@asynccontextmanager
async def lives(proxy: FaultProxy, argv: list[str], log: Path) -> AsyncIterator[Lives]:
    """Lives until the block ends."""
    pipe = asyncio.subprocess.PIPE
    zygote = await asyncio.create_subprocess_exec(sys.executable, str(_ZYGOTE), stdin=pipe, stdout=pipe)
    made = Lives(zygote, proxy, argv, log)
    try:
        yield made
    finally:
        await made.close()
