"""Proves the rights of a service account: its roles as installed, against what it did by the API server's audit log.

A right is used when the API server allowed a request that needs it, whatever became of the request then. Pure but for
`prove`, which reads roles and bindings with kubectl. The component suite and the suite on kind both use it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from retinue_emulator.loopback import AuditEvent, ClusterAccess

Manifest = Mapping[str, Any]

_FORBIDDEN = 403
_CREATED = 201
# The API server also says 403 when admission refuses what the authorizer has allowed: no further right would help.
_NOT_ABOUT_RIGHTS = ("because it is being terminated", "exceeded quota", "violates PodSecurity")


@dataclass(frozen=True)
class Account:
    """A service account."""

    namespace: str
    name: str

    @property
    def user(self) -> str:
        """Its name as an authenticated user."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource; `resource` includes the subresource as in roles: `pods/status`."""

    group: str
    resource: str
    verb: str

    def __str__(self) -> str:
        resource, slash, subresource = self.resource.partition("/")
        return f"{self.verb} {resource}{'.' + self.group if self.group else ''}{slash}{subresource}"


@dataclass(frozen=True)
class Grant:
    """A right as a role gives it: in one namespace or (empty) everywhere, on certain names or (empty) on all."""

    right: Right
    namespace: str = ""
    names: frozenset[str] = frozenset()

    def covers(self, use: "Use") -> bool:
        """Whether this grant allows that use."""
        return (
            self.right == use.right
            and self.namespace in ("", use.namespace)
            and (not self.names or use.name in self.names)
        )


@dataclass(frozen=True)
class Use:
    """A right that was exercised, and where."""

    right: Right
    namespace: str
    name: str


@dataclass(frozen=True)
class Proof:
    """What is wrong with the rights of an account: granted but never used, and needed but denied."""

    account: Account
    granted: tuple[Right, ...]
    unused: tuple[Right, ...]
    denied: tuple[AuditEvent, ...]

    def __str__(self) -> str:
        lines = [f"{self.account.user} has {len(self.granted)} rights"]
        lines += [f"  never used: {right}" for right in self.unused]
        lines += [f"  denied: {describe(event)}" for event in self.denied]
        return "\n".join(lines)


def prove(access: ClusterAccess, events: Iterable[AuditEvent], account: Account) -> Proof:
    """The proof for one account from the roles of the cluster (with an admin's `access`) and its audit log.

    `events` must hold reads, too: `read_events(log, reads=True)` under `render_policy([account.namespace])`.
    """
    asked = list(events)
    grants = granted(access.get("clusterroles,clusterrolebindings,roles,rolebindings", "-A")["items"], account)
    return Proof(
        account,
        tuple(sorted({grant.right for grant in grants})),
        tuple(unused(grants, used(asked, account))),
        tuple(denied(asked, account)),
    )


def granted(objects: Iterable[Manifest], account: Account) -> list[Grant]:
    """What roles and bindings give to the account by its name; what all accounts have (discovery) is left out.

    Wildcards are not resolved: they are rights that nobody ever uses. So are non-resource URLs, with their path as
    resource.
    """
    known = list(objects)
    roles = {_identity(item): item for item in known if item["kind"] in ("Role", "ClusterRole")}
    grants: list[Grant] = []
    for binding in known:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding") or not _binds(binding, account):
            continue
        namespace = binding["metadata"].get("namespace", "")
        reference = binding["roleRef"]
        place = namespace if reference["kind"] == "Role" else ""
        role = roles.get((reference["kind"], place, reference["name"]))
        for rule in (role or {}).get("rules") or ():
            grants += _grants(rule, namespace)
    return grants


def used(events: Iterable[AuditEvent], account: Account) -> set[Use]:
    """What the account exercised itself; requests in its name by somebody else (impersonation) are not its own."""
    uses: set[Use] = set()
    for event in _own(events, account):
        if event.resource and event.decision == "allow":
            verbs = {event.verb}
            if event.verb in ("patch", "update") and event.code == _CREATED:
                # An apply or update that makes the object needs the right to create it as well.
                verbs.add("create")
            uses |= {Use(_right(event, verb), event.namespace, event.name) for verb in verbs}
    return uses


def unused(grants: Iterable[Grant], uses: Iterable[Use]) -> list[Right]:
    """The rights that no grant of them was used for. A right granted in several namespaces is used if it is in one."""
    by_right: dict[Right, list[Grant]] = {}
    for grant in grants:
        by_right.setdefault(grant.right, []).append(grant)
    exercised = list(uses)
    return sorted(
        right
        for right, ways in by_right.items()
        if not any(grant.covers(use) for grant in ways for use in exercised if use.right == right)
    )


def denied(events: Iterable[AuditEvent], account: Account) -> list[AuditEvent]:
    """The requests of the account that were refused for want of a right, each kind of request once."""
    kinds: dict[tuple[object, ...], AuditEvent] = {}
    for event in _own(events, account):
        if event.decision == "forbid" or (event.code == _FORBIDDEN and not _refused_otherwise(event)):
            right = _right(event, event.verb)
            kinds.setdefault((right, event.resource or event.path, event.namespace), event)
    return list(kinds.values())


def describe(event: AuditEvent) -> str:
    """A request in one line."""
    if not event.resource:
        return f"{event.verb} {event.path} by {event.user_agent}"
    target = f"{event.namespace}/{event.name}" if event.namespace else event.name
    return f"{_right(event, event.verb)} {target} by {event.user_agent}: {event.message}"


def _own(events: Iterable[AuditEvent], account: Account) -> Iterable[AuditEvent]:
    """A request with impersonation has the asking user as `user`, and was decided by the rights of the other one."""
    return (event for event in events if event.user == account.user and not event.impersonated)


def _refused_otherwise(event: AuditEvent) -> bool:
    return event.decision == "allow" and any(text in event.message for text in _NOT_ABOUT_RIGHTS)


def _right(event: AuditEvent, verb: str) -> Right:
    resource = f"{event.resource}/{event.subresource}" if event.subresource else event.resource
    return Right(event.group, resource, verb)


def _grants(rule: Manifest, namespace: str) -> list[Grant]:
    names = frozenset(rule.get("resourceNames") or ())
    return [
        Grant(Right(group, resource, verb), namespace, names)
        for group in rule.get("apiGroups") or ("",)
        for resource in (*(rule.get("resources") or ()), *(rule.get("nonResourceURLs") or ()))
        for verb in rule["verbs"]
    ]


def _binds(binding: Manifest, account: Account) -> bool:
    return any(
        (subject["kind"], subject.get("namespace"), subject["name"])
        == ("ServiceAccount", account.namespace, account.name)
        for subject in binding.get("subjects") or ()
    )


def _identity(item: Manifest) -> tuple[str, str, str]:
    return item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]
