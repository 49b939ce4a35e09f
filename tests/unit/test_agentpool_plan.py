"""An AgentPool makes and owns its children, carries decisions out and no more, and says how its roles are served."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from retinue.agentpool.inputs import build_inputs
from retinue.agentpool.plan import plan
from retinue.agentpool.snapshot import AgentPoolSnapshot, InstanceAge, Measurements
from retinue.api import AgentPool, DecodePool, KVCacheTier, PrefillPool
from retinue.autoscaling.decide import decide
from retinue.autoscaling.decision import Clamp, Decision, Freshness, InputUsed, State, Target
from retinue.autoscaling.inputs import PoolKind, PoolSignals, RoleSignals, Signal
from retinue.conditions import ConditionType, Finding, Reason
from retinue.plan import Manager, Manifest, Plan

from .fakeworld import MODEL, START, gpu_class, gpu_node

UID = "uid-coder"
MODEL_SPEC = {"name": MODEL}
ENGINE = {"type": "Simulated"}
ROLES: list[dict[str, Any]] = [
    {
        "name": "primary",
        "type": "Primary",
        "model": MODEL_SPEC,
        "engine": ENGINE,
        "prefill": {"nodeClasses": ["fast"], "replicas": {"min": 2, "max": 8}},
        "decode": {"nodeClasses": ["fast"], "replicas": {"min": 1, "max": 4}},
        "kvCacheTiers": ["warm", "shared"],
    },
    {
        "name": "explorer",
        "type": "SubAgent",
        "model": MODEL_SPEC,
        "engine": ENGINE,
        "decode": {"nodeClasses": ["fast"], "replicas": {"min": 1, "max": 4}},
    },
    {"name": "summarizer", "type": "SubAgent", "servedBy": "explorer"},
]
TIERS: list[dict[str, Any]] = [
    {
        "name": "shared",
        "replicas": {"min": 2, "max": 6},
        "spec": {
            "medium": "ContextStorage",
            "backend": "Simulated",
            "capacityPerMember": "1Ti",
            "nodeClass": "fast",
            "replicas": 1,
            "nextTier": "archive",
        },
    },
    {
        "name": "archive",
        "spec": {
            "medium": "ContextStorage",
            "backend": "Simulated",
            "capacityPerMember": "9Ti",
            "nodeClass": "fast",
            "replicas": 3,
        },
    },
]
OWNED = {"ownerReferences": [{"kind": "AgentPool", "name": "coder", "uid": UID, "controller": True}]}
MODELS = {"PrefillPool": PrefillPool, "DecodePool": DecodePool, "KVCacheTier": KVCacheTier}


def agent_pool(status: Manifest | None = None, **spec: Any) -> AgentPool:
    metadata = {"name": "coder", "namespace": "agents", "uid": UID, "generation": 2}
    wire = {"roles": ROLES, "tiers": TIERS, **spec}
    return AgentPool.model_validate({"metadata": metadata, "spec": wire, "status": status or {}})


def snapshot(pool: AgentPool | None = None, **more: Any) -> AgentPoolSnapshot:
    fields: dict[str, Any] = {
        "prefill_pools": {},
        "decode_pools": {},
        "tiers": {},
        "classes": {"fast": gpu_class("fast"), "slow": gpu_class("slow", costPerNodeHour="4")},
        "nodes": (gpu_node("a", clique="c0"),),
        "holds": (),
        "ages": {},
        "measured": None,
        "decision": None,
        "carry_out": True,
        "gateway_url": "http://gateway:8080/",
        **more,
    }
    return AgentPoolSnapshot(agent_pool=pool or agent_pool(), **fields)


def after(seen: AgentPoolSnapshot, result: Plan) -> AgentPoolSnapshot:
    """The world after the plan: children exist as applied, merged over what was there."""
    children: dict[str, dict[str, Manifest]] = {
        "PrefillPool": {name: child.to_wire() for name, child in seen.prefill_pools.items()},
        "DecodePool": {name: child.to_wire() for name, child in seen.decode_pools.items()},
        "KVCacheTier": {name: child.to_wire() for name, child in seen.tiers.items()},
    }
    for entry in result.apply:
        manifest = copy.deepcopy(entry.manifest)
        kind, meta = manifest["kind"], manifest["metadata"]
        live = children[kind].setdefault(meta["name"], {"metadata": {}, "spec": {}})
        live["metadata"].update({**meta, "uid": f"uid-{kind}-{meta['name']}"})
        live["spec"].update(manifest["spec"])
    for removal in result.delete:
        del children[removal.kind][removal.name]
    typed = {kind: {n: MODELS[kind].model_validate(w) for n, w in named.items()} for kind, named in children.items()}
    return replace(
        seen,
        agent_pool=AgentPool.model_validate({**seen.agent_pool.to_wire(), "status": result.status}),
        prefill_pools=typed["PrefillPool"],
        decode_pools=typed["DecodePool"],
        tiers=typed["KVCacheTier"],
    )


def complete(**spec: Any) -> AgentPoolSnapshot:
    """A world in which all children exist."""
    seen = snapshot(agent_pool(**spec))
    return after(seen, plan(seen, START))


def manifests(result: Plan, manager: Manager = Manager.OPERATOR) -> dict[str, Manifest]:
    """What the plan applies by one manager, keyed by kind and name."""
    found = [entry.manifest for entry in result.apply if entry.manager == manager]
    keyed = {f"{m['kind']}/{m['metadata']['name']}": m for m in found}
    assert len(keyed) == len(found), "an object is applied twice by one manager"
    return keyed


def replicas(result: Plan) -> dict[str, int]:
    """What the autoscaler's own manager writes."""
    return {key: m["spec"]["replicas"] for key, m in manifests(result, Manager.AUTOSCALER).items()}


def status(result: Plan) -> Manifest:
    assert result.status is not None
    return result.status


def condition(result: Plan, type_: str) -> tuple[str, str, str]:
    found = next(c for c in status(result)["conditions"] if c["type"] == type_)
    return found["status"], found["reason"], found["message"]


def with_status(child: Any, **more: Any) -> Any:
    return type(child).model_validate({**child.to_wire(), "status": more})


READY = [{"type": "Ready", "status": "True", "reason": "Healthy", "lastTransitionTime": "2026-01-01T00:00:00Z"}]


def all_ready(seen: AgentPoolSnapshot, instances: int = 1) -> AgentPoolSnapshot:
    records = [{"name": f"i{n}", "phase": "Ready", "nodeClass": "fast"} for n in range(instances)]
    made: dict[str, Any] = {"readyReplicas": instances, "replicas": instances, "instances": records}
    return replace(
        seen,
        prefill_pools={n: with_status(c, conditions=READY, **made) for n, c in seen.prefill_pools.items()},
        decode_pools={n: with_status(c, conditions=READY, **made) for n, c in seen.decode_pools.items()},
    )


# --- children


def test_roles_and_tiers_become_pools_and_tiers_with_deterministic_names() -> None:
    made = manifests(plan(snapshot(), START))
    assert list(made) == [
        "KVCacheTier/coder-shared",
        "KVCacheTier/coder-archive",
        "PrefillPool/coder-primary",
        "DecodePool/coder-primary",
        "DecodePool/coder-explorer",
    ]
    for manifest in made.values():
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (UID, True)
        assert manifest["metadata"]["labels"]["retinue.dev/agent-pool"] == "coder"
        assert "replicas" not in manifest["spec"], "replicas belong to the autoscaler's manager"
    assert made["DecodePool/coder-explorer"]["metadata"]["labels"]["retinue.dev/role"] == "explorer"


def test_a_decode_pool_without_prefill_is_aggregated() -> None:
    made = manifests(plan(snapshot(), START))
    assert made["DecodePool/coder-primary"]["spec"]["serves"] == "Decode"
    assert made["DecodePool/coder-explorer"]["spec"]["serves"] == "PrefillAndDecode"


def test_a_decode_pool_beside_a_referenced_prefill_pool_is_not_aggregated() -> None:
    role = {**ROLES[0], "prefillPoolRef": {"name": "other"}}
    del role["prefill"]
    made = manifests(plan(snapshot(agent_pool(roles=[role])), START))
    assert list(made)[2:] == ["DecodePool/coder-primary"]
    assert made["DecodePool/coder-primary"]["spec"]["serves"] == "Decode"


def test_own_tiers_are_named_after_the_pool_and_foreign_ones_as_they_are() -> None:
    made = manifests(plan(snapshot(), START))
    assert made["PrefillPool/coder-primary"]["spec"]["kvCacheTiers"] == ["warm", "coder-shared"]
    assert made["KVCacheTier/coder-shared"]["spec"]["nextTier"] == "coder-archive"


def test_the_first_replicas_are_the_minimum_and_are_written_once() -> None:
    seen = snapshot()
    result = plan(seen, START)
    assert replicas(result) == {
        "KVCacheTier/coder-shared": 2,
        "KVCacheTier/coder-archive": 3,
        "PrefillPool/coder-primary": 2,
        "DecodePool/coder-primary": 1,
        "DecodePool/coder-explorer": 1,
    }
    assert replicas(plan(after(seen, result), START)) == {}


def test_first_replicas_that_a_crash_kept_from_being_written_are_written_later() -> None:
    seen = complete()
    pool = seen.prefill_pools["coder-primary"]
    unsized = pool.model_copy(update={"metadata": pool.metadata.model_copy(update={"annotations": {}})})
    crashed = replace(seen, prefill_pools={"coder-primary": unsized})
    assert replicas(plan(crashed, START)) == {"PrefillPool/coder-primary": 2}


def test_each_child_is_applied_before_its_replicas_are() -> None:
    result = plan(snapshot(), START)
    order = [(e.manifest["metadata"]["name"], e.manifest["kind"], e.manager) for e in result.apply]
    for position, (name, kind, manager) in enumerate(order):
        if manager == Manager.AUTOSCALER:
            assert (name, kind, Manager.OPERATOR) in order[:position]


def test_every_child_is_one_that_its_own_model_accepts() -> None:
    for key, manifest in manifests(plan(snapshot(), START)).items():
        MODELS[key.split("/")[0]].model_validate(manifest)


def test_a_quiet_agent_pool_applies_the_same_children_and_writes_no_status() -> None:
    seen = complete()
    first = plan(seen, START)
    again = plan(after(seen, first), START + 900)
    assert manifests(again) == manifests(first)
    assert again.status == first.status
    assert not again.delete
    assert not again.events


@pytest.mark.parametrize("kind", ["PrefillPool", "DecodePool", "KVCacheTier"])
def test_an_object_of_somebody_else_is_never_adopted(kind: str) -> None:
    seen = complete()
    field = {"PrefillPool": "prefill_pools", "DecodePool": "decode_pools", "KVCacheTier": "tiers"}[kind]
    name = "coder-shared" if kind == "KVCacheTier" else "coder-primary"
    foreign = dict(getattr(seen, field))
    wire = foreign[name].to_wire()
    wire["metadata"]["ownerReferences"] = []
    foreign[name] = MODELS[kind].model_validate(wire)
    target = {"PrefillPool": PoolKind.PREFILL, "DecodePool": PoolKind.DECODE, "KVCacheTier": PoolKind.TIER}[kind]
    current = foreign[name].spec.replicas
    seen = replace(seen, **{field: foreign}, decision=decision(scaled(target, name, current, current + 1)))
    result = plan(seen, START)
    assert f"{kind}/{name}" not in manifests(result)
    assert replicas(result) == {}
    assert not result.delete
    assert condition(result, "Valid")[:2] == ("False", "NameTaken")
    assert f"{kind} {name} exists and belongs to somebody else" in condition(result, "Valid")[2]
    assert condition(result, "Ready")[:2] == ("False", "NameTaken")
    decided = build_inputs(seen, START)
    assert (target, name) not in {(pool.kind, pool.name) for pool in decided.pools}
    assert kind != "KVCacheTier" or name not in {tier.name for tier in decided.tiers}


def test_children_of_a_removed_role_and_template_are_deleted_and_others_are_not() -> None:
    seen = complete()
    foreign = DecodePool.model_validate(
        {"metadata": {"name": "mine", "namespace": "agents"}, "spec": seen.decode_pools["coder-primary"].spec.to_wire()}
    )
    seen = replace(
        seen,
        agent_pool=agent_pool(roles=ROLES[:1], tiers=TIERS[:1]),
        decode_pools={**seen.decode_pools, "mine": foreign},
    )
    deleted = [(d.kind, d.name, d.uid) for d in plan(seen, START).delete]
    assert deleted == [
        ("DecodePool", "coder-explorer", "uid-DecodePool-coder-explorer"),
        ("KVCacheTier", "coder-archive", "uid-KVCacheTier-coder-archive"),
    ]


def test_a_role_that_gives_up_prefill_loses_only_its_prefill_pool() -> None:
    seen = complete()
    role = {key: value for key, value in ROLES[0].items() if key != "prefill"}
    result = plan(replace(seen, agent_pool=agent_pool(roles=[role, *ROLES[1:]])), START)
    assert [(d.kind, d.name) for d in result.delete] == [("PrefillPool", "coder-primary")]


def test_a_child_that_is_being_deleted_is_not_deleted_again() -> None:
    seen = complete()
    wire = seen.decode_pools["coder-explorer"].to_wire()
    wire["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    going = {**seen.decode_pools, "coder-explorer": DecodePool.model_validate(wire)}
    result = plan(replace(seen, agent_pool=agent_pool(roles=ROLES[:1]), decode_pools=going), START)
    assert not result.delete


# --- decisions


def scaled(kind: PoolKind, name: str, current: int, desired: int) -> Target:
    clamps = (Clamp(Reason.AT_MAXIMUM, "at most 8"),)
    return Target(kind, name, current, desired, desired, Reason.PREFILL_WORK, "work for more", clamps)


def decision(*targets: Target, apply: bool = True, time: float = START, age: float = 3.0) -> Decision:
    return Decision(
        time=time,
        apply=apply,
        reason=Reason.PREFILL_WORK,
        message="grow",
        targets=targets,
        inputs=(
            InputUsed("primary/prompt_rate", 12345.678, age, Freshness.FRESH),
            InputUsed("primary/ttft", None, None, Freshness.MISSING),
        ),
        findings=(Finding(ConditionType.SCALING_LIMITED, True, Reason.AT_MAXIMUM, "at most 8"),),
        cost_per_hour=None,
        state=State(),
    )


UP = scaled(PoolKind.PREFILL, "coder-primary", 2, 5)


def test_a_decision_is_carried_out_by_the_autoscalers_manager_and_told() -> None:
    result = plan(replace(complete(), decision=decision(UP)), START)
    assert manifests(result, Manager.AUTOSCALER) == {
        "PrefillPool/coder-primary": {
            "apiVersion": "retinue.dev/v1alpha1",
            "kind": "PrefillPool",
            "metadata": {
                "name": "coder-primary",
                "namespace": "agents",
                "annotations": {"retinue.dev/sized": "true"},
            },
            "spec": {"replicas": 5},
        }
    }
    events = [(event.reason, event.message) for event in result.events]
    assert ("ScalingUp", "PrefillPool coder-primary 2 -> 5: work for more") in events


@pytest.mark.parametrize(
    ("kind", "name", "current", "desired", "key"),
    [
        (PoolKind.DECODE, "coder-explorer", 1, 2, "DecodePool/coder-explorer"),
        (PoolKind.TIER, "coder-archive", 3, 2, "KVCacheTier/coder-archive"),
    ],
)
def test_decode_pools_and_tiers_are_scaled_too(kind: PoolKind, name: str, current: int, desired: int, key: str) -> None:
    result = plan(replace(complete(), decision=decision(scaled(kind, name, current, desired))), START)
    assert replicas(result) == {key: desired}
    (event,) = [e for e in result.events if e.reason.startswith("Scaling") and "->" in e.message]
    assert event.reason == ("ScalingUp" if desired > current else "ScalingDown")


@pytest.mark.parametrize("mode", ["Off", "DryRun"])
def test_outside_of_auto_nothing_is_scaled_whatever_the_decision_says(mode: str) -> None:
    seen = complete(autoscaling={"mode": mode})
    for apply in (False, True):
        result = plan(replace(seen, decision=decision(UP, apply=apply)), START)
        assert replicas(result) == {}
        assert status(result)["lastDecision"]["mode"] == mode


def test_a_decision_that_was_made_before_is_not_carried_out_again() -> None:
    result = plan(replace(complete(), decision=decision(UP), carry_out=False), START)
    assert replicas(result) == {}
    assert status(result)["lastDecision"]["targets"][0]["desired"] == 5


def test_a_decision_gives_way_to_somebody_who_changed_replicas_meanwhile() -> None:
    stale = scaled(PoolKind.PREFILL, "coder-primary", 4, 5)
    assert replicas(plan(replace(complete(), decision=decision(stale)), START)) == {}


def test_a_decision_about_a_pool_that_is_gone_or_unchanged_writes_nothing() -> None:
    gone = scaled(PoolKind.DECODE, "coder-nobody", 1, 2)
    same = scaled(PoolKind.DECODE, "coder-primary", 1, 1)
    assert replicas(plan(replace(complete(), decision=decision(gone, same)), START)) == {}


@pytest.mark.parametrize(("mode", "applies"), [("Auto", True), ("DryRun", False), ("Off", False)])
def test_the_decision_made_from_this_snapshot_is_applied_in_auto_mode_only(mode: str, applies: bool) -> None:
    seen = all_ready(complete(autoscaling={"mode": mode}))
    made = decide(build_inputs(seen, START), State(), START)
    assert made.apply is applies


def test_the_last_decision_shows_values_ages_and_clamps() -> None:
    record = status(plan(replace(complete(), decision=decision(UP)), START))["lastDecision"]
    assert record == {
        "time": "2023-11-14T22:13:20Z",
        "mode": "Auto",
        "reason": "PrefillWork",
        "message": "grow",
        "targets": [
            {
                "name": "prefill/coder-primary",
                "current": 2,
                "desired": 5,
                "reason": "PrefillWork",
                "message": "work for more",
                "clamps": ["AtMaximum: at most 8"],
            }
        ],
        "inputs": [
            {"name": "primary/prompt_rate", "value": "1.235e+04", "ageSeconds": "3"},
            {"name": "primary/ttft"},
        ],
    }


def test_a_decision_that_says_the_same_of_the_same_numbers_leaves_the_record_alone() -> None:
    seen = replace(complete(), decision=decision(UP))
    first = plan(seen, START)
    later = replace(after(seen, first), decision=decision(UP, time=START + 15, age=4.0))
    assert status(plan(later, START + 15))["lastDecision"] == status(first)["lastDecision"]
    changed = replace(later, decision=decision(replace(UP, desired=6), time=START + 15))
    assert status(plan(changed, START + 15))["lastDecision"]["time"] == "2023-11-14T22:13:35Z"


def test_a_restarted_operator_keeps_the_last_record_and_its_conditions_until_it_has_decided() -> None:
    seen = replace(complete(), decision=decision(UP))
    first = plan(seen, START)
    restarted = plan(replace(after(seen, first), decision=None), START + 5)
    assert status(restarted)["lastDecision"] == status(first)["lastDecision"]
    assert condition(restarted, "ScalingLimited") == condition(first, "ScalingLimited")


# --- status


def test_roles_say_who_serves_them() -> None:
    seen = all_ready(complete(), instances=2)
    roles = {role["name"]: role for role in status(plan(seen, START))["roles"]}
    assert roles["primary"] == {
        "name": "primary",
        "type": "Primary",
        "model": MODEL,
        "prefillPool": "coder-primary",
        "decodePool": "coder-primary",
        "ready": True,
        "prefillReplicas": 2,
        "decodeReplicas": 2,
    }
    served = roles["summarizer"]
    assert (served["servedBy"], served["decodePool"], served["model"]) == ("explorer", "coder-explorer", MODEL)
    assert "prefillPool" not in served


def test_a_role_on_existing_pools_takes_its_model_from_them_and_makes_nothing() -> None:
    role = {
        "name": "primary",
        "type": "Primary",
        "prefillPoolRef": {"name": "p"},
        "decodePoolRef": {"name": "d"},
    }
    base = complete().decode_pools["coder-primary"]
    other = with_status(base.model_copy(update={"metadata": base.metadata.model_copy(update={"name": "d"})}))
    result = plan(snapshot(agent_pool(roles=[role], tiers=[]), decode_pools={"d": other}), START)
    assert not result.apply
    (shown,) = status(result)["roles"]
    assert (shown["prefillPool"], shown["decodePool"], shown["model"]) == ("p", "d", MODEL)
    assert condition(result, "Ready")[2] == "role primary: PrefillPool p does not exist yet"


def test_ready_means_that_every_role_is_served_and_otherwise_names_the_pool_and_its_trouble() -> None:
    seen = all_ready(complete())
    assert condition(plan(seen, START), "Ready") == ("True", "RolesReady", "all 3 roles are served")
    trouble = [{**READY[0], "status": "False", "reason": "Starting", "message": "none of 1 instances is ready yet"}]
    broken = with_status(seen.decode_pools["coder-explorer"], conditions=trouble)
    result = plan(replace(seen, decode_pools={**seen.decode_pools, "coder-explorer": broken}), START)
    assert condition(result, "Ready") == (
        "False",
        "RolesNotReady",
        "role explorer: DecodePool coder-explorer: none of 1 instances is ready yet; "
        "role summarizer: DecodePool coder-explorer: none of 1 instances is ready yet",
    )
    assert status(result)["rolesReady"] == "1/3"


def test_endpoints_are_one_per_role_below_the_gateway() -> None:
    assert status(plan(snapshot(), START))["endpoints"] == [
        {"role": name, "url": "http://gateway:8080/agents/coder/v1", "model": name}
        for name in ("primary", "explorer", "summarizer")
    ]


def signal(value: float) -> Signal:
    return Signal(value, 1.0)


def test_numbers_are_weighted_by_tokens_and_summed_over_roles() -> None:
    measured = Measurements(
        roles={
            "primary": RoleSignals(
                prompt_rate=signal(9000),
                cached_rate=signal(9000),
                hit_rate=signal(1.0),
                open_sessions=signal(3),
                context_tokens=signal(300_000),
                ttft=signal(1.5),
            ),
            "explorer": RoleSignals(
                prompt_rate=signal(1000), cached_rate=signal(0), open_sessions=signal(4), ttft=signal(2.5)
            ),
        },
        decode={"coder-primary": PoolSignals(inter_token_time=signal(0.02))},
    )
    wire = status(plan(replace(all_ready(complete()), measured=measured), START))
    assert wire["hitRate"] == "0.900", "not the mean of 1.0 and 0.0"
    assert wire["inputCostRatio"] == "0.190"
    assert wire["sessions"] == {"open": 7, "contextTokens": 300_000}
    assert (wire["ttftP95"], wire["itlP95"]) == ("2.5s", "20ms")
    assert wire["roles"][0]["hitRate"] == "1.000"


def test_what_is_not_measured_is_absent_and_not_zero() -> None:
    wire = status(plan(all_ready(complete()), START))
    assert wire["sessions"] == {}
    assert not {"hitRate", "inputCostRatio", "ttftP95", "itlP95"} & set(wire)


def test_the_cost_is_that_of_the_classes_on_which_instances_run() -> None:
    seen = all_ready(complete())
    # Three pools with one instance of one device; a node of four costs 8 an hour, on the slow class 4.
    assert status(plan(seen, START))["costPerHour"] == "6.00"
    slow = [{"name": "i0", "phase": "Draining", "nodeClass": "slow"}]
    moved = {**seen.decode_pools, "coder-explorer": with_status(seen.decode_pools["coder-explorer"], instances=slow)}
    assert status(plan(replace(seen, decode_pools=moved), START))["costPerHour"] == "5.00"


def test_a_cost_that_a_class_does_not_state_is_not_invented() -> None:
    free = gpu_class("fast", costPerNodeHour=None)
    assert "costPerHour" not in status(plan(replace(all_ready(complete()), classes={"fast": free}), START))


def test_an_instance_that_waits_for_its_place_costs_nothing_yet() -> None:
    seen = all_ready(complete())
    waiting = [{"name": "i0", "phase": "Pending", "nodeClass": "fast"}]
    moved = {**seen.decode_pools, "coder-explorer": with_status(seen.decode_pools["coder-explorer"], instances=waiting)}
    assert status(plan(replace(seen, decode_pools=moved), START))["costPerHour"] == "4.00"


@pytest.mark.parametrize(
    ("type_", "bad", "reason", "good"),
    [
        ("Placed", "False", "NoFit", "True"),
        ("CacheConnected", "False", "TierMissing", "True"),
        ("Degraded", "True", "InstanceFailed", "False"),
    ],
)
def test_trouble_of_one_pool_shows_on_the_agent_pool_in_its_own_words(
    type_: str, bad: str, reason: str, good: str
) -> None:
    fine = [{**READY[0], "type": type_, "status": good, "reason": "Healthy", "message": "all is well"}]
    seen = complete()
    children = {
        "prefill_pools": {n: with_status(c, conditions=fine) for n, c in seen.prefill_pools.items()},
        "decode_pools": {n: with_status(c, conditions=fine) for n, c in seen.decode_pools.items()},
    }
    assert condition(plan(replace(seen, **children), START), type_)[0] == good
    trouble = [{**fine[0], "status": bad, "reason": reason, "message": "because"}]
    children["decode_pools"]["coder-explorer"] = with_status(seen.decode_pools["coder-explorer"], conditions=trouble)
    found = condition(plan(replace(seen, **children), START), type_)
    assert found == (bad, reason, "DecodePool coder-explorer: because")


def test_a_failing_pool_is_told_before_tools_that_nobody_runs() -> None:
    seen = complete(tools={"nodeClass": "cpu"})
    trouble = [{**READY[0], "type": "Degraded", "reason": "InvalidObject", "message": "apply Pod a: no"}]
    broken = with_status(seen.decode_pools["coder-explorer"], conditions=trouble)
    result = plan(replace(seen, decode_pools={**seen.decode_pools, "coder-explorer": broken}), START)
    assert condition(result, "Degraded")[2] == "DecodePool coder-explorer: InvalidObject: apply Pod a: no"


def test_tools_that_nobody_runs_are_reported() -> None:
    result = plan(snapshot(agent_pool(tools={"nodeClass": "cpu"})), START)
    assert condition(result, "Degraded")[:2] == ("True", "ToolsNotManaged")


# --- inputs of decisions


def test_inputs_count_ready_starting_and_draining_instances_by_age() -> None:
    ages = {
        ("prefill", "coder-primary"): (
            InstanceAge(START - 100, START - 40, False),
            InstanceAge(START - 20, None, False),
            InstanceAge(START - 500, START - 400, True),
        )
    }
    inputs = build_inputs(replace(complete(), ages=ages), START)
    prefill = next(pool for pool in inputs.pools if pool.kind is PoolKind.PREFILL)
    assert (prefill.ready_ages, prefill.starting_ages, prefill.draining) == ((40.0,), (20.0,), 1)
    assert (prefill.min, prefill.max, prefill.current, prefill.aggregated) == (2, 8, 2, False)


def test_inputs_cover_each_owned_pool_once_and_mark_aggregated_ones() -> None:
    inputs = build_inputs(complete(), START)
    assert [(pool.kind.value, pool.name, pool.aggregated) for pool in inputs.pools] == [
        ("prefill", "coder-primary", False),
        ("decode", "coder-primary", False),
        ("decode", "coder-explorer", True),
    ]
    assert [(tier.name, tier.min, tier.max) for tier in inputs.tiers] == [
        ("coder-shared", 2, 6),
        ("coder-archive", 3, 3),
    ]
    assert [(role.name, role.prefill, role.decode, role.tiers) for role in inputs.roles] == [
        ("primary", "coder-primary", "coder-primary", ("coder-shared",)),
        ("explorer", None, "coder-explorer", ()),
        ("summarizer", None, "coder-explorer", ()),
    ]


def test_inputs_say_how_many_more_instances_would_find_devices() -> None:
    prefill = build_inputs(complete(), START).pools[0]
    assert prefill.placeable == 4, "one node with four free devices, one each"
    assert build_inputs(replace(complete(), nodes=()), START).pools[0].placeable is None


def test_emulated_nodes_that_run_faster_are_modelled_as_fast_as_they_are_measured() -> None:
    real = complete(slo={"itl": {"target": "20ms"}})
    fast = replace(real.classes["fast"], time_scale=10.0)
    # Ten times as fast: ten times the speed, and a goal of 2 ms is met by the batches that meet 20 ms on real nodes.
    sooner = replace(complete(slo={"itl": {"target": "2ms"}}), classes={**real.classes, "fast": fast})
    for before, after_ in zip(build_inputs(real, START).pools, build_inputs(sooner, START).pools, strict=True):
        assert before.prefill_speed is not None
        assert after_.prefill_speed == pytest.approx(10.0 * before.prefill_speed)
        assert before.slots is not None
        assert 1 < before.slots == after_.slots
        assert (after_.kv_tokens, after_.host_tokens) == (before.kv_tokens, before.host_tokens)
