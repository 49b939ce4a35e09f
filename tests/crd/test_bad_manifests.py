"""Manifests with one mistake each: the API server refuses them with the field and the remedy in its message."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .objects import CRDS, Objects, Refusal, merged, sample

_TABLE: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "bad_manifests.yaml").read_text(encoding="utf-8")
)


@pytest.mark.component
@pytest.mark.parametrize("row", _TABLE, ids=[row["name"].replace(" ", "-") for row in _TABLE])
def test_a_manifest_with_a_mistake_is_refused_with_its_field_and_remedy(
    row: dict[str, Any], shared_objects: Objects
) -> None:
    manifest = merged(sample(row["sample"]), row["patch"])
    with pytest.raises(Refusal) as refused:
        shared_objects.create(manifest, dry_run=True)
    message = refused.value.message
    assert ("CEL" if any(row["says"] in text for text in _rules()) else "schema") == row["by"]
    assert row["field"] in (*refused.value.fields, *message.replace('"', " ").split()), message
    assert row["says"] in message


@functools.cache
def _rules() -> frozenset[str]:
    """The messages of all CEL rules of the CRDs."""
    texts = (path.read_text(encoding="utf-8") for path in CRDS.glob("*.yaml"))
    return frozenset(text for crd in map(yaml.safe_load, texts) for text in _messages(crd))


def _messages(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from (rule["message"] for rule in schema.get("x-kubernetes-validations") or [] if "message" in rule)
    children = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for child in children:
        yield from _messages(child)
