"""A kind that the API server could not serve, or whose columns would stay empty, is refused by the generator."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, create_model

from retinue.api.crd import crd_for
from retinue.api.markers import Cel, Column, KindInfo, Scale
from retinue.api.schema import SchemaError
from retinue.api.types import Metadata, Model

Short = Annotated[str, Field(max_length=10)]


class Spec(Model):
    replicas: int = 1


class Status(Model):
    replicas: int | None = None
    selector: Short | None = None


@dataclass(frozen=True)
class Variant:
    """A kind with one thing wrong, and what the generator says of it."""

    says: str
    spec: Any = (Spec, ...)
    status: Any = (Status, Field(default_factory=Status))
    columns: tuple[Column, ...] = ()
    scale: Scale | None = None
    root_rules: tuple[Cel, ...] = ()
    more: tuple[str, ...] = ()


VARIANTS = {
    "an optional spec": Variant("Example.spec: spec must be required", spec=(Spec, Field(default_factory=Spec))),
    "a required status": Variant("Example.status: status must not be required", status=(Status, ...)),
    "a spec that is no model": Variant("Example.spec: must be a model", spec=(Short, ...)),
    "a field beside spec and status": Variant("Example: a kind has exactly the fields", more=("data",)),
    "a column of nothing": Variant(
        "Example column Size: there is no field .status.size", columns=(Column("Size", ".status.size"),)
    ),
    "a column of another type": Variant(
        "Example column Size: .status.replicas is of type integer", columns=(Column("Size", ".status.replicas"),)
    ),
    "a column of an unknown type": Variant(
        "Example column Size: type number is none of", columns=(Column("Size", ".status.replicas", "number"),)
    ),
    "a column without a path": Variant("Example column Size: size is not a path", columns=(Column("Size", "size"),)),
    "a scale of nothing": Variant(
        "Example scale: there is no field .spec.size", scale=Scale(spec_replicas=".spec.size")
    ),
    "a selector that is a number": Variant(
        "Example scale: .status.replicas must be of type string", scale=Scale(selector=".status.replicas")
    ),
    "a root rule that blames nothing": Variant(
        "Example root rule: there is no field .spec.size", root_rules=(Cel("true", "never", field_path=".spec.size"),)
    ),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=[name.replace(" ", "-") for name in VARIANTS])
def test_a_kind_that_the_api_server_could_not_serve_is_refused(variant: Variant) -> None:
    class Example(Model):
        kind_info: ClassVar[KindInfo] = KindInfo(
            "Example", "examples", ("ex",), True, variant.columns, variant.scale, variant.root_rules
        )

    fields: dict[str, Any] = dict.fromkeys(variant.more, (Short, ""))
    kind = create_model(
        "Example", __base__=Example, metadata=(Metadata, ...), spec=variant.spec, status=variant.status, **fields
    )
    with pytest.raises(SchemaError, match=re.escape(variant.says)):
        crd_for(kind)


def test_a_model_without_kind_info_is_no_kind() -> None:
    with pytest.raises(SchemaError, match="Spec: a kind needs kind_info"):
        crd_for(Spec)
