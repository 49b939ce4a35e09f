"""The fleet that plans see: always what the cache holds, and what plans under way have taken."""

import random
from typing import Any

from retinue.nodeclass.holdbook import Sums
from retinue.nodeclass.nodes import holds_from
from retinue.plan import Apply, Manager, Manifest
from retinue_operator.cache import Cache
from retinue_operator.controllers.fleet import fleet, view_of

GPU = "nvidia.com/gpu"


def pod(name: str, version: int, *, node: str | None = None, gated: bool = False, phase: str = "Pending") -> Manifest:
    spec: dict[str, Any] = {"containers": [{"name": "engine", "resources": {"requests": {GPU: "2"}}}]}
    if node:
        spec["nodeName"] = node
    if gated:
        spec["schedulingGates"] = [{"name": "retinue.dev/placement"}]
    metadata = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": phase}}


def node(name: str, version: int, gpus: int = 8) -> Manifest:
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": {"allocatable": {GPU: str(gpus)}}}


def test_after_any_changes_the_sums_are_those_of_a_fresh_look_at_all_pods() -> None:
    seed = 5
    chance = random.Random(seed)
    cache = Cache()
    cache.put(pod("early", 1, node="n0"))
    seen = fleet(cache)
    for version in range(2, 400):
        name = f"p{chance.randrange(20)}"
        known = cache.get("Pod", "ns", name)
        if known is not None and chance.random() < 0.3:
            # A uid never comes back.
            cache.remove(known)
            continue
        made = pod(
            name,
            version,
            node=chance.choice([None, "n0", "n1"]),
            gated=chance.random() < 0.3,
            phase=chance.choice(["Pending", "Running", "Failed"]),
        )
        made["metadata"]["uid"] = known["metadata"]["uid"] if known else f"uid-{version}"
        cache.put(made)
        fresh = Sums(holds_from(cache.select("Pod")))
        assert seen.holds.sums.used == fresh.used, f"seed {seed}"  # type: ignore[attr-defined]
        assert seen.holds.sums.promised == fresh.promised, f"seed {seed}"  # type: ignore[attr-defined]


def test_what_a_plan_releases_is_held_until_it_is_executed_and_counted_once_when_it_is_there() -> None:
    cache = Cache()
    cache.put(pod("a", 1, gated=True))
    release = view_of(cache).reserve([Apply(pod("a", 1)), Apply(pod("b", 1)), Apply(pod("c", 1), Manager.INSTANCE)])
    assert {hold.pod for hold in fleet(cache).holds} == {"ns/a", "ns/b"}
    cache.put(pod("a", 2))
    release()
    assert [hold.pod for hold in fleet(cache).holds] == ["ns/a"]


def test_nodes_stay_the_same_value_until_one_changes() -> None:
    cache = Cache()
    cache.put(node("n1", 1))
    before = fleet(cache).nodes
    cache.put(pod("a", 2))
    assert fleet(cache).nodes is before
    cache.put(node("n0", 3))
    assert [found.name for found in fleet(cache).nodes] == ["n0", "n1"]
    found = cache.get("Node", "", "n1")
    assert found is not None
    cache.remove(found)
    assert [found.name for found in fleet(cache).nodes] == ["n0"]
