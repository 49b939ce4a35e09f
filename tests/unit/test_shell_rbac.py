"""The shipped rights are as generated, say why, and contain nothing that is not used."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from retinue_operator.chart.roles import CHART_PARTS
from retinue_operator.cli import app
from retinue_operator.rbac import OPERATOR, PARTS, Part, render, render_all
from retinue_operator.resources import EVENT, LEASE, WATCHED

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.mark.parametrize(("name", "text"), sorted(render_all().items()))
def test_the_file_is_as_generated(name: str, text: str) -> None:
    assert (DEPLOY / name).read_text() == text, "run retinue-operator rbac"


def test_check_names_a_file_that_drifted_and_generation_repairs_it(tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["rbac", "--out", str(tmp_path)]).exit_code == 0
    assert runner.invoke(app, ["rbac", "--check", "--out", str(tmp_path)]).exit_code == 0
    (tmp_path / "rbac-operator.yaml").write_text("edited")
    drifted = runner.invoke(app, ["rbac", "--check", "--out", str(tmp_path)])
    assert drifted.exit_code == 6
    assert "rbac-operator.yaml" in drifted.output


@pytest.mark.parametrize("part", sorted({*PARTS, *CHART_PARTS}, key=lambda part: part.file), ids=lambda part: part.file)
def test_every_rule_has_its_reason_and_none_has_a_wildcard(part: Part) -> None:
    text = render(part)
    for right in part.rights:
        assert right.reason
        assert f"# {right.reason}\n" in text
        assert not any("*" in word for word in (right.group, *right.resources, *right.verbs, *right.names))


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_role_is_bound_to_the_account_of_its_part(part: Part) -> None:
    documents = list(yaml.safe_load_all(render(part)))
    roles = {(item["kind"], item["metadata"].get("namespace")) for item in documents if item["kind"].endswith("Role")}
    bindings = [item for item in documents if item["kind"].endswith("Binding")]
    assert {(item["roleRef"]["kind"], item["metadata"].get("namespace")) for item in bindings} == roles
    for binding in bindings:
        assert binding["subjects"] == [
            {"kind": "ServiceAccount", "name": part.name, "namespace": "retinue-system"},
        ]


def test_the_operator_may_list_and_watch_exactly_what_its_cache_holds() -> None:
    for verb in ("list", "watch"):
        granted = {
            (right.group, plural) for right in OPERATOR.rights if verb in right.verbs for plural in right.resources
        }
        assert granted == {(resource.group, resource.plural) for resource in WATCHED}


def test_the_operator_may_touch_neither_secrets_nor_rights_nor_anything_else_unknown() -> None:
    known = {(resource.group, resource.plural) for resource in (*WATCHED, EVENT, LEASE)}
    for right in OPERATOR.rights:
        for plural in right.resources:
            assert (right.group, plural.removesuffix("/status")) in known
