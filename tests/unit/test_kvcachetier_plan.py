"""Tiers: servers come and go one by one, invalid tiers say why, and the status says what a tier holds for whom."""

from dataclasses import replace
from typing import Any

import pytest

from retinue.api import KVCacheTier
from retinue.kvcachetier.build import build_server, revision, server_name
from retinue.kvcachetier.plan import RESTART_SECONDS, plan
from retinue.kvcachetier.snapshot import ServerView, TierMetrics, TierSnapshot, User, server_view
from retinue.plan import Manifest, Plan

from .fakeworld import START, gpu_class, gpu_node

STORAGE = gpu_class("storage", "h")


def tier(name: str = "cold", status: Manifest | None = None, **spec: Any) -> KVCacheTier:
    wire = {
        "medium": "ContextStorage",
        "backend": "Simulated",
        "capacityPerMember": "1Ti",
        "nodeClass": "storage",
        **spec,
    }
    metadata = {"name": name, "namespace": "agents", "uid": f"uid-{name}", "generation": 4}
    return KVCacheTier.model_validate({"metadata": metadata, "spec": wire, "status": status or {}})


def host(name: str = "warm", **spec: Any) -> KVCacheTier:
    fields = {"medium": "HostMemory", "backend": "Engine", "capacityPerMember": "512Gi", "nodeClass": None, **spec}
    return tier(name, **fields)


def server(of: KVCacheTier, index: int, **more: Any) -> ServerView:
    name = server_name(of.metadata.name, index)
    view = ServerView(name, f"uid-{name}", index, "Running", True, False, "n0", f"10.0.0.{index}", revision(of), START)
    return replace(view, **more)


def planned(of: KVCacheTier, servers: tuple[ServerView, ...] = (), now: float = START + 60, **more: Any) -> Plan:
    fields: dict[str, Any] = {
        "users": (),
        "others": {},
        "node_class": STORAGE,
        "class_error": None,
        "nodes": (gpu_node("n0"),),
        "holds": (),
        "metrics": None,
        **more,
    }
    return plan(TierSnapshot(tier=of, servers=servers, **fields), now)


def made(result: Plan) -> list[str]:
    return [entry.manifest["metadata"]["name"] for entry in result.apply if entry.manifest["kind"] == "Pod"]


def gone(result: Plan) -> list[str]:
    return [entry.name for entry in result.delete]


def status(result: Plan) -> Manifest:
    assert result.status is not None
    return result.status


def condition(result: Plan, type_: str) -> tuple[str, str, str]:
    found = next(c for c in status(result)["conditions"] if c["type"] == type_)
    return found["status"], found["reason"], found["message"]


# --- servers


def test_missing_servers_are_made_behind_one_service() -> None:
    of = tier(replicas=3)
    result = planned(of, (server(of, 1),))
    assert result.apply[0].manifest["kind"] == "Service"
    assert made(result) == ["cold-tier-0-0", "cold-tier-2-0"]
    assert not result.delete


def test_a_quiet_tier_plans_only_its_service() -> None:
    of = tier(replicas=2)
    result = planned(of, (server(of, 0), server(of, 1)))
    assert [entry.manifest["kind"] for entry in result.apply] == ["Service"]
    assert (gone(result), result.requeue_after) == ([], None)


def test_a_tier_tells_once_what_it_waits_for_and_when_it_is_ready() -> None:
    of = tier(replicas=1)
    waiting = planned(of)
    assert [(event.type, event.reason) for event in waiting.events] == [("Warning", "ServersStarting")]
    of = type(of).model_validate({**of.to_wire(), "status": waiting.status})
    assert not planned(of).events
    ready = planned(of, (server(of, 0),))
    assert [(event.type, event.reason) for event in ready.events] == [("Normal", "ServersReady")]


def test_scaling_down_removes_the_highest_index_first_and_nothing_twice() -> None:
    of = tier(replicas=1)
    result = planned(of, tuple(server(of, index) for index in range(4)))
    assert gone(result) == ["cold-tier-3-0", "cold-tier-2-0", "cold-tier-1-0"]
    outdated = planned(of, tuple(server(of, index, revision="old") for index in (1, 0)))
    assert sorted(gone(outdated)) == sorted(set(gone(outdated)))


def test_a_server_that_is_going_is_left_alone() -> None:
    of = tier(replicas=1)
    result = planned(of, (server(of, 0), server(of, 1, deleting=True)))
    assert not result.delete
    assert not made(result)


def test_outdated_servers_are_replaced_one_at_a_time_while_all_others_serve() -> None:
    of = tier(replicas=3)
    old = tuple(server(of, index, revision="old") for index in range(3))
    assert gone(planned(of, old)) == ["cold-tier-0-0"]
    assert gone(planned(of, old[1:])) == [], "the first one is not back yet"
    starting = server(of, 0, ready=False)
    assert gone(planned(of, (starting, *old[1:]))) == []
    assert gone(planned(of, (server(of, 0), *old[1:]))) == ["cold-tier-1-0"]


def test_an_outdated_server_that_never_became_ready_does_not_block_its_own_repair() -> None:
    of = tier(replicas=2)
    broken = server(of, 0, revision="old", ready=False, phase="Pending")
    assert gone(planned(of, (broken, server(of, 1, revision="old")))) == ["cold-tier-0-0"]


@pytest.mark.parametrize(
    "change",
    [{"capacityPerMember": "2Ti"}, {"nodeClass": "other"}, {"image": "x"}, {"podTemplate": {"spec": {"a": 1}}}],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_a_server_changes_the_revision(change: dict[str, Any]) -> None:
    assert revision(tier()) != revision(tier(**change))


def test_replicas_and_retention_do_not_change_the_revision() -> None:
    assert revision(tier()) == revision(tier(replicas=5, retention={"toolGap": "9m"}))


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_server_that_ended_is_replaced_after_a_pause(phase: str) -> None:
    of = tier()
    ended = server(of, 0, phase=phase, ready=False)
    early = planned(of, (ended,), now=START + 4)
    assert not early.delete
    assert early.requeue_after == RESTART_SECONDS - 4
    assert gone(planned(of, (ended,), now=START + RESTART_SECONDS)) == ["cold-tier-0-0"]


def test_servers_run_with_the_users_template_and_keep_their_labels() -> None:
    template = {
        "metadata": {"labels": {"team": "x", "retinue.dev/tier": "stolen"}, "annotations": {"a": "b"}},
        "spec": {
            "priorityClassName": "high",
            "containers": [{"name": "tier", "resources": {"requests": {"cpu": "2"}}}, {"name": "sidecar"}],
        },
    }
    pod = build_server(tier(podTemplate=template), STORAGE, 0)
    assert pod["metadata"]["labels"]["team"] == "x"
    assert pod["metadata"]["labels"]["retinue.dev/tier"] == "cold"
    assert pod["metadata"]["annotations"] == {"a": "b"}
    assert pod["spec"]["priorityClassName"] == "high"
    container, sidecar = pod["spec"]["containers"]
    assert (container["name"], container["resources"], sidecar) == (
        "tier",
        {"requests": {"cpu": "2"}},
        {"name": "sidecar"},
    )
    assert container["command"] == ["retinue-emulator", "tier"]


# --- what is refused


@pytest.mark.parametrize(
    ("spec", "others", "reason", "says"),
    [
        ({"medium": "LocalDisk"}, [], "NotSupported", "spec.medium LocalDisk"),
        ({"medium": "Object", "backend": "Mooncake"}, [], "NotSupported", "is not run by this version"),
        ({"backend": "LMCache"}, [], "NotSupported", "backend LMCache"),
        ({"nextTier": "none"}, [], "NextTierMissing", "no KVCacheTier none"),
        ({"nextTier": "b"}, [tier("b", nextTier="cold")], "TierCycle", "cold -> b -> cold is a cycle"),
        (
            {"nextTier": "b"},
            [tier("b", nextTier="c"), tier("c", nextTier="cold")],
            "TierCycle",
            "cold -> b -> c -> cold is a cycle",
        ),
        ({"nextTier": "cold"}, [], "TierCycle", "cold -> cold is a cycle"),
    ],
)
def test_an_invalid_tier_says_why_and_runs_nothing(
    spec: dict[str, Any], others: list[KVCacheTier], reason: str, says: str
) -> None:
    result = planned(tier(**spec), others={other.metadata.name: other for other in others})
    state, why, text = condition(result, "Valid")
    assert (state, why) == ("False", reason)
    assert says in text
    assert condition(result, "Ready")[:2] == ("False", reason)
    assert not result.apply
    assert not result.delete


def test_a_cycle_further_down_is_the_business_of_the_tiers_on_it() -> None:
    others = {"b": tier("b", nextTier="c"), "c": tier("c", nextTier="b")}
    assert condition(planned(tier(nextTier="b"), others=others), "Valid")[0] == "True"


def test_a_missing_or_broken_class_is_named() -> None:
    assert "NodeClass storage does not exist" in condition(planned(tier(), node_class=None), "Valid")[2]
    broken = planned(tier(), node_class=None, class_error="unknown preset 'x'")
    assert condition(broken, "Valid")[1:] == (
        "NodeClassMissing",
        "spec.nodeClass: unknown preset 'x': create it or correct the field",
    )


# --- status


def test_a_tier_of_servers_counts_those_that_serve() -> None:
    of = tier(replicas=3)
    servers = (server(of, 0), server(of, 1, ready=False), server(of, 2, deleting=True))
    metrics = TierMetrics(used=float(2**39), hit_rate=0.25, eviction_age=480.0)
    result = planned(of, servers, metrics=metrics, users=(User("PrefillPool", "p", 1, 2),))
    wire = status(result)
    expected = {
        "observedGeneration": 4,
        "replicas": 2,
        "readyReplicas": 1,
        "members": 1,
        "capacity": "1Ti",
        "used": "512Gi",
        "fill": "0.500",
        "hitRate": "0.250",
        "evictionAge": "8m",
        "endpoints": ["http://10.0.0.0:8000"],
        "usedBy": ["PrefillPool/p"],
    }
    assert {key: wire[key] for key in expected} == expected
    assert condition(result, "Ready") == ("False", "ServersStarting", "1 of 3 servers are ready")
    assert condition(result, "MetricsFresh")[0] == "True"


def test_servers_that_cannot_run_anywhere_point_at_the_class() -> None:
    result = planned(tier(), nodes=(gpu_node("n0", product="other"),))
    assert condition(result, "Ready")[2].endswith("no usable node of class storage; see kubectl describe nc storage")


def test_a_host_memory_tier_has_one_member_per_ready_instance_of_its_pools() -> None:
    users = (User("PrefillPool", "p", 2, 2), User("DecodePool", "d", 1, 3))
    result = planned(host(), users=users, node_class=None)
    wire = status(result)
    assert (wire["members"], wire["capacity"], wire["replicas"]) == (3, "1.5Ti", 0)
    assert wire["usedBy"] == ["DecodePool/d", "PrefillPool/p"]
    assert condition(result, "Ready") == ("True", "MembersReady", "3 instances of 2 pools hold it")
    assert not result.apply


def test_a_host_memory_tier_that_nobody_uses_is_well() -> None:
    result = planned(host(), node_class=None)
    assert condition(result, "Ready")[:2] == ("True", "NoMembers")
    assert status(result)["capacity"] == "0"


def test_a_member_larger_than_any_node_is_reported() -> None:
    result = planned(host(capacityPerMember="2Ti"), node_class=None)
    state, reason, text = condition(result, "Degraded")
    assert (state, reason) == ("True", "HostMemoryTooSmall")
    assert "more than any node has (1Ti)" in text


def test_without_prometheus_nothing_is_said_of_metrics_and_an_unreachable_one_is_named() -> None:
    assert "MetricsFresh" not in {c["type"] for c in status(planned(tier()))["conditions"]}
    dead = planned(tier(), metrics=TierMetrics(error="connection refused"))
    assert condition(dead, "MetricsFresh") == ("False", "PrometheusUnreachable", "connection refused")
    assert "hitRate" not in status(dead), "missing is never zero"


def test_an_unchanged_world_gives_an_unchanged_status() -> None:
    of = tier()
    first = status(planned(of, (server(of, 0),)))
    again = tier(status=first)
    assert status(planned(again, (server(of, 0),), now=START + 900)) == first


def test_a_server_is_read_from_the_wire() -> None:
    pod = build_server(tier(), STORAGE, 12)
    pod["metadata"].update(uid="u", creationTimestamp="2026-01-01T00:00:00Z", deletionTimestamp="2026-01-01T00:01:00Z")
    pod["spec"]["nodeName"] = "n1"
    pod["status"] = {"phase": "Running", "podIP": "10.1.1.1", "conditions": [{"type": "Ready", "status": "True"}]}
    view = server_view(pod)
    assert (view.name, view.index, view.phase, view.ready, view.deleting) == (
        "cold-tier-12-0",
        12,
        "Running",
        True,
        True,
    )
    assert (view.node, view.ip, view.revision) == ("n1", "10.1.1.1", revision(tier()))
