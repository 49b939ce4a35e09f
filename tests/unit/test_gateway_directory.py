"""From pods and AgentPools to the routing table."""

from typing import Any

import pytest

from retinue_gateway.directory import (
    Directory,
    build_directory,
    read_agent_pool,
    read_instance,
)
from retinue_gateway.keys import PoolKey, RoleKey, Stage


def pod(name: str, stage: str = "decode", *, pool: str = "coder-primary", **changes: Any) -> dict[str, Any]:
    """A pod as the operator makes it and a kubelet reports it; labels given as keywords win."""
    labels = {
        "app.kubernetes.io/managed-by": "retinue",
        "retinue.dev/pool": pool,
        "retinue.dev/pool-kind": stage,
        "retinue.dev/instance": name,
        "retinue.dev/rank": changes.get("rank", "0"),
        "retinue.dev/routable": changes.get("routable", "true"),
    }
    metadata: dict[str, Any] = {"namespace": "agents", "name": f"{name}-0", "uid": f"uid-{name}", "labels": labels}
    if changes.get("deleting"):
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    port = {"name": "http", "containerPort": changes.get("port", 8000)}
    return {
        "metadata": metadata,
        "spec": {"containers": [{"name": "engine", "ports": [port]}]},
        "status": {
            "podIP": changes.get("ip", "127.0.0.5"),
            "conditions": [{"type": "Ready", "status": changes.get("ready", "True")}],
        },
    }


def agent_pool() -> dict[str, Any]:
    return {
        "metadata": {"namespace": "agents", "name": "coder", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "roles": [
                {"name": "primary", "type": "Primary", "model": {"name": "kimi"}, "prefill": {}, "decode": {}},
                {"name": "reviewer", "type": "SubAgent", "servedBy": "primary"},
                {"name": "explorer", "type": "SubAgent", "model": {"name": "small"}, "decodePoolRef": {"name": "own"}},
            ]
        },
        "status": {
            "roles": [
                {"name": "primary", "type": "Primary", "model": "kimi", "prefillPool": "coder-primary",
                 "decodePool": "coder-primary"},
                {"name": "reviewer", "type": "SubAgent", "servedBy": "primary"},
                {"name": "explorer", "type": "SubAgent", "model": "small", "decodePool": "own"},
            ]
        },
    }  # fmt: skip


def directory(*pods: dict[str, Any], pool: dict[str, Any] | None = None) -> Directory:
    instances = [found for found in map(read_instance, pods) if found is not None]
    return build_directory(instances, [read_agent_pool(pool or agent_pool())])


def role(name: str) -> RoleKey:
    return RoleKey("agents", "coder", name)


def test_each_role_gets_the_instances_of_its_pools_by_stage() -> None:
    found = directory(pod("p-0", "prefill"), pod("d-0"), pod("d-1"), pod("x-0", pool="own"))
    primary, explorer = found.routes[role("primary")], found.routes[role("explorer")]
    assert [instance.name for instance in primary.prefill] == ["p-0"]
    assert [instance.name for instance in primary.decode] == ["d-0", "d-1"]
    assert primary.stages == (Stage.PREFILL, Stage.DECODE)
    assert [instance.name for instance in explorer.decode] == ["x-0"]
    assert explorer.stages == (Stage.DECODE,)


def test_a_role_served_by_another_shares_its_pools_and_model() -> None:
    found = directory(pod("p-0", "prefill"), pod("d-0"))
    primary, reviewer = found.routes[role("primary")], found.routes[role("reviewer")]
    assert (reviewer.prefill, reviewer.decode, reviewer.model) == (primary.prefill, primary.decode, "kimi")
    assert reviewer.disaggregated


@pytest.mark.parametrize(
    "change",
    [{"routable": "false"}, {"ready": "False"}, {"deleting": True}, {"ip": ""}],
    ids=["labelled", "not ready", "being deleted", "without address"],
)
def test_an_instance_that_must_get_no_requests_is_known_but_not_routed_to(change: dict[str, Any]) -> None:
    found = directory(pod("d-0", **change), pod("d-1"))
    assert [instance.name for instance in found.routes[role("primary")].decode] == ["d-1"]
    assert "uid-d-0" in found.instances


def test_only_rank_zero_of_engines_answers_requests() -> None:
    assert read_instance(pod("d-0", rank="1")) is None
    assert read_instance(pod("t-0", "tier")) is None
    foreign = pod("d-0")
    foreign["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "helm"
    assert read_instance(foreign) is None


def test_the_address_is_the_pods_ip_and_the_port_named_http() -> None:
    assert read_instance(pod("d-0", port=9000)).address == "127.0.0.5:9000"  # type: ignore[union-attr]
    assert read_instance(pod("d-0", ip="fd00::5")).address == "[fd00::5]:8000"  # type: ignore[union-attr]


def test_pools_of_another_namespace_are_not_mixed_in() -> None:
    foreign = pod("d-9")
    foreign["metadata"]["namespace"] = "others"
    assert directory(foreign).routes[role("primary")].decode == ()


def test_a_role_that_wants_prefill_is_never_served_by_decode_alone_while_its_status_lags() -> None:
    young = agent_pool()
    young["status"] = {"roles": [{"name": "primary", "decodePool": "coder-primary"}]}
    primary = directory(pod("d-0"), pool=young).routes[role("primary")]
    assert primary.disaggregated
    assert primary.prefill == ()


def test_a_role_without_status_exists_without_instances() -> None:
    young = agent_pool()
    del young["status"]
    found = directory(pod("d-0"), pool=young)
    assert found.routes[role("primary")].decode == ()


def test_a_model_is_found_by_role_first_and_then_by_model_in_the_order_of_the_spec() -> None:
    coder = directory().pools[PoolKey("agents", "coder")]
    assert [coder.find(name).key.role for name in ("explorer", "small", "kimi")] == [  # type: ignore[union-attr]
        "explorer", "explorer", "primary",
    ]  # fmt: skip
    assert coder.find("gpt") is None
