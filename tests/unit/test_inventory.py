"""Inventory files: what they expand to, and how mistakes in them are reported."""

from pathlib import Path

import pytest

from retinue_emulator.inventory import (
    InventoryError,
    NodeFacts,
    example_inventory,
    example_names,
    expand,
    load_inventory,
    parse_inventory,
)

HEAD = "apiVersion: emulator.retinue.dev/v1alpha1\nkind: Inventory\ncluster: test\n"


def nodes_of(group: str, *, head: str = HEAD) -> tuple[NodeFacts, ...]:
    return expand(parse_inventory(f"{head}racks:\n- name: r1\n  nodeGroups:\n  - {group}\n"))


def problems_of(text: str) -> tuple[str, ...]:
    with pytest.raises(InventoryError) as raised:
        parse_inventory(text, source="bad.yaml")
    return raised.value.problems


def problem_of(group: str) -> str:
    (problem,) = problems_of(f"{HEAD}racks:\n- name: r1\n  nodeGroups:\n  - {group}\n")
    return problem


def test_demo_has_fourteen_nodes_and_eighty_gpus_in_four_racks() -> None:
    nodes = expand(example_inventory("demo"))
    assert len(nodes) == 14
    assert sum(len(node.devices) for node in nodes) == 80
    assert {node.rack for node in nodes} == {"r1", "r2", "r3", "r4"}
    by_preset = {preset: sum(node.preset == preset for node in nodes) for preset in {n.preset for n in nodes}}
    assert by_preset == {"h100": 4, "h200": 4, "b200": 2, "x86-cpu": 3, "vera-cpu": 1}


def test_a_gb300_rack_is_one_clique_of_72_gpus() -> None:
    trays = [node for node in expand(example_inventory("gb300-rack")) if node.preset == "gb300"]
    assert len(trays) == 18
    assert sum(len(node.devices) for node in trays) == 72
    assert len({node.labels["nvidia.com/gpu.clique"] for node in trays}) == 1
    assert all(node.architecture == "arm64" for node in trays)


@pytest.mark.parametrize("name", example_names())
def test_every_example_expands_to_distinct_nodes_and_devices(name: str) -> None:
    nodes = expand(example_inventory(name))
    assert len({node.name for node in nodes}) == len(nodes)
    ids = [device.id for node in nodes for device in node.devices]
    assert len(set(ids)) == len(ids)


def test_expansion_is_the_same_each_time() -> None:
    assert expand(example_inventory("demo")) == expand(example_inventory("demo"))


@pytest.mark.parametrize("preset", ["h100", "h200", "b200", "b300"])
def test_nodes_whose_nvlink_ends_at_the_node_have_no_clique(preset: str) -> None:
    (node,) = nodes_of(f"{{name: a, count: 1, preset: {preset}, cpu: 96, memory: 1Ti}}")
    assert "nvidia.com/gpu.clique" not in node.labels
    assert node.domain is None
    assert node.labels["nvidia.com/gpu.count"] == "8"


def test_gpu_labels_are_those_of_gpu_feature_discovery() -> None:
    (node,) = nodes_of("{name: a, count: 1, preset: gb300, cpu: 144, memory: 1870G}")
    assert node.labels["nvidia.com/gpu.product"] == "NVIDIA-GB300"
    assert node.labels["nvidia.com/gpu.memory"] == "284208"
    assert node.labels["nvidia.com/gpu.family"] == "blackwell"
    assert node.labels["topology.kubernetes.io/rack"] == "r1"
    assert node.labels["kubernetes.io/hostname"] == "a-0"


def test_named_domains_divide_the_nodes_of_a_group_in_order() -> None:
    nodes = nodes_of("{name: a, count: 4, preset: gb200, cpu: 144, nvlinkDomains: [left, right]}")
    assert [node.domain for node in nodes] == ["left", "left", "right", "right"]
    assert len({node.labels["nvidia.com/gpu.clique"] for node in nodes}) == 2


def test_more_devices_than_a_domain_holds_make_more_domains() -> None:
    nodes = nodes_of("{name: a, count: 36, preset: gb200, cpu: 144}")
    assert len({node.domain for node in nodes}) == 2


def test_lpx_nodes_carry_their_resource_and_no_nvidia_label() -> None:
    (node,) = nodes_of("{name: lpx, count: 1, preset: lpx-lp30, cpu: 32}")
    assert node.device_resources() == {"example.com/lpu": 8}
    assert not any(key.startswith("nvidia.com/") for key in node.labels)


def test_cpu_nodes_have_no_devices() -> None:
    (node,) = nodes_of("{name: c, count: 1, preset: x86-cpu, cpu: 64, memory: 1Ti}")
    assert node.devices == ()


def test_labels_of_the_file_win_over_generated_ones() -> None:
    (node,) = nodes_of(
        "{name: a, count: 1, preset: h100, cpu: 1, memory: 1Gi, labels: {topology.kubernetes.io/rack: other}}"
    )
    assert node.labels["topology.kubernetes.io/rack"] == "other"


def test_taints_rdma_and_faults_reach_the_nodes() -> None:
    first, second = nodes_of(
        "{name: a, count: 2, preset: h100, cpu: 500m, memory: 1Gi, rdma: {rdma/ib: 8}, "
        "taints: [{key: nvidia.com/gpu, effect: NoSchedule}], faults: [{node: 1, fault: device-unhealthy=3}]}"
    )
    assert dict(first.resources) == {"rdma/ib": 8}
    assert [(taint.key, taint.effect) for taint in first.taints] == [("nvidia.com/gpu", "NoSchedule")]
    assert (first.fault, second.fault) == (None, "device-unhealthy=3")
    assert first.cpu_millis == 500


def test_existing_node_names_replace_generated_ones() -> None:
    nodes = nodes_of("{name: a, count: 2, preset: h100, cpu: 1, memory: 1Gi, nodeNames: [worker-1, worker-2]}")
    assert [node.name for node in nodes] == ["worker-1", "worker-2"]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (
            "{name: a, count: 1, preset: h100, cpu: 1, memory: 1Gi, labelz: {}}",
            "racks[0].nodeGroups[0].labelz: unknown key; did you mean labels?",
        ),
        (
            "{name: a, count: 1, preset: h100, cpu: 1, memory: 1Gi, devices: {pernode: 4}}",
            "racks[0].nodeGroups[0].devices.pernode: unknown key; did you mean perNode?",
        ),
        (
            "{name: a, count: 1, preset: h1000, cpu: 1, memory: 1Gi}",
            "racks[0].nodeGroups[0].preset: unknown preset 'h1000'; did you mean h100, h200, b300?",
        ),
        ("{name: a, preset: h100, cpu: 1, memory: 1Gi}", "racks[0].nodeGroups[0].count: is required; add it"),
        (
            "{name: a, count: 1, preset: h100, cpu: 1}",
            "racks[0].nodeGroups[0]: preset h100 does not state node memory; set memory, such as 2Ti",
        ),
        (
            "{name: a, count: 1, preset: h100, cpu: 1, memory: lots}",
            "racks[0].nodeGroups[0].memory: 'lots' is not a quantity such as 4, 512Gi or 20k",
        ),
        (
            "{name: a, count: 1, preset: h100, cpu: 1, memory: 1Gi, nvlinkDomains: [x]}",
            "racks[0].nodeGroups[0]: the fabric of preset h100 ends at the node; remove nvlinkDomains or use an NVL72 "
            "preset",
        ),
        (
            "{name: a, count: 2, preset: h100, cpu: 1, memory: 1Gi, nodeNames: [x]}",
            "racks[0].nodeGroups[0]: nodeNames has 1 names for count 2; make them equal",
        ),
        (
            "{name: a, count: 2, preset: h100, cpu: 1, memory: 1Gi, faults: [{node: 2, fault: down}]}",
            "racks[0].nodeGroups[0]: faults names node 2, but the last node of the group is 1",
        ),
        (
            "{name: a, count: 1, preset: x86-cpu, cpu: 1, memory: 1Gi, devices: {perNode: 2}}",
            "racks[0].nodeGroups[0]: preset x86-cpu has no device resource; set devices.resource or devices.perNode: 0",
        ),
        (
            "{name: a, count: 1, preset: h100, cpu: 1, memory: 1Gi, rdma: {ib: 1}}",
            "racks[0].nodeGroups[0].rdma.ib: 'ib' is not an extended resource: it needs a domain, such as "
            "nvidia.com/gpu or rdma/ib",
        ),
        (
            "{name: Not_A_Name, count: 1, preset: h100, cpu: 1, memory: 1Gi}",
            "racks[0].nodeGroups[0].name: must be at most 50 lower case letters, digits and '-', such as h100 or "
            "rack-1",
        ),
    ],
)
def test_a_mistake_is_reported_with_its_path_and_remedy(group: str, expected: str) -> None:
    assert problem_of(group) == expected


def test_all_mistakes_of_a_file_are_reported_at_once() -> None:
    problems = problems_of(
        HEAD + "rackz: []\nracks:\n- name: r1\n  nodeGroups:\n  - {name: a, count: 0, preset: nope, cpu: 1}\n"
    )
    assert [problem.partition(":")[0] for problem in problems] == [
        "racks[0].nodeGroups[0].count",
        "racks[0].nodeGroups[0].preset",
        "rackz",
    ]


def test_repeated_node_names_are_refused() -> None:
    group = "{name: a, count: 1, preset: h100, cpu: 1, memory: 1Gi}"
    (problem,) = problems_of(f"{HEAD}racks:\n- name: r1\n  nodeGroups: [{group}, {group}]\n")
    assert problem == "node a-0 appears more than once; give each node its own name"


def test_a_file_without_racks_is_refused() -> None:
    assert problems_of(HEAD + "racks: []\n") == ("racks: is empty; add at least one entry",)


@pytest.mark.parametrize(("text", "expected"), [("a: [", "is not YAML"), ("[]", "must be a mapping")])
def test_a_file_that_is_no_mapping_is_refused(text: str, expected: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith(expected)


def test_a_missing_file_is_reported_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="cannot be read"):
        load_inventory(tmp_path / "nothing.yaml")


def test_an_unknown_example_lists_the_known_ones() -> None:
    with pytest.raises(InventoryError, match="demo, gb300-rack, small"):
        example_inventory("nope")
