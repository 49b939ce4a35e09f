"""The truth sweep: every few minutes complete lists correct the cache and everything is looked at again."""

import asyncio
import random
from collections.abc import Callable, Sequence

import structlog

from retinue_operator.cache import Cache
from retinue_operator.client import KubeClient
from retinue_operator.dispatch import Dispatcher
from retinue_operator.errors import KubeError, one_line
from retinue_operator.metrics import Metrics
from retinue_operator.resources import WATCHED, Resource

_LOG = structlog.stdlib.get_logger(__name__)
_FIRST_RETRY = 0.5
_LAST_RETRY = 30.0
# Everything at once would be a thundering herd against a cluster that is fine.
_SPREAD = 0.1


class Sweeper:
    """Lists every watched kind. `first()` fills the cache, `run()` repeats it for ever."""

    def __init__(
        self,
        client: KubeClient,
        cache: Cache,
        dispatcher: Dispatcher,
        metrics: Metrics,
        *,
        namespaces: Sequence[str],
        interval: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._cache = cache
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._namespaces = tuple(namespaces)
        self._interval = interval
        self._chance = chance
        self.synced = False
        self._gaps: set[Resource] = set()
        self._gap = asyncio.Event()

    async def first(self) -> None:
        """Fills the cache and enqueues everything; tries until every list succeeded."""
        delay = _FIRST_RETRY
        while not await self._sweep(_quiet):
            await asyncio.sleep(delay * (0.5 + self._chance() / 2))
            delay = min(delay * 2, _LAST_RETRY)
        self.synced = True

    async def run(self) -> None:
        """Sweeps at every interval, a tenth more or less, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval * (0.9 + 0.2 * self._chance())):
                    await self._close_gaps()
            except TimeoutError:
                await self.once()

    def missed(self, resource: Resource) -> None:
        """Events of this kind may have been missed: what was deleted meanwhile is looked for soon, see Source."""
        self._gaps.add(resource)
        self._gap.set()

    async def _close_gaps(self) -> None:
        """Removes from the cache what was deleted unseen, for ever."""
        while True:
            await self._gap.wait()
            self._gap.clear()
            for resource in list(self._gaps):
                if all([await self._forget(resource, namespace) for namespace in self._places(resource)]):
                    self._gaps.discard(resource)
            if self._gaps:
                await asyncio.sleep(_FIRST_RETRY * (1 + self._chance()))
                self._gap.set()

    async def _forget(self, resource: Resource, namespace: str) -> bool:
        try:
            uids, version = await self._client.list_uids(resource.kind, namespace)
        except KubeError as error:
            _LOG.warning("list failed", object_kind=resource.kind, reason=str(error.error_class), error=one_line(error))
            return False
        gone = self._cache.keep(resource.kind, uids, version, namespace=namespace or None)
        if gone:
            self._metrics.corrections.labels(resource.kind).inc(gone)
        return True

    async def once(self) -> bool:
        """One sweep now; False if a list failed, the others count all the same."""
        return await self._sweep(lambda: self._chance() * min(self._interval * _SPREAD, 30.0))

    async def _sweep(self, spread: Callable[[], float]) -> bool:
        complete = True
        for resource in WATCHED:
            for namespace in self._places(resource):
                complete &= await self._list(resource, namespace)
        self._dispatcher.everything(spread)
        self._metrics.sweeps.labels("complete" if complete else "incomplete").inc()
        return complete

    def _places(self, resource: Resource) -> Sequence[str]:
        return self._namespaces if resource.namespaced and self._namespaces else ("",)

    async def _list(self, resource: Resource, namespace: str) -> bool:
        try:
            listing = await self._client.list(resource.kind, namespace)
        except KubeError as error:
            _LOG.warning("list failed", object_kind=resource.kind, reason=str(error.error_class), error=one_line(error))
            return False
        changed = self._cache.replace(
            resource.kind, listing.items, listing.resource_version, namespace=namespace or None
        )
        if self.synced and changed:
            self._metrics.corrections.labels(resource.kind).inc(changed)
        return True


def _quiet() -> float:
    return 0.0
