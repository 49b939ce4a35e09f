"""Devices by DRA: the same pool on a class with a deviceClass, its claim templates, and how devices are counted."""

from dataclasses import replace
from typing import Any

import pytest

from retinue.api import KVCacheTier
from retinue.nodeclass.claims import TEMPLATE_KIND, ClaimTemplate, counting_key, template_from, template_names
from retinue.nodeclass.nodes import Hold, hold_from, holds_from
from retinue.nodeclass.resolve import ResolvedClass
from retinue.placement.capacity import free_capacity
from retinue.placement.pack import NoFit, Request, place
from retinue.plan import Manifest
from retinue.pool.shape import InstanceShape, Misfit, instance_shape

from .fakeworld import CLIQUE, GPU, FakeWorld, gpu_class, gpu_node, make_pool, world

DEVICE_CLASS = "gpu.example.com"
KEY = counting_key(DEVICE_CLASS)
TWO_PODS: dict[str, Any] = {"parallelism": {"tensor": 8}}


def dra_class(name: str = "fast", product: str = "h", **spec: Any) -> ResolvedClass:
    return gpu_class(name, product, **{"devices": {"deviceClass": DEVICE_CLASS, "perNode": 4}, **spec})


def dra_world(published: int = 4, **spec: Any) -> FakeWorld:
    """Four nodes without extended resources, whose driver publishes `published` devices each."""
    nodes = [gpu_node(f"n{i}", rack=f"r{i // 2}", clique=f"c{i // 2}", gpus=0) for i in range(4)]
    fake = world(make_pool(**spec), nodes, {"fast": dra_class()})
    fake.published = {node.name: {KEY: published} for node in nodes}
    return fake


def shape_on(class_: ResolvedClass, tiers: dict[str, KVCacheTier] | None = None, **spec: Any) -> InstanceShape | Misfit:
    pool = make_pool(**spec)
    return instance_shape(pool.spec.model, pool.spec.parallelism, class_, tiers or {})


def templates_in_use(fake: FakeWorld) -> set[str]:
    return {name for pod in fake.pods.values() for name in template_names(pod["spec"])}


# --- the shape of an instance


@pytest.mark.parametrize("spec", [{}, TWO_PODS, {"parallelism": {"tensor": 2}}])
def test_an_instance_has_the_same_shape_whichever_way_devices_are_handed_out(spec: dict[str, Any]) -> None:
    plain, claiming = shape_on(gpu_class("fast"), **spec), shape_on(dra_class(), **spec)
    assert isinstance(plain, InstanceShape)
    assert isinstance(claiming, InstanceShape)
    assert claiming.claim is not None
    assert claiming.claim.device_class == DEVICE_CLASS
    assert claiming.claim.count == claiming.devices_per_pod == plain.resources[GPU]
    for same in ("pods", "devices_per_pod", "kv_capacity_tokens", "cost_per_hour", "engine"):
        assert getattr(claiming, same) == getattr(plain, same)


def test_placement_counts_what_is_claimed_and_the_container_requests_only_the_rest() -> None:
    shape = shape_on(dra_class(rdmaResources={"rdma/ib": 1}), parallelism={"tensor": 4})
    assert isinstance(shape, InstanceShape)
    assert shape.resources == {"rdma/ib": 1}
    assert shape.requests == {KEY: 4, "rdma/ib": 1}


def test_a_class_without_devices_is_no_place_for_an_engine() -> None:
    found = shape_on(gpu_class("fast", family="CPU", preset=None, devices=None, device=None))
    assert isinstance(found, Misfit)
    assert "has no devices" in found.message


# --- counting


def claim_template(name: str = "t", namespace: str = "agents", **exactly: Any) -> Manifest:
    request = {"name": "devices", "exactly": {"deviceClassName": DEVICE_CLASS, "count": 4, **exactly}}
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}"}
    return {"kind": TEMPLATE_KIND, "metadata": metadata, "spec": {"spec": {"devices": {"requests": [request]}}}}


def claiming_pod(*templates: str, **spec: Any) -> Manifest:
    claims = [{"name": f"c{i}", "resourceClaimTemplateName": name} for i, name in enumerate(templates)]
    container = {"name": "engine", "resources": {"requests": {"memory": "1Gi"}}}
    metadata = {"name": "p", "namespace": "agents"}
    return {"metadata": metadata, "spec": {"containers": [container], "resourceClaims": claims, **spec}}


def test_a_pod_holds_what_its_claim_templates_say() -> None:
    templates = [template_from(claim_template()), template_from(claim_template("elsewhere", "other"))]
    (hold,) = holds_from([claiming_pod("t", "elsewhere", "unknown", nodeName="a")], templates)
    assert hold == Hold("agents/p", "a", "", None, {"memory": 2**30, KEY: 4})
    assert hold_from(claiming_pod("t")) == Hold("agents/p", None, "", None, {"memory": 2**30})


def test_a_claim_of_somebody_elses_making_holds_nothing_that_is_known() -> None:
    pod = claiming_pod(nodeName="a", resourceClaims=[{"name": "own", "resourceClaimName": "mine"}])
    (hold,) = holds_from([pod], [template_from(claim_template("mine"))])
    assert hold.requests == {"memory": 2**30}


@pytest.mark.parametrize(
    ("exactly", "held"),
    [
        ({}, {KEY: 4}),
        ({"allocationMode": "ExactCount"}, {KEY: 4}),
        ({"allocationMode": "All", "count": None}, {}),
        ({"deviceClassName": "other.example.com", "count": 1}, {counting_key("other.example.com"): 1}),
    ],
)
def test_a_template_is_read_by_device_class_and_exact_count(exactly: dict[str, Any], held: dict[str, int]) -> None:
    assert template_from(claim_template(**exactly)) == ClaimTemplate("agents", "t", "uid-t", False, held)


def test_a_ready_node_has_as_many_devices_as_its_class_says_whatever_its_status_lists() -> None:
    class_, node = dra_class(), gpu_node("a", gpus=8)
    assert class_.devices_on(node) == 4
    assert class_.offers(node) == {**node.allocatable, KEY: 4}
    assert class_.devices_on(replace(node, ready=False)) == 0
    assert gpu_class("fast").devices_on(node) == 8
    assert gpu_class("fast").offers(node) == node.allocatable


def test_claimed_and_promised_devices_are_not_free() -> None:
    nodes = [gpu_node("a", clique="c0", gpus=0), gpu_node("b", clique="c1", gpus=0)]
    holds = [Hold("p", "a", "fast", "c0", {KEY: 3}), Hold("q", None, "fast", "c1", {KEY: 1})]
    free = {member.node.name: member.free[KEY] for member in free_capacity(dra_class(), nodes, holds)}
    assert free == {"a": 1, "b": 3}


def test_no_fit_says_what_is_free_of_the_device_class() -> None:
    request = Request(1, {KEY: 4}, "nvlinkDomain", True, None, {})
    nodes = [gpu_node("a", clique="c0", gpus=0)]
    found = place(request, dra_class(), nodes, [Hold("p", "a", "fast", "c0", {KEY: 1})])
    assert isinstance(found, NoFit)
    assert f"asked for 1 pod with 4 {KEY} each on class fast" in found.message
    assert f"3 of their 4 {KEY} are free" in found.message
    assert f"node a has 3 of 4 {KEY}" in found.message


# --- the life of a pool


def test_a_pool_runs_on_claims_alone_and_a_quiet_world_stays_quiet() -> None:
    fake = dra_world(replicas=2, **TWO_PODS)
    fake.run()
    assert fake.condition("Ready")[0] == "True"
    assert all(len({fake.nodes[v.node].labels[CLIQUE] for v in vs if v.node}) == 1 for vs in fake.instances().values())
    assert set(fake.templates) == templates_in_use(fake)
    for pod in fake.pods.values():
        resources = pod["spec"]["containers"][0]["resources"]
        assert resources == {"requests": {}, "limits": {}, "claims": [{"name": "devices"}]}
    writes = fake.writes
    fake.reconcile()
    assert fake.writes == writes


def test_there_is_one_template_per_usable_class_also_while_nothing_runs_there() -> None:
    classes = {"fast": dra_class(), "slow": dra_class("slow", "s"), "plain": gpu_class("plain", "p")}
    fake = world(make_pool(replicas=0, nodeClasses=["fast", "slow", "plain", "missing"]), classes=classes)
    fake.run()
    names = [name.removeprefix("coder-prefill-").rsplit("-", 1)[0] for name in fake.templates]
    assert sorted(names) == ["fast", "slow"]


def test_a_pool_does_not_ask_for_more_than_is_left() -> None:
    fake = dra_world(replicas=3, **TWO_PODS)
    fake.run()
    assert fake.pool.status.ready_replicas == 2
    status, reason, message = fake.condition("Placed")
    assert (status, reason) == ("False", "NoFit")
    assert f"0 of their 16 {KEY} are free" in message
    fake.change(replicas=2)
    fake.run()
    assert fake.condition("Placed")[0] == "True"


def test_an_instance_that_the_driver_has_no_devices_for_is_taken_back_and_others_go_on() -> None:
    fake = dra_world(replicas=2, topology={"pack": "nvlinkDomain"}, parallelism={"tensor": 4})
    fake.published["n0"] = {KEY: 3}
    fake.published["n1"] = {KEY: 3}
    for _ in range(90):
        fake.reconcile()
        fake.advance(1)
    assert any("found no node for 60s after it was placed" in message for _, message in fake.events)
    fake.published["n0"] = fake.published["n1"] = {KEY: 4}
    fake.run()
    assert fake.condition("Ready")[0] == "True"


def test_a_class_that_changes_its_device_class_keeps_the_old_template_until_its_last_pod_has_gone() -> None:
    fake = dra_world(replicas=1)
    fake.run()
    (old,) = fake.templates
    fake.classes["fast"] = dra_class(devices={"deviceClass": "new.example.com", "perNode": 4})
    for published in fake.published.values():
        published[counting_key("new.example.com")] = 4
    fake.run()
    assert templates_in_use(fake) == {old}
    assert len(fake.templates) == 2
    fake.change(replicas=0)
    fake.run()
    assert set(fake.templates).isdisjoint({old})
    assert len(fake.templates) == 1
    fake.change(replicas=1)
    fake.run()
    assert templates_in_use(fake) == set(fake.templates)


def test_a_class_that_changes_to_claims_serves_new_instances_so_and_leaves_the_others() -> None:
    fake = world(make_pool(replicas=1))
    fake.published = {name: {KEY: 4} for name in fake.nodes}
    fake.run()
    before = {view.uid for view in fake.views()}
    fake.classes["fast"] = dra_class()
    fake.change(replicas=2)
    fake.run()
    assert before < {view.uid for view in fake.views()}
    assert sorted(bool(view.claim_templates) for view in fake.views()) == [False, True]


def test_gated_pods_of_another_claim_are_made_anew() -> None:
    fake = dra_world(replicas=1, parallelism={"tensor": 8})
    fake.reconcile()
    (old,) = templates_in_use(fake)
    fake.classes["fast"] = dra_class(devices={"deviceClass": "new.example.com", "perNode": 4})
    for published in fake.published.values():
        published[counting_key("new.example.com")] = 4
    fake.run()
    assert fake.condition("Ready")[0] == "True"
    assert old not in fake.templates
    assert templates_in_use(fake) == set(fake.templates)


def test_a_pool_that_is_not_valid_any_more_keeps_the_templates_of_its_pods_only() -> None:
    fake = dra_world(replicas=1, nodeClasses=["fast", "slow"])
    fake.classes["slow"] = dra_class("slow", "s")
    fake.run()
    assert len(fake.templates) == 2
    fake.classes.clear()
    fake.reconcile()
    assert set(fake.templates) == templates_in_use(fake)
    assert len(fake.templates) == 1


def test_a_template_that_somebody_removed_comes_back() -> None:
    fake = dra_world(replicas=1)
    fake.run()
    names = list(fake.templates)
    fake.templates.clear()
    fake.reconcile()
    assert list(fake.templates) == names
