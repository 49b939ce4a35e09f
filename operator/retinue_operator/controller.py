"""What a controller is and what it may use: the seam between the shell and the glue of each kind."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from retinue.plan import Key, Manifest, Plan
from retinue_operator.cache import Cache
from retinue_operator.client import KubeClient
from retinue_operator.metrics import Metrics
from retinue_operator.settings import Settings

# As the name in a key: all objects of that kind, in the key's namespace if it has one.
EVERY = "*"
# The same, but only those whose status says that an instance has found no place.
WAITING = "?"
_ON_NODE = "@"


def on_node(kind: str, node: str) -> Key:
    """Stands for the objects of that kind whose pods are bound to the node."""
    return Key(kind, "", f"{_ON_NODE}{node}")


def node_of(key: Key) -> str | None:
    """The node of a key that `on_node` made; None for any other."""
    return key.name.removeprefix(_ON_NODE) if key.name.startswith(_ON_NODE) else None


# What is to be undone when the plan of the reconcile that runs here has been executed.
_UNTIL_EXECUTED: ContextVar[ExitStack | None] = ContextVar("retinue_until_executed", default=None)


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

    def now(self) -> float:
        """Seconds since the epoch."""
        return self.clock()

    def until_executed(self, release: Callable[[], None]) -> None:
        """Calls `release` once the plan of this reconcile has been executed or has failed; outside of one, at once.

        What a plan takes (devices, a domain) is reserved in the same step, without an await in between, and must stay
        so until it is in the cache.
        """
        held = _UNTIL_EXECUTED.get()
        if held is None:
            release()
        else:
            held.callback(release)

    @contextmanager
    def reconciling(self) -> Iterator[None]:
        """The span of one reconcile and the execution of its plan; at its end what it reserved is released."""
        with ExitStack() as held:
            token = _UNTIL_EXECUTED.set(held)
            try:
                yield
            finally:
                _UNTIL_EXECUTED.reset(token)


class Controller(Protocol):
    """The glue of one kind: reads a snapshot from the world and asks the core for a plan."""

    @property
    def kind(self) -> str:
        """The kind whose keys this controller reconciles; its own objects are enqueued by the runtime."""
        ...

    def keys_for(self, kind: str, obj: Manifest) -> Iterable[Key]:
        """Which objects of this controller's kind must be looked at when `obj` (of `kind`) changed or went.

        `Key(kind, namespace, EVERY)` stands for all of them, WAITING for those that wait for room, `on_node` for those
        with pods on a node. Called for the old and the new version, unless they differ in nothing that others look at;
        pure and fast.
        """
        ...

    async def reconcile(self, key: Key, world: World) -> Plan | None:
        """The plan for one object, None when it does not exist any more. Raises whatever goes wrong."""
        ...
