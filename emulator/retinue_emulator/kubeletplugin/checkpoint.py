"""The claims that a DRA driver has prepared, kept in a file, because another process may have to unprepare them."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .paths import replace_file

_LOGGER = logging.getLogger(__name__)
_VERSION = 1


@dataclass(frozen=True)
class PreparedDevice:
    """One device of a prepared claim. `admin`: it was given beside its user, by administrative access."""

    request: str
    pool: str
    device: str
    share: str | None = None
    admin: bool = False


@dataclass(frozen=True)
class PreparedClaim:
    """A prepared claim."""

    namespace: str
    name: str
    uid: str
    devices: tuple[PreparedDevice, ...]


class Checkpoint:
    """Prepared claims by uid. Every change is in the file before it is answered for.

    A file that cannot be read is set aside under the suffix `.unreadable` and counts as empty: the kubelet asks for
    each claim again before it starts a container.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._claims = dict(self._read())

    def __iter__(self) -> Iterator[PreparedClaim]:
        return iter(tuple(self._claims.values()))

    def get(self, uid: str) -> PreparedClaim | None:
        """The claim, if it is prepared."""
        return self._claims.get(uid)

    def put(self, claim: PreparedClaim) -> None:
        """Remembers a claim."""
        self._write({**self._claims, claim.uid: claim})

    def remove(self, uid: str) -> None:
        """Forgets a claim; one that is not there is no error."""
        if uid in self._claims:
            self._write({known: claim for known, claim in self._claims.items() if known != uid})

    def _write(self, claims: Mapping[str, PreparedClaim]) -> None:
        body = json.dumps([asdict(claim) for claim in claims.values()], sort_keys=True)
        replace_file(self._path, json.dumps({"version": _VERSION, "crc32": _checksum(body), "claims": body}) + "\n")
        self._claims = dict(claims)

    def _read(self) -> dict[str, PreparedClaim]:
        if not self._path.exists():
            return {}
        try:
            document: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            if document["version"] != _VERSION or document["crc32"] != _checksum(document["claims"]):
                raise ValueError("wrong version or checksum")
            return {item["uid"]: _claim(item) for item in json.loads(document["claims"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            aside = self._path.with_name(f"{self._path.name}.unreadable")
            _LOGGER.warning("%s cannot be used (%s); it is kept as %s", self._path, error, aside)
            self._path.replace(aside)
            return {}


def _claim(item: Mapping[str, Any]) -> PreparedClaim:
    devices = tuple(PreparedDevice(**device) for device in item["devices"])
    return PreparedClaim(item["namespace"], item["name"], item["uid"], devices)


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())
