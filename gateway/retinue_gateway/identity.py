"""Who sends a request: session, parent and last request, read from configurable headers."""

from dataclasses import dataclass

from multidict import MultiMapping

from retinue_gateway.headers import LONGEST_ID, checked, one_of

_TRUE = frozenset({"true", "1", "yes"})
_FALSE = frozenset({"false", "0", "no"})


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


def identify(headers: MultiMapping[str], names: HeaderNames) -> Identity:
    """Reads the identity from headers; the mapping must look names up regardless of case, as HTTP libraries' do.

    Raises GatewayError 400 that names a header whose value cannot be an id, or cannot be true or false. All of them are
    checked, not only those that count: engines get them, too.
    """
    sessions, parents = (
        [value for name in group if (value := checked(headers, name, LONGEST_ID))]
        for group in (names.session, names.parent)
    )
    final = [one_of(headers, name, _TRUE | _FALSE) in _TRUE for name in names.final]
    if not sessions:
        return Identity()
    parent = next((value for value in parents if value != sessions[0]), None)
    return Identity(session=sessions[0], parent=parent, final=any(final))
