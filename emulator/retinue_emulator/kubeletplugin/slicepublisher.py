"""Keeps the ResourceSlices of one driver on one node as they should be, whoever removes or changes them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

from retinue_emulator.nodeplugin.apiserver import ApiError, ApiServer, JsonObject, is_transient
from retinue_emulator.nodeplugin.reflector import Reflector

from .slices import build_slices, same_content

_LOGGER = logging.getLogger(__name__)
_PATH = "/apis/resource.k8s.io/v1/resourceslices"
_FIRST_RETRY_SECONDS = 0.5
_LONGEST_RETRY_SECONDS = 15.0


class SlicePublisher:
    """One pool. The kubelet deletes slices when it starts and when it loses the driver; they are written again then.

    A changed pool gets the next generation, its slices are written in name order, and what is left over goes last:
    consumers look at the highest generation only, and only when all of its slices are there.

    writes: number of slices written so far.
    """

    def __init__(self, api: ApiServer, *, driver: str, node: str, node_uid: str) -> None:
        self._api = api
        self._driver = driver
        self._node = node
        self._node_uid = node_uid
        self._selector = f"spec.driver={driver},spec.nodeName={node}"
        self._devices: tuple[JsonObject, ...] | None = None
        # The highest generation ever seen: a pool that was wiped must not start again with one that was used before.
        self._generation = 0
        self._changed = asyncio.Event()
        self.writes = 0

    def publish(self, devices: Sequence[JsonObject]) -> None:
        """These devices should be in the API server from now on."""
        self._devices = tuple(devices)
        self._changed.set()

    def pause(self) -> None:
        """Leaves the slices alone, as a plugin does that has crashed."""
        self._devices = None

    async def run(self) -> None:
        """Watches and writes until cancelled.

        Raises:
            ApiError: a refusal that time does not change, such as missing rights.
        """
        async with asyncio.TaskGroup() as tasks:
            watch = Reflector(self._api, _PATH, lambda *_: self._changed.set(), fieldSelector=self._selector)
            tasks.create_task(watch.run())
            tasks.create_task(self._write())

    async def remove(self) -> None:
        """Deletes the slices of this driver on this node."""
        for item in await self._list():
            await self._api.delete(f"{_PATH}/{item['metadata']['name']}", uid=item["metadata"]["uid"])

    async def _write(self) -> None:
        retry = _FIRST_RETRY_SECONDS
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._reconcile()
                retry = _FIRST_RETRY_SECONDS
            except Exception as error:
                # A conflict or a missing slice means that somebody else wrote meanwhile: look again.
                competed = isinstance(error, ApiError) and (error.conflict or error.gone)
                if not competed and not is_transient(error):
                    raise
                _LOGGER.info("slices of %s are not written, again in %.1f s: %s", self._driver, retry, error)
                await asyncio.sleep(retry * random.uniform(0.75, 1.25))
                retry = min(2 * retry, _LONGEST_RETRY_SECONDS)
                self._changed.set()

    async def _reconcile(self) -> None:
        found = {item["metadata"]["name"]: item for item in await self._list()}
        seen = max((item["spec"]["pool"]["generation"] for item in found.values()), default=0)
        self._generation = max(self._generation, seen)
        if self._devices is None or self._is_published(found):
            return
        wanted = self._build(self._generation + 1)
        self._generation += 1
        for item in wanted:
            await self._put(item, found.pop(item["metadata"]["name"], None))
            self.writes += 1
        for item in found.values():
            await self._api.delete(f"{_PATH}/{item['metadata']['name']}", uid=item["metadata"]["uid"])
        _LOGGER.info("slices of %s are at generation %d", self._driver, self._generation)

    def _is_published(self, found: dict[str, JsonObject]) -> bool:
        wanted = {item["metadata"]["name"]: item for item in self._build(0)}
        generations = {item["spec"]["pool"]["generation"] for item in found.values()}
        return (
            wanted.keys() == found.keys()
            and len(generations) == 1
            and all(same_content(wanted[name], found[name]) for name in wanted)
        )

    def _build(self, generation: int) -> tuple[JsonObject, ...]:
        return build_slices(
            driver=self._driver,
            node=self._node,
            node_uid=self._node_uid,
            devices=self._devices or (),
            generation=generation,
        )

    async def _put(self, item: JsonObject, old: JsonObject | None) -> None:
        if old is None:
            await self._api.create(_PATH, item)
            return
        metadata = {**item["metadata"], "resourceVersion": old["metadata"]["resourceVersion"]}
        name = item["metadata"]["name"]
        await self._api.request("PUT", f"{_PATH}/{name}", body={**item, "metadata": metadata})

    async def _list(self) -> list[JsonObject]:
        found: list[JsonObject] = (await self._api.get(_PATH, fieldSelector=self._selector))["items"]
        return found
