"""The chart installed with Helm: everything becomes Ready, and the nodes' kubelets have devices that do not exist."""

import time

import pytest

from .clients import client, stream
from .manifests import decode_pool, node_classes, pool_of
from .world import World, condition

pytestmark = pytest.mark.install


def test_helm_install_makes_everything_ready(world: World) -> None:
    began = time.monotonic()
    notes = world.release.install(world.values)
    world.figure("helm install to Ready", time.monotonic() - began, "s", "helm upgrade --install --wait, images loaded")

    world.apply(*node_classes(world.speed))
    assert "is installed in retinue-system" in notes
    for component, count in {"operator": 2, "gateway": 1, "prometheus": 1}.items():
        pods = world.system_pods(component)
        assert len(pods) == count, component
        assert all(condition(pod, "Ready")["status"] == "True" for pod in pods.values())
    assert world.leader() in world.system_pods("operator")


def test_the_operator_runs_as_restricted_pod_security_wants(world: World) -> None:
    for component in ("operator", "gateway", "prometheus"):
        for pod in world.system_pods(component).values():
            spec, container = pod["spec"], pod["spec"]["containers"][0]
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


async def test_applied_agents_get_their_first_token(world: World, namespace: str) -> None:
    began = time.monotonic()
    world.apply(decode_pool(namespace, "first", 1), pool_of(namespace, "first"))
    await world.ready(namespace, "agentpool", "solo")
    async with client(world.base_url(namespace, "solo")) as agents:
        answer = await stream(agents, "a", tokens=1)
    world.figure(
        "AgentPool apply to first token", time.monotonic() - began, "s", "one aggregated instance, idle cluster"
    )
    assert (answer.tokens, answer.finished, answer.error) == (1, True, None)
