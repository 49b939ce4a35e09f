"""Errors as OpenAI clients expect them: a status, and a JSON object with message, type, param and code."""

import json
from collections.abc import Iterable
from http import HTTPStatus

from aiohttp import web


class GatewayError(Exception):
    """A request that the gateway itself refuses.

    status: HTTP status; message: what is wrong and what to do; code: a stable word for programs; param: the body field
    at fault; retry_after: seconds, for the header of that name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, object]:
        return error_body(self.status, self.message, code=self.code, param=self.param)

    def response(self) -> web.Response:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return web.json_response(self.body(), status=self.status, headers=headers)


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> dict[str, object]:
    """The error object of the OpenAI API."""
    return {"error": {"message": message, "type": _type(status), "param": param, "code": code}}


def error_event(status: int, message: str, *, code: str) -> bytes:
    """The same as a server-sent event, for a stream that breaks after its first token."""
    return b"data: " + json.dumps(error_body(status, message, code=code)).encode() + b"\n\n"


def unknown(kind: str, name: str, known: Iterable[str], *, code: str, param: str | None = None) -> GatewayError:
    """404 for a name that does not exist, with the names that do."""
    names = sorted(known)
    listed = ", ".join(names) if names else "none"
    return GatewayError(HTTPStatus.NOT_FOUND, f"there is no {kind} {name!r}; known: {listed}", code=code, param=param)


def bad_field(param: str, message: str) -> GatewayError:
    """400 for one field of the body."""
    return GatewayError(HTTPStatus.BAD_REQUEST, message, code="invalid_value", param=param)


_TYPES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


def _type(status: int) -> str:
    default = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return _TYPES.get(status, default)
