"""The five custom resources of group retinue.dev as pydantic models: the one source of the CRDs in crds/."""

from retinue.api.agentpool import AgentPool
from retinue.api.decodepool import DecodePool
from retinue.api.kvcachetier import KVCacheTier
from retinue.api.nodeclass import NodeClass
from retinue.api.prefillpool import PrefillPool

GROUP = "retinue.dev"
VERSION = "v1alpha1"
KINDS = (AgentPool, PrefillPool, DecodePool, KVCacheTier, NodeClass)

__all__ = ["GROUP", "KINDS", "VERSION", "AgentPool", "DecodePool", "KVCacheTier", "NodeClass", "PrefillPool"]
