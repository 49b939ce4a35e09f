"""The gRPC methods between kubelet and plugin, with their types, and how to serve and call them over unix sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import grpc
from google.protobuf.message import Message

from .proto import deviceplugin_v1beta1_pb2 as dp
from .proto import dra_v1_pb2 as dra
from .proto import drahealth_v1_pb2 as health
from .proto import pluginregistration_v1_pb2 as registration
from .proto import podresources_v1_pb2 as podresources

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Context = grpc.aio.ServicerContext[Any, Any]

# sun_path has 108 bytes with the closing zero (Linux, unix(7)).
_LONGEST_SOCKET_PATH = 107
_CHANNEL_OPTIONS = (
    # A channel of its own: a shared one would carry the back-off of the kubelet's earlier life into its next.
    ("grpc.use_local_subchannel_pool", 1),
    # A proxy of the environment is for networks, never for a socket on this machine.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True)
class Method(Generic[Request, Response]):
    """One method: its path on the wire, its messages, and whether it answers with a stream."""

    service: str
    name: str
    request: type[Request]
    response: type[Response]

    def call(self, channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable[Request, Response]:
        """A callable for the method if it answers once."""
        return channel.unary_unary(
            f"/{self.service}/{self.name}",
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )

    def stream(self, channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamMultiCallable[Request, Response]:
        """A callable for the method if it answers with a stream."""
        return channel.unary_stream(
            f"/{self.service}/{self.name}",
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.response.FromString,
        )

    def serve(self, answer: Callable[[Request, Context], Awaitable[Response]]) -> Handler:
        """What a server needs to answer the method once."""
        handler = grpc.unary_unary_rpc_method_handler(
            cast("Any", answer),
            request_deserializer=self.request.FromString,
            response_serializer=self.response.SerializeToString,
        )
        return Handler(self.service, self.name, handler)

    def serve_stream(self, answer: Callable[[Request, Context], AsyncIterator[Response]]) -> Handler:
        """What a server needs to answer the method with a stream."""
        handler = grpc.unary_stream_rpc_method_handler(
            cast("Any", answer),
            request_deserializer=self.request.FromString,
            response_serializer=self.response.SerializeToString,
        )
        return Handler(self.service, self.name, handler)


@dataclass(frozen=True)
class Handler:
    """A method bound to the function that answers it."""

    service: str
    name: str
    handler: grpc.RpcMethodHandler[Any, Any]


_PLUGIN = "v1beta1.DevicePlugin"
_DRA = "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"
_INFO = "pluginregistration.Registration"

REGISTER = Method("v1beta1.Registration", "Register", dp.RegisterRequest, dp.Empty)
OPTIONS = Method(_PLUGIN, "GetDevicePluginOptions", dp.Empty, dp.DevicePluginOptions)
LIST_AND_WATCH = Method(_PLUGIN, "ListAndWatch", dp.Empty, dp.ListAndWatchResponse)
PREFERRED = Method(_PLUGIN, "GetPreferredAllocation", dp.PreferredAllocationRequest, dp.PreferredAllocationResponse)
ALLOCATE = Method(_PLUGIN, "Allocate", dp.AllocateRequest, dp.AllocateResponse)
PRE_START = Method(_PLUGIN, "PreStartContainer", dp.PreStartContainerRequest, dp.PreStartContainerResponse)

GET_INFO = Method(_INFO, "GetInfo", registration.InfoRequest, registration.PluginInfo)
NOTIFY = Method(
    _INFO, "NotifyRegistrationStatus", registration.RegistrationStatus, registration.RegistrationStatusResponse
)
PREPARE = Method(_DRA, "NodePrepareResources", dra.NodePrepareResourcesRequest, dra.NodePrepareResourcesResponse)
UNPREPARE = Method(
    _DRA, "NodeUnprepareResources", dra.NodeUnprepareResourcesRequest, dra.NodeUnprepareResourcesResponse
)
WATCH_HEALTH = Method(
    "v1.DRAResourceHealth", "NodeWatchResources", health.NodeWatchResourcesRequest, health.NodeWatchResourcesResponse
)
LIST_PODS = Method(
    "v1.PodResourcesLister", "List", podresources.ListPodResourcesRequest, podresources.ListPodResourcesResponse
)


class SocketPathTooLong(ValueError):
    """A unix socket cannot have this path."""


def channel(socket: Path) -> grpc.aio.Channel:
    """A client channel to a unix socket; close it after use."""
    return grpc.aio.insecure_channel(f"unix:{socket}", options=_CHANNEL_OPTIONS)


async def serve(socket: Path, *handlers: Handler) -> grpc.aio.Server:
    """A started server on a unix socket, whose stale file is removed first; stopping it removes the file again.

    Raises:
        SocketPathTooLong: the path does not fit a socket address.
        OSError, RuntimeError: the socket cannot be bound.
    """
    if len(bytes(socket)) > _LONGEST_SOCKET_PATH:
        raise SocketPathTooLong(f"{socket} has more than {_LONGEST_SOCKET_PATH} bytes; use shorter folder names")
    remove_socket(socket)
    # grpc.aio, because a server on threads gives one thread to each ListAndWatch for as long as it lasts.
    server = grpc.aio.server()
    by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for handler in handlers:
        by_service.setdefault(handler.service, {})[handler.name] = handler.handler
    server.add_generic_rpc_handlers([_generic(service, methods) for service, methods in by_service.items()])
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    return server


def remove_socket(socket: Path) -> None:
    """Removes a socket file that an earlier process left behind, if there is one."""
    socket.unlink(missing_ok=True)


def socket_identity(path: Path) -> tuple[int, int] | None:
    """What changes when the socket file is made anew; None when there is none. An inode number alone is reused."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_ctime_ns


def _generic(service: str, methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(service, dict(methods))
