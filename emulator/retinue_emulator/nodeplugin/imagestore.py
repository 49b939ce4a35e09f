"""The images of one node: the first pod that needs one waits for its download, later ones find it there."""

from __future__ import annotations

import asyncio

from retinue_emulator.engine.clock import Clock


class ImageStore:
    """pull_seconds: model seconds that the download of any image takes."""

    def __init__(self, clock: Clock, pull_seconds: float) -> None:
        self._clock = clock
        self._pull_seconds = pull_seconds
        self._present: set[str] = set()
        self._downloads: dict[str, asyncio.Task[None]] = {}

    def has(self, image: str) -> bool:
        """Whether the image is on the node."""
        return image in self._present

    async def pull(self, image: str) -> None:
        """Waits until the image is there; pods that ask for the same image at the same time share one download."""
        if image in self._present:
            return
        if image not in self._downloads:
            self._downloads[image] = asyncio.create_task(self._download(image), name=f"pull-{image}")
        # Shielded: a pod that is deleted while it waits does not stop the download for the others.
        await asyncio.shield(self._downloads[image])

    def stop_downloads(self) -> None:
        """The node went off; what is on its disk stays."""
        for download in self._downloads.values():
            download.cancel()
        self._downloads.clear()

    async def _download(self, image: str) -> None:
        await self._clock.sleep(self._pull_seconds)
        self._present.add(image)
        self._downloads.pop(image, None)
