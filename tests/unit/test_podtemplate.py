"""What users write into a pod template, right and wrong."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.podtemplate import with_template, wrong_template

from ..nonsense import NONSENSE

POD: dict[str, Any] = {
    "metadata": {"name": "a", "labels": {"own": "true"}, "annotations": {}},
    "spec": {
        "containers": [{"name": "engine", "env": [{"name": "A", "value": "1"}], "ports": [{"name": "http"}]}],
        "nodeSelector": {"gpu": "fast"},
    },
}
_FIELDS = ("labels", "annotations", "containers", "nodeSelector", "affinity", "schedulingGates", "name", "env", "ports")
# Known fields over and over, with anything at all in them.
TEMPLATES = st.dictionaries(
    st.sampled_from(("metadata", "spec", "status")),
    st.recursive(
        NONSENSE | st.just("engine"),
        lambda inner: st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=4) | st.lists(inner, max_size=3),
        max_leaves=12,
    ),
)


@given(TEMPLATES)
def test_a_template_is_refused_or_leaves_a_pod_that_has_all_that_was_built(template: dict[str, Any]) -> None:
    if wrong_template(template) is not None:
        return
    before = copy.deepcopy(POD)
    merged = with_template(POD, template)
    assert before == POD
    assert merged["metadata"]["labels"]["own"] == "true"
    engine = next(one for one in merged["spec"]["containers"] if one.get("name") == "engine")
    assert {"name": "http"}.items() <= engine["ports"][0].items()
    assert any(one.get("name") == "A" for one in engine["env"])
    assert merged["spec"]["nodeSelector"].keys() >= {"gpu"}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"metadata": 5}, "spec.podTemplate.metadata: must be a map, not a number"),
        ({"spec": {"containers": "engine"}}, "spec.podTemplate.spec.containers: must be a list, not a string"),
        ({"spec": {"containers": [None]}}, "spec.podTemplate.spec.containers[0]: must be a map, not null"),
        (
            {"spec": {"containers": [{"name": True}]}},
            "spec.podTemplate.spec.containers[0].name: must be a string, not true or false",
        ),
        (
            {"spec": {"containers": [{"name": "engine", "env": [{"value": "1"}]}]}},
            "spec.podTemplate.spec.containers[0].env[0].name: is missing",
        ),
        ({"spec": {"schedulingGates": {}}}, "spec.podTemplate.spec.schedulingGates: must be a list, not a map"),
    ],
)
def test_the_field_of_the_wrong_type_is_named(template: dict[str, Any], said: str) -> None:
    assert (wrong_template(template) or "").startswith(said)


def test_null_names_nothing_and_ports_without_a_name_are_added() -> None:
    ports = [{"containerPort": 9000}]
    template = {"metadata": None, "spec": {"nodeSelector": None, "containers": [{"name": "engine", "ports": ports}]}}
    assert wrong_template(template) is None
    merged = with_template(POD, template)
    assert merged["spec"]["nodeSelector"] == {"gpu": "fast"}
    assert merged["spec"]["containers"][0]["ports"] == [{"name": "http"}, {"containerPort": 9000}]
