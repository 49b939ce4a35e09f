"""The proof of rights tells used from unused and denied from refused, by audit records as an API server writes them."""

from typing import Any

import yaml

from retinue_emulator.loopback import AuditEvent
from retinue_emulator.loopback.audit import parse_event
from retinue_operator.rbac import OPERATOR, render

from ..rbacproof import Account, Grant, Right, Use, denied, describe, granted, unused, used

OURS = Account("retinue-system", "retinue-operator")
GET_PODS = Right("", "pods", "get")
PATCH_PODS = Right("", "pods", "patch")


def event(verb: str, resource: str, code: int = 200, **fields: Any) -> AuditEvent:
    """A request for `pods`, `pods/status` or the like, by our account and allowed unless `fields` say otherwise."""
    name, _, subresource = resource.partition("/")
    record = {
        "verb": verb,
        "requestURI": fields.get("path", f"/api/v1/{resource}"),
        "user": {"username": fields.get("user", OURS.user)},
        "userAgent": "test",
        "responseStatus": {"code": code, "message": fields.get("message", "")},
        "annotations": {"authorization.k8s.io/decision": fields.get("decision", "allow")},
    }
    if name:
        record["objectRef"] = {
            "apiGroup": fields.get("group", ""),
            "resource": name,
            "subresource": subresource,
            "namespace": fields.get("namespace", "agents"),
            "name": fields.get("name", "x"),
        }
    if "impersonated" in fields:
        record["impersonatedUser"] = {"username": fields["impersonated"]}
    return parse_event(record)


def rights(*events: AuditEvent) -> set[Right]:
    return {use.right for use in used(events, OURS)}


def test_the_rights_are_those_of_the_roles_that_are_bound_to_the_account() -> None:
    objects = list(yaml.safe_load_all(render(OPERATOR)))
    grants = granted(objects, OURS)
    table = {(r.group, res, verb) for r in OPERATOR.rights for res in r.resources for verb in r.verbs}
    assert {(g.right.group, g.right.resource, g.right.verb) for g in grants} == table
    lease = Right("coordination.k8s.io", "leases", "update")
    assert [g for g in grants if g.right == lease] == [Grant(lease, "retinue-system", frozenset({"retinue-operator"}))]


def test_roles_of_others_are_not_the_accounts() -> None:
    objects = list(yaml.safe_load_all(render(OPERATOR)))
    assert granted(objects, Account("retinue-system", "retinue-gateway")) == []
    assert granted(objects, Account("elsewhere", "retinue-operator")) == []
    unbound = [item for item in objects if not item["kind"].endswith("Binding")]
    assert granted(unbound, OURS) == []


def test_a_cluster_role_bound_in_a_namespace_counts_there_only() -> None:
    role = {"kind": "ClusterRole", "metadata": {"name": "r"}, "rules": [{"resources": ["pods"], "verbs": ["get"]}]}
    binding = {
        "kind": "RoleBinding",
        "metadata": {"name": "b", "namespace": "agents"},
        "roleRef": {"kind": "ClusterRole", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": OURS.name, "namespace": OURS.namespace}],
    }
    assert granted([role, binding], OURS) == [Grant(GET_PODS, "agents")]


def test_an_allowed_request_uses_its_right_even_if_there_is_no_such_object() -> None:
    assert rights(event("get", "pods", 404), event("patch", "pods/status")) == {
        GET_PODS,
        Right("", "pods/status", "patch"),
    }


def test_a_forbidden_request_and_one_without_resource_use_nothing() -> None:
    assert rights(event("get", "pods", 403, decision="forbid"), event("get", "", path="/version")) == set()


def test_an_apply_that_makes_an_object_uses_the_right_to_create_it() -> None:
    assert rights(event("patch", "pods", 200)) == {PATCH_PODS}
    assert rights(event("patch", "pods", 201)) == {PATCH_PODS, Right("", "pods", "create")}


def test_what_others_do_is_not_the_accounts_not_even_in_its_name() -> None:
    others = (
        event("get", "pods", user="retinue:admin"),
        event("get", "pods", user="retinue:admin", impersonated=OURS.user),
        event("get", "secrets", 403, decision="forbid", user="retinue:admin", impersonated=OURS.user),
        event("get", "secrets", 403, decision="forbid", impersonated="somebody"),
    )
    assert used(others, OURS) == set()
    assert denied(others, OURS) == []


def test_a_right_is_unused_unless_it_is_used_where_and_on_what_it_is_granted() -> None:
    grant = Grant(GET_PODS, "agents", frozenset({"x"}))
    assert unused([grant], [Use(GET_PODS, "agents", "x")]) == []
    assert unused([grant], [Use(GET_PODS, "other", "x")]) == [GET_PODS]
    assert unused([grant], [Use(GET_PODS, "agents", "y")]) == [GET_PODS]
    assert unused([grant], [Use(PATCH_PODS, "agents", "x")]) == [GET_PODS]
    assert unused([grant, Grant(GET_PODS, "other")], [Use(GET_PODS, "other", "y")]) == []


def test_a_wildcard_is_never_used() -> None:
    everything = Right("*", "*", "*")
    assert unused([Grant(everything)], [Use(GET_PODS, "agents", "x")]) == [everything]


def test_a_missing_right_is_told_once_for_each_kind_of_request() -> None:
    message = 'secrets "x" is forbidden: User "u" cannot get resource "secrets"'
    refused = event("get", "secrets", 403, decision="forbid", message=message)
    found = denied([refused, refused, event("get", "", 403, decision="forbid", path="/metrics")], OURS)
    assert [describe(one) for one in found] == [
        f"get secrets agents/x by test: {message}",
        "get /metrics by test",
    ]


def test_an_apply_that_may_change_but_not_make_an_object_is_denied() -> None:
    message = 'pods "x" is forbidden: User "u" cannot create resource "pods" in API group ""'
    assert denied([event("patch", "pods", 403, message=message)], OURS)


def test_what_admission_refuses_is_not_a_missing_right() -> None:
    message = "unable to create new content in namespace agents because it is being terminated"
    assert denied([event("create", "pods", 403, message=message)], OURS) == []


def test_rights_read_as_kubectl_would_say_them() -> None:
    assert str(Right("retinue.dev", "decodepools/status", "patch")) == "patch decodepools.retinue.dev/status"
    assert str(GET_PODS) == "get pods"
