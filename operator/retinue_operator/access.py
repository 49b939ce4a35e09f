"""Where the API server is and who we are: one source of credentials for our client and for kopf."""

import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import yaml
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import SERVICE_HOST_ENV_NAME, load_incluster_config
from kubernetes.aio.config.kube_config import load_kube_config

_NOT_PRINTABLE = re.compile(r"[^ -~]")
_DEFAULT_KUBECONFIG = Path("~/.kube/config")


class AccessError(Exception):
    """There are no usable credentials; the text is one line that says what to do."""


@dataclass(frozen=True)
class Access:
    """Reads credentials: the given kubeconfig, else the pod's service account, else KUBECONFIG or ~/.kube/config."""

    kubeconfig: Path | None = None
    context: str | None = None

    def source(self) -> str:
        """Where the credentials come from, for messages."""
        if self.kubeconfig is not None:
            return f"kubeconfig {self.kubeconfig}"
        if os.environ.get(SERVICE_HOST_ENV_NAME):
            return "the service account of this pod"
        return f"kubeconfig {self._default()}"

    async def load(self) -> Configuration:
        """The credentials as they are now: tokens and files are read anew at every call. Raises AccessError.

        A proxy of the environment is part of them, so that no session needs to look for one at each request, in a
        thread.
        """
        configuration = await self._load()
        if configuration.proxy is None:
            configuration.proxy = _proxy_of_environment(str(configuration.host))
        configuration.client_session_kwargs = {"trust_env": False}
        return configuration

    async def _load(self) -> Configuration:
        configuration = Configuration()
        try:
            if self.kubeconfig is None and os.environ.get(SERVICE_HOST_ENV_NAME):
                cast(Callable[[Configuration], None], load_incluster_config)(configuration)
                return configuration
            path = self.kubeconfig if self.kubeconfig is not None else self._default()
            if not path.is_file():
                raise AccessError(f"{path} does not exist: give --kubeconfig FILE or set KUBECONFIG")
            load = cast(Callable[..., Awaitable[object]], load_kube_config)
            await load(str(path), context=self.context, client_configuration=configuration, persist_config=False)
        except (ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
            # The loader trusts the file's structure: a broken one surfaces as any of these.
            raise AccessError(f"{self.source()} cannot be used: {' '.join(str(error).split())}") from error
        return configuration

    def _default(self) -> Path:
        first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
        return Path(first) if first else _DEFAULT_KUBECONFIG.expanduser()


def _proxy_of_environment(server: str) -> str | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for a server's address."""
    url = urlsplit(server)
    if not url.hostname or proxy_bypass(url.hostname):
        return None
    return getproxies().get(url.scheme)


def authorization(configuration: Configuration) -> tuple[str | None, str | None]:
    """Scheme and credentials of the Authorization header ("Bearer", token); (None, None) with client certificates."""
    scheme, _, credentials = configuration.api_key.get("BearerToken", "").partition(" ")
    return scheme.capitalize() or None, credentials.strip() or None


def user_agent(identity: str) -> str:
    """The User-Agent header of the process with this identity: whose a request is, in the API server's audit log."""
    return "retinue-operator" + (f" ({_NOT_PRINTABLE.sub('?', identity)})" if identity else "")
