"""Manifests with one mistake each: the API server refuses them with the field and the remedy in its message."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from .objects import Objects, Refusal, merged, sample

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
    assert row["field"] in (*refused.value.fields, *message.replace('"', " ").split()), message
    assert row["says"] in message


def test_the_table_names_each_mistake_once_and_has_at_least_forty_five() -> None:
    names = [row["name"] for row in _TABLE]
    assert len(set(names)) == len(names) >= 45
