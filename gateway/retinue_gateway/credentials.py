"""What the gateway has from mounted Secrets: certificates and tokens, read again when they change."""

import asyncio
import ssl
from pathlib import Path

import structlog

from retinue.access.files import Rotating, RotatingFile, ServingCertificate, Unusable, read_single_token
from retinue.access.tokens import Tenant, TokenBook, bearer_token, read_tenants, read_token_lines
from retinue_gateway.settings import GatewaySettings

_LOG = structlog.get_logger(__name__)


class Credentials:
    """Raises Unusable when it is made. Afterwards a file that cannot be used is a warning, and what was there stays."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._rotating: list[Rotating] = []
        self._api = self._certificate(settings.tls_cert_file, settings.tls_key_file)
        self._admin = self._certificate(settings.admin_tls_cert_file, settings.admin_tls_key_file)
        self.tenants: RotatingFile[TokenBook[Tenant]] | None = None
        self._scrapers: RotatingFile[TokenBook[bool]] | None = None
        self._engine: RotatingFile[str] | None = None
        if settings.tokens_file is not None:
            self.tenants = RotatingFile(settings.tokens_file, read_tenants)
            self._rotating.append(self.tenants)
        if settings.metrics_token_file is not None:
            self._scrapers = RotatingFile(settings.metrics_token_file, read_token_lines)
            self._rotating.append(self._scrapers)
        if settings.engine_token_file is not None:
            self._engine = RotatingFile(settings.engine_token_file, read_single_token)
            self._rotating.append(self._engine)
        self._complaints: dict[Rotating, str] = {}

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
        token = bearer_token(authorization)
        return self._scrapers is None or (token is not None and self._scrapers.value.find(token) is not None)

    async def keep_fresh(self, seconds: float) -> None:
        """Looks at all files again and again until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            self.refresh()

    def refresh(self) -> None:
        """Looks at all files once. Each new complaint is logged once."""
        for part in self._rotating:
            try:
                if part.refresh():
                    _LOG.info("credentials renewed", part=type(part).__name__)
                self._complaints.pop(part, None)
            except Unusable as error:
                if self._complaints.get(part) != str(error):
                    _LOG.warning("credentials not renewed, the old ones stay in use", error=str(error))
                self._complaints[part] = str(error)

    def _certificate(self, certificate: Path | None, key: Path | None) -> ServingCertificate | None:
        if certificate is None or key is None:
            return None
        made = ServingCertificate(certificate, key)
        self._rotating.append(made)
        return made
