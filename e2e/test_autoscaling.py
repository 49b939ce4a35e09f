"""The autoscaler on a cluster of its own: what the operator takes at rest, growth under agents, shrinking afterwards.

Alone, because it may take every device of its class, and because times and memory are measured.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from retinue_emulator.replay.cli import open_trace
from retinue_emulator.replay.events import Trace
from retinue_emulator.replay.oracle import expected_hit
from retinue_emulator.replay.runner import Replay, ReplayOptions

from .footprint import Asked, Footprint, asked, footprint
from .manifests import Object, agent_pool
from .prometheus import Prometheus, prometheus
from .scaleup import scale_up
from .test_scaling import writers_of_replicas
from .world import World

pytestmark = pytest.mark.alone

REST_SECONDS = 40.0
"""The measuring window at rest."""
MOST = 2
GROWING = {"pp": "coder-primary", "dp": "coder-primary"}


async def test_the_autoscaler_grows_pools_under_agents_keeps_the_cache_and_shrinks_them(
    world: World, namespace: str
) -> None:
    goals = {"ttft": {"quantile": "0.95", "target": "500ms"}, "itl": {"quantile": "0.95", "target": "2ms"}}
    wanted = agent_pool(namespace, most=MOST)
    wanted["spec"]["slo"] = goals
    world.apply(wanted)
    await world.ready(namespace, "agentpool", "coder")
    await world.conditioned(namespace, "agentpool", "coder", "MetricsFresh", "True")
    began = time.time()
    operators = set(world.system_pods("operator"))
    with prometheus(world) as server:
        await _measure_rest(world, server, operators)

        trace = _trace()
        options = ReplayOptions(
            base_url=world.gateway_url, namespace=namespace, agent_pool="coder", speed=world.speed, max_gap=5.0
        )
        replaying = time.time()
        replay = asyncio.create_task(Replay(trace, options).run())
        grown: dict[str, Object] = {}

        async def has_grown() -> bool:
            assert not replay.done(), "the load ended before pools had grown"
            for kind, name in GROWING.items():
                found = await asyncio.to_thread(world.get, kind, name, "-n", namespace)
                if found["status"]["readyReplicas"] > 1:
                    grown.setdefault(kind, found)
            return bool(grown)

        try:
            await world.until(has_grown, "a pool of the primary role has grown", timeout=120)
            _figure_scale_up(world, namespace, next(iter(grown)))
            result = await replay
        finally:
            replay.cancel()
        _figures(world, footprint(server, operators, time.time() - replaying), "under replay")

        assert [record.error for record in result.records if record.error] == []
        measured, oracle = result.summary(), expected_hit(trace)
        assert measured.all.hit_rate == pytest.approx(oracle.all, abs=0.03)
        world.figure("hit rate under replay", measured.all.hit_rate, "", f"an unlimited cache gives {oracle.all:.3f}")

        for kind, name in GROWING.items():
            await world.replicas(namespace, kind, name, 1, timeout=120)
        _assert_bounds(server, namespace, time.time() - began)
    said = world.events(namespace, "AgentPool", "coder")
    assert "ScalingUp" in said
    assert "ScalingDown" in said
    for kind, name in GROWING.items():
        found = world.get(kind, name, "-n", namespace, "--show-managed-fields")
        assert writers_of_replicas(found) == {"retinue-autoscaler/"}


def _trace() -> Trace:
    """Recorded sessions that end within a minute: enough of them to need more than the least."""
    trace = open_trace("demo", None)
    short = [name for name, family in trace.families().items() if max(len(s.requests) for s in family) <= 60]
    return trace.selected(short[:20]).staggered(60.0)


async def _measure_rest(world: World, server: Prometheus, operators: set[str]) -> None:
    """Figures of a while in which an AgentPool in mode Auto is there, and nobody asks it for anything."""
    since = time.time()
    await asyncio.sleep(REST_SECONDS)
    until = time.time()
    minutes = (until - since) / 60
    _figures(world, footprint(server, operators, until - since), "at rest")
    operator, all_requests = f"{world.release.name}-operator", asked(world, since, until)
    for account in sorted({request.account for request in all_requests}):
        own = {request: count / minutes for request, count in all_requests.items() if request.account == account}
        split = ", ".join(f"{r.verb} {r.resource or 'paths'} {n:.0f}" for r, n in sorted(own.items(), key=_busiest))
        world.figure(f"API requests of {account} at rest", sum(own.values()), "/min", f"audit log, all pods: {split}")
    # A quiet cluster causes no writes: once the first metrics have settled, there is the lease and nothing else.
    settled = asked(world, since + REST_SECONDS / 2, until)
    assert {r.resource for r in settled if r.account == operator and r.is_write} <= {"leases"}


def _busiest(entry: tuple[Asked, float]) -> float:
    return -entry[1]


def _figures(world: World, found: Footprint, when: str) -> None:
    how = f"process metrics over {found.seconds:.0f} s"
    world.figure(f"operator memory {when}", found.memory / 2**20, "MiB", f"most resident memory of a pod, {how}")
    world.figure(f"operator CPU {when}", found.cpu, "cores", f"both pods, {how}")


def _figure_scale_up(world: World, namespace: str, grown: str) -> None:
    """Splits the time of the first instance that the autoscaler made, in the pool that grew first (pp or dp)."""
    listed = world.get("events", "-n", namespace, "--field-selector", "involvedObject.name=coder")["items"]
    kind, stage = {"pp": ("PrefillPool", "prefill"), "dp": ("DecodePool", "decode")}[grown]
    decided = min(
        (e for e in listed if e["reason"] == "ScalingUp" and e["message"].startswith(f"{kind} coder-primary")),
        key=lambda event: str(event["eventTime"]),
    )
    pods = world.pods(namespace, f"retinue.dev/pool=coder-primary,retinue.dev/pool-kind={stage}")
    newest = max(pods.values(), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    found = scale_up(world, namespace, newest, decided["eventTime"])
    split = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in found.seconds.items())
    world.figure("scale-up, decision to ready instance", found.total, "s", f"{found.instance}: {split}")


def _assert_bounds(server: Prometheus, namespace: str, seconds: float) -> None:
    """The sizes that were wanted in all this time, as Prometheus saw them every second."""
    series = f'retinue_operator_pool_instances{{namespace="{namespace}",state="desired"}}[{int(seconds)}s]'
    most = {_pool(found): float(found["value"][1]) for found in server.query(f"max_over_time({series})")}
    least = {_pool(found): float(found["value"][1]) for found in server.query(f"min_over_time({series})")}
    assert most.keys() == {"prefill/coder-primary", "decode/coder-primary", "decode/coder-explorer"}
    assert set(least.values()) == {1.0}
    assert max(most.values()) == MOST


def _pool(series: Object) -> str:
    return f"{series['metric']['pool_kind']}/{series['metric']['pool']}"
