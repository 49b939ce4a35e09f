"""The generator expresses what is on its list and refuses everything else with the path of the field."""

from enum import Enum, StrEnum
from typing import Annotated, Any, ClassVar, Literal, Optional, Union

import pytest
from pydantic import ConfigDict, Field, computed_field, create_model, field_validator, model_validator

from retinue.api.convert import object_node
from retinue.api.markers import (
    Cel,
    JsonObject,
    ListMap,
    ListSet,
    MaxProperties,
    Pattern,
    PreserveUnknown,
)
from retinue.api.schema import SchemaError, cel_string, render
from retinue.api.types import Model

Short = Annotated[str, Field(max_length=10)]
MaybeShort = Annotated[str | None, Field(max_length=10)]


class Color(StrEnum):
    RED = "Red"
    BLUE = "Blue"


class Number(Enum):
    ONE = 1


class Named(Model):
    name: Short
    note: Annotated[Short, Pattern("^[a-z]*$", "must be small")] | None = None
    rank: Annotated[int, Field(ge=0)] = 0


class Tree(Model):
    children: Annotated[list["Tree"], Field(max_length=2)]


class Bad(Model):
    size: Annotated[int, Field(ge=5)] = 1


class Strict(Model):
    model_config = ConfigDict(extra="forbid")


class Validated(Model):
    size: int = 1

    @field_validator("size")
    @classmethod
    def _any_size(cls, size: int) -> int:
        return size


class WholeValidated(Model):
    size: int = 1

    @model_validator(mode="after")
    def _any(self) -> "WholeValidated":
        return self


class Computed(Model):
    @computed_field
    def size(self) -> int:
        return 1


class Blames(Model):
    cel_rules: ClassVar[tuple[Cel, ...]] = (Cel("true", "never", field_path=".sise"),)
    size: int = 1


def schema(annotation: Any, default: Any = ...) -> dict[str, Any]:
    """The schema of a field of this type."""
    model = create_model("Example", __base__=Model, field=(annotation, default))
    node: dict[str, Any] = render(object_node(model, "Example"))["properties"]["field"]
    return node


REFUSED: list[tuple[str, Any, Any, str, str]] = [
    ("a float", float, ..., "Example.field", "float is not exact"),
    ("Any", Any, ..., "Example.field", "Any has no schema"),
    ("a union", int | bool, ..., "Example.field", "a union has no structural schema"),
    ("a union with None", Optional[Union[int, bool]], None, "Example.field", "a union has no structural schema"),  # noqa: UP007, UP045
    ("None alone", None, ..., "Example.field", "is not a type that the generator knows"),
    ("a tuple", tuple[int, int], ..., "Example.field", "a tuple has no schema"),
    ("a set", set[Short], ..., "Example.field", "use a list with ListSet"),
    ("a frozenset", frozenset[Short], ..., "Example.field", "use a list with ListSet"),
    ("bytes", bytes, ..., "Example.field", "bytes have no schema"),
    ("a literal", Literal["a"], ..., "Example.field", "is not a type that the generator knows"),
    ("an enum of numbers", Number, ..., "Example.field", "must be a StrEnum"),
    ("a string without bound", str, ..., "Example.field", "Field(max_length=...)"),
    ("a list without bound", list[Short], ..., "Example.field", "Field(max_length=...)"),
    ("a map without bound", dict[str, Short], ..., "Example.field", "MaxProperties(...)"),
    ("an unbounded item", Annotated[list[str], Field(max_length=2)], ..., "Example.field[]", "a string needs"),
    ("an unbounded value", Annotated[dict[str, str], MaxProperties(2)], ..., "Example.field{}", "a string needs"),
    (
        "an optional item",
        Annotated[list[int | None], Field(max_length=2)],
        ...,
        "Example.field[]",
        "cannot be optional",
    ),
    ("a map by numbers", Annotated[dict[int, Short], MaxProperties(2)], ..., "Example.field", "keys of a map are str"),
    (
        "a pattern of keys",
        Annotated[dict[Annotated[str, Pattern("^a$", "a")], Short], MaxProperties(2)],
        ...,
        "Example.field{key}",
        "Pattern(regex='^a$'",
    ),
    ("free values", dict[str, Any], ..., "Example.field{}", "Any has no schema"),
    ("typed unknowns", Annotated[dict[str, Short], PreserveUnknown()], ..., "Example.field", "stands on JsonObject"),
    ("an exclusive bound", Annotated[int, Field(gt=0)], ..., "Example.field", "Gt(gt=0)"),
    ("a multiple", Annotated[int, Field(multiple_of=2)], ..., "Example.field", "MultipleOf"),
    ("a bound that is no int", Annotated[int, Field(ge=1.0)], ..., "Example.field", "ge must be an int"),
    ("a length of an int", Annotated[int, Field(max_length=3)], ..., "Example.field", "MaxLen"),
    ("a pydantic pattern", Annotated[Short, Field(pattern="^a$")], ..., "Example.field", "cannot be expressed"),
    ("a list mark on a string", Annotated[Short, ListSet()], ..., "Example.field", "ListSet()"),
    ("an unknown mark", Annotated[Short, "hello"], ..., "Example.field", "'hello' cannot be expressed"),
    ("a loose pattern", Annotated[Short, Pattern("a", "a")], ..., "Example.field", "anchored"),
    ("look-ahead", Annotated[Short, Pattern("^(?=a)a$", "a")], ..., "Example.field", "look-around"),
    ("a back-reference", Annotated[Short, Pattern(r"^(a)\1$", "a")], ..., "Example.field", "look-around"),
    ("a broken pattern", Annotated[Short, Pattern("^(a$", "a")], ..., "Example.field", "not a regular expression"),
    (
        "two kinds of list",
        Annotated[list[Short], ListSet(), ListMap(), Field(max_length=2)],
        ...,
        "Example.field",
        "not both",
    ),
    ("a set of objects", Annotated[list[Named], ListSet(), Field(max_length=2)], ..., "Example.field", "use ListMap"),
    (
        "an optional list key",
        Annotated[list[Named], ListMap(("note",)), Field(max_length=2)],
        ...,
        "Example.field",
        "'note' must be required or have a default",
    ),
    (
        "a list key that does not exist",
        Annotated[list[Named], ListMap(("id",)), Field(max_length=2)],
        ...,
        "Example.field",
        "'id' must be a scalar field",
    ),
    ("no list key", Annotated[list[Named], ListMap(()), Field(max_length=2)], ..., "Example.field", "at least one key"),
    ("a recursive model", Tree, ..., "Example.field.children[]", "contains itself"),
    ("a default that is too small", Annotated[int, Field(ge=5)], 1, "Example.field", "1 is under minimum 5"),
    ("a default that is too long", Short, "x" * 11, "Example.field", "11 is over maxLength 10"),
    ("a default of another type", Short, 5, "Example.field", "5 is not of type string"),
    ("a default outside of the enum", Color, "Green", "Example.field", "none of Red, Blue"),
    ("a default off its pattern", Annotated[Short, Pattern("^a$", "must be a")], "b", "Example.field", "'b' must be a"),
    (
        "a default that repeats itself",
        Annotated[list[Short], ListSet(), Field(max_length=3)],
        ["a", "a"],
        "Example.field",
        "repeats an item",
    ),
    ("a bad default of a nested field", Bad, ..., "Example.field.size", "1 is under minimum 5"),
    ("a nested default off its pattern", Named, Named(name="a", note="B"), "Example.field", "Example.field.note: 'B'"),
    ("a default None without the type", Short, None, "Example.field", "needs the type X | None"),
    ("an optional field with a default", MaybeShort, "a", "Example.field", "None would come back as the default"),
    ("an optional field that is required", MaybeShort, ..., "Example.field", "needs the default None"),
    ("a default without JSON", Short, object(), "Example.field", "has no JSON form"),
    ("two aliases", Short, Field(validation_alias="a", serialization_alias="b"), "Example.field", "different names"),
    ("a name in snake case", Short, Field(alias="snake_case"), "Example.snake_case", "camelCase"),
    ("an excluded field", Short, Field(exclude=True), "Example.field", "never reach the API server"),
    ("a model that forbids unknown fields", Strict, ..., "Example.field", "must ignore unknown fields"),
    ("a validator in Python", Validated, ..., "Example.field", "write a Cel rule"),
    ("a validator of the whole in Python", WholeValidated, ..., "Example.field", "write a Cel rule"),
    ("a computed field", Computed, ..., "Example.field", "computed_fields size"),
    ("a rule that blames a field that is not there", Blames, ..., "Example.field", "blames .sise"),
]


@pytest.mark.parametrize(
    ("annotation", "default", "path", "reason"),
    [row[1:] for row in REFUSED],
    ids=[row[0].replace(" ", "-") for row in REFUSED],
)
def test_what_a_schema_cannot_express_is_refused_with_its_path(
    annotation: Any, default: Any, path: str, reason: str
) -> None:
    with pytest.raises(SchemaError) as refused:
        schema(annotation, default)
    assert refused.value.path == path
    assert str(refused.value).startswith(f"{path}: ")
    assert reason in refused.value.reason


def test_bounds_and_defaults_are_written_as_the_api_server_spells_them() -> None:
    assert schema(Annotated[int, Field(ge=1, le=9)], 3) == {
        "type": "integer",
        "format": "int64",
        "default": 3,
        "minimum": 1,
        "maximum": 9,
    }
    assert schema(Annotated[str, Field(min_length=1, max_length=9)]) == {
        "type": "string",
        "minLength": 1,
        "maxLength": 9,
    }
    assert schema(bool, False) == {"type": "boolean", "default": False}
    assert schema(Color, Color.RED) == {"type": "string", "default": "Red", "enum": ["Red", "Blue"]}


def test_an_optional_field_is_absent_and_never_nullable() -> None:
    model = create_model("Example", __base__=Model, field=(MaybeShort, None))
    assert render(object_node(model, "Example")) == {
        "type": "object",
        "properties": {"field": {"type": "string", "maxLength": 10}},
    }


def test_lists_say_how_they_merge() -> None:
    assert schema(Annotated[list[int], Field(max_length=2)])["x-kubernetes-list-type"] == "atomic"
    assert schema(Annotated[list[Short], ListSet(), Field(max_length=2)])["x-kubernetes-list-type"] == "set"
    by_two_keys = schema(Annotated[list[Named], ListMap(("name", "rank")), Field(max_length=2)])
    assert by_two_keys["x-kubernetes-list-type"] == "map"
    assert by_two_keys["x-kubernetes-list-map-keys"] == ["name", "rank"]


def test_bounds_of_map_keys_become_a_rule() -> None:
    node = schema(Annotated[dict[Annotated[str, Field(min_length=1, max_length=9)], Short], MaxProperties(4)])
    assert node["maxProperties"] == 4
    assert node["additionalProperties"] == {"type": "string", "maxLength": 10}
    assert node["x-kubernetes-validations"] == [
        {"rule": "self.all(key, size(key) >= 1 && size(key) <= 9)", "message": "every key must have 1 to 9 characters"}
    ]


def test_an_embedded_object_keeps_what_it_has() -> None:
    assert schema(Annotated[JsonObject | None, PreserveUnknown()], None) == {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }


def test_a_pattern_becomes_a_rule_with_its_message() -> None:
    node = schema(Annotated[Short, Pattern(r"^[a-z]+\.'$", "must end in a dot")])
    assert node["x-kubernetes-validations"] == [
        {"rule": r"self.matches('^[a-z]+\\.\'$')", "message": "must end in a dot"}
    ]


def test_a_cel_string_keeps_every_character() -> None:
    assert cel_string("a'b\\c\n\x00é") == "'a\\'b\\\\c\\n\\u0000é'"


def test_rules_of_a_base_model_stay_in_force_in_the_models_that_extend_it() -> None:
    class Base(Model):
        cel_rules: ClassVar[tuple[Cel, ...]] = (Cel("1", "base"),)

    class Derived(Base):
        cel_rules: ClassVar[tuple[Cel, ...]] = (Cel("2", "derived", "'x'", ".size"),)
        size: int = 1

    assert render(object_node(Derived, "Derived"))["x-kubernetes-validations"] == [
        {"rule": "1", "message": "base"},
        {"rule": "2", "message": "derived", "messageExpression": "'x'", "fieldPath": ".size"},
    ]


def test_the_description_is_the_first_paragraph_of_the_docstring() -> None:
    class Described(Model):
        """Says what
        it is.

        And more.
        """

    assert render(object_node(Described, "Described"))["description"] == "Says what it is."


def test_the_docstring_below_a_field_describes_it_and_wins_over_that_of_its_class() -> None:
    class Inner(Model):
        """An inner block."""

    class Outer(Model):
        size: int = 3
        """How large
        it is."""
        inner: Inner = Field(default_factory=Inner)
        """What it is for here."""
        other: Inner = Field(default_factory=Inner)

    properties = render(object_node(Outer, "Outer"))["properties"]
    assert properties["size"]["description"] == "How large it is. Default: 3."
    assert properties["inner"]["description"] == "What it is for here."
    assert properties["other"]["description"] == "An inner block."
