"""Bearer tokens and whom they name, read from the text of a mounted Secret. No message of this module shows a token."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import yaml

T = TypeVar("T")

ALL_NAMESPACES = "*"
SHORTEST_TOKEN = 16
LONGEST_TOKEN = 512
# The characters that RFC 6750 section 2.1 allows in a bearer token.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_FIELDS = frozenset({"name", "namespaces", "tokens", "cacheGroup"})


class BadTokens(ValueError):
    """A file of tokens cannot be used. The message says what is wrong and where, and never what a token is."""


@dataclass(frozen=True)
class Tenant:
    """Somebody who calls. namespaces: those that it may use, None for all; cache_group: tenants of one group may hit
    each other's cached prefixes, None for a tenant that shares with nobody."""

    name: str
    namespaces: frozenset[str] | None
    cache_group: str | None = None

    def may_use(self, namespace: str) -> bool:
        """Whether the tenant may see and call what is in a namespace."""
        return self.namespaces is None or namespace in self.namespaces


class TokenBook(Generic[T]):
    """Tokens and what each stands for. Only digests are kept."""

    def __init__(self, holders: Iterable[tuple[str, T]] = ()) -> None:
        """Raises BadTokens if two entries have the same token."""
        self._holders: dict[bytes, T] = {}
        for token, holder in holders:
            digest = _digest(token)
            if digest in self._holders:
                raise BadTokens("the same token is there twice: every token must name one holder")
            self._holders[digest] = holder

    def __len__(self) -> int:
        return len(self._holders)

    def find(self, token: str) -> T | None:
        """What the token stands for, None for an unknown one. How long it takes tells nothing of how near it was."""
        digest, found = _digest(token), None
        for known, holder in self._holders.items():
            if hmac.compare_digest(known, digest):
                found = holder
        return found

    def named_by(self, authorization: str | None) -> T | None:
        """What the bearer token of an Authorization header stands for, None without one or for an unknown one."""
        token = bearer_token(authorization)
        return None if token is None else self.find(token)


def bearer_token(authorization: str | None) -> str | None:
    """The token of an Authorization header, None if it has none or another scheme (RFC 6750 section 2.1)."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def read_tenants(text: str) -> TokenBook[Tenant]:
    """From YAML or JSON: tenants, each with a name, the namespaces that it may use ("*" for all), its tokens (several,
    so that one can be replaced while the other still works) and perhaps a cacheGroup. Raises BadTokens."""
    entries = _entries(text)
    holders: list[tuple[str, Tenant]] = []
    names: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"tenants[{index}]"
        if not isinstance(entry, dict):
            raise BadTokens(f"{where} must be an object with name, namespaces and tokens")
        unknown = sorted(map(str, entry.keys() - _FIELDS))
        if unknown:
            raise BadTokens(f"{where} has {len(unknown)} unknown fields; known are {', '.join(sorted(_FIELDS))}")
        name = _name(entry.get("name"), f"{where}.name")
        if name in names:
            raise BadTokens(f"{where}.name: there are two tenants {name!r}: list all tokens of a tenant in one entry")
        names.add(name)
        group = entry.get("cacheGroup")
        tenant = Tenant(
            name,
            _namespaces(entry.get("namespaces"), f"{where}.namespaces"),
            None if group is None else _name(group, f"{where}.cacheGroup"),
        )
        holders += [(token, tenant) for token in _tokens(entry.get("tokens"), f"{where}.tokens")]
    return TokenBook(holders)


def read_token_lines(text: str) -> TokenBook[bool]:
    """From one token per line; empty lines and lines that begin with # are skipped. Raises BadTokens."""
    lines = [line.strip() for line in text.splitlines()]
    tokens = [line for line in lines if line and not line.startswith("#")]
    return TokenBook((token, True) for token in _tokens(tokens, "tokens"))


def _entries(text: str) -> list[Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        # The error's own text quotes the line, and with it perhaps a token.
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise BadTokens(f"it is neither YAML nor JSON{place}") from None
    entries = document.get("tenants") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BadTokens("it must be an object whose `tenants` is a list with at least one entry")
    return entries


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise BadTokens(f"{where} must be 1 to 63 lower-case letters, digits and dashes, with no dash at the ends")
    return value


def _namespaces(value: object, where: str) -> frozenset[str] | None:
    if value == [ALL_NAMESPACES]:
        return None
    if not isinstance(value, list) or not value:
        raise BadTokens(f'{where} must be a list of namespaces, or ["{ALL_NAMESPACES}"] for all')
    return frozenset(_name(item, f"{where}[{index}]") for index, item in enumerate(value))


def _tokens(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise BadTokens(f"{where} must hold at least one token")
    for index, token in enumerate(value):
        if not isinstance(token, str) or not SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
            raise BadTokens(f"{where}[{index}] must be a text of {SHORTEST_TOKEN} to {LONGEST_TOKEN} characters")
        if not _TOKEN.fullmatch(token):
            raise BadTokens(f"{where}[{index}] holds a character that no bearer token may have (RFC 6750)")
    return value


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
