"""What the inventory means to a kubelet: devices, link groups, faults, container variables, and the wire messages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_emulator.inventory import example_inventory, expand
from retinue_emulator.kubeletplugin.containerview import ids_env, write_cdi_spec, write_facts
from retinue_emulator.kubeletplugin.faults import Crash, KubeletFaults, parse_kubelet_faults
from retinue_emulator.kubeletplugin.generate import checked_in_files, generated_files
from retinue_emulator.kubeletplugin.links import preferred
from retinue_emulator.kubeletplugin.nodedevices import LINK_GROUPS, LinkGroupsError, PluginDevice, node_devices
from retinue_emulator.kubeletplugin.nodemarks import discovery_labels
from retinue_emulator.kubeletplugin.plugin import NotInInventory, find_node
from retinue_emulator.nodeplugin.faults import FaultError

from .kubeletplugin_stubs import GPU, LPU, NIC, inventory

EIGHT = tuple(PluginDevice(GPU, index, f"GPU-{index}", index // 4, True) for index in range(8))


def test_the_generated_messages_are_those_of_the_proto_files() -> None:
    assert generated_files() == checked_in_files()


def test_both_modes_of_the_node_plugin_report_the_same_device_ids() -> None:
    for facts in expand(example_inventory("demo")):
        plugged = [device for device in node_devices(facts, "demo") if device.accelerator]
        assert [(d.resource, d.index, d.id) for d in plugged] == [(d.resource, d.index, d.id) for d in facts.devices]


def test_a_node_has_its_accelerators_and_the_nics_beside_them() -> None:
    devices = node_devices(find_node(inventory(), "kind-gpu"), "kind")
    assert [(d.resource, d.group) for d in devices[:8]] == [(GPU, 0)] * 4 + [(GPU, 1)] * 4
    assert [(d.resource, d.group) for d in devices[8:]] == [(NIC, 0)] * 4 + [(NIC, 1)] * 4
    assert devices == node_devices(find_node(inventory(), "kind-gpu"), "kind")
    assert len({device.id for device in devices}) == 16
    assert all(len(device.id) <= 63 for device in devices)
    assert [d.resource for d in node_devices(find_node(inventory(), "kind-lpx"), "kind")] == [LPU] * 8


def test_a_label_of_the_inventory_says_how_many_link_groups_a_node_has() -> None:
    facts = find_node(inventory(), "kind-gpu")
    one = replace(facts, labels={**facts.labels, LINK_GROUPS: "1"})
    assert {device.group for device in node_devices(one, "kind")} == {0}
    with pytest.raises(LinkGroupsError, match="from 1 to 8"):
        node_devices(replace(facts, labels={LINK_GROUPS: "9"}), "kind")


def test_a_node_that_the_inventory_does_not_name_is_refused_with_what_to_do() -> None:
    with pytest.raises(NotInInventory, match="nodeNames"):
        find_node(inventory(), "kind-worker")


def test_the_labels_of_the_kubelet_are_left_to_it() -> None:
    labels = discovery_labels(find_node(inventory(), "kind-dra"), "kind")
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-GB300"
    assert "nvidia.com/gpu.clique" in labels
    assert not {"kubernetes.io/arch", "kubernetes.io/os", "kubernetes.io/hostname"} & labels.keys()


@given(
    st.sets(st.integers(0, 7)),
    st.sets(st.integers(0, 7)),
    st.integers(0, 8),
    st.sets(st.integers(0, 7)),
)
def test_a_preferred_choice_is_complete_and_made_of_what_is_available(
    free: set[int], must: set[int], size: int, cut: set[int]
) -> None:
    must = set(sorted(must & free)[:size])
    chosen = preferred(
        EIGHT,
        available={f"GPU-{index}" for index in free},
        must={f"GPU-{index}" for index in must},
        size=size,
        cut={f"GPU-{index}" for index in cut},
    )
    indexes = {int(id.removeprefix("GPU-")) for id in chosen}
    assert len(chosen) == len(indexes) == min(size, len(free))
    assert must <= indexes <= free
    groups = [indexes & set(range(4)), indexes & set(range(4, 8))]
    whole = [{index for index in free - cut if index // 4 == group} for group in range(2)]
    if not must and any(len(group) >= size for group in whole):
        assert min(len(group) for group in groups) == 0, "one group would have done"


def test_faults_are_read_from_a_list() -> None:
    text = "device-unhealthy=1+2, nic-down=0, link-down=3, slow-prepare=10s, plugin-crash=stale"
    assert parse_kubelet_faults(text) == KubeletFaults(
        frozenset({1, 2}), frozenset({0}), frozenset({3}), 10.0, Crash.STALE
    )
    assert parse_kubelet_faults("") == KubeletFaults()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("down", "stop its kubelet"),
        ("device-unhealthy=x", "needs device indexes"),
        ("plugin-crash=later", "plugin-crash=stale|wiped"),
        ("slow-prepare=soon", "slow-prepare=<duration>"),
        ("rain", "not a fault"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_with_what_does(text: str, says: str) -> None:
    with pytest.raises(FaultError) as refused:
        parse_kubelet_faults(text)
    assert says in str(refused.value)


def test_variables_name_accelerators_and_each_resource() -> None:
    nic = PluginDevice(NIC, 0, "NIC-0", 0, False)
    assert ids_env([EIGHT[1], EIGHT[0], nic]) == {
        "RETINUE_DEVICE_IDS": "GPU-1,GPU-0",
        "RETINUE_DEVICE_IDS_NVIDIA_COM_GPU": "GPU-1,GPU-0",
        "RETINUE_DEVICE_IDS_RDMA_IB": "NIC-0",
    }


def test_the_runtime_and_the_container_find_the_devices_described(tmp_path: Path) -> None:
    spec = json.loads(write_cdi_spec(GPU, EIGHT[:2], tmp_path).read_text())
    assert spec["kind"] == "retinue.dev/nvidia-com-gpu"
    assert [entry["name"] for entry in spec["devices"]] == ["GPU-0", "GPU-1"]
    assert spec["devices"][1]["containerEdits"]["env"] == ["RETINUE_DEVICE_NVIDIA_COM_GPU_1=GPU-1"]
    write_facts(EIGHT[4:5], tmp_path, {"node": "kind-gpu"})
    facts = json.loads((tmp_path / "GPU-4.json").read_text())
    assert (facts["node"], facts["index"], facts["linkGroup"]) == ("kind-gpu", 4, 1)
