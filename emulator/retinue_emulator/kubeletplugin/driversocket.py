"""A DRA driver's two sockets: the one where the kubelet finds it, and the one where it is served."""

from __future__ import annotations

import asyncio
import logging

import grpc

from .dradriver import DraDriver
from .paths import NodePaths
from .pluginsocket import Pace
from .proto import pluginregistration_v1_pb2 as registration
from .rpc import GET_INFO, NOTIFY, Context, SocketPathTooLong, serve, socket_identity

_LOGGER = logging.getLogger(__name__)
_TYPE = "DRAPlugin"
_SERVICES = ("v1.DRAPlugin", "v1.DRAResourceHealth")


class DriverSocket:
    """Keeps a driver served while `run` runs; the kubelet finds the registration socket by itself.

    registrations: how often a kubelet has said that it took the driver.
    refusal: what the kubelet said when it did not, empty otherwise.
    """

    def __init__(self, driver: DraDriver, paths: NodePaths, pace: Pace) -> None:
        self._driver = driver
        self._socket = paths.driver(driver.name) / "dra.sock"
        self._registration = paths.registry / f"{driver.name}-reg.sock"
        self._pace = pace
        self._servers: list[grpc.aio.Server] = []
        self._served: tuple[object, object] = (None, None)
        self._registered = False
        self.registrations = 0
        self.refusal = ""

    @property
    def ready(self) -> bool:
        """A kubelet has taken the driver."""
        return self._registered

    async def run(self) -> None:
        """Serves until cancelled; then both sockets are gone.

        Raises:
            SocketPathTooLong: the kubelet's folder has too long a path.
        """
        try:
            while True:
                try:
                    await self._keep_served()
                except SocketPathTooLong:
                    raise
                except (OSError, RuntimeError) as error:
                    _LOGGER.warning("driver %s cannot be served: %s", self._driver.name, error)
                await asyncio.sleep(self._pace.poll)
        finally:
            await self._close()

    async def _keep_served(self) -> None:
        if self._servers and self._identities() == self._served:
            return
        await self._close()
        self._socket.parent.mkdir(parents=True, exist_ok=True)
        # The driver first: the kubelet connects to it as soon as it sees the other socket.
        self._servers.append(await serve(self._socket, *self._driver.handlers()))
        answers = (GET_INFO.serve(self._info), NOTIFY.serve(self._notified))
        self._servers.append(await serve(self._registration, *answers))
        self._served = self._identities()

    def _identities(self) -> tuple[object, object]:
        return socket_identity(self._socket), socket_identity(self._registration)

    async def _info(self, _: registration.InfoRequest, __: Context) -> registration.PluginInfo:
        return registration.PluginInfo(
            type=_TYPE, name=self._driver.name, endpoint=str(self._socket), supported_versions=_SERVICES
        )

    async def _notified(
        self, status: registration.RegistrationStatus, _: Context
    ) -> registration.RegistrationStatusResponse:
        self._registered = status.plugin_registered
        self.refusal = status.error
        if status.plugin_registered:
            self.registrations += 1
            _LOGGER.info("driver %s is registered with the kubelet", self._driver.name)
        else:
            _LOGGER.warning("the kubelet refuses driver %s: %s", self._driver.name, status.error)
        return registration.RegistrationStatusResponse()

    async def _close(self) -> None:
        self._registered = False
        # The registration goes first, as the kubelet must not find a driver that no longer answers.
        while self._servers:
            await self._servers.pop().stop(grace=None)
