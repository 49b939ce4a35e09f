"""The shape of an inventory file: strict pydantic models that refuse what they do not know."""

from __future__ import annotations

import re
from collections import Counter
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from retinue.api.units import quantity
from retinue.catalog.load import UnknownPreset, preset

API_VERSION = "emulator.retinue.dev/v1alpha1"
_DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_QUALIFIED = re.compile(r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")
_LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")


def _dns_label(value: str) -> str:
    if not _DNS_LABEL.match(value) or len(value) > 50:
        raise ValueError("must be at most 50 lower case letters, digits and '-', such as h100 or rack-1")
    return value


def _quantity(value: str) -> str:
    quantity(value)
    return value


def _preset(value: str) -> str:
    try:
        return preset(value).name
    except UnknownPreset as error:
        raise ValueError(str(error)) from error


def _qualified(value: str) -> str:
    if not _QUALIFIED.match(value):
        raise ValueError(f"{value!r} is not a label key or resource name such as nvidia.com/gpu")
    return value


def _extended(value: str) -> str:
    if "/" not in value or not _QUALIFIED.match(value):
        raise ValueError(f"{value!r} is not an extended resource: it needs a domain, such as nvidia.com/gpu or rdma/ib")
    return value


def _label_value(value: str) -> str:
    if not _LABEL_VALUE.match(value):
        raise ValueError(f"{value!r} is not a label value: at most 63 letters, digits, '-', '_' and '.'")
    return value


Name = Annotated[str, AfterValidator(_dns_label)]
Quantity = Annotated[str, AfterValidator(_quantity)]
PresetName = Annotated[str, AfterValidator(_preset)]
LabelKey = Annotated[str, AfterValidator(_qualified)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
ResourceName = Annotated[str, AfterValidator(_extended)]
Count = Annotated[int, Field(ge=1, le=5000)]


class _Strict(BaseModel):
    # coerce_numbers_to_str: `cpu: 96` and a label value `2` are what people write.
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, coerce_numbers_to_str=True
    )


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class TaintEntry(_Strict):
    """A taint on every node of a group."""

    key: LabelKey
    value: LabelValue = ""
    effect: TaintEffect


class Devices(_Strict):
    """What differs from the preset's devices; a field left out comes from the preset."""

    resource: ResourceName | None = None
    per_node: Annotated[int, Field(ge=0, le=64)] | None = None
    memory: Quantity | None = Field(default=None, description="bytes of one device, for the GFD memory label")


class FaultEntry(_Strict):
    """A fault that one node of the group starts with."""

    node: Annotated[int, Field(ge=0)]
    fault: Annotated[str, Field(min_length=1, max_length=200)]


class NodeGroup(_Strict):
    """`count` equal nodes of one rack, named `<name>-<index>`.

    preset: the catalogue's node class that they are; gives devices, labels and fabric.
    nvlinkDomains: names of the fast domains that the nodes are divided into in order, for presets whose fabric spans
        nodes (NVL72, LPX). By default as many as the preset's domain size asks for.
    nodeNames: names of nodes that exist already (a kubelet's), instead of generated ones.
    """

    name: Name
    count: Count
    preset: PresetName
    cpu: Quantity
    memory: Quantity | None = None
    ephemeral_storage: Quantity = "1Ti"
    max_pods: Annotated[int, Field(ge=1, le=1000)] = 110
    devices: Devices = Devices()
    nvlink_domains: tuple[Name, ...] | None = None
    rdma: dict[ResourceName, Count] = Field(default_factory=dict)
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    taints: tuple[TaintEntry, ...] = ()
    node_names: tuple[Name, ...] | None = None
    faults: tuple[FaultEntry, ...] = ()

    @model_validator(mode="after")
    def _fits_the_preset(self) -> Self:
        facts = preset(self.preset)
        if self.memory is None and facts.host_memory_bytes is None:
            raise ValueError(f"preset {self.preset} does not state node memory; set memory, such as 2Ti")
        per_node = self.devices.per_node if self.devices.per_node is not None else facts.devices_per_node or 0
        if facts.extended_resource is None and self.devices.resource is None and per_node > 0:
            raise ValueError(f"preset {self.preset} has no device resource; set devices.resource or devices.perNode: 0")
        spans_nodes = (facts.device.domain_devices or 0) > per_node > 0 if facts.device else False
        if self.nvlink_domains is not None and not spans_nodes:
            raise ValueError(
                f"the fabric of preset {self.preset} ends at the node; remove nvlinkDomains or use an NVL72 preset"
            )
        if self.nvlink_domains is not None and not 1 <= len(self.nvlink_domains) <= self.count:
            raise ValueError(f"nvlinkDomains names {len(self.nvlink_domains)} domains for {self.count} nodes")
        if self.node_names is not None and len(self.node_names) != self.count:
            raise ValueError(f"nodeNames has {len(self.node_names)} names for count {self.count}; make them equal")
        if beyond := [fault.node for fault in self.faults if fault.node >= self.count]:
            raise ValueError(f"faults names node {beyond[0]}, but the last node of the group is {self.count - 1}")
        return self

    def names(self) -> tuple[str, ...]:
        """Node names in index order."""
        return self.node_names or tuple(f"{self.name}-{index}" for index in range(self.count))


class Rack(_Strict):
    """A rack: the nodes below one leaf switch."""

    name: Name
    zone: Name | None = None
    block: Name | None = None
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    node_groups: Annotated[tuple[NodeGroup, ...], Field(min_length=1)]


class Inventory(_Strict):
    """A whole emulated cluster."""

    api_version: Literal["emulator.retinue.dev/v1alpha1"]
    kind: Literal["Inventory"]
    cluster: Name
    region: Name | None = None
    zone: Name | None = None
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    racks: Annotated[tuple[Rack, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for what, names in (
            ("rack", [rack.name for rack in self.racks]),
            ("node", [name for rack in self.racks for group in rack.node_groups for name in group.names()]),
        ):
            if repeated := [name for name, times in Counter(names).items() if times > 1]:
                raise ValueError(f"{what} {repeated[0]} appears more than once; give each {what} its own name")
        return self
