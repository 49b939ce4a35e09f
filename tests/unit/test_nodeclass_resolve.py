"""A class means what its preset says, except where the class says something itself."""

from dataclasses import replace
from typing import Any

import pytest

from retinue.api import NodeClass
from retinue.api.types import Toleration
from retinue.catalog.load import UnknownPreset, presets
from retinue.nodeclass.nodes import Hold, Taint, hold_from, is_gated, node_from, tolerated
from retinue.nodeclass.resolve import ResolvedClass, resolve

from .fakeworld import GPU, gpu_class, gpu_node, tainted


def resolved(name: str = "c", **spec: Any) -> ResolvedClass:
    return resolve(name, NodeClass.model_validate({"metadata": {"name": name}, "spec": spec}).spec)


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_preset_alone_makes_a_whole_class(name: str) -> None:
    preset = presets()[name]
    class_ = resolved(family=preset.family.value, preset=name)
    assert dict(class_.node_selector) == dict(preset.node_selector)
    assert class_.topology == preset.topology
    assert class_.resource == preset.extended_resource
    assert class_.per_node == (preset.devices_per_node or 0)
    assert class_.device == preset.device
    assert class_.preliminary == preset.preliminary
    assert class_.device_overrides == {}


@pytest.mark.parametrize(
    ("text", "scale"),
    [("12", 12.0), ("0.5", 0.5), ("", 1.0), ("fast", 1.0), ("0", 1.0), ("-3", 1.0), ("inf", 1.0), ("nan", 1.0)],
)
def test_emulated_nodes_may_say_how_fast_their_time_runs(text: str, scale: float) -> None:
    spec = NodeClass.model_validate({"metadata": {"name": "c"}, "spec": {"family": "GPU", "preset": "h100"}}).spec
    assert resolve("c", spec, {"retinue.dev/time-scale": text}).time_scale == scale
    assert resolve("c", spec).time_scale == 1.0


def test_explicit_fields_win_over_the_preset() -> None:
    class_ = resolved(
        family="GPU",
        preset="h100",
        nodeSelector={"pool": "mine"},
        devices={"extendedResource": "example.com/gpu", "perNode": 2},
        device={"memory": "96Gi", "memoryBandwidthGBps": 4000},
        topology=[{"level": "row", "keys": ["row"]}],
        costPerNodeHour="12",
    )
    base = presets()["h100"].device
    assert base is not None
    assert class_.device is not None
    assert dict(class_.node_selector) == {"pool": "mine"}
    assert (class_.resource, class_.per_node) == ("example.com/gpu", 2)
    assert (class_.device.memory_bytes, class_.device.memory_bytes_per_second) == (96 * 2**30, 4e12)
    assert class_.device.flops == base.flops, "what the class does not say stays as in the preset"
    assert [level.level for level in class_.topology] == ["row"]
    assert class_.cost_per_device_hour() == 6


def test_an_empty_topology_is_a_choice_too() -> None:
    assert resolved(family="GPU", preset="h100", topology=[]).topology == ()


def test_a_class_without_preset_knows_a_device_only_if_it_says_memory_and_bandwidth() -> None:
    fields: dict[str, Any] = {
        "family": "GPU",
        "nodeSelector": {"a": "b"},
        "devices": {"extendedResource": GPU, "perNode": 1},
    }
    assert resolved(**fields).device is None
    assert resolved(**fields, device={"memory": "80Gi"}).device is None
    facts = resolved(**fields, device={"memory": "80Gi", "memoryBandwidthGBps": 3000}).device
    assert facts is not None
    assert facts.memory_bytes == 80 * 2**30


def test_devices_by_dra_have_no_extended_resource_even_if_the_preset_has_one() -> None:
    class_ = resolved(family="GPU", preset="h100", devices={"deviceClass": "gpu.nvidia.com", "perNode": 8})
    assert (class_.resource, class_.device_class) == (None, "gpu.nvidia.com")


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownPreset, match="gb300"):
        resolved(family="GPU", preset="gb3000")


def test_a_class_without_cost_has_no_cost_per_device() -> None:
    assert resolved(family="GPU", preset="h100").cost_per_device_hour() is None


def test_a_node_belongs_to_a_class_if_it_carries_every_label_of_the_selector() -> None:
    class_ = gpu_class("fast", nodeSelector={"gpu": "h", "zone": "z"})
    node = gpu_node("a")
    assert not class_.matches(node)
    assert class_.matches(replace(node, labels={**node.labels, "zone": "z"}))


TAINT = Taint("dedicated", "NoSchedule", "gpu")
TOLERATIONS = [
    ({"key": "dedicated", "operator": "Equal", "value": "gpu"}, True),
    ({"key": "dedicated", "operator": "Equal", "value": "cpu"}, False),
    ({"key": "dedicated", "operator": "Exists"}, True),
    ({"key": "dedicated", "operator": "Exists", "effect": "NoExecute"}, False),
    ({"key": "dedicated", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"}, True),
    ({"operator": "Exists"}, True),
    ({"key": "other", "operator": "Exists"}, False),
]


@pytest.mark.parametrize(("wire", "expected"), TOLERATIONS)
def test_tolerations_match_as_in_kubernetes(wire: dict[str, str], expected: bool) -> None:
    assert tolerated([TAINT], [Toleration.model_validate(wire)]) is expected


def test_every_taint_must_be_tolerated_but_soft_ones_do_not_count() -> None:
    known = [Toleration.model_validate({"key": "dedicated", "operator": "Exists"})]
    assert tolerated([TAINT, Taint("soft", "PreferNoSchedule")], known)
    assert not tolerated([TAINT, Taint("maintenance", "NoExecute")], known)


def test_a_class_accepts_only_usable_nodes_whose_taints_it_tolerates() -> None:
    class_, node = gpu_class("fast"), gpu_node("a")
    assert class_.accepts(node)
    assert not class_.accepts(replace(node, ready=False))
    assert not class_.accepts(replace(node, schedulable=False))
    assert not class_.accepts(tainted(node, "x"))


def test_a_node_is_read_from_the_wire() -> None:
    node = node_from(
        {
            "metadata": {"name": "a", "labels": {"gpu": "h"}},
            "spec": {"unschedulable": True, "taints": [{"key": "k", "effect": "NoExecute"}]},
            "status": {
                "allocatable": {GPU: "8", "memory": "1Ti", "cpu": "1500m", "odd": "?"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
    )
    assert (node.name, node.ready, node.schedulable, node.usable) == ("a", True, False, False)
    assert node.allocatable == {GPU: 8, "memory": 2**40, "cpu": 1}
    assert node.taints == (Taint("k", "NoExecute"),)
    assert not node_from({"metadata": {"name": "b"}}).ready


def pod(**spec: Any) -> dict[str, Any]:
    resources = {"requests": {GPU: "2", "memory": "1Gi"}, "limits": {GPU: "2"}}
    containers = [{"name": "a", "resources": resources}, {"name": "b", "resources": {"limits": {GPU: "1"}}}]
    return {"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": containers, **spec}}


def test_a_pod_holds_what_its_containers_request_or_are_limited_to() -> None:
    assert hold_from(pod(nodeName="a")) == Hold("ns/p", "a", "", None, {GPU: 3, "memory": 2**30})


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_holds_nothing(phase: str) -> None:
    assert hold_from({**pod(nodeName="a"), "status": {"phase": phase}}) is None


def test_a_pod_behind_our_gate_holds_nothing_and_other_gates_do_not_count() -> None:
    assert hold_from(pod(schedulingGates=[{"name": "retinue.dev/placement"}])) is None
    assert hold_from(pod(schedulingGates=[{"name": "example.com/quota"}])) is not None
    assert not is_gated({})
