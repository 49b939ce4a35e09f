"""Revisions are the same in every version: an upgraded operator must not replace engines whose spec is the same."""

from typing import Any

import pytest

from retinue.api import DecodePool, KVCacheTier, PrefillPool
from retinue.pool.revision import revision

MODEL = {"name": "gpt-oss-20b", "precision": "MXFP4", "kvPrecision": "FP8", "contextWindow": 131072}
PLAIN: dict[str, Any] = {
    "model": {"name": "gpt-oss-20b", "precision": "MXFP4"},
    "engine": {"type": "Simulated"},
    "nodeClasses": ["h200"],
}
FULL: dict[str, Any] = {
    "model": MODEL,
    "engine": {"type": "Simulated", "image": "a/b:1", "args": ["--x=1"], "env": [{"name": "A", "value": "1"}]},
    "nodeClasses": ["h200", "b200"],
    "parallelism": {"tensor": 2, "data": 2, "expert": 4},
    "kvCacheTiers": ["warm"],
    "kvTransfer": {"connector": "Mooncake"},
    "podTemplate": {"spec": {"priorityClassName": "inference"}},
}
WARM = KVCacheTier.model_validate(
    {"metadata": {"name": "warm", "namespace": "a"}, "spec": {"medium": "HostMemory", "capacityPerMember": "2Gi"}}
)


def pool(kind: type[PrefillPool] | type[DecodePool], spec: dict[str, Any]) -> PrefillPool | DecodePool:
    return kind.model_validate({"metadata": {"name": "p", "namespace": "a"}, "spec": spec})


# As 0.1.0 computes them. A field that joins the API later must leave them as they are while it is at its default.
@pytest.mark.parametrize(
    ("kind", "spec", "expected"),
    [
        (PrefillPool, PLAIN, "d4caf1c588"),
        (PrefillPool, FULL, "0a3bf93c6c"),
        (DecodePool, PLAIN, "e9274c0037"),
        (DecodePool, {**FULL, "serves": "PrefillAndDecode"}, "83cd62cc4b"),
    ],
)
def test_the_revision_is_that_of_the_first_version(
    kind: type[PrefillPool] | type[DecodePool], spec: dict[str, Any], expected: str
) -> None:
    assert revision(pool(kind, spec), {"warm": WARM}) == expected


def test_where_and_how_many_do_not_belong_to_the_revision() -> None:
    before = revision(pool(PrefillPool, PLAIN), {})
    moved = {**PLAIN, "nodeClasses": ["b200"], "replicas": 7, "drain": {"timeout": "5s"}, "rollout": {"maxSurge": 2}}
    assert revision(pool(PrefillPool, moved), {}) == before
    assert revision(pool(PrefillPool, {**PLAIN, "kvTransfer": {"connector": "Mooncake"}}), {}) != before
