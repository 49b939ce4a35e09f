"""One aiohttp application on one address: start listening, report the bound port, stop at once."""

from __future__ import annotations

from aiohttp import web


class Listener:
    """An HTTP server that dies without waiting for idle connections.

    Args:
        app: the application.
        address: IPv4 address to bind.
        port: 0 picks a free one.
    """

    def __init__(self, app: web.Application, address: str, port: int) -> None:
        # A client that goes away cancels its handler: the engine must stop computing for it.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        self._address = address
        self._port = port

    @property
    def port(self) -> int:
        """The port that is bound."""
        return self._port

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address or port is taken.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._address, self._port).start()
        except OSError:
            await self._runner.cleanup()
            raise
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the socket and cut what is still open."""
        await self._runner.cleanup()
