"""The revision of a pool: a hash of everything whose change needs new engines."""

import hashlib
import json
from typing import Any

from retinue.api import DecodePool, KVCacheTier, PrefillPool
from retinue.api.kvcachetier import Medium


def revision(pool: PrefillPool | DecodePool, tiers: dict[str, KVCacheTier]) -> str:
    """Ten hex digits that differ when an engine launched from this spec would differ.

    Replicas, rollout, drain, topology and the order of node classes are left out: changing them moves nothing.
    """
    wire = pool.spec.to_wire()
    launched: dict[str, Any] = {
        key: wire[key]
        for key in (
            "model",
            "engine",
            "parallelism",
            "kvCacheTiers",
            "kvTransfer",
            "podTemplate",
            "serves",
            "speculativeDecoding",
            "attentionFFN",
        )
        if key in wire
    }
    # A HostMemory tier is a flag of the engine, so its size is part of the engine.
    launched["hostTiers"] = {
        name: tier.spec.capacity_per_member
        for name, tier in sorted(tiers.items())
        if name in pool.spec.kv_cache_tiers and tier.spec.medium == Medium.HOST_MEMORY
    }
    text = json.dumps(launched, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]
