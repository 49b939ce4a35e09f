"""A thin client of the Kubernetes API: JSON objects over one aiohttp session, credentials from a kubeconfig."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import config as kubeconfig
from kubernetes.aio.client import Configuration

JsonObject = dict[str, Any]

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"

# The package's loaders carry no annotations.
_LOAD_FILE: Callable[..., Awaitable[object]] = kubeconfig.load_kube_config
_LOAD_ANY: Callable[..., Awaitable[object]] = kubeconfig.load_config

_REQUEST_SECONDS = 30.0
_CONNECTIONS = 64
# A pod list of a large cluster is one long line of a watch, far beyond aiohttp's default of 64 KiB.
_LINE_LIMIT = 4 * 2**20


class ApiError(Exception):
    """The API server refused a request. `status` is the HTTP code, `reason` the machine-readable reason."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason

    @property
    def gone(self) -> bool:
        """The object, or the history that a watch asked for, does not exist (any more)."""
        return self.status in (404, 410)

    @property
    def conflict(self) -> bool:
        """The object exists already, or is not the one that the request meant."""
        return self.status == 409


# What a request can end with when the API server is down, restarting or overloaded: try again later.
TRANSIENT_ERRORS = (aiohttp.ClientError, TimeoutError, ConnectionError)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later without anybody changing anything."""
    if isinstance(error, ApiError):
        return error.status == 429 or error.status >= 500
    return isinstance(error, TRANSIENT_ERRORS)


class ApiServer:
    """One API server. Use as an async context manager, or call `close`.

    requests: number of requests so far by (method, kind of answer); the plugin shows them as metrics.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._session: aiohttp.ClientSession | None = None
        self.requests: dict[tuple[str, str], int] = {}

    @classmethod
    async def connect(cls, kubeconfig_path: Path | None = None) -> ApiServer:
        """A client for the given kubeconfig; None means $KUBECONFIG, ~/.kube/config, or the pod's service account.

        Raises:
            kubernetes.aio.config.ConfigException: there is no usable configuration.
        """
        configuration = Configuration()
        if kubeconfig_path is not None:
            await _LOAD_FILE(str(kubeconfig_path), client_configuration=configuration)
        else:
            await _LOAD_ANY(client_configuration=configuration)
        return cls(configuration)

    async def __aenter__(self) -> ApiServer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        """One request and its JSON answer.

        Raises:
            ApiError: the API server answered with an error.
            aiohttp.ClientError, TimeoutError: it did not answer.
        """
        headers = {**await self._headers(), "Content-Type": content_type}
        timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
        data = None if body is None else json.dumps(body).encode()
        try:
            async with self._open().request(
                method, self._url(path), data=data, params=params, headers=headers, timeout=timeout
            ) as response:
                text = await response.text()
                self._count(method, str(response.status))
                if response.status >= 400:
                    raise _api_error(response.status, text)
                answer = json.loads(text)
        except TRANSIENT_ERRORS:
            self._count(method, "none")
            raise
        if not isinstance(answer, dict):
            raise ApiError(response.status, "NotAnObject", text[:200])
        return answer

    async def get(self, path: str, **params: str) -> JsonObject:
        """GET with query parameters."""
        return await self.request("GET", path, params=params)

    async def create(self, path: str, body: JsonObject) -> JsonObject:
        """POST of a new object to its collection."""
        return await self.request("POST", path, body=body)

    async def patch(self, path: str, body: JsonObject, *, content_type: str = STRATEGIC_PATCH) -> JsonObject:
        """PATCH of one object or subresource."""
        return await self.request("PATCH", path, body=body, content_type=content_type)

    async def delete(self, path: str, *, uid: str | None = None, grace_seconds: int | None = None) -> None:
        """DELETE of one object; only of the one with `uid`. An object that is gone already is no error."""
        body: JsonObject = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self.request("DELETE", path, body=body)
        except ApiError as error:
            # A conflict means that another object has taken the name, so the one that was meant is gone too.
            if not error.gone and not error.conflict:
                raise

    async def watch(self, path: str, *, idle_seconds: float, **params: str) -> AsyncIterator[JsonObject]:
        """Watch events until the server ends the stream; `idle_seconds` without any byte counts as a lost connection.

        Raises:
            ApiError: refused, or an ERROR event (status 410: the resource version is too old).
            aiohttp.ClientError, TimeoutError: the connection broke.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_SECONDS, sock_read=idle_seconds)
        query = {"watch": "true", "allowWatchBookmarks": "true", **params}
        async with self._open().get(
            self._url(path), params=query, headers=await self._headers(), timeout=timeout
        ) as response:
            self._count("WATCH", str(response.status))
            if response.status >= 400:
                raise _api_error(response.status, await response.text())
            async for line in response.content:
                event: JsonObject = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(int(status.get("code", 500)), status.get("reason", ""), status.get("message", ""))
                yield event

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls(), limit=_CONNECTIONS), read_bufsize=_LINE_LIMIT
            )
        return self._session

    def _tls(self) -> ssl.SSLContext:
        config = self._configuration
        context = ssl.create_default_context(cafile=config.ssl_ca_cert)
        if config.cert_file:
            context.load_cert_chain(config.cert_file, keyfile=config.key_file)
        if not config.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    async def _headers(self) -> dict[str, str]:
        # Asked for at each request: the loader renews tokens that expire.
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        return {"Accept": "application/json"} | ({"Authorization": token} if token else {})

    def _url(self, path: str) -> str:
        return f"{self._configuration.host}{path}"

    def _count(self, method: str, answer: str) -> None:
        self.requests[method, answer] = self.requests.get((method, answer), 0) + 1


def _api_error(status: int, text: str) -> ApiError:
    try:
        answer = json.loads(text)
    except ValueError:
        return ApiError(status, "", text[:200])
    if not isinstance(answer, dict):
        return ApiError(status, "", text[:200])
    return ApiError(status, str(answer.get("reason", "")), str(answer.get("message", "")))
