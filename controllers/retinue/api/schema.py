"""One node of a structural OpenAPI schema: how it is written into a CRD, and which values it takes."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from retinue.api.markers import Cel, Pattern

_NOTHING: Mapping[str, "Node"] = MappingProxyType({})
_CEL_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class SchemaError(TypeError):
    """A model says something that the generator does not express; `path` is the field that says it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class NodeType(StrEnum):
    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    OBJECT = "object"
    ARRAY = "array"


class ListType(StrEnum):
    ATOMIC = "atomic"
    SET = "set"
    MAP = "map"


class _Absent:
    """The default of a node that has none; None would be a value."""


ABSENT = _Absent()


@dataclass(frozen=True)
class Node:
    """One node. `least` and `most` bound an integer's value, a string's length, a list's or map's size.

    `values` is the schema of a map's values, `properties` those of an object's fields; a node has at most one of them.
    """

    type: NodeType
    description: str = ""
    default: Any = ABSENT
    enum: tuple[str, ...] = ()
    pattern: Pattern | None = None
    least: int | None = None
    most: int | None = None
    items: "Node | None" = None
    list_type: ListType | None = None
    list_keys: tuple[str, ...] = ()
    values: "Node | None" = None
    properties: Mapping[str, "Node"] = field(default_factory=lambda: _NOTHING)
    required: tuple[str, ...] = ()
    preserve_unknown: bool = False
    rules: tuple[Cel, ...] = ()


_BOUND_WORDS = {
    NodeType.INTEGER: ("minimum", "maximum"),
    NodeType.STRING: ("minLength", "maxLength"),
    NodeType.ARRAY: ("minItems", "maxItems"),
    NodeType.OBJECT: ("minProperties", "maxProperties"),
}


def render(node: Node) -> dict[str, Any]:
    """The node as JSON schema of apiextensions.k8s.io/v1, always with the same order of keys."""
    schema: dict[str, Any] = {}
    if text := _described(node):
        schema["description"] = text
    schema["type"] = node.type.value
    if node.type is NodeType.INTEGER:
        schema["format"] = "int64"
    if node.default is not ABSENT:
        schema["default"] = node.default
    if node.enum:
        schema["enum"] = list(node.enum)
    if node.type in _BOUND_WORDS:
        bounds = zip(_BOUND_WORDS[node.type], (node.least, node.most), strict=True)
        schema |= {word: bound for word, bound in bounds if bound is not None}
    if node.items is not None:
        schema["items"] = render(node.items)
    if node.values is not None:
        schema["additionalProperties"] = render(node.values)
    if node.required:
        schema["required"] = list(node.required)
    if node.properties:
        schema["properties"] = {name: render(child) for name, child in node.properties.items()}
    if node.list_type is not None:
        schema["x-kubernetes-list-type"] = node.list_type.value
    if node.list_keys:
        schema["x-kubernetes-list-map-keys"] = list(node.list_keys)
    if node.preserve_unknown:
        schema["x-kubernetes-preserve-unknown-fields"] = True
    if rules := _rules(node):
        schema["x-kubernetes-validations"] = [_render_rule(rule) for rule in rules]
    return schema


def _described(node: Node) -> str:
    """The description with a scalar's default, because `kubectl explain` does not show defaults itself."""
    if not node.description or node.default in (ABSENT, "") or isinstance(node.default, list | dict):
        return node.description
    return f"{node.description} Default: {json.dumps(node.default)}."


def cel_string(text: str) -> str:
    """The text as a CEL string literal in single quotes."""
    return "'" + "".join(_CEL_ESCAPES.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) + "'"


def violations(node: Node, value: Any, path: str) -> Iterator[str]:
    """What keeps the value from fitting the node, each with its path; CEL rules are left to the API server."""
    match node.type, value:
        case (NodeType.STRING, str()):
            yield from _string_violations(node, value, path)
        case (NodeType.BOOLEAN, bool()):
            return
        case (NodeType.INTEGER, int()) if not isinstance(value, bool):
            yield from _bound_violations(node, value, path)
        case (NodeType.ARRAY, list()):
            yield from _list_violations(node, value, path)
        case (NodeType.OBJECT, dict()):
            yield from _object_violations(node, value, path)
        case _:
            yield f"{path}: {value!r} is not of type {node.type.value}"


def _rules(node: Node) -> tuple[Cel, ...]:
    if node.pattern is None:
        return node.rules
    return (Cel(f"self.matches({cel_string(node.pattern.regex)})", node.pattern.message), *node.rules)


def _render_rule(rule: Cel) -> dict[str, str]:
    rendered = {"rule": rule.rule, "message": rule.message}
    if rule.message_expression is not None:
        rendered["messageExpression"] = rule.message_expression
    if rule.field_path is not None:
        rendered["fieldPath"] = rule.field_path
    return rendered


def _bound_violations(node: Node, measure: int, path: str) -> Iterator[str]:
    low, high = _BOUND_WORDS[node.type]
    if node.least is not None and measure < node.least:
        yield f"{path}: {measure} is under {low} {node.least}"
    if node.most is not None and measure > node.most:
        yield f"{path}: {measure} is over {high} {node.most}"


def _string_violations(node: Node, value: str, path: str) -> Iterator[str]:
    yield from _bound_violations(node, len(value), path)
    if node.enum and value not in node.enum:
        yield f"{path}: {value!r} is none of {', '.join(node.enum)}"
    if node.pattern is not None and re.fullmatch(node.pattern.regex, value) is None:
        yield f"{path}: {value!r} {node.pattern.message}"


def _list_violations(node: Node, value: list[Any], path: str) -> Iterator[str]:
    yield from _bound_violations(node, len(value), path)
    if node.items is not None:
        for index, item in enumerate(value):
            yield from violations(node.items, item, f"{path}[{index}]")
    if node.list_type is ListType.SET:
        identities = value
    elif node.list_type is ListType.MAP:
        identities = [[item.get(key) for key in node.list_keys] for item in value if isinstance(item, dict)]
    else:
        return
    if any(identity in identities[:index] for index, identity in enumerate(identities)):
        yield f"{path}: repeats an item"


def _object_violations(node: Node, value: dict[str, Any], path: str) -> Iterator[str]:
    yield from _bound_violations(node, len(value), path)
    if node.preserve_unknown:
        return
    for name, inner in value.items():
        child = node.values if node.values is not None else node.properties.get(name)
        if child is None:
            yield f"{path}.{name}: there is no such field"
        else:
            yield from violations(child, inner, f"{path}.{name}")
    for name in node.required:
        if name not in value:
            yield f"{path}.{name}: is required"
