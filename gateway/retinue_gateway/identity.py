"""Who sends a request: session, parent and last request, read from configurable headers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

# Session ids are kept in a table; a longer one is replaced by its digest, so that a caller cannot fill the memory.
_LONGEST_ID = 128
_TRUE = frozenset({"true", "1", "yes"})


@dataclass(frozen=True)
class HeaderNames:
    """Lower-case header names, in order of preference."""

    session: tuple[str, ...]
    parent: tuple[str, ...]
    final: tuple[str, ...]

    @property
    def all(self) -> frozenset[str]:
        return frozenset(self.session + self.parent + self.final)


@dataclass(frozen=True)
class Identity:
    """session: None for a request of its own; parent: the session that started this one; final: its last request."""

    session: str | None = None
    parent: str | None = None
    final: bool = False


def identify(headers: Mapping[str, str], names: HeaderNames) -> Identity:
    """Reads the identity from headers; the mapping must look names up regardless of case, as HTTP libraries' do."""
    session = next((value for value in _values(headers, names.session)), None)
    if session is None:
        return Identity()
    parent = next((value for value in _values(headers, names.parent) if value != session), None)
    final = any(value.lower() in _TRUE for value in _values(headers, names.final))
    return Identity(session=session, parent=parent, final=final)


def _values(headers: Mapping[str, str], names: tuple[str, ...]) -> list[str]:
    found = (headers.get(name, "").strip() for name in names)
    return [_bounded(value) for value in found if value]


def _bounded(value: str) -> str:
    return value if len(value) <= _LONGEST_ID else "sha256:" + hashlib.sha256(value.encode()).hexdigest()
