"""The objects of an AgentPool: a pool per role and kind, a tier per template, and the replicas that a decision sets."""

from retinue.agentpool.names import pool_name, tier_name
from retinue.api import GROUP, VERSION, AgentPool, labels
from retinue.api.agentrole import DecodeTemplate, PoolTemplate, Role, TierTemplate
from retinue.api.decodepool import Serves
from retinue.plan import Manifest

API_VERSION = f"{GROUP}/{VERSION}"


def build_prefill_pool(agent_pool: AgentPool, role: Role, template: PoolTemplate) -> Manifest:
    """The PrefillPool of a role. Replicas are left to the autoscaler's own field manager."""
    return _pool(agent_pool, role, template, "PrefillPool")


def build_decode_pool(agent_pool: AgentPool, role: Role, template: DecodeTemplate) -> Manifest:
    """The DecodePool of a role: aggregated when the role has no prefill of its own."""
    pool = _pool(agent_pool, role, template, "DecodePool")
    alone = role.prefill is None and role.prefill_pool_ref is None
    pool["spec"]["serves"] = Serves.PREFILL_AND_DECODE.value if alone else Serves.DECODE.value
    return pool


def build_tier(agent_pool: AgentPool, template: TierTemplate) -> Manifest:
    """A tier that the AgentPool owns. Replicas are left to the autoscaler's own field manager."""
    spec = template.spec.to_wire()
    spec.pop("replicas", None)
    if template.spec.next_tier is not None:
        spec["nextTier"] = tier_name(agent_pool, template.spec.next_tier)
    name = tier_name(agent_pool, template.name)
    return {
        "apiVersion": API_VERSION,
        "kind": "KVCacheTier",
        "metadata": _metadata(agent_pool, name, {}),
        "spec": spec,
    }


def build_replicas(kind: str, namespace: str, name: str, replicas: int) -> Manifest:
    """What the autoscaler writes: the replicas of one pool or tier, and the mark that they are not the default."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "annotations": {labels.SIZED: "true"}},
        "spec": {"replicas": replicas},
    }


def _pool(agent_pool: AgentPool, role: Role, template: PoolTemplate, kind: str) -> Manifest:
    spec = template.to_wire()
    spec.pop("replicas")
    spec["model"] = role.model.to_wire() if role.model else {}
    spec["engine"] = role.engine.to_wire() if role.engine else {}
    spec["kvCacheTiers"] = [tier_name(agent_pool, name) for name in role.kv_cache_tiers]
    name = pool_name(agent_pool.metadata.name, role.name)
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": _metadata(agent_pool, name, {labels.ROLE: role.name}),
        "spec": spec,
    }


def _metadata(agent_pool: AgentPool, name: str, more: dict[str, str]) -> Manifest:
    meta = agent_pool.metadata
    return {
        "name": name,
        "namespace": meta.namespace,
        "labels": {labels.MANAGED_BY: labels.RETINUE, labels.AGENT_POOL: meta.name, **more},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": "AgentPool",
                "name": meta.name,
                "uid": meta.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
