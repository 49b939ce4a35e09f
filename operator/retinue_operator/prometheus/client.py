"""A client of Prometheus' HTTP API for instant queries: bounded in time and size, with classified errors."""

import json
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from retinue_operator.bodies import read_at_most

_CONNECT_SECONDS = 2.0
_SHORTEST_SECRET = 6


class PrometheusError(Exception):
    """A query has no result; the message says why in one line."""


class Unreachable(PrometheusError):
    """No answer: refused, reset, no such host. Other queries will fare the same."""


class TooSlow(PrometheusError):
    """No answer in time; other queries may still be answered."""


class Denied(PrometheusError):
    """The server wants other credentials (401, 403), or ours cannot be read."""


class Refused(PrometheusError):
    """The server understood and said no: a wrong query, too many samples, its own time limit."""


class BadAnswer(PrometheusError):
    """Not an answer of Prometheus: a proxy's page, broken JSON, a missing field."""


class WrongType(PrometheusError):
    """The result is not an instant vector or scalar."""


class TooLarge(PrometheusError):
    """The answer exceeds the bound; a query without grouping, or a wrong server."""


@dataclass(frozen=True)
class PrometheusSettings:
    """Where Prometheus is and how to talk to it.

    url: base address, with the path prefix if there is one. At most one of basic (user, password), basic_file (user,
    file with the password), bearer and bearer_file is set; files are read for each request, because Secrets and
    projected tokens rotate. headers: more of them, such as X-Scope-OrgID. ca_file: PEM of the authorities to trust
    instead of the system's. client_cert: PEM files of a certificate and its key. timeout in seconds.
    """

    url: str
    timeout: float = 5.0
    basic: tuple[str, str] | None = field(default=None, repr=False)
    basic_file: tuple[str, Path] | None = None
    bearer: str | None = field(default=None, repr=False)
    bearer_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_file: Path | None = None
    client_cert: tuple[Path, Path] | None = None
    verify: bool = True
    max_bytes: int = 8 * 1024 * 1024

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.basic, self.basic_file, self.bearer, self.bearer_file)) > 1:
            raise ValueError("set at most one of basic, basic_file, bearer and bearer_file")
        if has_credentials(self.url):
            raise ValueError("the address of Prometheus must not hold a user or password: conditions and logs show it")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"the address of Prometheus must begin with http:// or https://, not {self.url!r}")


@dataclass(frozen=True)
class Point:
    """One series of an instant query: labels, value (may be NaN or infinite) and evaluation time (Unix seconds)."""

    labels: Mapping[str, str]
    value: float
    time: float


class PrometheusClient:
    """`async with PrometheusClient(settings) as client: await client.query("up")`; safe for concurrent queries."""

    def __init__(self, settings: PrometheusSettings) -> None:
        self.settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def query(self, promql: str) -> list[Point]:
        """Evaluates an instant query at the server's present.

        Returns one point per series, [] for none, one without labels for a scalar. Raises a PrometheusError.
        """
        body = await self._post("/api/v1/query", {"query": promql})
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise BadAnswer(f"{self.settings.url} did not answer with JSON: {error}") from error
        if not isinstance(answer, dict) or answer.get("status") not in ("success", "error"):
            raise BadAnswer(f"{self.settings.url} answered with something else than Prometheus does")
        if answer["status"] == "error":
            told = f"{answer.get('errorType', 'error')}: {str(answer.get('error', 'no reason given'))[:300]}"
            raise Refused(self._without_secrets(told))
        return _points(answer.get("data"))

    async def close(self) -> None:
        """Ends the connections; the client may be used again."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _post(self, path: str, form: dict[str, str]) -> bytes:
        settings = self.settings
        url = settings.url.rstrip("/") + path
        headers, session = self._headers(), self._open()
        try:
            # POST: queries outgrow what proxies take as a URL. No redirects: they would lose the body or leak a token.
            async with session.post(url, data=form, headers=headers, allow_redirects=False) as response:
                if response.status in (401, 403):
                    raise Denied(f"{settings.url} refuses the credentials ({response.status})")
                body = await read_at_most(response, settings.max_bytes)
                if body is None:
                    raise TooLarge(f"the answer is larger than {settings.max_bytes} bytes")
                # Prometheus explains 400, 422 and 503 in JSON; anything else odd is not from it.
                if response.status != 200 and not body.lstrip().startswith(b"{"):
                    raise BadAnswer(f"{settings.url} answered {response.status} without an explanation")
                return body
        except aiohttp.ConnectionTimeoutError as error:
            raise Unreachable(f"{settings.url} does not answer: no connection within {_CONNECT_SECONDS:g} s") from error
        except TimeoutError as error:
            raise TooSlow(f"{settings.url} did not answer within {settings.timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{settings.url} does not answer: {error or type(error).__name__}") from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            # An address without anybody behind it shows at once, long before a query could take too long.
            limits = aiohttp.ClientTimeout(total=self.settings.timeout, sock_connect=_CONNECT_SECONDS)
            connector = aiohttp.TCPConnector(ssl=self._ssl())
            self._session = aiohttp.ClientSession(timeout=limits, connector=connector, trust_env=False)
        return self._session

    def _headers(self) -> dict[str, str]:
        settings = self.settings
        headers = dict(settings.headers)
        if settings.basic is not None:
            headers["Authorization"] = aiohttp.encode_basic_auth(*settings.basic)
        if settings.basic_file is not None:
            user, file = settings.basic_file
            headers["Authorization"] = aiohttp.encode_basic_auth(user, self._secret("password", file))
        token = settings.bearer
        if settings.bearer_file is not None:
            token = self._secret("token", settings.bearer_file)
            if not (token.isascii() and token.isprintable()):
                raise Denied(f"the token for {settings.url} holds characters that no token may have")
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _without_secrets(self, told: str) -> str:
        """What a server tells ends in conditions and logs; a proxy may repeat there what we sent to it."""
        for value in self._headers().values():
            for secret in (value, value.partition(" ")[2]):
                if len(secret) >= _SHORTEST_SECRET:
                    told = told.replace(secret, "(not shown)")
        return told

    def _secret(self, what: str, file: Path) -> str:
        try:
            return file.read_text().strip()
        except (OSError, UnicodeError) as error:
            raise Denied(f"the {what} for {self.settings.url} cannot be read: {error}") from error

    def _ssl(self) -> ssl.SSLContext | bool:
        settings = self.settings
        if settings.ca_file is None and settings.client_cert is None:
            return settings.verify
        try:
            context = ssl.create_default_context(cafile=str(settings.ca_file) if settings.ca_file else None)
            if settings.client_cert is not None:
                context.load_cert_chain(*settings.client_cert)
        except OSError as error:
            raise Denied(f"the certificates for {settings.url} cannot be read: {error}") from error
        if not settings.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def has_credentials(url: str) -> bool:
    """Whether an address holds a user or password, which would be seen wherever the address is shown."""
    return "@" in urlsplit(url).netloc


def _points(data: Any) -> list[Point]:
    try:
        kind, result = data["resultType"], data["result"]
        if kind == "scalar":
            return [_point({}, result)]
        if kind == "vector":
            return [_point(series["metric"], series["value"]) for series in result]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadAnswer(f"an instant query's result lacks what it must have: {error!r}") from error
    raise WrongType(f"the result is a {kind}, not an instant vector or scalar")


def _point(labels: Any, pair: Any) -> Point:
    text = str(pair[1])
    value = {"+Inf": math.inf, "-Inf": -math.inf}.get(text)
    named = {str(name): str(label) for name, label in labels.items()}
    return Point(named, float(text) if value is None else value, float(pair[0]))
