"""The certificate of the operator's own port and the tokens of those who may scrape it, read again when they change."""

import asyncio
import ssl
from pathlib import Path

import structlog

from retinue.access.files import RotatingFile, Rotation, ServingCertificate
from retinue.access.tokens import TokenBook, read_token_lines

# The kubelet brings a changed Secret within about a minute; reading a few small files costs nothing.
_REREAD_SECONDS = 5.0
_LOG = structlog.get_logger(__name__)


class Credentials:
    """Raises Unusable when it is made. Afterwards a file that cannot be used is a warning, and what was there stays.

    certificate, key: PEM files, None for plain HTTP; tokens: file with one bearer token per line, None for no
    authentication of scrapes.
    """

    def __init__(self, certificate: Path | None = None, key: Path | None = None, tokens: Path | None = None) -> None:
        self._certificate = ServingCertificate(certificate, key) if certificate and key else None
        self._tokens: RotatingFile[TokenBook[bool]] | None = RotatingFile(tokens, read_token_lines) if tokens else None
        self._rotation = Rotation(part for part in (self._certificate, self._tokens) if part is not None)

    @property
    def tls(self) -> ssl.SSLContext | None:
        """The context to serve with."""
        return self._certificate.context if self._certificate else None

    def may_scrape(self, authorization: str | None) -> bool:
        """Whether whoever sends this Authorization header may read /metrics."""
        return self._tokens is None or self._tokens.value.named_by(authorization) is not None

    async def keep_fresh(self) -> None:
        """Looks at all files again and again until cancelled; returns at once if there are none."""
        while self._rotation.parts:
            await asyncio.sleep(_REREAD_SECONDS)
            self.refresh()

    def refresh(self) -> None:
        """Looks at all files once. Each new complaint is logged once."""
        found = self._rotation.refresh()
        for part in found.renewed:
            _LOG.info("credentials renewed", part=part)
        for complaint in found.complaints:
            _LOG.warning("credentials not renewed, the old ones stay in use", error=complaint)
