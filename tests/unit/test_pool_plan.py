"""A pool in a fake world: instances come, go, fail and move as whole units, and a quiet world stays quiet."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retinue.api import KVCacheTier, labels
from retinue.nodeclass.claims import counting_key
from retinue.plan import Manager
from retinue.pool.instances import NODE_LOST_SECONDS
from retinue.pool.snapshot import PoolMetrics

from .fakeworld import CLIQUE, FakeWorld, gpu_class, gpu_node, make_pool, world

TWO_PODS: dict[str, Any] = {"parallelism": {"tensor": 8}}
PACKED: dict[str, Any] = {"topology": {"pack": "nvlinkDomain"}}


def settled(fake: FakeWorld) -> bool:
    """Exactly the wanted instances exist, all ready, routable and of the current revision."""
    instances = fake.instances()
    return len(instances) == fake.pool.spec.replicas and all(
        view.ready and view.routable and not view.deleting and view.revision == fake.pool.status.revision
        for views in instances.values()
        for view in views
    )


def cliques(fake: FakeWorld, name: str) -> set[str]:
    """The NVLink domains in which the pods of an instance run."""
    return {fake.nodes[view.node].labels[CLIQUE] for view in fake.instances()[name] if view.node}


def pools(**spec: Any) -> FakeWorld:
    return world(make_pool(**spec))


# --- a life without trouble


def test_a_new_pool_becomes_ready_with_its_instances_numbered_from_zero() -> None:
    fake = pools(replicas=3)
    fake.run()
    assert settled(fake)
    assert list(fake.instances()) == ["coder-prefill-0", "coder-prefill-1", "coder-prefill-2"]
    status = fake.pool.status
    assert (status.replicas, status.ready_replicas, status.updated_replicas, status.draining_replicas) == (3, 3, 3, 0)
    assert fake.condition("Ready")[0] == "True"
    assert fake.condition("Scaled")[0] == "True"
    assert list(fake.services) == ["coder-prefill"]


def test_a_quiet_world_causes_no_writes_and_plans_only_what_exists() -> None:
    fake = pools(replicas=2, **TWO_PODS, **PACKED)
    fake.run()
    writes = fake.writes
    for _ in range(3):
        planned = fake.reconcile()
        fake.advance(60)
        assert not planned.delete
        assert not planned.events
        assert planned.requeue_after is None
        assert [entry.manifest for entry in planned.apply if entry.manager == Manager.OPERATOR] == [
            {k: v for k, v in service.items() if k != "status"}
            | {"metadata": {k: v for k, v in service["metadata"].items() if k not in ("uid", "creationTimestamp")}}
            for service in fake.services.values()
        ]
    assert fake.writes == writes


def test_pods_of_one_instance_stay_in_one_nvlink_domain() -> None:
    fake = pools(replicas=2, **TWO_PODS, **PACKED)
    fake.run()
    assert settled(fake)
    assert cliques(fake, "coder-prefill-0") == {"c0"}
    assert cliques(fake, "coder-prefill-1") == {"c1"}


def test_a_multi_pod_instance_is_packed_without_being_asked() -> None:
    nodes = [gpu_node("a", clique="c0"), gpu_node("b", clique="c1"), gpu_node("c", clique="c1")]
    fake = world(make_pool(replicas=1, **TWO_PODS), nodes)
    fake.run()
    assert cliques(fake, "coder-prefill-0") == {"c1"}


def test_instances_released_in_one_plan_are_spread_over_racks() -> None:
    fake = pools(replicas=2, topology={"spread": "rack"})
    fake.run()
    racks = {fake.nodes[view.node].labels["topology.kubernetes.io/rack"] for view in fake.views() if view.node}
    assert racks == {"r0", "r1"}


def test_an_instance_that_is_promised_but_not_bound_counts_for_spreading() -> None:
    fake = pools(replicas=1, topology={"pack": "nvlinkDomain", "spread": "rack"})
    fake.reconcile()
    fake.reconcile()  # released, and the scheduler has not looked yet
    fake.change(replicas=2)
    fake.reconcile()
    fake.run()
    assert {fake.nodes[view.node].labels["topology.kubernetes.io/rack"] for view in fake.views() if view.node} == {
        "r0",
        "r1",
    }


def test_decode_and_prefill_pools_of_one_name_do_not_share_pods() -> None:
    fake = world(make_pool("decode", replicas=1))
    fake.run()
    assert list(fake.pods) == ["coder-decode-0-0"]
    assert list(fake.services) == ["coder-decode"]


# --- scaling


def test_scaling_down_drains_the_instance_with_the_fewest_sessions_and_waits_for_its_requests() -> None:
    fake = pools(replicas=3)
    fake.run()
    fake.metrics = PoolMetrics(sessions={"coder-prefill-0": 4, "coder-prefill-1": 1, "coder-prefill-2": 9})
    fake.in_flight["coder-prefill-1"] = 2
    fake.change(replicas=2)
    for _ in range(20):
        fake.reconcile()
        fake.advance(1)
    (victim,) = fake.instances()["coder-prefill-1"]
    assert (victim.routable, victim.deleting) == (False, False)
    assert fake.pool.status.draining_replicas == 1
    assert fake.condition("Scaled")[:2] == ("False", "ScalingDown")
    fake.in_flight["coder-prefill-1"] = 0
    fake.run()
    assert sorted(fake.instances()) == ["coder-prefill-0", "coder-prefill-2"]
    assert "Drained" in [reason for reason, _ in fake.events]


def test_a_drain_without_end_is_cut_at_its_timeout() -> None:
    fake = pools(replicas=1, drain={"timeout": "30s"})
    fake.run()
    fake.in_flight["coder-prefill-0"] = 5
    fake.change(replicas=0)
    started = fake.now
    fake.run()
    assert not fake.pods
    assert fake.now - started >= 30
    assert [message for reason, message in fake.events if reason == "DrainTimedOut"] == [
        "coder-prefill-0 still had 5 requests after 30s"
    ]


def test_an_engine_that_does_not_answer_is_not_taken_for_an_idle_one() -> None:
    fake = pools(replicas=1, drain={"timeout": "30s"})
    fake.run()
    fake.in_flight["coder-prefill-0"] = None
    fake.change(replicas=0)
    for _ in range(25):
        fake.reconcile()
        fake.advance(1)
    assert not fake.views()[0].deleting
    fake.run()
    assert not fake.pods


def test_an_instance_is_never_deleted_in_the_moment_in_which_it_becomes_unroutable() -> None:
    fake = pools(replicas=1)
    fake.run()
    fake.change(replicas=0)
    fake.reconcile()
    fake.reconcile()
    assert not fake.views()[0].deleting
    fake.advance(1)
    fake.reconcile()
    assert not fake.views()[0].deleting
    fake.advance(1)
    fake.reconcile()
    assert fake.views()[0].deleting


def test_scaling_up_again_takes_a_draining_instance_back() -> None:
    fake = pools(replicas=2)
    fake.run()
    uids = {view.uid for view in fake.views()}
    fake.in_flight = {"coder-prefill-0": 1, "coder-prefill-1": 1}
    fake.change(replicas=1)
    fake.reconcile()
    fake.advance(5)
    fake.reconcile()
    assert fake.pool.status.draining_replicas == 1
    fake.change(replicas=2)
    fake.run()
    assert settled(fake)
    assert {view.uid for view in fake.views()} == uids
    assert all(view.drain_started is None for view in fake.views())


def test_an_instance_that_starts_is_removed_without_a_drain() -> None:
    fake = pools(replicas=1)
    fake.start_delay = lambda _: 10_000.0
    for _ in range(5):
        fake.reconcile()
        fake.advance(1)
    fake.change(replicas=0)
    planned = fake.reconcile()
    assert [entry.name for entry in planned.delete] == ["coder-prefill-0-0"]


# --- rolling replacement


def test_a_new_template_replaces_all_instances_one_after_the_other() -> None:
    fake = pools(replicas=2)
    fake.run()
    old = {view.uid for view in fake.views()}
    revision = fake.pool.status.revision
    fake.change(engine={"type": "Simulated", "args": ["--max-num-seqs=8"]})
    for _ in range(60):
        fake.reconcile()
        fake.advance(1)
        assert len([v for v in fake.views() if v.ready and v.routable]) >= 2
        assert len(fake.instances()) <= 3
        if fake.pool.status.updated_replicas == 2 and len(fake.views()) == 2:
            break
    assert settled(fake)
    assert old.isdisjoint({view.uid for view in fake.views()})
    assert fake.pool.status.revision != revision


def test_a_change_that_needs_no_new_engine_moves_nothing() -> None:
    fake = pools(replicas=1)
    fake.run()
    fake.change(drain={"timeout": "5m"}, rollout={"maxSurge": 2}, topology={"spread": "rack"})
    before = copy.deepcopy(fake.pods)
    planned = fake.reconcile()
    assert not planned.delete
    assert fake.pods == before


def test_a_change_while_pods_wait_for_placement_makes_them_anew_before_they_are_released() -> None:
    fake = world(make_pool(replicas=1), [gpu_node("full", gpus=0, clique="c0")])
    fake.reconcile()
    fake.advance(1)
    assert fake.views()[0].gated
    fake.change(drain={"timeout": "5m"})
    fake.nodes["free"] = gpu_node("free", clique="c1")
    fake.run()
    assert settled(fake)
    assert fake.pods["coder-prefill-0-0"]["spec"]["terminationGracePeriodSeconds"] == 300


# --- failures


def test_a_failed_pod_takes_its_whole_instance_down_and_back() -> None:
    fake = pools(replicas=1, **TWO_PODS)
    fake.run()
    before = {view.uid for view in fake.views()}
    fake.fail("coder-prefill-0-1", code=137)
    fake.run()
    assert settled(fake)
    assert before.isdisjoint({view.uid for view in fake.views()})
    assert fake.record("coder-prefill-0").restarts == 1
    (message,) = [m for reason, m in fake.events if reason == "InstanceRestarted"]
    assert message == (
        "restarting coder-prefill-0 as a whole: pod coder-prefill-0-1 failed: "
        "container engine exited with code 137 (Error)"
    )


def test_a_pod_deleted_by_hand_restarts_its_instance_under_the_same_name() -> None:
    fake = pools(replicas=2, **TWO_PODS)
    fake.run()
    other = {view.uid for view in fake.instances()["coder-prefill-1"]}
    fake.begin_deletion("coder-prefill-0-0")
    fake.run()
    assert settled(fake)
    assert list(fake.instances()) == ["coder-prefill-0", "coder-prefill-1"]
    assert {view.uid for view in fake.instances()["coder-prefill-1"]} == other


def test_a_lost_pod_of_a_multi_pod_instance_restarts_all_of_it() -> None:
    fake = pools(replicas=1, **TWO_PODS)
    fake.run()
    before = {view.uid for view in fake.views()}
    del fake.pods["coder-prefill-0-1"]
    fake.run()
    assert settled(fake)
    assert before.isdisjoint({view.uid for view in fake.views()})


def test_a_single_pod_instance_that_vanishes_without_a_trace_is_made_again() -> None:
    fake = pools(replicas=1)
    fake.run()
    fake.pods.clear()
    fake.run()
    assert settled(fake)


def test_an_instance_whose_node_is_lost_moves_to_other_nodes() -> None:
    fake = pools(replicas=1, **TWO_PODS, **PACKED)
    fake.run()
    (clique,) = cliques(fake, "coder-prefill-0")
    fake.lose_node(fake.views()[0].node or "")
    fake.run()
    assert settled(fake)
    assert cliques(fake, "coder-prefill-0") == {"c0", "c1"} - {clique}


def goes_dark(fake: FakeWorld, name: str) -> None:
    """The node stops reporting: its pods are not ready, and what is deleted there stays Terminating."""
    fake.nodes[name] = replace(fake.nodes[name], ready=False, not_ready_since=fake.now)
    for pod in fake.pods.values():
        if pod["spec"].get("nodeName") == name:
            pod["status"]["conditions"] = [c for c in pod["status"]["conditions"] if c["type"] != "Ready"]
            del fake.ready_at[pod["metadata"]["uid"]]
    fake.termination = 10**6


def test_an_instance_on_a_node_that_stays_not_ready_is_replaced_by_another_one() -> None:
    fake = world(make_pool(replicas=1), [gpu_node("a"), gpu_node("b")])
    fake.run()
    (before,) = fake.views()
    goes_dark(fake, before.node or "")
    fake.advance(NODE_LOST_SECONDS - 1)
    fake.reconcile()
    assert [view.name for view in fake.views() if not view.deleting] == [before.name]

    for _ in range(30):
        fake.advance(1)
        fake.reconcile()

    (after,) = [view for view in fake.views() if not view.deleting]
    assert (after.instance, after.ready) == ("coder-prefill-1", True)
    assert after.node != before.node
    assert ("InstanceFailed", f"replacing {before.instance}: node {before.node} is NotReady for 30s") in fake.events
    assert [record.name for record in fake.pool.status.instances] == ["coder-prefill-1"]


def test_a_node_that_comes_back_in_time_keeps_its_instance() -> None:
    fake = world(make_pool(replicas=1), [gpu_node("a"), gpu_node("b")])
    fake.run()
    (before,) = fake.views()
    node = fake.nodes[before.node or ""]
    fake.nodes[node.name] = replace(node, ready=False, not_ready_since=fake.now)
    fake.advance(NODE_LOST_SECONDS - 1)
    assert fake.reconcile().requeue_after == 1.0
    fake.nodes[node.name] = node
    fake.advance(60)
    fake.reconcile()
    assert [view.uid for view in fake.views()] == [before.uid]


def test_released_pods_that_find_no_node_are_taken_back_and_placed_anew() -> None:
    fake = world(make_pool(replicas=1), [gpu_node("a", clique="c0")])
    fake.reconcile()
    fake.reconcile()
    fake.nodes["a"] = gpu_node("a", clique="c0", gpus=0)
    for _ in range(80):
        fake.advance(1)
        fake.reconcile()
    assert fake.views()[0].gated
    assert fake.condition("Placed")[:2] == ("False", "NoFit")
    fake.nodes["b"] = gpu_node("b", clique="c1")
    fake.run()
    assert settled(fake)


def test_a_crash_loop_waits_longer_and_longer_and_starts_no_sooner() -> None:
    fake = pools(replicas=1)
    waits: list[float] = []
    fake.run()
    for _ in range(8):
        fake.fail("coder-prefill-0-0")
        failed = fake.now
        while not any(view.ready for view in fake.views()):
            fake.reconcile()
            fake.advance(1)
            assert fake.now - failed < 400
        waits.append(fake.now - failed)
        fake.reconcile()
    assert [wait - waits[0] for wait in waits] == pytest.approx([0, 10, 20, 40, 80, 160, 300, 300], abs=3)
    assert fake.record("coder-prefill-0").restarts == 8
    assert fake.condition("Degraded")[0] == "False", "it is ready now"


def test_while_it_waits_a_crash_looping_instance_is_reported_with_its_cause() -> None:
    fake = pools(replicas=1)
    fake.run()
    for _ in range(2):
        fake.fail("coder-prefill-0-0", code=3)
        for _ in range(20):
            fake.reconcile()
            fake.advance(1)
    fake.fail("coder-prefill-0-0", code=3)
    fake.reconcile()
    fake.advance(1)
    planned = fake.reconcile()
    status, reason, message = fake.condition("Degraded")
    assert (status, reason) == ("True", "InstanceFailed")
    assert "coder-prefill-0 was restarted 3 times: pod coder-prefill-0-0 failed" in message
    assert planned.requeue_after is not None
    assert planned.requeue_after <= 20


def test_after_ten_healthy_minutes_failures_are_forgotten() -> None:
    fake = pools(replicas=1)
    fake.run()
    fake.fail("coder-prefill-0-0")
    fake.run()
    fake.advance(500)
    fake.reconcile()
    assert fake.record("coder-prefill-0").restarts == 1
    fake.advance(200)
    fake.reconcile()
    assert fake.record("coder-prefill-0").restarts == 0


def test_slow_termination_does_not_lose_count_of_restarts() -> None:
    fake = pools(replicas=1, **TWO_PODS)
    fake.termination = 30.0
    fake.run()
    for expected in (1, 2):
        fake.fail("coder-prefill-0-1")
        fake.run()
        assert settled(fake)
        assert list(fake.instances()) == ["coder-prefill-0"]
        assert fake.record("coder-prefill-0").restarts == expected


def test_an_instance_that_fails_while_it_drains_just_goes() -> None:
    fake = pools(replicas=1)
    fake.run()
    fake.in_flight["coder-prefill-0"] = 3
    fake.change(replicas=0)
    fake.reconcile()
    fake.fail("coder-prefill-0-0")
    fake.run()
    assert not fake.pods
    assert fake.pool.status.instances == []


# --- the operator dies


@pytest.mark.parametrize("writes", range(6))
def test_an_operator_that_dies_after_any_number_of_writes_leaves_nothing_half_done(writes: int) -> None:
    fake = pools(replicas=2, **TWO_PODS, **PACKED)
    for _ in range(12):
        fake.reconcile(write_limit=writes)
        fake.advance(1)
    fake.run()
    assert settled(fake)


def test_an_interrupted_release_is_finished_into_the_same_domain() -> None:
    fake = pools(replicas=1, **TWO_PODS, **PACKED)
    fake.reconcile()
    fake.reconcile(write_limit=1)
    assert sorted(view.gated for view in fake.views()) == [False, True]
    fake.advance(1)
    fake.run()
    assert settled(fake)
    assert len(cliques(fake, "coder-prefill-0")) == 1
    assert fake.record("coder-prefill-0").restarts == 0


def test_an_interrupted_release_whose_domain_is_gone_starts_over() -> None:
    fake = pools(replicas=1, **TWO_PODS, **PACKED)
    fake.reconcile()
    fake.reconcile(write_limit=1)
    domain = next(view.domain for view in fake.views() if view.domain)
    for name, node in list(fake.nodes.items()):
        if node.labels[CLIQUE] == domain:
            del fake.nodes[name]
    fake.run()
    assert settled(fake)
    assert domain not in cliques(fake, "coder-prefill-0")


def test_an_interrupted_drain_mark_is_completed_before_anything_is_deleted() -> None:
    fake = pools(replicas=1, **TWO_PODS)
    fake.run()
    fake.in_flight["coder-prefill-0"] = 1
    fake.change(replicas=0)
    fake.reconcile(write_limit=1)
    assert sorted(view.routable for view in fake.views()) == [False, True]
    fake.reconcile()
    assert [view.routable for view in fake.views()] == [False, False]
    assert len({view.drain_started for view in fake.views()}) == 1


def test_a_pool_whose_status_is_lost_goes_on_without_touching_a_pod() -> None:
    fake = pools(replicas=2, **TWO_PODS)
    fake.run()
    uids = {view.uid for view in fake.views()}
    fake.forget_status()
    planned = fake.plan()
    assert not planned.delete
    fake.run()
    assert {view.uid for view in fake.views()} == uids
    assert settled(fake)


# --- what the pool depends on


def test_an_unknown_engine_is_refused_with_the_ones_that_work() -> None:
    fake = pools(engine={"type": "VLLM"})
    fake.reconcile()
    assert fake.condition("Valid") == (
        "False",
        "NotSupported",
        "spec.engine.type: VLLM cannot be launched by this version; it launches Simulated. Set type to one of these",
    )
    assert not fake.pods


@pytest.mark.parametrize(
    "field",
    [{"speculativeDecoding": {"method": "MTP"}}, {"attentionFFN": {"ffnNodeClass": "lpx"}}],
    ids=lambda field: next(iter(field)),
)
def test_a_field_that_nothing_acts_on_yet_is_refused(field: dict[str, Any]) -> None:
    fake = world(make_pool("decode", **field))
    fake.reconcile()
    status, reason, message = fake.condition("Valid")
    assert (status, reason) == ("False", "NotSupported")
    assert next(iter(field)) in message
    assert not fake.pods


def test_a_pool_without_its_class_says_so_and_starts_when_it_comes() -> None:
    fake = world(make_pool(replicas=1), classes={})
    fake.reconcile()
    assert fake.condition("Ready")[:2] == ("False", "NodeClassMissing")
    fake.classes["fast"] = gpu_class("fast")
    fake.run()
    assert settled(fake)


def test_a_model_that_does_not_fit_says_what_to_change() -> None:
    fake = pools(model={"name": "kimi-k2.5"})
    fake.reconcile()
    status, reason, message = fake.condition("Valid")
    assert (status, reason) == ("False", "ModelDoesNotFit")
    assert "use more devices per instance" in message


def test_an_unknown_model_is_told_once_with_the_nearest_ones() -> None:
    fake = pools(replicas=1, model={"name": "deepseek-r9"})
    fake.reconcile()
    for type_ in ("Valid", "Ready"):
        status, reason, message = fake.condition(type_)
        assert (status, reason) == ("False", "UnknownModel")
        assert message.startswith("spec.model.name: unknown model 'deepseek-r9'; did you mean ")


def test_a_pool_that_serves_nothing_is_not_ready_for_the_reason_that_keeps_it_from_serving() -> None:
    fake = pools(replicas=1)
    fake.nodes.clear()
    fake.run()
    assert fake.condition("Ready")[:2] == ("False", "NoFit")
    assert fake.condition("Ready") == fake.condition("Placed")


def test_the_second_class_is_used_when_the_first_is_full() -> None:
    nodes = [gpu_node("a", clique="c0", gpus=1), gpu_node("b", product="s", clique="c1")]
    classes = {"fast": gpu_class("fast"), "slow": gpu_class("slow", "s")}
    fake = world(make_pool(replicas=3, nodeClasses=["fast", "slow"]), nodes, classes)
    fake.run()
    assert settled(fake)
    assert sorted(view.node_class for view in fake.views()) == ["fast", "slow", "slow"]


def test_an_instance_that_waits_for_a_full_class_moves_when_another_gets_room() -> None:
    nodes = [gpu_node("a", clique="c0", gpus=0)]
    classes = {"fast": gpu_class("fast"), "slow": gpu_class("slow", "s")}
    fake = world(make_pool(replicas=1, nodeClasses=["fast", "slow"]), nodes, classes)
    fake.run()
    assert fake.condition("Placed")[:2] == ("False", "NoFit")
    fake.nodes["b"] = gpu_node("b", product="s", clique="c1")
    fake.run()
    assert settled(fake)
    assert fake.views()[0].node == "b"


def host_tier(name: str, capacity: str = "64Gi", valid: str = "True") -> KVCacheTier:
    condition = {"type": "Valid", "status": valid, "reason": "Accepted", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return KVCacheTier.model_validate(
        {
            "metadata": {"name": name, "namespace": "agents"},
            "spec": {"medium": "HostMemory", "capacityPerMember": capacity},
            "status": {"conditions": [condition]},
        }
    )


def test_a_pool_waits_for_its_tiers_and_says_for_which() -> None:
    fake = pools(replicas=1, kvCacheTiers=["warm"])
    fake.reconcile()
    assert fake.condition("CacheConnected")[:2] == ("False", "TierMissing")
    fake.tiers["warm"] = host_tier("warm", valid="False")
    fake.reconcile()
    assert fake.condition("CacheConnected")[:2] == ("False", "TierNotReady")
    assert fake.condition("Ready")[:2] == ("False", "TierNotReady")
    assert not fake.pods
    fake.tiers["warm"] = host_tier("warm")
    fake.run()
    assert settled(fake)
    assert fake.condition("CacheConnected")[:2] == ("True", "TiersConnected")
    assert fake.pods["coder-prefill-0-0"]["spec"]["containers"][0]["resources"]["requests"]["memory"] == str(64 * 2**30)


def test_a_larger_host_memory_tier_replaces_the_engines_that_hold_it() -> None:
    fake = pools(replicas=1, kvCacheTiers=["warm"])
    fake.tiers["warm"] = host_tier("warm")
    fake.run()
    fake.tiers["warm"] = host_tier("warm", "128Gi")
    fake.run()
    assert settled(fake)
    (pod,) = fake.pods.values()
    assert "--host-cache-bytes=137438953472" in pod["spec"]["containers"][0]["args"]


def test_a_tier_that_the_pool_does_not_name_moves_nothing() -> None:
    fake = pools(replicas=1)
    fake.run()
    fake.tiers["other"] = host_tier("other")
    writes = fake.writes
    fake.reconcile()
    assert fake.writes == writes


def test_a_tier_that_vanishes_takes_no_serving_engine_with_it() -> None:
    fake = pools(replicas=2, kvCacheTiers=["warm"], rollout={"maxSurge": 0, "maxUnavailable": 2})
    fake.tiers["warm"] = host_tier("warm")
    fake.run()
    uids = {view.uid for view in fake.views()}
    kept = fake.tiers.pop("warm")
    for _ in range(20):
        fake.reconcile()
        fake.advance(1)
    assert {view.uid for view in fake.views() if view.ready and view.routable} == uids
    fake.tiers["warm"] = kept
    fake.run()
    assert {view.uid for view in fake.views()} == uids
    assert settled(fake)


def test_without_its_tier_a_pool_still_shrinks() -> None:
    fake = pools(replicas=2, kvCacheTiers=["warm"])
    fake.tiers["warm"] = host_tier("warm")
    fake.run()
    fake.tiers.clear()
    fake.change(replicas=1)
    fake.run()
    assert len(fake.pods) == 1


def test_every_write_of_the_drain_goes_by_its_own_field_manager() -> None:
    fake = pools(replicas=1)
    fake.run()
    fake.change(replicas=0)
    planned = fake.plan()
    marks = [entry for entry in planned.apply if entry.manifest["kind"] == "Pod"]
    assert [entry.manager for entry in marks] == [Manager.INSTANCE]
    assert set(marks[0].manifest) == {"apiVersion", "kind", "metadata"}


@pytest.mark.parametrize(
    ("label", "value"),
    [(labels.ROUTABLE, "false"), (labels.INSTANCE, "another"), (labels.POOL, "another"), (labels.RANK, "7")],
)
def test_labels_that_somebody_changed_on_a_running_pod_are_put_right(label: str, value: str) -> None:
    fake = pools(replicas=1)
    fake.run()
    (name, pod) = next(iter(fake.pods.items()))
    before = dict(pod["metadata"]["labels"])
    pod["metadata"]["labels"][label] = value
    fake.reconcile()
    assert {key: fake.pods[name]["metadata"]["labels"][key] for key in before} == before
    assert [record.name for record in fake.pool.status.instances] == [before[labels.INSTANCE]]


def test_an_instance_of_another_size_serves_on_until_it_is_replaced() -> None:
    fake = pools(replicas=1)
    fake.run()
    before = fake.views()
    fake.in_flight["coder-prefill-0"] = 1
    fake.change(**TWO_PODS)
    planned = fake.reconcile()
    assert planned.delete == ()
    fake.advance(5)
    fake.reconcile()
    # The new one is ready first; then the old one drains, as it has a request.
    assert before[0].uid in {view.uid for view in fake.views() if view.ready}
    fake.in_flight.clear()
    fake.run()
    assert settled(fake)
    assert len(fake.views()) == 2


def test_what_serves_is_put_back_where_routers_find_it_before_another_one_drains() -> None:
    fake = pools(replicas=2)
    fake.run()
    fake.pods["coder-prefill-0-0"]["metadata"]["labels"][labels.ROUTABLE] = "mine"
    fake.change(replicas=1)
    fake.reconcile()
    assert [(view.routable, view.drain_started) for view in fake.views()] == [(True, None), (True, None)]
    fake.run()
    assert settled(fake)


@pytest.mark.parametrize("note", ["soon", "2099-01-01T00:00:00Z", "2026-02-30T00:00:00Z"])
def test_a_drain_that_somebody_else_dates_is_taken_back_or_ends_like_any_other(note: str) -> None:
    fake = pools(replicas=2)
    fake.run()
    uids = {view.uid for view in fake.views()}
    annotations = fake.pods["coder-prefill-1-0"]["metadata"].setdefault("annotations", {})
    annotations[labels.DRAIN_STARTED] = note
    fake.run()
    assert settled(fake)
    assert {view.uid for view in fake.views()} == uids
    annotations = fake.pods["coder-prefill-1-0"]["metadata"].setdefault("annotations", {})
    annotations[labels.DRAIN_STARTED] = note
    fake.in_flight["coder-prefill-1"] = 3
    fake.change(replicas=1)
    fake.run()
    assert settled(fake)
    assert "DrainTimedOut" in [reason for reason, _ in fake.events]


def test_a_last_restart_in_the_future_makes_nothing_wait() -> None:
    fake = pools(replicas=1)
    fake.run()
    fake.fail("coder-prefill-0-0")
    fake.run()
    wire = fake.pool.to_wire()
    wire["status"]["instances"][0] |= {"restarts": 3, "lastRestart": "2099-01-01T00:00:00Z"}
    fake.pool = type(fake.pool).model_validate(wire)
    fake.fail("coder-prefill-0-0")
    failed = fake.now
    while not settled(fake):
        fake.reconcile()
        fake.advance(1)
        assert fake.now - failed < 100, "40 s is what the third restart waits"


# --- anything at all, in any order

EVENT = st.one_of(
    st.tuples(st.just("scale"), st.integers(0, 4)),
    st.tuples(st.just("revise"), st.integers(1, 3)),
    st.tuples(st.just("fail"), st.integers(0, 9)),
    st.tuples(st.just("vanish"), st.integers(0, 9)),
    st.tuples(st.just("delete"), st.integers(0, 9)),
    st.tuples(st.just("lose-node"), st.integers(0, 9)),
    st.tuples(st.just("die"), st.integers(0, 4)),
    st.tuples(st.just("forget"), st.just(0)),
    st.tuples(st.just("busy"), st.integers(0, 9)),
    st.tuples(st.just("wait"), st.integers(1, 12)),
)


def _happen(fake: FakeWorld, verb: str, number: int) -> None:
    names = sorted(fake.pods)
    chosen = names[number % len(names)] if names else None
    if verb == "scale":
        fake.change(replicas=number)
    elif verb == "revise":
        fake.change(engine={"type": "Simulated", "args": [f"--max-num-seqs={number}"]})
    elif verb == "fail" and chosen and fake.pods[chosen]["spec"].get("nodeName"):
        fake.fail(chosen)
    elif verb == "vanish" and chosen:
        del fake.pods[chosen]
    elif verb == "delete" and chosen:
        fake.begin_deletion(chosen)
    elif verb == "lose-node" and len(fake.nodes) > 6:
        fake.lose_node(sorted(fake.nodes)[number % len(fake.nodes)])
    elif verb == "die":
        fake.reconcile(write_limit=number)
    elif verb == "forget":
        fake.forget_status()
    elif verb == "busy" and fake.instances():
        name = sorted(fake.instances())[number % len(fake.instances())]
        fake.in_flight[name] = number


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    replicas=st.integers(0, 4),
    by_dra=st.booleans(),
    shape=st.sampled_from([{}, TWO_PODS, {**TWO_PODS, **PACKED}, {"topology": {"spread": "rack"}}]),
    rollout=st.sampled_from([(1, 0), (0, 1), (1, 1), (2, 0)]),
    delays=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    termination=st.integers(0, 6),
    events=st.lists(EVENT, max_size=10),
)
def test_whatever_happens_every_plan_keeps_its_promises_and_the_pool_recovers(
    replicas: int,
    by_dra: bool,
    shape: dict[str, Any],
    rollout: tuple[int, int],
    delays: list[int],
    termination: int,
    events: list[tuple[str, int]],
) -> None:
    surge, unavailable = rollout
    pool = make_pool(replicas=replicas, rollout={"maxSurge": surge, "maxUnavailable": unavailable}, **shape)
    gpus = 0 if by_dra else 4
    nodes = [gpu_node(f"n{i:02}", rack=f"r{i % 3}", clique=f"c{i // 2}", gpus=gpus) for i in range(14)]
    fake = world(pool, nodes)
    if by_dra:
        fake.classes["fast"] = gpu_class("fast", devices={"deviceClass": "gpu.example.com", "perNode": 4})
        fake.published = {node.name: {counting_key("gpu.example.com"): 4} for node in nodes}
    fake.start_delay = lambda name: float(delays[sum(map(ord, name)) % len(delays)])
    fake.termination = float(termination)
    for verb, number in events:
        _happen(fake, verb, number)
        for _ in range(number if verb == "wait" else 1):
            fake.reconcile()
            fake.advance(1)
            _each_packed_instance_is_in_one_domain(fake)
    fake.run(limit=900)
    assert settled(fake), fake.describe()
    assert len(fake.templates) == int(by_dra)
    writes = fake.writes
    fake.reconcile()
    assert fake.writes == writes, "a settled pool is written to"


def _each_packed_instance_is_in_one_domain(fake: FakeWorld) -> None:
    if fake.pool.spec.topology.pack is None and fake.pool.spec.parallelism.tensor == 1:
        return
    for name in fake.instances():
        assert len(cliques(fake, name)) <= 1, f"{name} straddles NVLink domains"
