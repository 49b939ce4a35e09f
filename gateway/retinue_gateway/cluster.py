"""A connection to the Kubernetes API: plain aiohttp with the address and credentials that kubernetes.aio reads."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config, refresh_token

_CONNECT_SECONDS = 10.0
# A watch event is one line; a pod with large annotations can exceed aiohttp's default buffer.
_READ_BUFFER = 2**21
_LOG = structlog.get_logger(__name__)


# kubernetes.aio has no annotations here.
_read_service_account: Callable[..., None] = load_incluster_config
_read_kubeconfig: Callable[..., Awaitable[Any]] = load_kube_config
_refresh_token: Callable[..., Awaitable[None]] = refresh_token


class ClusterConfigError(Exception):
    """There is no usable kubeconfig or service account. The message says what to do."""


class Cluster:
    """GET requests to one API server. Objects stay plain JSON: typed models would cost more than all of our work."""

    def __init__(self, configuration: Any, session: aiohttp.ClientSession) -> None:
        self._configuration = configuration
        self._session = session

    @asynccontextmanager
    async def get(
        self, path: str, params: dict[str, str], *, read_timeout: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to GET path?params, whatever its status.

        Raises aiohttp.ClientError or TimeoutError, the latter also when nothing comes for `read_timeout` seconds.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=read_timeout)
        headers = {"Accept": "application/json", "User-Agent": "retinue-gateway", **await self._authorization()}
        url = f"{self._configuration.host.rstrip('/')}{path}"
        async with self._session.get(url, params=params, headers=headers, timeout=timeout) as response:
            yield response

    async def _authorization(self) -> dict[str, str]:
        # auth_settings() re-reads the token file of a service account when it is due.
        settings = await self._configuration.auth_settings()
        return {auth["key"]: auth["value"] for auth in settings.values() if auth["in"] == "header" and auth["value"]}


@asynccontextmanager
async def connect(kubeconfig: Path | None) -> AsyncIterator[Cluster]:
    """A connection by a kubeconfig file, or without one by the pod's service account. Raises ClusterConfigError."""
    configuration = Configuration()
    refresher: asyncio.Task[None] | None = None
    try:
        if kubeconfig is None:
            _read_service_account(client_configuration=configuration)
        else:
            loader = await _read_kubeconfig(
                config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
            )
            refresher = asyncio.create_task(_keep_token_fresh(loader, configuration))
    except (ConfigException, OSError) as error:
        source = f"the kubeconfig {kubeconfig}" if kubeconfig else "the pod's service account"
        raise ClusterConfigError(f"cannot connect by {source}: {error}; pass --kubeconfig FILE") from error
    connector = aiohttp.TCPConnector(ssl=_tls(configuration), limit=0)
    async with aiohttp.ClientSession(connector=connector, trust_env=True, read_bufsize=_READ_BUFFER) as session:
        try:
            yield Cluster(configuration, session)
        finally:
            if refresher is not None:
                refresher.cancel()


async def _keep_token_fresh(loader: Any, configuration: Any) -> None:
    """Runs an exec plugin again and again; returns at once for a kubeconfig that has none."""
    while True:
        try:
            return await _refresh_token(loader, configuration)
        except (ConfigException, OSError, ValueError) as error:
            # It sleeps before each refresh, so this does not spin; the old token may still be good.
            _LOG.warning("cannot refresh the token", error=str(error))


def _tls(configuration: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.disable_strict_ssl_verification:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
