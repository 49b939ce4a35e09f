"""Who calls: the tenant that a bearer token names, and what is kept apart because of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus

from retinue.access.files import RotatingFile
from retinue.access.tokens import Tenant, TokenBook, bearer_token
from retinue_gateway.errors import GatewayError, bad_field

_LONGEST_SALT = 1024


class CacheIsolation(StrEnum):
    """Between whom no cached prefix is ever a hit.

    TENANT: tenants, except those of one cacheGroup. Without authentication there are none, and nothing is added to
    requests: each namespace has engines and tiers of its own. NAMESPACE: namespaces, also in a store outside of the
    cluster that several use; tenants of a namespace share. NONE: nobody; all callers of an engine share its cache.
    """

    TENANT = "tenant"
    NAMESPACE = "namespace"
    NONE = "none"


@dataclass(frozen=True)
class Caller:
    """One request's origin; tenant: None where the gateway authenticates nobody."""

    tenant: Tenant | None = None

    def may_use(self, namespace: str) -> bool:
        """Whether the caller may see and call what is in a namespace."""
        return self.tenant is None or self.tenant.may_use(namespace)

    @property
    def session_scope(self) -> str:
        """What its session ids are names within, besides the AgentPool; no tenant can have an empty name."""
        return "" if self.tenant is None else self.tenant.name

    def share(self, namespace: str) -> str:
        """Whose requests in flight are counted together: a tenant's, or those of a namespace."""
        return f"namespace {namespace}" if self.tenant is None else f"tenant {self.tenant.name}"


ANYBODY = Caller()


class Access:
    """Authenticates requests by the tokens of a file; without one everybody may call everything."""

    def __init__(self, tenants: RotatingFile[TokenBook[Tenant]] | None) -> None:
        self._tenants = tenants

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Raises GatewayError 401."""
        if self._tenants is None:
            return ANYBODY
        authorization = headers.get("Authorization")
        tenant = self._tenants.value.named_by(authorization)
        if tenant is None:
            what = "this token is not known" if bearer_token(authorization) else "there is no token"
            raise GatewayError(
                HTTPStatus.UNAUTHORIZED,
                f"{what}: send one that the gateway's operators gave you as the header Authorization: Bearer TOKEN"
                " (the API key of an OpenAI client)",
                code="invalid_api_key",
            )
        return Caller(tenant)


def cache_salt(isolation: CacheIsolation, caller: Caller, namespace: str, given: object) -> str | None:
    """The salt with which engines name the blocks of a request: equal prefixes with different salts never meet.

    vLLM, SGLang and TensorRT-LLM's chat API know it as `cache_salt` (vLLM: docs, design, prefix caching). given: what
    the client sent, with which it may divide its own cache further. It goes into a digest with the name of the tenant
    or namespace, so that nobody can choose the salt of somebody else. Raises GatewayError 400.
    """
    if given is not None and (not isinstance(given, str) or not 0 < len(given) <= _LONGEST_SALT):
        raise bad_field("cache_salt", f"cache_salt must be a text of 1 to {_LONGEST_SALT} characters")
    if isolation is CacheIsolation.NAMESPACE:
        owner = ["namespace", namespace]
    elif isolation is CacheIsolation.TENANT and caller.tenant is not None:
        group = caller.tenant.cache_group
        owner = ["tenant", caller.tenant.name] if group is None else ["group", group]
    else:
        return given
    return hashlib.sha256(json.dumps([*owner, given]).encode()).hexdigest()[:32]
