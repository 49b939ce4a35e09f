"""Every folder of docs/examples, applied as its page says, becomes what its page promises on the cluster."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest
import yaml

from .clients import client, stream
from .manifests import EXAMPLES, Object
from .world import World, condition

WITH_STATUS = {"AgentPool", "PrefillPool", "DecodePool", "KVCacheTier"}


@dataclass(frozen=True)
class Pods:
    """What pods of one pool or tier must be like: how many, on which classes, and how many devices each has."""

    count: int
    node_classes: tuple[str, ...]
    devices: int


# Labels of the nodes of a class.
NODES = {
    "h200": {"nvidia.com/gpu.product": "NVIDIA-H200"},
    "b200": {"nvidia.com/gpu.product": "NVIDIA-B200"},
    "b300": {"nvidia.com/gpu.product": "NVIDIA-B300-SXM6-AC"},
    "storage": {"node-role": "storage"},
}
EXPECTED: dict[str, dict[str, Pods]] = {
    # It names two classes; the other tests may hold all of the first at this moment.
    "one-pool": {"small-decode": Pods(1, ("h200", "b200"), 1)},
    "agents": {
        "coder-primary-prefill": Pods(1, ("h200",), 4),
        "coder-primary-decode": Pods(1, ("h200",), 4),
        "coder-explorer-decode": Pods(1, ("b200",), 1),
        "coder-cold-tier": Pods(1, ("storage",), 0),
    },
    "device-claims": {"claimed-decode": Pods(1, ("b300",), 2)},
    "autoscaler": {"scaled-decode": Pods(1, ("h200",), 1)},
}
ROLES = {"one-pool": ("assistant", ["primary"]), "agents": ("coder", ["primary", "explorer"])}
"""AgentPools of examples that answer, and the roles that they name."""


def test_each_example_has_its_test_and_its_line_in_the_table() -> None:
    folders = {folder.name for folder in EXAMPLES.iterdir() if folder.is_dir()}
    table = (EXAMPLES / "README.md").read_text()
    assert folders == {*EXPECTED, "node-classes"}
    assert [name for name in sorted(folders) if f"| [{name}]({name}) |" not in table] == []


async def test_the_node_classes_are_those_of_this_cluster_and_find_all_its_nodes(world: World) -> None:
    applied = world.kubectl("apply", "-f", str(EXAMPLES / "node-classes"))
    assert {line.split()[0] for line in applied.splitlines()} == {
        f"nodeclass.retinue.dev/{name}" for name in ("h200", "b200", "b300", "storage")
    }
    found = {item["metadata"]["name"]: item for item in world.get("nodeclasses")["items"]}
    for name, nodes in {"h200": 2, "b200": 1, "b300": 1, "storage": 1}.items():
        assert condition(found[name], "Ready").get("reason") == "NodesFound", name
        assert found[name]["status"]["nodes"] == nodes, name


@pytest.mark.parametrize("example", sorted(EXPECTED))
async def test_an_example_becomes_ready_with_its_pods_on_its_nodes(world: World, namespace: str, example: str) -> None:
    world.kubectl("apply", "-n", namespace, "-f", str(EXAMPLES / example))

    await asyncio.gather(
        *(
            world.ready(namespace, found["kind"], found["metadata"]["name"])
            for found in _objects(example)
            if found["kind"] in WITH_STATUS
        )
    )

    pods = world.pods(namespace)
    expected = EXPECTED[example]
    assert Counter(_group(name) for name in pods) == {group: wanted.count for group, wanted in expected.items()}
    for name, pod in pods.items():
        wanted = expected[_group(name)]
        assert condition(pod, "Ready")["status"] == "True", name
        placed = pod["metadata"]["labels"]["retinue.dev/node-class"]
        assert placed in wanted.node_classes, name
        labels = world.get("node", pod["spec"]["nodeName"])["metadata"]["labels"]
        assert NODES[placed].items() <= labels.items(), f"{name} on {pod['spec']['nodeName']}"
    ids = {name: _device_ids(world, namespace, name) for name in pods}
    assert {name: len(own) for name, own in ids.items()} == {name: expected[_group(name)].devices for name in pods}
    everyone = [device for own in ids.values() for device in own]
    assert len(set(everyone)) == len(everyone), f"a device is in two containers: {ids}"

    agent_pool, roles = ROLES.get(example, ("", []))
    for role in roles:
        async with client(world.base_url(namespace, agent_pool)) as agents:
            answer = await stream(agents, f"{example}-{role}", tokens=8, model=role)
        assert (answer.tokens, answer.finished, answer.error) == (8, True, None), role


def _objects(example: str) -> list[Object]:
    files = sorted((EXAMPLES / example).glob("*.yaml"))
    return [found for file in files for found in yaml.safe_load_all(file.read_text())]


def _group(pod: str) -> str:
    """`small-decode` of `small-decode-0-0`."""
    return pod.rsplit("-", 2)[0]


def _device_ids(world: World, namespace: str, pod: str) -> list[str]:
    """What the kubelet gave to the container, as a process in it sees it."""
    script = "import os; print(os.environ.get('RETINUE_DEVICE_IDS', ''))"
    said = world.kubectl("exec", pod, "-n", namespace, "--", "python", "-c", script).strip()
    return said.split(",") if said else []
