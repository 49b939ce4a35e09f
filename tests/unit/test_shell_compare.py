"""Comparison of planned and live objects: what the API server adds or rewrites is no difference, an edit is one."""

from typing import Any

import pytest

from retinue_operator.compare import differences, spec_hash, surplus


def paths(planned: dict[str, Any], live: dict[str, Any]) -> list[str]:
    return sorted(path for path, _ in differences(planned, live))


PLANNED: dict[str, Any] = {
    "metadata": {"name": "p", "labels": {"a": "1"}},
    "spec": {
        "containers": [
            {
                "name": "engine",
                "args": ["--x=1", "--y"],
                "env": [{"name": "A", "value": ""}, {"name": "B", "value": "b"}],
                "ports": [{"containerPort": 8000, "name": "http"}],
                "resources": {"limits": {"nvidia.com/gpu": 4, "memory": "1024Mi", "cpu": "1500m"}},
            }
        ],
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "schedulingGates": [],
        "hostNetwork": False,
    },
}
LIVE: dict[str, Any] = {
    "metadata": {"name": "p", "uid": "u", "labels": {"a": "1", "added": "by others"}},
    "spec": {
        "containers": [
            {
                "name": "engine",
                "args": ["--x=1", "--y"],
                "env": [{"name": "A"}, {"name": "B", "value": "b"}],
                "imagePullPolicy": "Always",
                "ports": [{"containerPort": 8000, "name": "http", "protocol": "TCP"}],
                "resources": {"limits": {"nvidia.com/gpu": "4", "memory": "1Gi", "cpu": "1.5"}},
                "volumeMounts": [{"name": "token", "mountPath": "/var/run"}],
            },
            {"name": "sidecar"},
        ],
        "tolerations": [
            {"key": "gpu", "operator": "Exists"},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300},
        ],
        "nodeName": "n1",
    },
}


def edited(path: str, value: Any) -> dict[str, Any]:
    """LIVE with one field changed; path like `spec.containers.0.args`."""

    def change(node: Any, steps: list[str]) -> Any:
        if not steps:
            return value
        if isinstance(node, list):
            index = int(steps[0])
            return [*node[:index], change(node[index], steps[1:]), *node[index + 1 :]]
        return {**node, steps[0]: change(node.get(steps[0], {}), steps[1:])}

    changed = change(LIVE, path.split("."))
    assert isinstance(changed, dict)
    return changed


def test_defaults_additions_and_normal_forms_are_no_difference() -> None:
    assert paths(PLANNED, LIVE) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("metadata.labels.a", "2", ".metadata.labels.a"),
        ("spec.containers.0.args", ["--y", "--x=1"], ".spec.containers[name=engine].args[0]"),
        ("spec.containers.0.args", ["--x=1"], ".spec.containers[name=engine].args"),
        ("spec.containers.0.env", [{"name": "A"}], ".spec.containers[name=engine].env[name=B]"),
        (
            "spec.containers.0.resources.limits.memory",
            "2Gi",
            ".spec.containers[name=engine].resources.limits.memory",
        ),
        ("spec.hostNetwork", True, ".spec.hostNetwork"),
        ("spec.tolerations", [], '.spec.tolerations[{"key": "gpu", "operator": "Exists"}]'),
    ],
)
def test_an_edit_of_a_planned_field_is_found_by_its_path(path: str, value: Any, expected: str) -> None:
    assert expected in paths(PLANNED, edited(path, value))


def test_quantities_count_only_where_quantities_stand() -> None:
    assert paths({"requests": {"cpu": "1"}}, {"requests": {"cpu": "1000m"}}) == []
    assert paths({"requests": {"cpu": "1"}}, {"requests": {"cpu": "1001m"}}) == [".requests.cpu"]
    assert paths({"limits": {"x": 4}}, {"limits": {"x": "4"}}) == []
    assert paths({"limits": {"x": "1e3"}}, {"limits": {"x": "1k"}}) == []
    assert paths({"labels": {"version": "1.0"}}, {"labels": {"version": "1"}}) == [".labels.version"]


def test_surplus_finds_fields_that_the_plan_does_not_set_any_more() -> None:
    planned = {"ready": 1, "instances": [{"name": "a"}], "conditions": [{"type": "Ready", "status": "True"}]}
    live = {
        "ready": 1,
        "hitRate": "0.9",
        "instances": [{"name": "a"}, {"name": "b"}],
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "Placed", "status": "False"}],
    }
    assert differences(planned, live) == frozenset()
    assert sorted(path for path, _ in surplus(planned, live)) == [
        ".conditions[type=Placed]",
        ".hitRate",
        ".instances[name=b]",
    ]


def test_the_hash_depends_on_content_and_not_on_the_order_of_keys() -> None:
    assert spec_hash({"a": 1, "b": {"c": 2, "d": 3}}) == spec_hash({"b": {"d": 3, "c": 2}, "a": 1})
    assert spec_hash({"a": [1, 2]}) != spec_hash({"a": [2, 1]})
