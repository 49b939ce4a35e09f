"""The routing table that is valid now, and waiting for a better one."""

import asyncio

from retinue_gateway.directory import Directory


class RoutingTable:
    """Holds the current directory; `synced` is false until the first one was published."""

    def __init__(self) -> None:
        self.current = Directory()
        self.synced = False
        self._changed = asyncio.Event()

    def publish(self, directory: Directory) -> None:
        """Replaces the directory and wakes all who wait."""
        self.current = directory
        self.synced = True
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_change(self, timeout: float) -> bool:
        """True as soon as a directory is published, False after `timeout` seconds."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except TimeoutError:
            return False
        return True
