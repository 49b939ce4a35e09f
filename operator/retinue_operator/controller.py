"""What a controller is and what it may use: the seam between the shell and the glue of each kind."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp

from retinue.plan import Key, Manifest, Plan
from retinue_operator.cache import Cache
from retinue_operator.client import KubeClient
from retinue_operator.metrics import Metrics
from retinue_operator.settings import Settings

# As the name in a key: all objects of that kind, in the key's namespace if it has one.
EVERY = "*"


@dataclass
class _Held:
    names: set[str] = field(default_factory=set)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)


_HELD: ContextVar[_Held | None] = ContextVar("retinue_held_locks", default=None)


@dataclass
class World:
    """Everything a reconcile may look at. The cluster is changed only by the plan that it returns.

    cache: the live objects; never change what it returns.
    client: for reads that the cache does not hold.
    http: a session for reads outside the API server (metrics of an engine, Prometheus); total timeout 10 s by default.
    """

    cache: Cache
    client: KubeClient
    http: aiohttp.ClientSession
    metrics: Metrics
    settings: Settings
    clock: Callable[[], float]
    _locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock), repr=False)

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.clock()

    @asynccontextmanager
    async def exclusive(self, name: str) -> AsyncIterator[None]:
        """Nobody else is inside `name` at the same time.

        In a reconcile the lock is kept beyond the block, until the plan has been executed: what the plan takes (device,
        domain) must be in the cache before the next one looks. Taking it twice in one reconcile is fine; two names must
        be taken in alphabetical order everywhere.
        """
        held = _HELD.get()
        if held is None:
            async with self._locks[name]:
                yield
            return
        if name not in held.names:
            await held.stack.enter_async_context(self._locks[name])
            held.names.add(name)
        yield

    @asynccontextmanager
    async def reconciling(self) -> AsyncIterator[None]:
        """The span of one reconcile and the execution of its plan; at its end all its locks are released."""
        held = _Held()
        token = _HELD.set(held)
        try:
            async with held.stack:
                yield
        finally:
            _HELD.reset(token)


class Controller(Protocol):
    """The glue of one kind: reads a snapshot from the world and asks the core for a plan."""

    @property
    def kind(self) -> str:
        """The kind whose keys this controller reconciles; its own objects are enqueued by the runtime."""
        ...

    def keys_for(self, kind: str, obj: Manifest) -> Iterable[Key]:
        """Which objects of this controller's kind must be looked at when `obj` (of `kind`) changed or went.

        `Key(kind, namespace, EVERY)` stands for all of them. Called for the old and the new version; pure and fast.
        """
        ...

    async def reconcile(self, key: Key, world: World) -> Plan | None:
        """The plan for one object, None when it does not exist any more. Raises whatever goes wrong."""
        ...
