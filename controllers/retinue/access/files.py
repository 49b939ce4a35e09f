"""Files that are read again when they have changed: certificates and tokens of mounted Secrets, which rotate.

The kubelet replaces a mounted Secret by swapping a symbolic link, so contents are compared and not times or inodes.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Unusable(Exception):
    """A file cannot be read or used. The message names the file and what to do, and shows none of its content."""


class Rotating(Protocol):
    """Something that comes from files."""

    def refresh(self) -> bool:
        """Reads the files again; true if something new is in use. Raises Unusable, and goes on with what it had."""
        ...


class RotatingFile(Generic[T]):
    """What one text file says, by `read`, which raises ValueError on nonsense. Raises Unusable when it is made."""

    def __init__(self, path: Path, read: Callable[[str], T]) -> None:
        self._path = path
        self._read = read
        self._content: bytes | None = None
        self.value: T
        self.refresh()

    def refresh(self) -> bool:
        """See Rotating."""
        [content] = _contents([self._path])
        if content == self._content:
            return False
        try:
            value = self._read(content.decode())
        except UnicodeDecodeError:
            raise Unusable(f"{self._path} is not a text in UTF-8") from None
        except ValueError as error:
            raise Unusable(f"{self._path}: {error}") from None
        self.value, self._content = value, content
        return True


class ServingCertificate:
    """A server's certificate and key as a TLS context (1.2 or newer) that new connections use. Raises Unusable when it
    is made.

    certificate: PEM file with the chain, the server's own first; key: PEM file of its key, not encrypted.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._content: list[bytes] | None = None
        self.context = _server_context()
        self.refresh()

    def refresh(self) -> bool:
        """See Rotating. Connections that are open go on with the certificate that they began with."""
        content = _contents(self._files)
        if content == self._content:
            return False
        certificate, key = self._files
        try:
            # Into a context that nobody uses first: a pair that does not match would spoil the live one.
            for context in (_server_context(), self.context):
                context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise Unusable(
                f"{certificate} and {key} are not a certificate and its key in PEM form, without a password:"
                f" {getattr(error, 'reason', None) or type(error).__name__}"
            ) from None
        self._content = content
        return True


@dataclass(frozen=True)
class Refreshed:
    """What one look at the files has found. renewed: the classes of what is new in use; complaints: each new one once,
    without any content of a file."""

    renewed: tuple[str, ...]
    complaints: tuple[str, ...]


class Rotation:
    """All that a process has from files, looked at together."""

    def __init__(self, parts: Iterable[Rotating]) -> None:
        self.parts = tuple(parts)
        self._complaints: dict[Rotating, str] = {}

    def refresh(self) -> Refreshed:
        """Looks at all files once. What cannot be used is a complaint, and what was there stays."""
        renewed: list[str] = []
        complaints: list[str] = []
        for part in self.parts:
            try:
                if part.refresh():
                    renewed.append(type(part).__name__)
                self._complaints.pop(part, None)
            except Unusable as error:
                if self._complaints.get(part) != str(error):
                    complaints.append(str(error))
                self._complaints[part] = str(error)
        return Refreshed(tuple(renewed), tuple(complaints))


def read_single_token(text: str) -> str:
    """The one token that a file holds, for a client to send. Raises ValueError without showing it."""
    token = text.strip()
    if not token or any(not "!" <= character <= "~" for character in token):
        raise ValueError("it must hold one token in printable ASCII and nothing else")
    return token


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _no_password() -> str:
    # Without this OpenSSL would ask on the terminal, and wait.
    raise ValueError("the key is encrypted")


def _contents(paths: Sequence[Path]) -> list[bytes]:
    found = []
    for path in paths:
        try:
            found.append(path.read_bytes())
        except OSError as error:
            raise Unusable(f"cannot read {path}: {error.strerror or type(error).__name__}") from None
    return found
