"""The checked-in CRDs are what the models say, structural, bounded everywhere, with the models' own defaults."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinue.api import KINDS
from retinue.api.crd import HEADER, crd_for, drifted, main, render_all
from retinue.api.types import Model

_CRDS = Path(__file__).resolve().parents[2] / "crds"
_ALLOWED = {
    "additionalProperties", "default", "description", "enum", "format", "items", "maxItems", "maxLength",
    "maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum", "properties", "required", "type",
    "x-kubernetes-list-map-keys", "x-kubernetes-list-type", "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
}  # fmt: skip

FILES = sorted(_CRDS.glob("*.yaml"))


def root_schema(path: Path) -> dict[str, Any]:
    crd = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema: dict[str, Any] = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if word in schema:
            yield from nodes(schema[word], f"{path}[]")


def fill(schema: dict[str, Any], value: Any) -> Any:
    """The value with the schema's defaults, as the API server fills them in."""
    if isinstance(value, list):
        return [fill(schema["items"], item) for item in value]
    if not isinstance(value, dict) or "properties" not in schema:
        return value
    defaults = {name: child["default"] for name, child in schema["properties"].items() if "default" in child}
    return {name: fill(schema["properties"][name], inner) for name, inner in (defaults | value).items()}


def models(model: type[Model], schema: dict[str, Any]) -> Iterator[tuple[type[Model], dict[str, Any]]]:
    """Every model below a model, beside its schema."""
    yield model, schema
    for info in model.model_fields.values():
        child = schema["properties"][info.alias]
        for inner in _models_in(info.annotation):
            yield from models(inner, child.get("items", child))


def _models_in(annotation: Any) -> Iterator[type[Model]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def test_the_checked_in_files_are_what_the_models_say() -> None:
    assert drifted(_CRDS) == []
    assert main(["--check", "--out", str(_CRDS)]) == 0


def test_check_names_files_that_differ_are_missing_or_do_not_belong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    assert main(["--check", "--out", str(tmp_path)]) == 0
    different, missing, *_ = sorted(render_all())
    (tmp_path / different).write_text("kind: Other\n")
    (tmp_path / missing).unlink()
    (tmp_path / "old.yaml").write_text("kind: Old\n")
    assert main(["--check", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert [name for name in (different, missing, "old.yaml") if name in said] == [different, missing, "old.yaml"]
    assert len(said.splitlines()) == 3
    assert main(["--out", str(tmp_path)]) == 0
    assert drifted(tmp_path) == []


def test_two_runs_write_the_same_bytes() -> None:
    assert render_all() == render_all()
    assert all(text.startswith(HEADER) for text in render_all().values())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_node_is_typed_and_uses_allowed_keywords_only(file: Path) -> None:
    for path, node in nodes(root_schema(file), ""):
        assert node["type"] in {"object", "array", "string", "integer", "boolean"}, path
        assert set(node) <= _ALLOWED, path
        assert not ("properties" in node and "additionalProperties" in node), path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_list_map_and_string_has_an_upper_bound(file: Path) -> None:
    root = root_schema(file)
    for part in ("spec", "status"):
        for path, node in nodes(root["properties"][part], part):
            if node["type"] == "array":
                assert "maxItems" in node, path
                assert "x-kubernetes-list-type" in node, path
            elif node["type"] == "string":
                assert "maxLength" in node or "enum" in node, path
            elif "additionalProperties" in node:
                assert "maxProperties" in node, path
            elif node["type"] == "object":
                assert "properties" in node or node.get("x-kubernetes-preserve-unknown-fields"), path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_field_and_every_block_says_what_it_is_in_whole_sentences(file: Path) -> None:
    root = root_schema(file)
    assert root["description"].endswith(".")
    for part in ("spec", "status"):
        for path, node in nodes(root["properties"][part], part):
            inner = path.endswith("[]") and "properties" not in node
            text = node.get("description", "")
            assert inner or (text.endswith(".") and text[0] == text[0].upper()), f"{path}: {text!r}"
            assert "\n" not in text, path


def test_the_description_of_mode_says_that_off_must_be_quoted() -> None:
    spec = root_schema(_CRDS / "retinue.dev_agentpools.yaml")["properties"]["spec"]
    mode = spec["properties"]["autoscaling"]["properties"]["mode"]
    assert 'Off must be quoted ("Off")' in mode["description"]
    assert mode["description"].endswith('Default: "Auto".')


def test_the_description_of_a_field_ends_with_its_default() -> None:
    described = [
        (path, node)
        for file in FILES
        for path, node in nodes(root_schema(file)["properties"]["spec"], "spec")
        if isinstance(node.get("default"), bool | int | str) and node["default"] != ""
    ]
    assert len(described) > 50
    for path, node in described:
        assert node["description"].endswith(f"Default: {json.dumps(node['default'])}."), path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_spec_is_required_status_is_not_and_every_rule_has_a_message(file: Path) -> None:
    root = root_schema(file)
    assert root["required"] == ["spec"]
    assert root["properties"]["metadata"] == {"type": "object", "properties": {"name": {"type": "string"}}}
    for path, node in nodes(root, ""):
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["message"], path
            assert "\n" not in rule["message"], path


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_defaults_of_the_schema_are_the_defaults_of_the_models(kind: type[Model]) -> None:
    schema = crd_for(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    compared = 0
    for part in ("spec", "status"):
        part_model = kind.model_fields[part].annotation
        assert isinstance(part_model, type)
        assert issubclass(part_model, Model)
        for model, node in models(part_model, schema["properties"][part]):
            required = {name: _any_value(node["properties"][name]) for name in node.get("required", [])}
            assert fill(node, required) == model.model_validate(required).to_wire(), model.__name__
            compared += 1
    assert compared > 5


def _any_value(schema: dict[str, Any]) -> Any:
    """Some value that pydantic accepts; it does not check patterns."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object":
            return {name: _any_value(schema["properties"][name]) for name in schema.get("required", [])}
        case "array":
            return [_any_value(schema["items"])] * schema.get("minItems", 0)
        case "integer":
            return schema.get("minimum", 0)
        case _:
            return "x"


def test_names_columns_and_subresources_follow_the_kinds() -> None:
    for kind in KINDS:
        crd = crd_for(kind)
        info = kind.kind_info
        assert crd["metadata"]["name"] == f"{info.plural}.retinue.dev"
        assert crd["spec"]["scope"] == ("Namespaced" if info.namespaced else "Cluster")
        assert crd["spec"]["names"]["shortNames"] == list(info.short_names)
        assert crd["spec"]["names"]["categories"] == ["retinue"]
        (version,) = crd["spec"]["versions"]
        assert [column["name"] for column in version["additionalPrinterColumns"]] == [c.name for c in info.columns]
        assert ("scale" in version["subresources"]) == (info.scale is not None)
