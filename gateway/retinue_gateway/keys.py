"""Names of what is routed: agent pools, roles and the two stages of a request."""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """The part of a request that an instance runs; the value is the label `retinue.dev/pool-kind` of its pods.

    An aggregated engine runs both parts and counts as DECODE, because DecodePools make it.
    """

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, order=True)
class PoolKey:
    """One AgentPool."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, order=True)
class RoleKey:
    """One role of an AgentPool: what requests are addressed to, and what every gateway metric is labelled with."""

    namespace: str
    agent_pool: str
    role: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.agent_pool}/{self.role}"

    @property
    def pool(self) -> PoolKey:
        return PoolKey(self.namespace, self.agent_pool)


@dataclass(frozen=True, order=True)
class SessionKey:
    """One agent's conversation with one role. Roles have caches of their own, so the role is part of the name. tenant:
    whose id it is, empty where nobody is authenticated; two tenants may choose the same id and never meet."""

    role: RoleKey
    id: str
    tenant: str = ""
