"""What must be true of an agent cluster on a real API server: it becomes Ready, serves, sizes itself, and survives."""

import asyncio
import signal
from collections import Counter
from typing import Any

import aiohttp
import pytest

from retinue_emulator.loopback import eventually
from retinue_emulator.replay.cli import open_trace
from retinue_emulator.replay.generator import reference_trace
from retinue_emulator.replay.oracle import expected_hit
from retinue_emulator.replay.runner import Replay, ReplayOptions

from .manifests import agent_pool, decode_pool
from .product import SPEED, Agents, answers
from .traffic import stream

pytestmark = pytest.mark.component

POD = "pod"
Objects = dict[str, Any]
# Objects of this test's neighbours may still be going: their statuses follow, but nothing is applied for them.
APPLIED = ('verb="apply"', 'result="ok"')


def condition(object_: Objects, type_: str) -> Objects:
    found = [c for c in object_.get("status", {}).get("conditions", []) if c["type"] == type_]
    return found[0] if found else {}


def pods(agents: Agents, namespace: str, selector: str = "app.kubernetes.io/managed-by=retinue") -> dict[str, Objects]:
    """Live pods by name, without those that are being deleted."""
    listed = agents.cluster.get(POD, "-n", namespace, "-l", selector)["items"]
    return {p["metadata"]["name"]: p for p in listed if "deletionTimestamp" not in p["metadata"]}


def uids(objects: dict[str, Objects]) -> set[str]:
    return {found["metadata"]["uid"] for found in objects.values()}


async def ready(agents: Agents, namespace: str, kind: str, name: str, timeout: float = 60) -> Objects:
    """The object once its Ready condition is True for its present generation."""

    async def probe() -> Objects | None:
        found = agents.cluster.get(kind, name, "-n", namespace)
        current = found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]
        return found if current and condition(found, "Ready").get("status") == "True" else None

    found = await eventually(probe, what=f"{kind} {name} is Ready", timeout=timeout, interval=0.3)
    assert found is not None
    return found


async def replicas(agents: Agents, namespace: str, kind: str, name: str, wanted: int, timeout: float = 60) -> Objects:
    """The pool once exactly `wanted` instances are ready and none drains or starts."""

    async def probe() -> Objects | None:
        found = agents.cluster.get(kind, name, "-n", namespace)
        status = found.get("status", {})
        counts = (status.get("replicas"), status.get("readyReplicas"), status.get("drainingReplicas"))
        return found if counts == (wanted, wanted, 0) and status["observedGeneration"] else None

    found = await eventually(probe, what=f"{kind} {name} has {wanted} instances", timeout=timeout, interval=0.3)
    assert found is not None
    return found


async def test_an_agent_pool_makes_its_pools_and_tiers_and_becomes_ready(agents: Agents, namespace: str) -> None:
    agents.cluster.apply(agent_pool(namespace))

    found = await ready(agents, namespace, "agentpool", "coder")

    kinds = "prefillpools,decodepools,kvcachetiers"
    children = agents.cluster.get(kinds, "-n", namespace)["items"]
    assert {(c["kind"], c["metadata"]["name"]) for c in children} == {
        ("PrefillPool", "coder-primary"),
        ("DecodePool", "coder-primary"),
        ("DecodePool", "coder-explorer"),
        ("KVCacheTier", "coder-warm"),
        ("KVCacheTier", "coder-cold"),
    }
    assert all(c["metadata"]["ownerReferences"][0]["uid"] == found["metadata"]["uid"] for c in children)
    assert found["status"]["rolesReady"] == "2/2"
    assert {e["role"]: e["url"] for e in found["status"]["endpoints"]} == {
        "primary": f"{agents.gateway_url}/{namespace}/coder/v1",
        "explorer": f"{agents.gateway_url}/{namespace}/coder/v1",
    }
    # One prefill and one decode instance of four devices each, one aggregated of one device, and one cache server.
    nodes = {name.rsplit("-", 2)[0]: p["spec"]["nodeName"] for name, p in pods(agents, namespace).items()}
    assert {name: node.rsplit("-", 1)[0] for name, node in nodes.items()} == {
        "coder-primary-prefill": "h100",
        "coder-primary-decode": "h200",
        "coder-explorer-decode": "b200",
        "coder-cold-tier": "storage",
    }


async def test_kubectl_alone_tells_what_is_going_on(agents: Agents, namespace: str) -> None:
    agents.cluster.apply(agent_pool(namespace, mode="Off"))
    await ready(agents, namespace, "agentpool", "coder")

    table = agents.cluster.kubectl("get", "ap,pp,dp,kvt", "-n", namespace)
    described = agents.cluster.kubectl("describe", "prefillpool", "coder-primary", "-n", namespace)
    classes = agents.cluster.kubectl("get", "nc")

    assert {"HIT-RATE", "TTFT-P95", "DRAINING", "CAPACITY", "COST/H"} <= set(table.split())
    assert "InstanceReady" in described
    assert "coder-primary-prefill-0 is ready" in described
    assert "1 of 1 wanted instances are ready" in described
    assert "h100" in classes
    assert condition(agents.cluster.get("nodeclass", "h100"), "Ready")["reason"] == "NodesFound"


async def test_what_is_taken_out_of_an_agent_pool_is_removed_and_nothing_else(agents: Agents, namespace: str) -> None:
    kinds = "prefillpools,decodepools,kvcachetiers"

    def children() -> dict[tuple[str, str], str]:
        found = agents.cluster.get(kinds, "-n", namespace)["items"]
        return {(c["kind"], c["metadata"]["name"]): c["metadata"]["uid"] for c in found}

    pool = agent_pool(namespace, mode="Off")
    primary, explorer = pool["spec"]["roles"]
    explorer["prefill"] = {"nodeClasses": ["b200"], "replicas": {"min": 1, "max": 2}}
    agents.cluster.apply(pool)
    doomed = {("PrefillPool", "coder-explorer"), ("DecodePool", "coder-explorer"), ("KVCacheTier", "coder-cold")}

    async def made() -> dict[tuple[str, str], str] | None:
        return found if len(found := children()) == 6 and doomed < set(found) else None

    before = await eventually(made, what="two pools per role and two tiers")
    assert before is not None

    primary["kvCacheTiers"] = ["warm"]
    pool["spec"]["roles"] = [primary]
    pool["spec"]["tiers"] = [tier for tier in pool["spec"]["tiers"] if tier["name"] == "warm"]
    agents.cluster.apply(pool)

    async def gone() -> bool:
        return doomed.isdisjoint(children())

    await eventually(gone, what="the explorer's pools and the cold tier are gone")
    assert children() == {child: uid for child, uid in before.items() if child not in doomed}


async def test_a_pool_that_fits_nowhere_says_what_was_asked_and_what_is_free(agents: Agents, namespace: str) -> None:
    pool = decode_pool(namespace, "huge", 1, parallelism={"tensor": 8, "data": 16}, nodeClasses=["b200"])
    agents.cluster.apply(pool)

    async def probe() -> Objects | None:
        found = condition(agents.cluster.get("dp", "huge", "-n", namespace), "Placed")
        return found if found.get("status") == "False" else None

    placed = await eventually(probe, what="Placed=False")
    assert placed is not None
    assert placed["reason"] == "NoFit"
    assert "asked for 16 pods with 8 nvidia.com/gpu each on class b200" in placed["message"]
    assert "nearest miss" in placed["message"]
    assert all(p["spec"].get("schedulingGates") for p in pods(agents, namespace).values())


async def test_replayed_sessions_hit_the_cache_as_the_oracle_says(agents: Agents, namespace: str) -> None:
    agents.cluster.apply(agent_pool(namespace, mode="Off"))
    await ready(agents, namespace, "agentpool", "coder")
    trace = reference_trace(1)
    options = ReplayOptions(
        base_url=agents.gateway_url, namespace=namespace, agent_pool="coder", speed=SPEED, max_gap=5.0
    )

    result = await Replay(trace, options).run()

    assert [s.error for s in result.sessions if s.error] == []
    measured, oracle = result.summary(), expected_hit(trace)
    assert measured.main.requests == 58
    assert measured.all.requests == 283
    assert measured.main.hit_rate == pytest.approx(oracle.main, abs=0.02)
    assert measured.subagents.hit_rate == pytest.approx(oracle.subagents, abs=0.02)
    assert measured.all.hit_rate == pytest.approx(oracle.all, abs=0.02)


async def test_load_grows_the_pools_and_its_end_shrinks_them(agents: Agents, namespace: str) -> None:
    agents.cluster.apply(agent_pool(namespace))
    await ready(agents, namespace, "agentpool", "coder")
    options = ReplayOptions(
        base_url=agents.gateway_url,
        namespace=namespace,
        agent_pool="coder",
        speed=SPEED,
        max_gap=5.0,
        run_timeout=40.0,
    )
    replay = asyncio.create_task(Replay(open_trace("demo", None).staggered(60.0), options).run())
    grown: dict[str, int] = Counter()

    async def has_grown() -> bool:
        for kind in ("pp", "dp"):
            for pool in agents.cluster.get(kind, "-n", namespace)["items"]:
                name = f"{kind}/{pool['metadata']['name']}"
                grown[name] = max(grown[name], pool["status"].get("readyReplicas", 0))
        return grown["pp/coder-primary"] > 1 and grown["dp/coder-primary"] > 1

    await eventually(has_grown, what="prefill and decode have grown together", timeout=60, interval=0.5)
    result = await replay

    broken = [r.error for r in result.records if r.error]
    assert broken == []
    await replicas(agents, namespace, "pp", "coder-primary", 1, timeout=120)
    await replicas(agents, namespace, "dp", "coder-primary", 1, timeout=120)
    decided = agents.cluster.kubectl("describe", "ap", "coder", "-n", namespace)
    assert "ScalingUp" in decided
    assert "ScalingDown" in decided


async def test_a_scale_down_under_running_streams_cuts_none(agents: Agents, namespace: str) -> None:
    agents.cluster.apply(decode_pool(namespace, "small", 3), agent_pool_of(namespace, "small"))
    await ready(agents, namespace, "dp", "small")
    await replicas(agents, namespace, "dp", "small", 3)
    await ready(agents, namespace, "agentpool", "solo")
    base = f"{agents.gateway_url}/{namespace}/solo/v1"
    began = [asyncio.Event() for _ in range(12)]

    async with aiohttp.ClientSession() as http:
        running = [
            asyncio.create_task(stream(http, base, f"s{i}", model="primary", tokens=40_000, started=event))
            for i, event in enumerate(began)
        ]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in began)), 30)
        agents.cluster.kubectl("scale", "dp", "small", "-n", namespace, "--replicas=1")

        async def draining() -> bool:
            return agents.cluster.get("dp", "small", "-n", namespace)["status"].get("drainingReplicas") == 2

        await eventually(draining, what="two instances drain", interval=0.2)
        assert not all(task.done() for task in running)
        after = await stream(http, base, "late", model="primary", tokens=10)
        ended = await asyncio.gather(*running)

    assert [(s.tokens, s.finished, s.error) for s in ended] == [(40_000, True, None)] * 12
    assert after.finished
    assert len({s.instance for s in ended}) == 3
    left = await replicas(agents, namespace, "dp", "small", 1)
    assert left["status"]["instances"][0]["name"] == after.instance


async def test_a_failed_pod_takes_its_whole_instance_down_and_back(agents: Agents, namespace: str) -> None:
    shape = {"parallelism": {"tensor": 8, "data": 2}, "topology": {"pack": "rack"}}
    agents.cluster.apply(decode_pool(namespace, "wide", 1, **shape))
    await ready(agents, namespace, "dp", "wide")
    before = pods(agents, namespace)
    assert sorted(before) == ["wide-decode-0-0", "wide-decode-0-1"]

    agents.cluster.kubectl("annotate", "pod", "wide-decode-0-1", "-n", namespace, "retinue.dev/fault=crash")

    async def replaced() -> bool:
        now = pods(agents, namespace)
        return sorted(now) == sorted(before) and all(
            now[name]["metadata"]["uid"] != pod["metadata"]["uid"] for name, pod in before.items()
        )

    await eventually(replaced, what="both pods are new", timeout=60, interval=0.3)
    again = await replicas(agents, namespace, "dp", "wide", 1)
    assert again["status"]["instances"][0]["restarts"] == 1
    events = agents.cluster.kubectl("describe", "dp", "wide", "-n", namespace)
    assert "restarting wide-decode-0 as a whole: pod wide-decode-0-1 failed" in events
    environment = {
        pod["metadata"]["name"]: {e["name"]: e.get("value") for e in pod["spec"]["containers"][0]["env"]}
        for pod in pods(agents, namespace).values()
    }
    assert environment["wide-decode-0-1"]["RETINUE_RANK"] == "1"
    assert environment["wide-decode-0-1"]["RETINUE_WORLD_SIZE"] == "2"
    assert environment["wide-decode-0-1"]["RETINUE_LEADER_ADDRESS"].startswith("wide-decode-0-0.wide-decode.")


async def test_an_instance_on_a_node_that_went_down_is_replaced_on_another_node(agents: Agents, namespace: str) -> None:
    agents.cluster.apply(decode_pool(namespace, "moving", 1))
    await replicas(agents, namespace, "dp", "moving", 1)
    (before,) = pods(agents, namespace).values()
    node = before["spec"]["nodeName"]

    agents.cluster.kubectl("annotate", "node", node, "retinue.dev/fault=down")
    try:

        async def replaced() -> bool:
            live = pods(agents, namespace)
            return len(live) == 1 and all(
                p["spec"].get("nodeName") != node and condition(p, "Ready").get("status") == "True"
                for p in live.values()
            )

        await eventually(replaced, what="an instance on another node serves", timeout=120, interval=0.5)
        events = agents.cluster.kubectl("describe", "dp", "moving", "-n", namespace)
        assert f"replacing moving-decode-0: node {node} is NotReady" in events
    finally:
        agents.cluster.kubectl("annotate", "node", node, "retinue.dev/fault-")
        agents.cluster.kubectl("wait", "node", node, "--for=condition=Ready", "--timeout=60s")


async def test_a_template_change_replaces_whole_instances_within_the_surge(agents: Agents, namespace: str) -> None:
    agents.cluster.apply(decode_pool(namespace, "roll", 2, rollout={"maxSurge": 1, "maxUnavailable": 0}))
    first = await replicas(agents, namespace, "dp", "roll", 2)
    # By uid: a new instance may get the name of one that is gone.
    old = uids(pods(agents, namespace))
    seen: list[tuple[int, int]] = []

    agents.cluster.apply(
        decode_pool(
            namespace,
            "roll",
            2,
            rollout={"maxSurge": 1, "maxUnavailable": 0},
            engine={"type": "Simulated", "args": ["--max-num-seqs=128"]},
        )
    )

    async def rolled() -> bool:
        live = pods(agents, namespace)
        serving = [p for p in live.values() if condition(p, "Ready").get("status") == "True"]
        seen.append((len(live), len(serving)))
        revisions = {p["metadata"]["labels"]["retinue.dev/revision"] for p in live.values()}
        return len(live) == 2 and not uids(live) & old and len(revisions) == 1

    await eventually(rolled, what="both instances are replaced", timeout=90, interval=0.1)
    assert max(existing for existing, _ in seen) <= 3
    assert min(serving for _, serving in seen) >= 2
    again = await replicas(agents, namespace, "dp", "roll", 2)
    assert again["status"]["updatedReplicas"] == 2
    assert again["status"]["revision"] != first["status"]["revision"]


async def test_prometheus_down_means_no_scale_down_and_stale_metrics(agents: Agents, namespace: str) -> None:
    agents.cluster.apply(agent_pool(namespace))
    await ready(agents, namespace, "agentpool", "coder")
    await agents.prometheus.pause()
    try:

        async def stale() -> bool:
            found = condition(agents.cluster.get("ap", "coder", "-n", namespace), "MetricsFresh")
            return found.get("status") == "False" and found.get("reason") == "PrometheusUnreachable"

        await eventually(stale, what="MetricsFresh=False", timeout=30)
        # Only now: while metrics are current, an idle pool of two may shrink before Prometheus has stopped.
        agents.cluster.kubectl("scale", "pp", "coder-primary", "-n", namespace, "--replicas=2")
        decisions = await decisions_made(agents, namespace)

        async def later() -> bool:
            # Well beyond stabilization (6 s) and interval (2 s) at one evaluation a second.
            return await decisions_made(agents, namespace) >= decisions + 15

        await eventually(later, what="fifteen more evaluations", timeout=60)
        assert agents.cluster.get("pp", "coder-primary", "-n", namespace)["spec"]["replicas"] == 2
    finally:
        await agents.prometheus.start()
    await replicas(agents, namespace, "pp", "coder-primary", 1, timeout=90)


async def test_a_killed_operator_goes_on_without_writing_what_is_already_so(agents: Agents, namespace: str) -> None:
    agents.cluster.apply(agent_pool(namespace, mode="Off"))
    await ready(agents, namespace, "agentpool", "coder")
    before = {name: p["metadata"]["uid"] for name, p in pods(agents, namespace).items()}
    assert agents.operator is not None

    agents.operator.send(signal.SIGKILL)
    await agents.operator.wait(10)
    agents.start_operator()
    await eventually(lambda: leads(agents), what="the new operator leads", timeout=60)

    async def looked_at_everything() -> bool:
        made = await counters(agents, "retinue_operator_reconciles_total")
        return {"AgentPool", "PrefillPool", "DecodePool", "KVCacheTier", "NodeClass"} <= set(made)

    await eventually(looked_at_everything, what="every kind is reconciled", timeout=30)
    # A new process counts from zero: what it wrote by now, it wrote although nothing had changed.
    idle = await counters(agents, "retinue_operator_writes_total")
    assert {
        kind: count for kind, count in idle.items() if kind in ("Pod", "Service", "PrefillPool", "DecodePool")
    } == {}

    agents.cluster.kubectl("scale", "dp", "coder-explorer", "-n", namespace, "--replicas=2")
    await replicas(agents, namespace, "dp", "coder-explorer", 2)
    # One new pod, made in its place.
    assert await counters(agents, "retinue_operator_writes_total", *APPLIED) == {"Pod": 1}
    assert {name: p["metadata"]["uid"] for name, p in pods(agents, namespace).items() if name in before} == before


def agent_pool_of(namespace: str, pool: str) -> Objects:
    """An AgentPool whose only role refers to an existing decode pool."""
    return {
        "apiVersion": "retinue.dev/v1alpha1",
        "kind": "AgentPool",
        "metadata": {"name": "solo", "namespace": namespace},
        "spec": {
            "roles": [{"name": "primary", "type": "Primary", "decodePoolRef": {"name": pool}}],
            "autoscaling": {"mode": "Off"},
        },
    }


async def counters(agents: Agents, name: str, *matchers: str) -> dict[str, float]:
    """A counter of the operator added up by kind, of series with all matchers; kinds at zero are left out."""
    found: dict[str, float] = Counter()
    for line in (await metrics_text(agents)).splitlines():
        if line.startswith(f"{name}{{") and all(matcher in line for matcher in matchers):
            kind = line.split('kind="', 1)[1].split('"', 1)[0]
            found[kind] += float(line.rsplit(" ", 1)[1])
    return {kind: count for kind, count in found.items() if count}


async def metrics_text(agents: Agents) -> str:
    async with aiohttp.ClientSession() as http, http.get(f"{agents.operator_url}/metrics") as response:
        return await response.text()


async def decisions_made(agents: Agents, namespace: str) -> float:
    """Evaluations of the AgentPool so far, from the operator's own metrics."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in (await metrics_text(agents)).splitlines()
        if line.startswith("retinue_operator_decisions_total{") and f'namespace="{namespace}"' in line
    )


async def leads(agents: Agents) -> bool:
    """Whether the operator answers and holds the lease."""
    if not await answers(f"{agents.operator_url}/readyz"):
        return False
    return "retinue_operator_leader 1.0" in await metrics_text(agents)
