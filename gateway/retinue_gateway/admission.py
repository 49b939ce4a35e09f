"""How much the gateway takes on at one time: requests of all, requests of one tenant, and bytes of their bodies."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from retinue_gateway.errors import GatewayError

_RETRY_AFTER_SECONDS = 1


class ClientGone(Exception):
    """The client closed its connection before the end of its answer, or took its answer too slowly."""


class Admission:
    """Counts what is under way, in one event loop.

    most: requests at one time; most_per_share: of one tenant (see Caller.share), None for no limit of its own;
    most_bytes: of bodies that are held at one time; most_body: of one body; body_seconds: in which it must have come.
    """

    def __init__(
        self, *, most: int, most_per_share: int | None, most_bytes: int, most_body: int, body_seconds: float
    ) -> None:
        self._most = most
        self._most_per_share = most_per_share
        self._most_bytes = most_bytes
        self._most_body = most_body
        self._body_seconds = body_seconds
        self._shares = Counter[str]()
        self.requests = 0
        self.held_bytes = 0

    @contextmanager
    def enter(self, share: str) -> Iterator["Place"]:
        """A place for one request. Raises GatewayError 429 when there is none."""
        if self.requests >= self._most:
            raise _too_many(f"{self.requests} requests are under way, as many as this gateway takes", "gateway_busy")
        limit = self._most_per_share
        if limit is not None and self._shares[share] >= limit:
            raise _too_many(f"{limit} requests of {share} are under way, as many as it may have", "too_many_requests")
        self.requests += 1
        self._shares[share] += 1
        place = Place(self)
        try:
            yield place
        finally:
            self.requests -= 1
            self.held_bytes -= place.bytes
            self._shares[share] -= 1
            if not self._shares[share]:
                del self._shares[share]

    def hold(self, place: "Place", total: int) -> None:
        """The place's body takes that many bytes until the request ends. Raises GatewayError 413 or 429."""
        if total > self._most_body:
            raise GatewayError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body is too large: send at most {self._most_body} bytes",
                code="body_too_large",
            )
        more = total - place.bytes
        if self.held_bytes + more > self._most_bytes:
            raise _too_many("the bodies of the requests under way take all the room that there is", "gateway_busy")
        self.held_bytes += more
        place.bytes = total

    async def read_body(self, place: "Place", request: web.Request) -> bytes:
        """The request's body. Raises GatewayError: 408 too slow, 413 too large, 429 no room, 400 broken; ClientGone."""
        if request.content_length:
            self.hold(place, request.content_length)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._body_seconds):
                while chunk := await request.content.readany():
                    size += len(chunk)
                    # Compressed bodies grow, and chunked ones have not said how long they are.
                    self.hold(place, max(size, place.bytes))
                    chunks.append(chunk)
        except TimeoutError as error:
            raise GatewayError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not come within {self._body_seconds:g} s: send it at once",
                code="body_timeout",
            ) from error
        except (web.RequestPayloadError, aiohttp.ClientPayloadError, HttpProcessingError) as error:
            raise GatewayError(
                HTTPStatus.BAD_REQUEST, "the body cannot be read as its headers say", code="invalid_body"
            ) from error
        except ConnectionError as error:
            raise ClientGone from error
        return b"".join(chunks)


class Place:
    """One request's part in what is under way."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0

    async def read_body(self, request: web.Request) -> bytes:
        """See Admission.read_body."""
        return await self._admission.read_body(self, request)


def _too_many(what: str, code: str) -> GatewayError:
    return GatewayError(HTTPStatus.TOO_MANY_REQUESTS, f"{what}: try again", code=code, retry_after=_RETRY_AFTER_SECONDS)
