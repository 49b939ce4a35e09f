"""What goes and what stays: deleted resources leave nothing, an uninstalled release its CRDs and serving engines.

The file's name makes it the last to run.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from .manifests import decode_pool, pool_of, small_agent_pool
from .world import World, uids

pytestmark = pytest.mark.alone


async def test_deleted_custom_resources_leave_no_pod_service_or_claim(world: World, namespace: str) -> None:
    world.apply(small_agent_pool(namespace))
    await world.ready(namespace, "agentpool", "coder", timeout=150)
    assert world.pods(namespace)

    world.kubectl("delete", "agentpool", "coder", "-n", namespace)

    async def nothing_left() -> bool:
        kinds = "pods,services,prefillpools,decodepools,kvcachetiers,resourceclaims,resourceclaimtemplates,configmaps"
        left = world.get(f"{kinds},persistentvolumeclaims,networkpolicies", "-n", namespace)["items"]
        return [o["metadata"]["name"] for o in left] == ["kube-root-ca.crt"]

    await world.until(nothing_left, "the deleted AgentPool has left nothing", timeout=120)


async def test_an_uninstalled_release_leaves_crds_and_serving_engines_and_a_new_one_takes_them_up(
    world: World, namespace: str
) -> None:
    world.apply(decode_pool(namespace, "small", 1), pool_of(namespace, "small"))
    await world.ready(namespace, "agentpool", "solo")
    before = world.pods(namespace)
    try:
        await asyncio.to_thread(world.release.uninstall)

        async def gone() -> bool:
            return not _of_release(world)

        # Helm does not wait for pods to end.
        await world.until(gone, "all objects of the release are gone", timeout=120, interval=3)
        crds = world.kubectl("get", "crds", "-o", "name").split()
        assert len([name for name in crds if name.endswith(".retinue.dev")]) == 5
        # Its namespace holds what Kubernetes puts into any, and what the operator wrote itself: lease and events.
        assert _in_namespace(world) == {
            "configmap/kube-root-ca.crt",
            "lease.coordination.k8s.io/retinue-operator",
            "serviceaccount/default",
        }
        assert uids(world.pods(namespace)) == uids(before)
        assert _serves(world, namespace, "small-decode-0")
        # Nobody looks after the pool now, and nothing prevents its change.
        world.kubectl("scale", "dp", "small", "-n", namespace, "--replicas=2")
    finally:
        await asyncio.to_thread(world.release.install, world.values)

    await world.replicas(namespace, "dp", "small", 2)
    await world.ready(namespace, "agentpool", "solo")
    assert uids(before) < uids(world.pods(namespace))


def _of_release(world: World) -> set[str]:
    """All objects of the cluster, of whatever type, that carry the label of the release."""
    return _listed(world, "--all-namespaces", "-l", f"app.kubernetes.io/instance={world.release.name}")


def _in_namespace(world: World) -> set[str]:
    """All objects in the release's namespace but events and what is going."""
    found = _listed(world, "-n", world.release.namespace, "--ignore-not-found", namespaced=True)
    return {name for name in found if not name.startswith("event")}


def _listed(world: World, *arguments: str, namespaced: bool | None = None) -> set[str]:
    narrow = () if namespaced is None else (f"--namespaced={str(namespaced).lower()}",)
    types = world.kubectl("api-resources", "--verbs=list", "-o", "name", *narrow).split()
    return set(world.kubectl("get", ",".join(types), "-o", "name", *arguments).split())


def _serves(world: World, namespace: str, instance: str) -> bool:
    """Whether the first pod of an instance answers as an engine, asked without the gateway."""
    path = f"/api/v1/namespaces/{namespace}/pods/{instance}-0:8000/proxy/v1/models"
    return bool(json.loads(world.kubectl("get", "--raw", path))["data"])
