"""The samples show every field of every kind, and the models read them without loss."""

import pytest

from .objects import INFOS, MODELS, fields_in, fields_of, sample, sample_names, schema_of


@pytest.mark.parametrize("kind", list(INFOS))
def test_the_samples_of_a_kind_together_set_every_field_of_its_spec(kind: str) -> None:
    shown = {
        field for name in sample_names() if sample(name)["kind"] == kind for field in fields_in(sample(name)["spec"])
    }
    assert fields_of(schema_of(kind, "spec")) - shown == set()


@pytest.mark.parametrize("name", sample_names())
def test_a_model_keeps_everything_that_a_sample_says(name: str) -> None:
    manifest = sample(name)
    wire = MODELS[manifest["kind"]].model_validate(manifest).to_wire()
    assert fields_in(manifest["spec"]) <= fields_in(wire["spec"])
    assert MODELS[manifest["kind"]].model_validate(wire).to_wire() == wire
