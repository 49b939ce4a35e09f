"""Annotations that say in a model what plain JSON schema cannot: CEL rules, list types, columns, scale, scope.

A field carries them inside ``Annotated[...]``; a class carries rules in ``cel_rules`` and a kind its facts in
``kind_info``.
`retinue.api.crd` turns them into the CRD and refuses anything else.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cel:
    """One CEL validation rule; `message` names the remedy, the API server adds the field's path and value.

    `field_path` says which field below the rule's own place is at fault, such as ``.replicas``.
    """

    rule: str
    message: str
    message_expression: str | None = None
    field_path: str | None = None


NAME_WITHOUT_DOTS = Cel(
    "!self.metadata.name.contains('.')",
    "metadata.name must not contain dots: pods and services that are named after it have host names",
    field_path=".metadata.name",
)
"""The API server allows dots in the names of custom resources, but not in those of pods with a subdomain."""


@dataclass(frozen=True)
class Pattern:
    """A string's form, as an RE2 expression, with the sentence a user reads when it does not match."""

    regex: str
    message: str


@dataclass(frozen=True)
class ListMap:
    """A list of named things: merged by these keys under server-side apply."""

    keys: tuple[str, ...] = ("name",)


@dataclass(frozen=True)
class ListSet:
    """A list without repeats whose items may have different owners."""


@dataclass(frozen=True)
class PreserveUnknown:
    """An embedded Kubernetes object that this API passes on as it is (pod templates)."""


@dataclass(frozen=True)
class MaxProperties:
    """The most entries that a map may have."""

    limit: int


@dataclass(frozen=True)
class Column:
    """One printer column of `kubectl get`; priority 1 shows with -o wide only."""

    name: str
    json_path: str
    type: str = "string"
    description: str = ""
    priority: int = 0


@dataclass(frozen=True)
class Scale:
    """The scale subresource."""

    spec_replicas: str = ".spec.replicas"
    status_replicas: str = ".status.replicas"
    selector: str = ".status.selector"


@dataclass(frozen=True)
class KindInfo:
    """What a CRD says beside its schema."""

    kind: str
    plural: str
    short_names: tuple[str, ...]
    namespaced: bool
    columns: tuple[Column, ...]
    scale: Scale | None = None
    root_rules: tuple[Cel, ...] = field(default=())

    @property
    def singular(self) -> str:
        return self.kind.lower()


def immutable(what: str, remedy: str) -> Cel:
    """A rule that refuses any change of the field it stands on."""
    return Cel("self == oldSelf", f"{what} is immutable: {remedy}")


JsonObject = dict[str, Any]
