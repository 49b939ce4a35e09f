"""Everything generated in the chart and its pages is as the code says: values, schema, CRDs, roles, dashboards."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from retinue_operator.chart.__main__ import drifted, files, main
from retinue_operator.chart.roles import KUBELET_PLUGIN
from retinue_operator.chart.values import VALUES
from retinue_operator.rbac import GATEWAY, OPERATOR, Part

from .conftest import CHART, REPOSITORY, Helm, value_sets


def test_nothing_has_drifted() -> None:
    assert drifted(REPOSITORY) == [], "run make generate"


def test_check_names_what_drifted_and_generation_repairs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("pyproject.toml", *files(REPOSITORY)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "docs" / "values.md").write_text("edited")
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert "docs/values.md" in capsys.readouterr().err
    assert main(["--root", str(tmp_path)]) == 0
    assert main(["--check", "--root", str(tmp_path)]) == 0


def test_values_yaml_holds_the_defaults_of_every_value() -> None:
    assert yaml.safe_load((CHART / "values.yaml").read_text()) == VALUES.defaults()


def test_the_schema_knows_every_value_and_refuses_others_at_every_level() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    for path, node in VALUES.walk():
        here = schema
        for key in path.split("."):
            assert here["additionalProperties"] is False, path
            here = here["properties"][key]
        assert here["description"] == node.text


def test_every_crd_is_in_the_chart_as_it_is_in_the_folder_and_is_kept_on_uninstall(helm4: Helm) -> None:
    objects = helm4.render(value_sets()[0])
    shipped = {o["metadata"]["name"]: o for o in objects if o["kind"] == "CustomResourceDefinition"}
    # From the models, not from the folder: that one has a drift test of its own.
    from retinue.api.crd import render_all

    expected = [yaml.safe_load(text) for text in render_all().values()]
    assert len(shipped) == len(expected) == 5
    for crd in expected:
        ours = shipped[crd["metadata"]["name"]]
        assert ours["spec"] == crd["spec"]
        assert ours["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


@pytest.mark.parametrize("part", [OPERATOR, GATEWAY, KUBELET_PLUGIN], ids=lambda part: part.name)
@pytest.mark.parametrize("values", ["default", "namespaced"])
def test_the_chart_grants_exactly_the_rights_of_the_table(helm4: Helm, part: Part, values: str) -> None:
    path = next(path for path in value_sets() if path.stem == values)
    granted = {
        (group, resource, verb, tuple(rule.get("resourceNames", ())))
        for o in helm4.render(path, "--set", "emulator.enabled=true,emulator.inventory=x")
        if o["kind"] in ("ClusterRole", "Role") and o["metadata"]["name"].startswith(part.name)
        for rule in o["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == {
        (right.group, resource, verb, right.names)
        for right in part.rights
        for resource in right.resources
        for verb in right.verbs
    }


def test_operator_and_gateway_may_not_touch_what_the_security_page_says_they_may_not() -> None:
    rights = [right for part in (OPERATOR, GATEWAY) for right in part.rights]
    touched = {resource.partition("/")[0] for right in rights for resource in right.resources}
    assert not touched & {"secrets", "configmaps", "serviceaccounts", "roles", "rolebindings", "clusterroles"}
    assert not touched & {
        "customresourcedefinitions",
        "mutatingwebhookconfigurations",
        "validatingwebhookconfigurations",
    }
    assert not {resource for right in rights for resource in right.resources} & {"pods/exec", "pods/portforward"}
    assert not {verb for right in rights for verb in right.verbs} & {"escalate", "bind", "impersonate", "*"}
    assert all(set(right.verbs) <= {"list", "watch"} for right in rights if "nodes" in right.resources)
