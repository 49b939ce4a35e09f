"""The status of a node class: its nodes, devices and domains, overlaps, and what is wrong with them."""

from dataclasses import replace
from typing import Any

import pytest

from retinue.api import NodeClass
from retinue.nodeclass.claims import counting_key
from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.plan import MAX_DOMAINS, NodeClassSnapshot, plan
from retinue.plan import Manifest

from .fakeworld import CLIQUE, GPU, START, gpu_class, gpu_node

SPEC: dict[str, Any] = {
    "family": "GPU",
    "preset": "h100",
    "nodeSelector": {"gpu": "h"},
    "devices": {"extendedResource": GPU, "perNode": 4},
    "topology": [
        {"level": "nvlinkDomain", "keys": [CLIQUE]},
        {"level": "rack", "keys": ["topology.kubernetes.io/rack"]},
    ],
}


def node_class(status: Manifest | None = None, **spec: Any) -> NodeClass:
    metadata = {"name": "fast", "generation": 7}
    return NodeClass.model_validate({"metadata": metadata, "spec": {**SPEC, **spec}, "status": status or {}})


def status_of(nodes: list[Node], holds: tuple[Hold, ...] = (), **more: Any) -> Manifest:
    fields = {"node_class": node_class(), "others": {}, **more}
    planned = plan(NodeClassSnapshot(nodes=tuple(nodes), holds=holds, **fields), START)
    assert not planned.apply
    assert not planned.delete
    assert planned.status is not None
    return planned.status


def condition(status: Manifest, type_: str) -> tuple[str, str, str]:
    found = next(c for c in status["conditions"] if c["type"] == type_)
    return found["status"], found["reason"], found["message"]


def test_nodes_devices_and_domains_are_counted_level_by_level() -> None:
    nodes = [
        gpu_node("a", rack="r0", clique="c0"),
        replace(gpu_node("b", rack="r0", clique="c0"), ready=False),
        gpu_node("c", rack="r1"),
        gpu_node("other", product="x"),
    ]
    status = status_of(nodes, (Hold("ns/p", "a", "", None, {GPU: 3}),))
    assert status["observedGeneration"] == 7
    assert (status["nodes"], status["readyNodes"], status["devices"], status["freeDevices"]) == (3, 2, 12, 5)
    assert status["domains"] == [
        {"level": "nvlinkDomain", "name": "c0", "nodes": 2, "readyNodes": 1, "devices": 8, "freeDevices": 1},
        {"level": "rack", "name": "r0", "nodes": 2, "readyNodes": 1, "devices": 8, "freeDevices": 1},
        {"level": "rack", "name": "r1", "nodes": 1, "readyNodes": 1, "devices": 4, "freeDevices": 4},
    ]
    assert condition(status, "Ready") == ("True", "NodesFound", "2 of 3 nodes are usable")


def test_devices_by_dra_are_counted_as_the_class_says_on_nodes_that_are_ready() -> None:
    class_ = node_class(devices={"deviceClass": "gpu.example.com", "perNode": 8})
    nodes = [gpu_node("a", clique="c0"), replace(gpu_node("b", clique="c0"), ready=False)]
    holds = (Hold("ns/p", "a", "", None, {counting_key("gpu.example.com"): 3, GPU: 1}),)
    status = status_of(nodes, holds, node_class=class_)
    assert (status["nodes"], status["readyNodes"], status["devices"], status["freeDevices"]) == (2, 1, 8, 5)
    domain = status["domains"][0]
    assert (domain["name"], domain["devices"], domain["freeDevices"]) == ("c0", 8, 5)
    assert condition(status, "Ready")[:2] == ("True", "NodesFound")


def test_devices_that_are_promised_are_not_free() -> None:
    status = status_of([gpu_node("a", clique="c0")], (Hold("ns/p", None, "fast", "c0", {GPU: 4}),))
    assert status["freeDevices"] == 0


def test_more_held_than_there_is_counts_as_nothing_free() -> None:
    status = status_of([gpu_node("a", clique="c0")], (Hold("ns/p", "a", "", None, {GPU: 9}),))
    assert status["freeDevices"] == 0
    assert all(domain["freeDevices"] == 0 for domain in status["domains"])


def test_classes_that_share_nodes_are_named() -> None:
    others = {"same": gpu_class("same"), "elsewhere": gpu_class("elsewhere", "x")}
    status = status_of([gpu_node("a")], others=others)
    assert status["overlaps"] == ["same"]
    state, reason, text = condition(status, "Degraded")
    assert (state, reason) == ("True", "ClassesOverlap")
    assert "make the nodeSelectors disjoint" in text


def test_without_overlap_nothing_is_degraded() -> None:
    status = status_of([gpu_node("a")], others={"elsewhere": gpu_class("elsewhere", "x")})
    assert status["overlaps"] == []
    assert "Degraded" not in {c["type"] for c in status["conditions"]}


@pytest.mark.parametrize(
    ("nodes", "reason", "remedy"),
    [
        ([], "NoNodes", "label the nodes or correct spec.nodeSelector"),
        ([replace(gpu_node("a"), ready=False)], "NoReadyNodes", "kubectl get nodes -l gpu=h"),
        ([replace(gpu_node("a"), schedulable=False)], "NoReadyNodes", "Ready and schedulable"),
        ([replace(gpu_node("a"), allocatable={})], "DevicesMissing", "check that the device plugin runs there"),
    ],
)
def test_what_is_missing_is_said_with_a_remedy(nodes: list[Node], reason: str, remedy: str) -> None:
    state, why, text = condition(status_of(nodes), "Ready")
    assert (state, why) == ("False", reason)
    assert remedy in text


def test_an_unknown_preset_is_invalid_and_names_the_nearest() -> None:
    status = status_of([gpu_node("a")], node_class=node_class(preset="h1000"))
    for type_ in ("Valid", "Ready"):
        state, reason, text = condition(status, type_)
        assert (state, reason) == ("False", "UnknownPreset")
        assert "spec.preset" in text
        assert "h100" in text


def test_a_cpu_class_needs_no_devices() -> None:
    spec = {"family": "CPU", "nodeSelector": {"gpu": "h"}}
    class_ = NodeClass.model_validate({"metadata": {"name": "cpu"}, "spec": spec})
    status = status_of([gpu_node("a")], node_class=class_)
    assert (status["nodes"], status["devices"]) == (1, 0)
    assert condition(status, "Ready")[0] == "True"


def test_the_number_of_domains_stays_within_what_the_schema_allows() -> None:
    nodes = [gpu_node(f"n{i}", clique=f"c{i}", rack=f"r{i}") for i in range(MAX_DOMAINS)]
    assert len(status_of(nodes)["domains"]) == MAX_DOMAINS


def test_an_unchanged_world_gives_an_unchanged_status() -> None:
    first = status_of([gpu_node("a", clique="c0")])
    later = plan(NodeClassSnapshot(node_class(first), (gpu_node("a", clique="c0"),), (), {}), START + 500)
    assert later.status == first
