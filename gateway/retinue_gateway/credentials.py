"""What the gateway has from mounted Secrets: certificates and tokens, read again when they change."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from retinue.access.files import RotatingFile, Rotation, ServingCertificate, read_single_token
from retinue.access.tokens import read_tenants, read_token_lines
from retinue_gateway.settings import GatewaySettings

T = TypeVar("T")

_LOG = structlog.get_logger(__name__)


class Credentials:
    """Raises Unusable when it is made. Afterwards a file that cannot be used is a warning, and what was there stays."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._api = _certificate(settings.tls_cert_file, settings.tls_key_file)
        self._admin = _certificate(settings.admin_tls_cert_file, settings.admin_tls_key_file)
        self.tenants = _file(settings.tokens_file, read_tenants)
        self._scrapers = _file(settings.metrics_token_file, read_token_lines)
        self._engine = _file(settings.engine_token_file, read_single_token)
        parts = (self._api, self._admin, self.tenants, self._scrapers, self._engine)
        self._rotation = Rotation(part for part in parts if part is not None)

    @property
    def api_tls(self) -> ssl.SSLContext | None:
        return self._api.context if self._api else None

    @property
    def admin_tls(self) -> ssl.SSLContext | None:
        return self._admin.context if self._admin else None

    def engine_token(self) -> str | None:
        """What the gateway sends to engines."""
        return self._engine.value if self._engine else None

    def may_scrape(self, authorization: str | None) -> bool:
        """Whether whoever sends this Authorization header may read /metrics."""
        return self._scrapers is None or self._scrapers.value.named_by(authorization) is not None

    async def keep_fresh(self, seconds: float) -> None:
        """Looks at all files again and again until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            self.refresh()

    def refresh(self) -> None:
        """Looks at all files once. Each new complaint is logged once."""
        found = self._rotation.refresh()
        for part in found.renewed:
            _LOG.info("credentials renewed", part=part)
        for complaint in found.complaints:
            _LOG.warning("credentials not renewed, the old ones stay in use", error=complaint)


def _certificate(certificate: Path | None, key: Path | None) -> ServingCertificate | None:
    return ServingCertificate(certificate, key) if certificate and key else None


def _file(path: Path | None, read: Callable[[str], T]) -> RotatingFile[T] | None:
    return RotatingFile(path, read) if path else None
