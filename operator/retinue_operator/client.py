"""Our seam to the API server: plain objects in and out, every failure mapped to a class of `errors`."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from retinue.plan import Manager, Manifest
from retinue_operator.access import Access, AccessError, user_agent
from retinue_operator.errors import ApiDown, Gone, Unauthorized, from_answer, one_line
from retinue_operator.fence import Fence, clock
from retinue_operator.resources import EVENT, Resource, identity, resource_of

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON = "application/json"
_NAMES = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
_LIST_TIMEOUT = aiohttp.ClientTimeout(total=120, sock_connect=5)
_PAGE = 1000

# Called after every request with verb, kind, HTTP status (0 = no answer) and seconds.
Observer = Callable[[str, str, int, float], None]
# Called with the Date header of every answer and fence.clock() before its request.
Dated = Callable[[str | None, float], None]


@dataclass(frozen=True)
class Listing:
    """A consistent list: exactly these objects existed at `resource_version`."""

    items: tuple[Manifest, ...]
    resource_version: int


class KubeClient:
    """One connection pool to the API server. `async with await KubeClient.connect(access)` closes it at the end.

    fence: what must let each write through. identity: which process this is, for the API server's audit log. dated: is
    told what time the API server has.
    """

    def __init__(
        self,
        access: Access,
        configuration: Configuration,
        observer: Observer | None = None,
        *,
        fence: Fence | None = None,
        identity: str = "",
        dated: Dated | None = None,
    ) -> None:
        self._access = access
        self._fence = fence
        self._dated = dated
        self._agent = user_agent(identity)
        self._api = self._open(configuration)
        self._renewing = asyncio.Lock()
        self._observer = observer

    @classmethod
    async def connect(
        cls,
        access: Access,
        observer: Observer | None = None,
        *,
        fence: Fence | None = None,
        identity: str = "",
        dated: Dated | None = None,
    ) -> "KubeClient":
        """Reads the credentials; talks to nobody yet. Raises AccessError."""
        configuration = await access.load()
        try:
            return cls(access, configuration, observer, fence=fence, identity=identity, dated=dated)
        except OSError as error:
            raise AccessError(f"the certificates of {access.source()} cannot be used: {one_line(error)}") from error

    async def __aenter__(self) -> "KubeClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections."""
        await self._api.rest_client.close()

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self._api.configuration.host)

    async def list(self, kind: str, namespace: str = "", label_selector: str | None = None) -> Listing:
        """All objects of a kind, in one namespace or all; without a selector the kind's own one applies."""
        resource = resource_of(kind)
        selector = resource.selector if label_selector is None else label_selector
        try:
            return await self._pages(resource, namespace, selector, _PAGE)
        except Gone as error:
            if error.status != 410:
                raise
            # The list took so long that its snapshot was compacted away: once more in a single piece.
            return await self._pages(resource, namespace, selector, 0)

    async def list_uids(self, kind: str, namespace: str = "") -> tuple[frozenset[str], int]:
        """The uids of what `list` would return, and the resource version, for a fraction of the work."""
        resource = resource_of(kind)
        found = await self._pages(resource, namespace, resource.selector, 0, accept=_NAMES)
        return frozenset(item["metadata"]["uid"] for item in found.items), found.resource_version

    async def get(self, kind: str, namespace: str, name: str) -> Manifest:
        """One object; raises NotFound."""
        return await self.request("GET", kind, resource_of(kind).path(namespace, name))

    async def create(self, manifest: Manifest) -> Manifest:
        """Creates an object; raises Conflict if it exists."""
        kind, namespace, _ = identity(manifest)
        return await self.request("POST", kind, resource_of(kind).path(namespace), body=manifest)

    async def replace(self, manifest: Manifest) -> Manifest:
        """Replaces an object; with metadata.resourceVersion only if nobody has changed it since (else Conflict)."""
        kind, namespace, name = identity(manifest)
        return await self.request("PUT", kind, resource_of(kind).path(namespace, name), body=manifest)

    async def apply(
        self, manifest: Manifest, manager: str, *, force: bool = True, subresource: str = "", dry_run: bool = False
    ) -> Manifest:
        """Server-side apply; the answer is the live object.

        With metadata.uid it never creates: Conflict if the object is another one by now. Without `force`, Conflict
        when another manager owns one of the fields.
        """
        kind, namespace, name = identity(manifest)
        query = {"fieldManager": str(manager), "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        path = resource_of(kind).path(namespace, name, subresource)
        return await self.request("PATCH", kind, path, query=query, body=manifest, content_type=_APPLY)

    async def apply_status(self, manifest: Manifest) -> Manifest:
        """Server-side apply of the status subresource as its only writer."""
        return await self.apply(manifest, Manager.STATUS, force=True, subresource="status")

    async def delete(
        self,
        kind: str,
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        version: str | None = None,
        grace_seconds: int | None = None,
    ) -> Manifest:
        """Deletes exactly the object with that uid; the answer is the object, or a Status when it is gone at once.

        Raises NotFound, or Conflict when another object has taken the name or, with `version`, when it is not of that
        resource version any more.
        """
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        conditions = {"uid": uid, "resourceVersion": version}
        if met := {name: value for name, value in conditions.items() if value is not None}:
            options["preconditions"] = met
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return await self.request("DELETE", kind, resource_of(kind).path(namespace, name), body=options)

    async def create_event(self, manifest: Manifest) -> Manifest:
        """Creates an events.k8s.io/v1 Event."""
        return await self.create(manifest)

    async def patch_event(self, namespace: str, name: str, patch: Manifest) -> Manifest:
        """Merge-patches an Event (its series)."""
        path = EVENT.path(namespace, name)
        return await self.request("PATCH", EVENT.kind, path, body=patch, content_type=_MERGE)

    async def read(self, path: str) -> Manifest:
        """A GET of any path, for discovery and version."""
        return await self.request("GET", "", path)

    async def request(
        self,
        method: str,
        kind: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        timeout: aiohttp.ClientTimeout = _TIMEOUT,
    ) -> Manifest:
        """One request; refused credentials are read again once. Raises a KubeError, never an aiohttp error."""
        target = quote(path) + (f"?{urlencode(query)}" if query else "")
        api = self._api
        try:
            return await self._once(api, method, kind, target, body, content_type, accept, timeout)
        except Unauthorized:
            await self._renew(api)
            return await self._once(self._api, method, kind, target, body, content_type, accept, timeout)

    async def _once(
        self,
        api: ApiClient,
        method: str,
        kind: str,
        target: str,
        body: Manifest | None,
        content_type: str,
        accept: str,
        timeout: aiohttp.ClientTimeout,
    ) -> Manifest:
        headers = {"Accept": accept, "Content-Type": content_type, **api.default_headers}
        started, since = time.monotonic(), clock()
        status = 0
        try:
            await api.update_params_for_auth(headers, [], ["BearerToken"], target, method, body)
            answer = await api.call_api(
                method, api.configuration.host + target, header_params=headers, body=body, _request_timeout=timeout
            )
            status = answer.status
            if self._dated is not None:
                self._dated(answer.headers.get("Date"), since)
            content: bytes = await answer.response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self._fence is not None:
                # aiohttp makes a lost connection of what the fence said before the body.
                self._fence.check(method)
            raise ApiDown(f"{api.configuration.host} does not answer: {one_line(error)}") from error
        finally:
            if self._observer is not None:
                self._observer(method, kind, status, time.monotonic() - started)
        try:
            parsed = json.loads(content) if content else {}
        except ValueError as error:
            if status < 400:
                raise ApiDown(f"{api.configuration.host} answered with something else than JSON") from error
            # Proxies and an API server that is going down answer with plain text.
            parsed = {"message": content.decode(errors="replace")[:256]}
        if status >= 400:
            raise from_answer(status, parsed, answer.headers)
        return parsed if isinstance(parsed, dict) else {"items": parsed}

    async def _pages(
        self, resource: Resource, namespace: str, selector: str, page: int, accept: str = _JSON
    ) -> Listing:
        query = {"limit": str(page)} if page else {}
        if selector:
            query["labelSelector"] = selector
        items: list[Manifest] = []
        while True:
            path = resource.path(namespace if resource.namespaced else "")
            found = await self.request("GET", resource.kind, path, query=query, accept=accept, timeout=_LIST_TIMEOUT)
            try:
                # Items of a list come without type: every object in this program has one. No items may be null.
                items += [
                    {**item, "apiVersion": resource.api_version, "kind": resource.kind} for item in found["items"] or []
                ]
                token, version = found["metadata"].get("continue"), int(found["metadata"]["resourceVersion"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ApiDown(f"{self.server} answered {path} with something else than a list") from error
            if not token:
                return Listing(tuple(items), version)
            query["continue"] = token

    async def _renew(self, refused: ApiClient) -> None:
        async with self._renewing:
            if self._api is not refused:
                return
            try:
                self._api = self._open(await self._access.load())
            except (AccessError, OSError) as error:
                raise Unauthorized(f"credentials refused and not readable again: {one_line(error)}", 401) from error
            await refused.rest_client.close()

    def _open(self, configuration: Configuration) -> ApiClient:
        if self._fence is not None:
            configuration.trace_configs = [self._fence.trace()]
        api = ApiClient(configuration)
        api.user_agent = self._agent
        if self._fence is not None:
            api.rest_client = _Fenced(configuration, self._fence)
        return api


class _Fenced(RESTClientObject):
    """Connections whose kernel does not keep a write for long that it cannot deliver."""

    def __init__(self, configuration: Configuration, fence: Fence) -> None:
        super().__init__(configuration)
        self._fence = fence

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=self.maxsize, ssl=self.ssl_context, socket_factory=self._fence.open_socket)
