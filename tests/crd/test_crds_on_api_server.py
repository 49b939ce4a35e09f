"""What the API server makes of the five kinds: defaults, merging, immutability, scale, status, and kubectl's view."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinue.api.markers import Column
from retinue_emulator.loopback import ClusterAccess, KubectlError

from .objects import (
    INFOS,
    MODELS,
    Manifest,
    Objects,
    Refusal,
    fields_in,
    fields_of,
    merged,
    sample,
    sample_names,
    schema_of,
)

pytestmark = pytest.mark.component

_FULL_STATUS: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "full_status.yaml").read_text(encoding="utf-8")
)
# One sample of each kind with every field, and of those with replicas.
_COMPLETE = ("agentpool", "prefillpool", "decodepool", "kvcachetier-context-storage", "nodeclass-gb300")
_SCALED = ("prefillpool", "decodepool", "kvcachetier-context-storage")
_FROZEN = (
    ("kvcachetier-host-memory", {"spec": {"medium": "LocalDisk"}}, "spec.medium", "create another tier"),
    ("kvcachetier-host-memory", {"spec": {"backend": "LMCache"}}, "spec.backend", "create another tier"),
    ("nodeclass-h100-preset", {"spec": {"family": "LPX"}}, "spec.family", "create another NodeClass"),
    ("decodepool", {"spec": {"serves": "PrefillAndDecode"}}, "spec.serves", "create another DecodePool"),
    (
        "agentpool",
        {"spec": {"tiers": {0: {"spec": {"backend": "Mooncake", "eviction": "LRU"}}}}},
        "spec.tiers[0].spec.backend",
        "create another tier",
    ),
)


@pytest.mark.parametrize("name", sample_names())
def test_a_sample_comes_back_with_exactly_the_defaults_of_its_model(name: str, objects: Objects) -> None:
    created = objects.create_sample(name)
    kind = created["kind"]
    stored = objects.get(kind, created["metadata"]["name"])
    expected = MODELS[kind].model_validate(sample(name)).to_wire()["spec"]
    assert stored["spec"] == expected


@pytest.mark.parametrize("name", _COMPLETE)
def test_a_round_trip_through_the_model_changes_nothing_on_the_server(name: str, objects: Objects) -> None:
    created = objects.create_sample(name)
    stored = objects.get(created["kind"], created["metadata"]["name"])
    through_model = MODELS[stored["kind"]].model_validate(stored).to_wire()
    written = objects.replace(stored | {"spec": through_model["spec"]})
    assert written["spec"] == stored["spec"]
    assert written["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]


@pytest.mark.parametrize(("name", "patch", "field", "remedy"), _FROZEN, ids=[row[2] for row in _FROZEN])
def test_an_immutable_field_refuses_an_update_and_says_what_to_do_instead(
    name: str, patch: Manifest, field: str, remedy: str, objects: Objects
) -> None:
    created = objects.create_sample(name)
    with pytest.raises(Refusal) as refused:
        objects.replace(merged(created, patch))
    assert field in refused.value.fields
    assert "is immutable" in refused.value.message
    assert remedy in refused.value.message


@pytest.mark.parametrize("name", _COMPLETE)
def test_every_status_field_survives_a_write_without_touching_the_spec(name: str, objects: Objects) -> None:
    created = objects.create_sample(name)
    kind = created["kind"]
    status = _FULL_STATUS[kind]
    assert fields_of(schema_of(kind, "status")) == fields_in(status), "full_status.yaml must set every field"
    objects.replace(created | {"status": status}, "status")
    stored = objects.get(kind, created["metadata"]["name"])
    # What an item of full_status.yaml leaves out has its default in both.
    assert stored["status"] == MODELS[kind].model_validate(created | {"status": status}).to_wire()["status"]
    assert fields_in(status) <= fields_in(stored["status"])
    assert stored["metadata"]["generation"] == 1
    assert stored["spec"] == created["spec"]


def test_a_status_in_a_new_object_is_dropped(objects: Objects) -> None:
    manifest = sample("prefillpool-minimal") | {"status": {"readyReplicas": 99}}
    assert "status" not in objects.create(manifest)


def test_roles_of_two_managers_merge_by_name(objects: Objects) -> None:
    mine, theirs = sample("agentpool-minimal"), sample("agentpool-minimal")
    theirs["spec"]["roles"] = [{"name": "linter", "type": "SubAgent", "servedBy": "primary"}]
    objects.apply(mine, "gitops")
    objects.apply(theirs, "platform")
    merged_roles = objects.apply(mine, "gitops")["spec"]["roles"]
    assert [role["name"] for role in merged_roles] == ["primary", "linter"]


def test_node_classes_of_two_managers_merge_as_a_set(objects: Objects) -> None:
    mine = sample("prefillpool-minimal")
    theirs = merged(mine, {"spec": {"nodeClasses": ["b200"]}})
    objects.apply(mine, "gitops")
    objects.apply(theirs, "platform")
    assert objects.get("PrefillPool", "small")["spec"]["nodeClasses"] == ["h100", "b200"]


def test_a_field_of_another_manager_is_a_conflict(objects: Objects) -> None:
    objects.apply(merged(sample("prefillpool-minimal"), {"spec": {"replicas": 2}}), "gitops")
    with pytest.raises(Refusal) as refused:
        objects.apply(merged(sample("prefillpool-minimal"), {"spec": {"replicas": 3}}), "platform")
    assert refused.value.code == 409
    assert ".spec.replicas" in refused.value.fields


def test_conditions_of_two_managers_merge_by_type(objects: Objects) -> None:
    created = objects.create_sample("decodepool")
    identity: Manifest = {key: created[key] for key in ("apiVersion", "kind")}
    identity["metadata"] = {"name": created["metadata"]["name"]}
    ready, degraded = (
        {"type": kind, "status": "True", "reason": "Test", "lastTransitionTime": "2026-11-22T10:00:00Z"}
        for kind in ("Ready", "Degraded")
    )
    objects.apply(identity | {"status": {"conditions": [ready]}}, "retinue", "status")
    status = objects.apply(identity | {"status": {"conditions": [degraded]}}, "someone-else", "status")["status"]
    assert {condition["type"] for condition in status["conditions"]} == {"Ready", "Degraded"}


@pytest.mark.parametrize("name", _SCALED)
def test_the_scale_subresource_reads_and_writes_replicas(name: str, objects: Objects) -> None:
    created = objects.create_sample(name)
    kind, object_name = created["kind"], created["metadata"]["name"]
    objects.replace(created | {"status": _FULL_STATUS[kind]}, "status")
    scale = objects.get(kind, object_name, "scale")
    assert scale["spec"]["replicas"] == created["spec"]["replicas"]
    assert scale["status"] == {"replicas": 3, "selector": _FULL_STATUS[kind]["selector"]}
    objects.scale(kind, object_name, 5)
    assert objects.get(kind, object_name)["spec"]["replicas"] == 5


@pytest.mark.parametrize("name", _SCALED)
def test_kubectl_scale_changes_replicas(name: str, objects: Objects, cluster: ClusterAccess) -> None:
    created = objects.create_sample(name)
    kind, object_name = created["kind"], created["metadata"]["name"]
    cluster.kubectl("scale", f"{INFOS[kind].plural}/{object_name}", "--replicas=4", f"--namespace={objects.namespace}")
    assert objects.get(kind, object_name)["spec"]["replicas"] == 4


def test_kubectl_scale_is_refused_where_a_tier_runs_no_servers(objects: Objects, cluster: ClusterAccess) -> None:
    objects.create_sample("kvcachetier-host-memory")
    with pytest.raises(KubectlError, match="only medium ContextStorage runs"):
        cluster.kubectl("scale", "kvt/warm", "--replicas=2", f"--namespace={objects.namespace}")


def test_kubectl_shows_every_column_of_every_kind_by_short_name(objects: Objects, cluster: ClusterAccess) -> None:
    for name in _COMPLETE:
        created = objects.create_sample(name)
        objects.replace(created | {"status": _FULL_STATUS[created["kind"]]}, "status")
    short_names = ",".join(info.short_names[0] for info in INFOS.values())
    shown = cluster.kubectl("get", short_names, "--output=wide", f"--namespace={objects.namespace}")
    narrow = cluster.kubectl("get", short_names, f"--namespace={objects.namespace}")
    for info in INFOS.values():
        assert _header(info.columns) in _squeezed(shown)
        assert _header(tuple(column for column in info.columns if not column.priority)) in _squeezed(narrow)
    rows = _squeezed(narrow)
    assert "agentpool.retinue.dev/coder True 1/2 42 0.951 0.144 1.2s 18ms 512" in rows
    assert "prefillpool.retinue.dev/coder-primary True 2 3 2 1 0.94 1.2s 18ms" in rows
    assert "kvcachetier.retinue.dev/shared ContextStorage True 3 6Ti 1.4Ti 0.31 8m" in rows
    assert "GPU True 18 17 72 8 24" in rows


def test_category_retinue_lists_all_kinds(objects: Objects, cluster: ClusterAccess) -> None:
    names = [objects.create_sample(name)["metadata"]["name"] for name in _COMPLETE]
    listed = json.loads(cluster.kubectl("get", "retinue", "--output=json", f"--namespace={objects.namespace}"))
    found = {(item["kind"], item["metadata"]["name"]) for item in listed["items"]}
    assert set(zip(INFOS, names, strict=True)) <= found


@pytest.mark.parametrize("kind", list(INFOS))
def test_kubectl_explain_describes_a_kind(kind: str, cluster: ClusterAccess) -> None:
    explained = cluster.kubectl("explain", f"{INFOS[kind].plural}.spec")
    assert f"KIND: {kind}" in _squeezed(explained)


def _squeezed(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


def _header(columns: tuple[Column, ...]) -> str:
    return " ".join(["NAME", *(column.name.upper() for column in columns)])
