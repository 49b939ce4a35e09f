"""What can go wrong when talking to the API server, classified once, and what follows from each class."""

import math
from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import Any, ClassVar

import aiohttp

# Somebody who asks for more than that has made a mistake, and an object would be forgotten over it.
_LONGEST_WAIT = 300.0


class ErrorClass(StrEnum):
    """The reason that condition, event, log line and metric share when a reconcile or a write fails."""

    CONFLICT = "Conflict"
    NAME_TAKEN = "NameTaken"
    GONE = "Gone"
    THROTTLED = "Throttled"
    API_DOWN = "ApiDown"
    WAITING = "WaitingForDependency"
    FORBIDDEN = "Forbidden"
    INVALID_OBJECT = "InvalidObject"
    NOT_LEADING = "NotLeading"
    UNEXPECTED = "UnexpectedError"


class Behaviour(Enum):
    """What the work queue does with a key whose reconcile failed."""

    BACK_OFF = "retry with exponential back-off"
    AFTER = "retry when the server asked for it"
    DROP = "forget it: the object is no more"
    TERMINAL = "wait until the object or something it depends on changes"


BEHAVIOUR: Mapping[ErrorClass, Behaviour] = {
    ErrorClass.CONFLICT: Behaviour.BACK_OFF,
    # Its owner may rename or remove it, and no watch of ours will tell.
    ErrorClass.NAME_TAKEN: Behaviour.BACK_OFF,
    ErrorClass.GONE: Behaviour.DROP,
    ErrorClass.THROTTLED: Behaviour.AFTER,
    ErrorClass.API_DOWN: Behaviour.BACK_OFF,
    ErrorClass.WAITING: Behaviour.BACK_OFF,
    # Rights are often granted minutes after the operator was started.
    ErrorClass.FORBIDDEN: Behaviour.BACK_OFF,
    ErrorClass.INVALID_OBJECT: Behaviour.TERMINAL,
    # The process is about to end.
    ErrorClass.NOT_LEADING: Behaviour.BACK_OFF,
    ErrorClass.UNEXPECTED: Behaviour.BACK_OFF,
}

# Classes that a user has to do something about; the others pass.
NEEDS_ATTENTION = frozenset(
    {ErrorClass.NAME_TAKEN, ErrorClass.FORBIDDEN, ErrorClass.INVALID_OBJECT, ErrorClass.UNEXPECTED}
)


class KubeError(Exception):
    """The API server refused a request; `status` is the HTTP code, the text is the server's own message."""

    error_class: ClassVar[ErrorClass] = ErrorClass.UNEXPECTED

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Conflict(KubeError):
    """Somebody else changed, owns or already created the object."""

    error_class = ErrorClass.CONFLICT


class NameTaken(Conflict):
    """The name that an object of ours should have belongs to an object that is not ours."""

    error_class = ErrorClass.NAME_TAKEN


class Gone(KubeError):
    """The object, its namespace or the resource version asked for does not exist any more."""

    error_class = ErrorClass.GONE


class NotFound(Gone):
    """There is no such object, or no such kind."""


class Throttled(KubeError):
    """The server asks to come back in `retry_after` seconds."""

    error_class = ErrorClass.THROTTLED

    def __init__(self, message: str, status: int = 429, retry_after: float = 1.0) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


class ApiDown(KubeError):
    """The server did not answer, or answered that it cannot."""

    error_class = ErrorClass.API_DOWN


class NotLeading(KubeError):
    """This process has no right to write (any more), so the request was not sent."""

    error_class = ErrorClass.NOT_LEADING


class Unauthorized(ApiDown):
    """The credentials were refused, even after reading them again."""


class Waiting(KubeError):
    """Something that the object needs does not exist yet, such as the service account of a new namespace."""

    error_class = ErrorClass.WAITING


class Forbidden(KubeError):
    """The service account lacks a right; the message says which."""

    error_class = ErrorClass.FORBIDDEN


class InvalidObject(KubeError):
    """The object violates its schema; the message names the field."""

    error_class = ErrorClass.INVALID_OBJECT


_BY_STATUS: Mapping[int, type[KubeError]] = {
    400: InvalidObject,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: InvalidObject,
}


def from_answer(status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> KubeError:
    """The error for an HTTP answer of 400 or more; `body` is the Status object, or empty if it was no JSON."""
    message = str(body.get("message") or body.get("reason") or f"HTTP {status}")
    details = body.get("details") or {}
    causes = {cause.get("reason") for cause in details.get("causes") or []}
    if status == 429:
        return Throttled(message, status, _wait(headers.get("Retry-After"), details.get("retryAfterSeconds")))
    if "NamespaceTerminating" in causes:
        return Gone(message, status)
    if status == 403 and "error looking up service account" in message:
        # Admission of pods; the controller manager makes the account moments after the namespace.
        return Waiting(message, status)
    if "typed patch object" in message:
        # Server-side apply says 500 to a field of the wrong type; no repetition will change that.
        return InvalidObject(message, status)
    if status >= 500:
        return ApiDown(message, status)
    return _BY_STATUS.get(status, KubeError)(message, status)


def _wait(*told: object) -> float:
    """The first of the given times that is a number of seconds, within reason; a date or nonsense is a second."""
    for text in told:
        try:
            seconds = float(str(text))
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, _LONGEST_WAIT)
    return 1.0


def classify(error: BaseException) -> ErrorClass:
    """The class of any exception that a reconcile may raise."""
    if isinstance(error, KubeError):
        return error.error_class
    if isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
        return ErrorClass.API_DOWN
    return ErrorClass.UNEXPECTED


def retry_after(error: BaseException) -> float | None:
    """Seconds that the server asked to wait, or None."""
    return error.retry_after if isinstance(error, Throttled) else None


def one_line(error: BaseException) -> str:
    """The text of an exception on one line, never empty."""
    return " ".join(str(error).split()) or type(error).__name__
