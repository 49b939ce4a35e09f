"""A chart value as a node: its type, default and meaning, and the JSON schema that refuses everything else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_TYPES: Mapping[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}


@dataclass(frozen=True)
class Value:
    """One value that a user may set.

    default decides the type, unless `schema` says it; `schema` holds further keywords of JSON schema.
    """

    text: str
    default: Any
    schema: Mapping[str, Any] = field(default_factory=dict)

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of this value."""
        kind = (
            {} if "type" in self.schema or "enum" in self.schema else {"type": _TYPES.get(type(self.default), "object")}
        )
        return {"description": self.text, **kind, **self.schema}


@dataclass(frozen=True)
class Section:
    """Values that belong together under one key; keys that are not listed are refused."""

    text: str
    members: "Mapping[str, Value | Section]"

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of the section."""
        return {
            "description": self.text,
            "type": "object",
            "additionalProperties": False,
            "properties": {name: member.json_schema() for name, member in self.members.items()},
        }

    def defaults(self) -> dict[str, Any]:
        """The content of values.yaml as plain data."""
        return {
            name: member.defaults() if isinstance(member, Section) else member.default
            for name, member in self.members.items()
        }

    def walk(self, path: str = "") -> Iterator[tuple[str, "Value | Section"]]:
        """Every node below with its dotted path, parents first."""
        for name, member in self.members.items():
            here = f"{path}.{name}" if path else name
            yield here, member
            if isinstance(member, Section):
                yield from member.walk(here)


def choice(text: str, default: str, options: Sequence[str]) -> Value:
    """One of some words."""
    return Value(text, default, {"enum": list(options)})


def pattern(text: str, default: str, regex: str) -> Value:
    """A string of a certain form; empty stands for: not set."""
    return Value(text, default, {"type": "string", "pattern": f"^$|{regex}"})


def number(text: str, default: int | float, minimum: float, maximum: float | None = None) -> Value:
    """A number within bounds."""
    kind = "integer" if isinstance(default, int) else "number"
    bounds = {"minimum": minimum} if maximum is None else {"minimum": minimum, "maximum": maximum}
    return Value(text, default, {"type": kind, **bounds})


def strings(text: str, default: Sequence[str] = (), regex: str | None = None) -> Value:
    """A list of different strings."""
    items: dict[str, Any] = {"type": "string", "minLength": 1}
    if regex is not None:
        items["pattern"] = regex
    return Value(text, list(default), {"type": "array", "uniqueItems": True, "items": items})


def mapping(text: str, default: Mapping[str, str] | None = None) -> Value:
    """A map of strings, such as labels."""
    return Value(text, dict(default or {}), {"type": "object", "additionalProperties": {"type": "string"}})


def embedded(text: str, kind: str, default: Any = None) -> Value:
    """A piece of the Kubernetes API (`kind` is object or array); the API server checks what is inside."""
    empty: Any = {} if kind == "object" else []
    schema: dict[str, Any] = {"type": kind}
    if kind == "array":
        schema["items"] = {"type": "object"}
    return Value(text, empty if default is None else default, schema)
