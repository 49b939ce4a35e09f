"""Others size pools and tiers through the scale subresource: kubectl scale, and a HorizontalPodAutoscaler."""

from __future__ import annotations

import asyncio
import json

import yaml

from retinue_emulator.loopback.audit import read_events

from .clients import begin, client
from .manifests import EXAMPLES, Object, pool_of, small_agent_pool
from .metricsadapter import external_metrics
from .world import World

SIZED = (("prefillpools", "coder-primary"), ("decodepools", "coder-explorer"), ("kvcachetiers", "coder-cold"))
HPA_USER = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
RUNNING = {"retinue_requests_running": 'sum(vllm:num_requests_running{namespace="$namespace"$matchers})'}
"""As the page of the example says."""


async def test_kubectl_scale_sizes_pools_and_tiers_and_nobody_takes_it_back(world: World, namespace: str) -> None:
    world.apply(small_agent_pool(namespace, mode="Off"))
    await world.ready(namespace, "agentpool", "coder")

    for wanted in (2, 1):
        for kind, name in SIZED:
            world.kubectl("scale", kind, name, "-n", namespace, f"--replicas={wanted}")
        # The AgentPool sees its children change: were it to have an opinion, it would say it now.
        world.kubectl("annotate", "agentpool", "coder", "-n", namespace, f"example.com/seen={wanted}", "--overwrite")
        for kind, name in SIZED:
            await _serving(world, namespace, kind, name, wanted)
    await world.ready(namespace, "agentpool", "coder")

    for kind, name in SIZED:
        found = world.get(kind, name, "-n", namespace, "--show-managed-fields")
        assert found["spec"]["replicas"] == 1
        assert writers_of_replicas(found) == {"kubectl/scale"}, name


async def test_a_horizontal_pod_autoscaler_grows_a_pool_under_streams_and_shrinks_it_afterwards(
    world: World, namespace: str
) -> None:
    world.apply(*_example(namespace), pool_of(namespace, "scaled"))
    await world.ready(namespace, "agentpool", "solo")
    with external_metrics(world, namespace, RUNNING):
        async with client(world.base_url(namespace, "solo")) as agents:
            streams = await begin(agents, 20, tokens=20_000)
            await world.replicas(namespace, "dp", "scaled", 3, timeout=120)
            status = await world.until(lambda: _autoscaler_at(world, namespace, 3), "the autoscaler sees its work")
            assert {c["type"]: c["status"] for c in status["conditions"]}["ScalingActive"] == "True"
            assert not any(task.done() for task in streams)
            for task in streams:
                task.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        await world.replicas(namespace, "dp", "scaled", 1, timeout=120)

    pool = world.get("dp", "scaled", "-n", namespace, "--show-managed-fields")
    assert writers_of_replicas(pool) == {"kube-controller-manager/scale"}
    scale = json.loads(
        world.kubectl("get", "--raw", f"/apis/retinue.dev/v1alpha1/namespaces/{namespace}/decodepools/scaled/scale")
    )
    assert scale["status"]["replicas"] == 1
    assert set(world.pods(namespace, scale["status"]["selector"])) == set(world.pods(namespace))
    if world.kind is not None:
        written = [e for e in read_events(world.kind.audit_log) if e.namespace == namespace and e.name == "scaled"]
        sizes = [e for e in written if e.resource == "decodepools" and e.subresource != "status"]
        # The pool was made once by kubectl; each size since then is the HPA's, and the operator wrote statuses only.
        assert [(e.user, e.verb, e.subresource) for e in sizes[:1]] == [("kubernetes-admin", "patch", "")]
        assert {(e.user, e.verb, e.subresource) for e in sizes[1:]} == {(HPA_USER, "update", "scale")}


def _example(namespace: str) -> list[Object]:
    """docs/examples/autoscaler with engines slow enough for streams that last, and without five minutes of patience."""
    objects: list[Object] = list(yaml.safe_load_all((EXAMPLES / "autoscaler" / "pool.yaml").read_text()))
    for found in objects:
        found["metadata"]["namespace"] = namespace
    pool, hpa = objects
    pool["spec"]["engine"]["args"] = ["--speed=0.1", "--cold-start-seconds=0.1"]
    hpa["spec"]["behavior"] = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    return objects


async def _autoscaler_at(world: World, namespace: str, size: int) -> Object | None:
    """The status of the HorizontalPodAutoscaler once it knows of this size."""
    status = (await asyncio.to_thread(world.get, "hpa", "scaled", "-n", namespace))["status"]
    return dict(status) if status.get("currentReplicas") == size else None


async def _serving(world: World, namespace: str, kind: str, name: str, wanted: int) -> None:
    """Waits until a pool or tier has the size that was asked for, and all of it is ready."""

    async def probe() -> bool:
        status = world.get(kind, name, "-n", namespace)["status"]
        return bool(status["replicas"] == status["readyReplicas"] == wanted)

    await world.until(probe, f"{kind} {name} has {wanted}")


def writers_of_replicas(found: Object) -> set[str]:
    """Who owns spec.replicas: field manager and subresource."""
    return {
        f"{entry['manager']}/{entry.get('subresource', '')}"
        for entry in found["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    }
