"""Scalars and small blocks that several kinds share, and the base class of all models."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from retinue.api.markers import Cel, MaxProperties, Pattern


class Model(BaseModel):
    """Base of every API type: frozen, camelCase on the wire; fields that a newer CRD added are ignored.

    The docstring below a field is its description in the CRD, in `kubectl explain` and in the reference.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    def to_wire(self) -> dict[str, Any]:
        """The JSON object as the API server stores it: camelCase, without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


Name = Annotated[
    str,
    Pattern(
        r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "must be lower case letters, digits and '-', such as gb300 or warm-tier"
    ),
    Field(min_length=1, max_length=63),
]
# Names from which pod names are made keep room for "-prefill-NNN-NN".
ShortName = Annotated[
    str,
    Pattern(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "must be lower case letters, digits and '-', such as primary"),
    Field(min_length=1, max_length=40),
]
LevelName = Annotated[
    str,
    Pattern(r"^[a-z][A-Za-z0-9-]*$", "must be the name of a topology level such as nvlinkDomain or rack"),
    Field(min_length=1, max_length=63),
]
Text = Annotated[str, Field(min_length=1, max_length=512)]
Duration = Annotated[
    str,
    Pattern(r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$", "must be a duration such as 500ms, 30s, 5m or 1h30m"),
    Field(max_length=24),
]
Quantity = Annotated[
    str,
    Pattern(r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$", "must be a quantity of bytes such as 512Gi or 2Ti"),
    Field(max_length=24),
]
TokenCount = Annotated[
    str,
    Pattern(r"^[0-9]+(\.[0-9]+)?[kM]?$", "must be a number of tokens such as 20000, 20k or 1M"),
    Field(max_length=16),
]
Ratio = Annotated[
    str,
    Pattern(r"^(0(\.[0-9]{1,6})?|1(\.0{1,6})?)$", 'must be a ratio from 0 to 1 as a string, such as "0.95"'),
    Field(max_length=10),
]
Decimal = Annotated[
    str,
    Pattern(
        r"^[0-9]{1,9}(\.[0-9]{1,6})?$", 'must be a non-negative decimal number as a string, such as "24" or "1.25"'
    ),
    Field(max_length=18),
]
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]
LabelMap = Annotated[dict[LabelKey, LabelValue], MaxProperties(32)]
ResourceName = Annotated[
    str,
    Pattern(
        r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        "must be a qualified resource name such as nvidia.com/gpu",
    ),
    Field(max_length=128),
]


class TolerationOperator(StrEnum):
    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Model):
    """A taint that the pods of this class tolerate (core/v1 Toleration)."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "has(self.key) || self.operator == 'Exists'",
            "set key, or set operator to Exists to tolerate every taint",
            field_path=".key",
        ),
        Cel(
            "self.operator != 'Exists' || !has(self.value) || self.value == ''",
            "operator Exists takes no value: remove value, or set operator to Equal",
            field_path=".value",
        ),
        Cel(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds needs effect NoExecute",
            field_path=".tolerationSeconds",
        ),
    )
    key: Annotated[str, Field(max_length=317)] | None = None
    """Key of the taint. Without it, operator Exists tolerates every taint."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    """Equal compares value too, Exists only key."""
    value: LabelValue | None = None
    """Value of the taint, for operator Equal."""
    effect: TaintEffect | None = None
    """Effect of the taint. Without it, every effect is tolerated."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds that a pod stays after the taint appears. Only for effect NoExecute; without it the pod stays for
    ever."""


class EnvVar(Model):
    """One environment variable with a literal value; anything richer goes into podTemplate."""

    name: Annotated[
        str,
        Pattern(r"^[A-Za-z_][A-Za-z0-9_]*$", "must be a C identifier such as HF_HOME"),
        Field(min_length=1, max_length=128),
    ]
    """Name of the variable."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """Its literal value."""


class ObjectRef(Model):
    """The name of an object in the same namespace."""

    name: Name
    """Name of the object."""


class Condition(Model):
    """A standard Kubernetes condition (meta/v1)."""

    type: Annotated[str, Field(max_length=64)]
    """What the condition is about, such as Ready."""
    status: Annotated[str, Field(max_length=16)]
    """True, False or Unknown."""
    reason: Annotated[str, Field(max_length=128)]
    """Why, in one CamelCase word: also the reason of the event, the log line and the metric label."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """What is wrong, with which object, and what to do."""
    observed_generation: int | None = None
    """Generation of the spec that the condition is about."""
    last_transition_time: Annotated[str, Field(max_length=40)]
    """When status changed last, RFC 3339 in UTC."""


class OwnerReference(Model):
    """Who an object belongs to (meta/v1)."""

    kind: str
    name: str
    uid: str
    controller: bool = False


class Metadata(Model):
    """What the core needs of an object's metadata."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    owner_references: list[OwnerReference] = Field(default_factory=list)

    def controlled_by(self, uid: str) -> bool:
        """Whether the object with this uid is its controller."""
        return any(owner.controller and owner.uid == uid for owner in self.owner_references)


__all__ = [
    "Cel",
    "Condition",
    "Decimal",
    "Duration",
    "EnvVar",
    "LabelKey",
    "LabelMap",
    "LabelValue",
    "LevelName",
    "Metadata",
    "Model",
    "Name",
    "ObjectRef",
    "OwnerReference",
    "Quantity",
    "Ratio",
    "ResourceName",
    "ShortName",
    "TaintEffect",
    "Text",
    "TokenCount",
    "Toleration",
    "TolerationOperator",
]
