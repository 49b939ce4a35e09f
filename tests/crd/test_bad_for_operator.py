"""Manifests that are well-formed and cannot work: the API server takes them, the operator says why and what to do."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..simulation.cluster import GPU, NAMESPACE
from ..simulation.world import MODEL, SimulatedWorld
from .objects import Manifest, Objects, merged

_TABLE: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "bad_for_operator.yaml").read_text(encoding="utf-8")
)
_NAMES = [row["name"].replace(" ", "-") for row in _TABLE]
_ENGINE = {"type": "Simulated"}
_POOL = {"model": MODEL, "engine": _ENGINE, "nodeClasses": ["fast"], "replicas": 1}
GOOD: dict[str, Manifest] = {
    "PrefillPool": _POOL,
    "DecodePool": _POOL,
    "KVCacheTier": {"medium": "HostMemory", "capacityPerMember": "1Gi"},
    "NodeClass": {
        "family": "GPU",
        "preset": "h100",
        "nodeSelector": {"gpu": "odd"},
        "devices": {"extendedResource": GPU, "perNode": 4},
    },
    "AgentPool": {
        "roles": [
            {
                "name": "primary",
                "type": "Primary",
                "model": MODEL,
                "engine": _ENGINE,
                "decode": {"nodeClasses": ["fast"], "replicas": {"min": 1, "max": 2}},
            }
        ]
    },
}


def objects_of(row: dict[str, Any]) -> list[Manifest]:
    """The manifests of a row; the first one is called wrong unless it says otherwise."""
    found = []
    for entry in row["given"]:
        ((kind, patch),) = entry.items()
        patch = dict(patch)
        name = patch.pop("name", "wrong")
        metadata = {"name": name} if kind == "NodeClass" else {"name": name, "namespace": NAMESPACE}
        spec = merged(GOOD[kind], patch)
        found.append({"apiVersion": "retinue.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})
    return found


@pytest.mark.component
@pytest.mark.parametrize("row", _TABLE, ids=_NAMES)
def test_the_api_server_takes_it(row: dict[str, Any], shared_objects: Objects) -> None:
    for manifest in objects_of(row):
        manifest["metadata"].pop("namespace", None)
        shared_objects.create(manifest, dry_run=True)


@pytest.mark.parametrize("row", _TABLE, ids=_NAMES)
def test_the_operator_says_what_is_wrong_and_goes_on_without_a_retry(row: dict[str, Any]) -> None:
    given = objects_of(row)
    kind, _, name = row.get("about", f"{given[0]['kind']}/wrong").partition("/")

    async def answered() -> Manifest:
        world = SimulatedWorld(0, furnished=False)
        world.measurer.mode = row.get("metrics", "quiet")
        # Later rows stand on earlier ones: an object is there before the one that needs it is looked at.
        for manifest in reversed(given):
            world.api.write(manifest)
        # It must come to rest: what cannot work until the spec changes is not tried again and again.
        await world.calm_down()
        found = world.api.find(kind, "" if kind == "NodeClass" else NAMESPACE, name)
        assert found is not None
        return found

    found = asyncio.run(answered())
    status = found["status"]
    wanted, reason = row["condition"].split()
    type_, _, value = wanted.partition("=")
    condition = next((c for c in status["conditions"] if c["type"] == type_), None)
    assert condition is not None, status["conditions"]
    assert (condition["status"], condition["reason"]) == (value, reason), condition
    assert row["says"] in condition["message"]


def test_all_tables_together_have_at_least_120_rows() -> None:
    refused = yaml.safe_load((Path(__file__).parent / "bad_manifests.yaml").read_text(encoding="utf-8"))
    names = [row["name"] for row in (*refused, *_TABLE)]
    assert len(set(names)) == len(names) >= 120
