"""PrefillPool: engines that build the KV cache of prompts and hand it to a decode pool."""

from typing import ClassVar

from pydantic import Field

from retinue.api.markers import KindInfo, Scale
from retinue.api.pool import POOL_COLUMNS, POOL_ROOT_RULES, PoolSpec, PoolStatus
from retinue.api.types import Metadata, Model


class PrefillPoolSpec(PoolSpec):
    """What the engines serve, on what, and how many."""


class PrefillPool(Model):
    """Engines that build the KV cache of prompts and hand it to a decode pool. Standalone, or owned by an AgentPool."""

    kind_info: ClassVar[KindInfo] = KindInfo(
        kind="PrefillPool",
        plural="prefillpools",
        short_names=("pp",),
        namespaced=True,
        scale=Scale(),
        columns=POOL_COLUMNS,
        root_rules=POOL_ROOT_RULES,
    )
    metadata: Metadata
    spec: PrefillPoolSpec
    status: PoolStatus = Field(default_factory=PoolStatus)
