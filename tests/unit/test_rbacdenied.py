"""The tables of denied things expand to the questions they seem to ask, and contradict no right that is granted."""

import pytest

from retinue_operator.chart.roles import KUBELET_PLUGIN
from retinue_operator.rbac import EMULATOR, GATEWAY, OPERATOR, Part

from ..rbacdenied import DENIED, Question, questions


def test_a_line_asks_for_each_verb_and_resource_where_it_says() -> None:
    assert questions("get list | pods secrets | agents") == [
        Question("get", "pods", "agents"),
        Question("list", "pods", "agents"),
        Question("get", "secrets", "agents"),
        Question("list", "secrets", "agents"),
    ]


def test_a_line_without_namespaces_asks_everywhere_and_one_for_a_path_once() -> None:
    places = [question.namespace for question in questions("get | secrets")]
    assert places == ["", "kube-system", "default", "agents", "retinue-system"]
    assert questions("get | /metrics") == [Question("get", "/metrics")]


def test_resources_are_asked_for_with_their_group_and_subresource() -> None:
    assert Question("patch", "decodepools.retinue.dev/status", "agents").attributes()["resourceAttributes"] == {
        "verb": "patch",
        "group": "retinue.dev",
        "resource": "decodepools",
        "subresource": "status",
        "namespace": "agents",
        "name": "",
    }
    assert Question("*", "*.*").attributes()["resourceAttributes"]["group"] == "*"
    assert Question("get", "/metrics").attributes() == {"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}


@pytest.mark.parametrize(
    ("name", "part"),
    [("operator", OPERATOR), ("gateway", GATEWAY), ("emulator", EMULATOR), ("kubelet-plugin", KUBELET_PLUGIN)],
)
def test_nothing_that_the_table_of_rights_grants_is_listed_as_denied(name: str, part: Part) -> None:
    asked = {(q.verb, q.resource) for q in questions(DENIED[name])}
    cluster_wide = {
        (verb, ".".join(filter(None, (plural, right.group))) + slash + subresource)
        for right in part.rights
        if not right.namespace
        for plural, slash, subresource in (resource.partition("/") for resource in right.resources)
        for verb in right.verbs
    }
    assert asked & cluster_wide == set()
