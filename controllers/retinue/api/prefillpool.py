"""PrefillPool: engines that build the KV cache of prompts and hand it to a decode pool."""

from typing import ClassVar

from pydantic import Field

from retinue.api.markers import KindInfo, Scale
from retinue.api.pool import POOL_COLUMNS, POOL_ROOT_RULES, PoolSpec, PoolStatus
from retinue.api.types import Metadata, Model


class PrefillPoolSpec(PoolSpec):
    """A prefill pool has no fields beyond those that both kinds share."""


class PrefillPool(Model):
    """Engines that build the KV cache of prompts."""

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
