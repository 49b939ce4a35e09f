"""Which request headers the gateway reads or passes on, and what their values may be."""

from collections.abc import Iterable
from http import HTTPStatus

from multidict import MultiMapping

from retinue_gateway.errors import GatewayError

LONGEST_ID = 256
LONGEST_FORWARDED = 1024
# RFC 9110 section 7.6.1 (hop-by-hop), credentials, and what describes a body that the gateway writes anew.
_NEVER_FORWARDED = frozenset({
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    "authorization", "proxy-authorization", "proxy-authenticate", "cookie",
    "host", "content-length", "content-type", "content-encoding", "accept-encoding", "expect",
})  # fmt: skip


def never_forwarded(names: Iterable[str]) -> list[str]:
    """Those of the lower-case names that must not reach engines."""
    return sorted(_NEVER_FORWARDED.intersection(names))


def checked(headers: MultiMapping[str], name: str, longest: int) -> str | None:
    """The value of a header without blanks around it; None if it is not there or empty.

    Raises GatewayError 400 that names the header: sent more than once, too long, or with a character other than
    printable ASCII.
    """
    found = headers.getall(name, [])
    if not found:
        return None
    if len(found) > 1:
        raise _bad(name, f"was sent {len(found)} times: send it once")
    value = found[0].strip(" \t")
    if len(value) > longest:
        raise _bad(name, f"has {len(value)} characters: send at most {longest}")
    if not (value.isascii() and value.isprintable()):
        raise _bad(name, "holds a character that is not printable ASCII: encode the value, or use a UUID")
    return value or None


def one_of(headers: MultiMapping[str], name: str, words: Iterable[str]) -> str | None:
    """The value in lower case, one of some words. Raises GatewayError 400 that names the header and the words."""
    value = checked(headers, name, LONGEST_ID)
    known = sorted(words)
    if value is not None and value.lower() not in known:
        raise _bad(name, f"is none of {', '.join(known)}")
    return value.lower() if value is not None else None


def _bad(name: str, what: str) -> GatewayError:
    return GatewayError(HTTPStatus.BAD_REQUEST, f"the header {name} {what}", code="invalid_header", param=name)
