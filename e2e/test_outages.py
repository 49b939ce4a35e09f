"""What the product leans on goes away for a while: the API server and Prometheus."""

import time

import pytest

from retinue_emulator.loopback import KubectlError
from retinue_emulator.loopback.audit import AuditEvent, read_events

from .clients import begin, client, stream
from .manifests import agent_pool, decode_pool, pool_of
from .world import World, uids

pytestmark = pytest.mark.alone

SLOW = {"type": "Simulated", "args": ["--speed=0.1", "--cold-start-seconds=0.1"]}


async def test_while_the_api_server_is_away_streams_go_on_and_nothing_is_done_twice(
    world: World, namespace: str
) -> None:
    world.apply(decode_pool(namespace, "steady", 2, engine=SLOW), pool_of(namespace, "steady"))
    await world.ready(namespace, "agentpool", "solo")
    await world.replicas(namespace, "dp", "steady", 2)
    before, restarts = uids(world.pods(namespace)), {**world.restarts("operator"), **world.restarts("gateway")}
    master = next(node for node in world.machine().nodes if node.endswith("-control-plane"))
    written = len(_writes(world, namespace))
    try:
        async with client(world.base_url(namespace, "solo")) as agents:
            running = await begin(agents, 8, tokens=500)
            began = time.monotonic()
            world.kill_container(master, f"kube-apiserver-{master}", "kube-system")
            during = await stream(agents, "during", tokens=5)
            assert (during.tokens, during.error) == (5, None)
            await world.until(lambda: _answers(world), "the API server answers again", timeout=120)
            world.figure("API server killed to answering again", time.monotonic() - began, "s")
            ended = [await task for task in running]
        assert {(s.tokens, s.finished, s.error) for s in ended} == {(500, True, None)}
        await world.settled()
        # Nothing had changed meanwhile, so whoever leads now found nothing to do.
        assert _writes(world, namespace)[written:] == []

        world.kubectl("scale", "dp", "steady", "-n", namespace, "--replicas=3")
        await world.replicas(namespace, "dp", "steady", 3)
        assert before < uids(world.pods(namespace))
        made = [e for e in _writes(world, namespace)[written:] if e.field_manager == "retinue" and e.code < 300]
        # One new pod, made in its place.
        assert [e.name for e in made] == ["steady-decode-2-0"]
        after = {**world.restarts("operator"), **world.restarts("gateway")}
        assert all(after[name] - restarts[name] <= 1 for name in restarts), "restarted again and again"
        assert world.restarts("gateway").items() <= restarts.items()
    finally:
        await world.settled()


async def test_without_prometheus_nothing_shrinks_and_it_is_said(world: World, namespace: str) -> None:
    world.apply(agent_pool(namespace))
    await world.ready(namespace, "agentpool", "coder")
    await world.conditioned(namespace, "agentpool", "coder", "MetricsFresh", "True")
    deployment = ("deployment/retinue-prometheus", "-n", world.release.namespace)
    try:
        # More than the load needs: with metrics it shrinks to one within some fifteen seconds.
        world.kubectl("scale", *deployment, "--replicas=0")
        world.kubectl("scale", "pp", "coder-primary", "-n", namespace, "--replicas=2")
        fresh = await world.conditioned(
            namespace, "agentpool", "coder", "MetricsFresh", "False", "PrometheusUnreachable"
        )
        assert "retinue-prometheus" in fresh["message"]
        decided = _decisions(world, namespace)

        async def enough() -> bool:
            # Each takes the five seconds that Prometheus may take to answer: twice the wait before shrinking.
            return _decisions(world, namespace) >= decided + 5

        await world.until(enough, "five evaluations without metrics", timeout=90)
        assert world.get("pp", "coder-primary", "-n", namespace)["spec"]["replicas"] == 2
        await world.replicas(namespace, "pp", "coder-primary", 2)
    finally:
        world.kubectl("scale", *deployment, "--replicas=1")
        await world.settled()
    await world.conditioned(namespace, "agentpool", "coder", "MetricsFresh", "True")
    await world.replicas(namespace, "pp", "coder-primary", 1)


def _decisions(world: World, namespace: str) -> float:
    """Evaluations of the namespace's AgentPools so far, from the leader's own metrics."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in world.operator_metrics(world.leader()).splitlines()
        if line.startswith("retinue_operator_decisions_total{") and f'namespace="{namespace}"' in line
    )


def _writes(world: World, namespace: str) -> list[AuditEvent]:
    """The operator's writes in a namespace, without statuses and events."""
    user = f"system:serviceaccount:{world.release.namespace}:{world.release.name}-operator"
    return [
        event
        for event in read_events(world.machine().audit_log)
        if event.user == user and event.namespace == namespace and not event.subresource and event.resource != "events"
    ]


async def _answers(world: World) -> bool:
    try:
        return world.kubectl("get", "--raw", "/readyz", timeout=10) == "ok"
    except KubectlError:
        return False
