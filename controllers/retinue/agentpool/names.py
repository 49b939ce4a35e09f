"""What an AgentPool's children are called, and which pools and tiers serve a role."""

from dataclasses import dataclass

from retinue.api import AgentPool
from retinue.api.agentrole import Role


@dataclass(frozen=True)
class Serving:
    """The pools that serve a role. `prefill` is None for a role whose decode engines also do prefill.

    `owner` is the role whose model, engine and pools these are: another one if the role is served by it.
    """

    role: Role
    owner: Role
    prefill: str | None
    decode: str


def pool_name(agent_pool: str, role: str) -> str:
    """The name of the PrefillPool and of the DecodePool made for a role."""
    return f"{agent_pool}-{role}"


def tier_name(agent_pool: AgentPool, name: str) -> str:
    """The object behind a tier's name in the spec: one that the AgentPool makes, else an existing one."""
    if any(template.name == name for template in agent_pool.spec.tiers):
        return f"{agent_pool.metadata.name}-{name}"
    return name


def serving(agent_pool: AgentPool) -> tuple[Serving, ...]:
    """Who serves each role, in the order of the spec."""
    roles = {role.name: role for role in agent_pool.spec.roles}
    return tuple(_serving(agent_pool, role, roles[role.served_by or role.name]) for role in agent_pool.spec.roles)


def _serving(agent_pool: AgentPool, role: Role, owner: Role) -> Serving:
    made = pool_name(agent_pool.metadata.name, owner.name)
    if owner.prefill is not None:
        prefill: str | None = made
    else:
        prefill = owner.prefill_pool_ref.name if owner.prefill_pool_ref else None
    decode = owner.decode_pool_ref.name if owner.decode_pool_ref else made
    return Serving(role=role, owner=owner, prefill=prefill, decode=decode)
