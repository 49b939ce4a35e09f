"""Turns the models' types into schema nodes: an allow-list, and whatever is not on it is refused with its path."""

import re
import types
from collections.abc import Mapping
from dataclasses import replace
from enum import Enum, StrEnum
from typing import Any, Union, get_args, get_origin

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic.fields import FieldInfo

from retinue.api.annotations import Marks, flatten, unwrap
from retinue.api.markers import Cel, ListMap, ListSet, MaxProperties, Pattern, PreserveUnknown
from retinue.api.schema import ABSENT, ListType, Node, NodeType, SchemaError, violations
from retinue.api.types import Model

_SCALARS = (NodeType.STRING, NodeType.INTEGER, NodeType.BOOLEAN)
_PROPERTY_NAME = re.compile(r"^[a-z][A-Za-z0-9]*$")
# RE2, the engine of the API server, has neither look-around nor references to groups.
_NOT_RE2 = re.compile(r"\(\?[=!<(P>#]|\\[1-9]|[*+?}]\+")
_REMEDIES: dict[object, str] = {
    float: "float is not exact on the wire: use a string such as Ratio or Decimal, or an int of a smaller unit",
    Any: "Any has no schema: use a model, or JsonObject with PreserveUnknown for an embedded object",
    tuple: "a tuple has no schema: use a model with named fields",
    set: "a set has no order: use a list with ListSet",
    frozenset: "a frozenset has no order: use a list with ListSet",
    bytes: "bytes have no schema: use a string",
}
_DECORATORS = ("field_validators", "validators", "root_validators", "model_validators", "field_serializers")
_MORE_DECORATORS = ("model_serializers", "computed_fields")


def object_node(model: type[Model], path: str, parents: tuple[type[Model], ...] = ()) -> Node:
    """The model as an object node with all models in it inlined; raises SchemaError with the path of the culprit."""
    if model in parents:
        raise SchemaError(path, f"{model.__name__} contains itself: a CRD schema cannot recurse")
    _refuse_python_only_behaviour(model, path)
    properties: dict[str, Node] = {}
    required: list[str] = []
    for field_name, info in model.model_fields.items():
        name = _wire_name(field_name, info, path)
        where = f"{path}.{name}"
        node, optional = _field_node(info, where, (*parents, model))
        properties[name] = _with_default(node, info, optional, where)
        if info.is_required():
            required.append(name)
    return Node(
        NodeType.OBJECT,
        description=first_paragraph(model),
        properties=properties,
        required=tuple(required),
        rules=_class_rules(model, properties, path),
    )


def first_paragraph(model: type[Model]) -> str:
    """The first paragraph of the model's own docstring on one line; empty when it has none."""
    paragraph = (vars(model).get("__doc__") or "").strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def _class_rules(model: type[Model], properties: Mapping[str, Node], path: str) -> tuple[Cel, ...]:
    """The rules of the model and of the models it extends, those of the base first."""
    rules = tuple(rule for base in reversed(model.__mro__) for rule in vars(base).get("cel_rules", ()))
    for rule in rules:
        if rule.field_path is not None and rule.field_path.removeprefix(".") not in properties:
            raise SchemaError(path, f"a rule blames {rule.field_path}, which is not a field of {model.__name__}")
    return rules


def _refuse_python_only_behaviour(model: type[Model], path: str) -> None:
    if model.model_config.get("extra") != "ignore":
        raise SchemaError(path, f"{model.__name__} must ignore unknown fields, as the API server prunes them")
    decorators = model.__pydantic_decorators__
    for kind in (*_DECORATORS, *_MORE_DECORATORS):
        if names := sorted(getattr(decorators, kind)):
            raise SchemaError(path, f"{kind} {', '.join(names)} exist in Python only: write a Cel rule")


def _wire_name(field_name: str, info: FieldInfo, path: str) -> str:
    name = info.alias or field_name
    if info.validation_alias not in (None, name) or info.serialization_alias not in (None, name):
        raise SchemaError(f"{path}.{name}", "read and written under different names: use one alias")
    if info.exclude:
        raise SchemaError(f"{path}.{name}", "an excluded field would never reach the API server")
    if not _PROPERTY_NAME.match(name):
        raise SchemaError(f"{path}.{name}", "the name on the wire must be camelCase")
    return name


def _field_node(info: FieldInfo, path: str, parents: tuple[type[Model], ...]) -> tuple[Node, bool]:
    """The field's node, and whether it may be absent without a default."""
    kind, inner = unwrap(info.annotation, path)
    marks = (*inner, *flatten(info.metadata, path))
    optional = False
    if get_origin(kind) in (Union, types.UnionType):
        arms = [arm for arm in get_args(kind) if arm is not type(None)]
        if len(arms) != 1 or len(arms) == len(get_args(kind)):
            raise SchemaError(
                path, "a union has no structural schema: use one object with optional fields and a Cel rule"
            )
        optional = True
        kind, inner = unwrap(arms[0], path)
        marks = (*inner, *marks)
    node = _type_node(kind, marks, path, parents)
    description = " ".join((info.description or "").split())
    return (replace(node, description=description) if description else node), optional


def _inner_node(annotation: Any, path: str, parents: tuple[type[Model], ...]) -> Node:
    kind, marks = unwrap(annotation, path)
    return _type_node(kind, marks, path, parents)


def _type_node(kind: Any, marks: tuple[object, ...], path: str, parents: tuple[type[Model], ...]) -> Node:
    reader = Marks(marks, path)
    origin = get_origin(kind)
    node: Node
    if kind is str:
        node = _string(reader)
    elif kind is bool:
        node = Node(NodeType.BOOLEAN)
    elif kind is int:
        node = Node(NodeType.INTEGER, least=reader.bound(Ge, "ge"), most=reader.bound(Le, "le"))
    elif isinstance(kind, type) and issubclass(kind, Enum):
        node = _enum(kind, path)
    elif isinstance(kind, type) and issubclass(kind, Model):
        node = object_node(kind, path, parents)
    elif origin is list:
        node = _list(get_args(kind)[0], reader, parents)
    elif origin is dict:
        node = _map(get_args(kind), reader, parents)
    elif origin in (Union, types.UnionType):
        raise SchemaError(path, "items and values cannot be optional or unions: leave the item out instead")
    else:
        remedy = _REMEDIES.get(origin or kind, f"{kind!r} is not a type that the generator knows")
        raise SchemaError(path, remedy)
    node = replace(node, rules=(*node.rules, *reader.rules()))
    reader.finish()
    return node


def _string(marks: Marks) -> Node:
    pattern = marks.take(Pattern)
    if pattern is not None:
        _check_pattern(pattern, marks.path)
    least = marks.bound(MinLen, "min_length")
    most = marks.most(marks.bound(MaxLen, "max_length"), "string", "Field(max_length=...)")
    return Node(NodeType.STRING, pattern=pattern, least=least, most=most)


def _check_pattern(pattern: Pattern, path: str) -> None:
    if not (pattern.regex.startswith("^") and pattern.regex.endswith("$")):
        raise SchemaError(
            path, f"pattern {pattern.regex} must be anchored with ^ and $: RE2 finds it anywhere otherwise"
        )
    if _NOT_RE2.search(pattern.regex):
        raise SchemaError(path, f"pattern {pattern.regex} uses what RE2 does not have, such as look-around")
    try:
        re.compile(pattern.regex)
    except re.error as error:
        raise SchemaError(path, f"pattern {pattern.regex} is not a regular expression: {error}") from error


def _enum(kind: type[Enum], path: str) -> Node:
    if not issubclass(kind, StrEnum):
        raise SchemaError(path, f"{kind.__name__} must be a StrEnum: the wire has the member's text")
    return Node(NodeType.STRING, enum=tuple(member.value for member in kind))


def _list(item: Any, marks: Marks, parents: tuple[type[Model], ...]) -> Node:
    items = _inner_node(item, f"{marks.path}[]", parents)
    list_map, list_set = marks.take(ListMap), marks.take(ListSet)
    if list_map is not None and list_set is not None:
        raise SchemaError(marks.path, "a list is a ListMap or a ListSet, not both")
    if list_map is not None:
        _check_list_keys(list_map, items, marks.path)
    if list_set is not None and items.type not in _SCALARS:
        raise SchemaError(marks.path, "a ListSet holds scalars: use ListMap for objects")
    return Node(
        NodeType.ARRAY,
        items=items,
        least=marks.bound(MinLen, "min_length"),
        most=marks.most(marks.bound(MaxLen, "max_length"), "list", "Field(max_length=...)"),
        list_type=ListType.MAP if list_map else ListType.SET if list_set else ListType.ATOMIC,
        list_keys=list_map.keys if list_map else (),
    )


def _check_list_keys(list_map: ListMap, items: Node, path: str) -> None:
    if not list_map.keys:
        raise SchemaError(path, "a ListMap needs at least one key")
    for key in list_map.keys:
        child = items.properties.get(key)
        if child is None or child.type not in _SCALARS:
            raise SchemaError(path, f"list-map key {key!r} must be a scalar field of the items")
        if key not in items.required and child.default is ABSENT:
            raise SchemaError(path, f"list-map key {key!r} must be required or have a default")


def _map(arguments: tuple[Any, ...], marks: Marks, parents: tuple[type[Model], ...]) -> Node:
    key, value = arguments
    key_kind, key_marks = unwrap(key, marks.path)
    if key_kind is not str:
        raise SchemaError(marks.path, "the keys of a map are strings")
    if marks.take(PreserveUnknown) is not None:
        if value is not Any:
            raise SchemaError(marks.path, "PreserveUnknown stands on JsonObject: its values have no schema")
        return Node(NodeType.OBJECT, preserve_unknown=True)
    values = _inner_node(value, f"{marks.path}{{}}", parents)
    limit = marks.take(MaxProperties)
    return Node(
        NodeType.OBJECT,
        values=values,
        least=marks.bound(MinLen, "min_length"),
        most=marks.most(limit.limit if limit else None, "map", "MaxProperties(...)"),
        rules=_key_rules(Marks(key_marks, f"{marks.path}{{key}}")),
    )


def _key_rules(marks: Marks) -> tuple[Cel, ...]:
    """A structural schema bounds the values of a map only; its keys need a rule."""
    least = marks.bound(MinLen, "min_length") or 0
    most = marks.bound(MaxLen, "max_length")
    marks.finish()
    if most is None:
        return ()
    rule = f"self.all(key, size(key) >= {least} && size(key) <= {most})"
    return (Cel(rule, f"every key must have {least} to {most} characters"),)


def _with_default(node: Node, info: FieldInfo, optional: bool, path: str) -> Node:
    if info.is_required():
        if optional:
            raise SchemaError(path, "a field that may be None needs the default None")
        return node
    if info.default_factory is not None and info.default_factory_takes_validated_data:
        raise SchemaError(path, "a default made from other fields cannot stand in a schema")
    default = _wire(info.get_default(call_default_factory=True), path)
    if default is None:
        if not optional:
            raise SchemaError(path, "the default None needs the type X | None")
        return node
    if optional:
        raise SchemaError(path, "None would come back as the default: drop '| None', or make the default None")
    for problem in violations(node, default, path):
        raise SchemaError(path, f"the default does not fit the schema: {problem}")
    return replace(node, default=default)


def _wire(value: Any, path: str) -> Any:
    """The default as JSON; a model's own absent fields stay absent."""
    match value:
        case Model():
            return value.to_wire()
        case Enum():
            return value.value
        case list():
            return [_wire(item, path) for item in value]
        case dict():
            return {key: _wire(item, path) for key, item in value.items()}
        case None | str() | bool() | int():
            return value
        case _:
            raise SchemaError(path, f"the default {value!r} has no JSON form")
