"""One device plugin's socket and its registration: served first, then registered, again after each kubelet start."""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass

import grpc

from .deviceplugin import API_VERSION, DevicePlugin
from .paths import NodePaths
from .proto import deviceplugin_v1beta1_pb2 as dp
from .rpc import REGISTER, SocketPathTooLong, channel, serve, socket_identity

_LOGGER = logging.getLogger(__name__)
_REGISTER_SECONDS = 5.0


@dataclass(frozen=True)
class Pace:
    """Wall seconds. poll: between looks at the sockets; the delays of failed registrations double between the last two.

    unwatched: how long a kubelet may leave a registered plugin without watching it before it is registered again.
    """

    poll: float = 1.0
    unwatched: float = 10.0
    first_retry: float = 0.5
    longest_retry: float = 10.0


class PluginSocket:
    """Keeps one plugin served and registered while `run` runs.

    registrations: how often a kubelet has taken the plugin.
    """

    def __init__(self, plugin: DevicePlugin, paths: NodePaths, pace: Pace) -> None:
        self._plugin = plugin
        self._kubelet = paths.kubelet_socket
        # The name is stable, so that a restarted plugin leaves no second socket behind.
        self._socket = paths.device_plugins / f"retinue-{plugin.resource.replace('/', '-')}.sock"
        self._pace = pace
        self._server: grpc.aio.Server | None = None
        self._served: tuple[int, int] | None = None
        self._registered_with: tuple[int, int] | None = None
        self._last_watched = 0.0
        self.registrations = 0

    @property
    def ready(self) -> bool:
        """A kubelet watches the devices."""
        return self._registered_with is not None and self._plugin.streams > 0

    async def run(self) -> None:
        """Serves and registers until cancelled; then the socket is gone.

        Raises:
            SocketPathTooLong: the kubelet's folder has too long a path.
        """
        retry = self._pace.first_retry
        try:
            while True:
                try:
                    await self._keep_served()
                    await self._keep_registered()
                    retry = self._pace.first_retry
                    pause = self._pace.poll
                except SocketPathTooLong:
                    raise
                except (OSError, RuntimeError, grpc.RpcError) as error:
                    # No kubelet, or one that is just starting: the usual case around its restart.
                    why = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
                    _LOGGER.info("%s is not registered, again in %.1f s: %s", self._plugin.resource, retry, why)
                    pause = retry * random.uniform(0.75, 1.25)
                    retry = min(2 * retry, self._pace.longest_retry)
                await asyncio.sleep(pause)
        finally:
            await self._close()

    async def _keep_served(self) -> None:
        """Serves anew when there is no socket, or not the one that was made: a starting kubelet empties its folder."""
        if self._server is not None and socket_identity(self._socket) == self._served:
            return
        # The old server goes first: when it stops it removes the file of its path, whoever made it.
        await self._close()
        self._server = await serve(self._socket, *self._plugin.handlers())
        self._served = socket_identity(self._socket)
        self._registered_with = None

    async def _keep_registered(self) -> None:
        loop = asyncio.get_running_loop()
        kubelet = socket_identity(self._kubelet)
        if self._plugin.streams > 0:
            self._last_watched = loop.time()
        unwatched = loop.time() - self._last_watched > self._pace.unwatched
        if kubelet is not None and kubelet == self._registered_with and not unwatched:
            return
        self._registered_with = None
        async with channel(self._kubelet) as connection:
            await REGISTER.call(connection)(
                dp.RegisterRequest(
                    version=API_VERSION,
                    endpoint=self._socket.name,
                    resource_name=self._plugin.resource,
                    options=self._plugin.options,
                ),
                timeout=_REGISTER_SECONDS,
            )
        self._registered_with = kubelet
        self._last_watched = loop.time()
        self.registrations += 1
        _LOGGER.info("%s is registered with the kubelet", self._plugin.resource)

    async def _close(self) -> None:
        self._registered_with = None
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace=None)
