"""NodeClass: a kind of node (GPU, LPX or CPU), its devices, fabric and cost, and how to recognise it."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.markers import Cel, Column, KindInfo, ListMap, ListSet, MaxProperties, immutable
from retinue.api.types import (
    Condition,
    Decimal,
    LabelKey,
    LabelMap,
    LevelName,
    Metadata,
    Model,
    Name,
    Quantity,
    ResourceName,
    Toleration,
)

GigabytesPerSecond = Annotated[int, Field(ge=1, le=10000000)]


class Family(StrEnum):
    GPU = "GPU"
    LPX = "LPX"
    CPU = "CPU"


class Devices(Model):
    """How the nodes of this class advertise their devices."""

    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "has(self.extendedResource) != has(self.deviceClass)",
            "set exactly one of extendedResource (device plugin) and deviceClass (DRA)",
        ),
    )
    extended_resource: ResourceName | None = None
    device_class: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    per_node: Annotated[int, Field(ge=1, le=256)]


class Teraflops(Model):
    """Dense peak throughput of one device in TFLOPS, by data type."""

    bf16: Annotated[int, Field(ge=1, le=1000000)] | None = None
    fp8: Annotated[int, Field(ge=1, le=1000000)] | None = None
    fp4: Annotated[int, Field(ge=1, le=1000000)] | None = None


class DeviceFacts(Model):
    """Facts of one device; what is set here wins over the preset."""

    memory: Quantity | None = None
    memory_bandwidth_gbps: Annotated[GigabytesPerSecond | None, Field(alias="memoryBandwidthGBps")] = None
    teraflops: Teraflops | None = None
    scale_up_gbps: Annotated[GigabytesPerSecond | None, Field(alias="scaleUpGBps")] = None
    scale_out_gbps: Annotated[GigabytesPerSecond | None, Field(alias="scaleOutGBps")] = None
    host_gbps: Annotated[GigabytesPerSecond | None, Field(alias="hostGBps")] = None


class TopologyLevel(Model):
    """One level of fast fabric: nodes with the same value of the first key they carry share a domain."""

    level: LevelName
    keys: Annotated[list[LabelKey], ListSet(), Field(min_length=1, max_length=8)]


class NodeClassSpec(Model):
    cel_rules: ClassVar[tuple[Cel, ...]] = (
        Cel(
            "self.family != 'CPU' || !has(self.devices)",
            "devices must be absent for family CPU: remove devices, or set family to GPU or LPX",
            field_path=".devices",
        ),
        Cel(
            "self.family == 'CPU' || has(self.devices) || has(self.preset)",
            "devices is required for families GPU and LPX unless preset names a class of the catalogue",
            field_path=".devices",
        ),
        Cel(
            "has(self.preset) || (has(self.nodeSelector) && size(self.nodeSelector) > 0)",
            "set nodeSelector, or a preset that brings one, so that the class can recognise its nodes",
            field_path=".nodeSelector",
        ),
        Cel(
            "self.family != 'CPU' || !has(self.rdmaResources) || size(self.rdmaResources) == 0",
            "rdmaResources are for families GPU and LPX: remove them from a CPU class",
            field_path=".rdmaResources",
        ),
    )
    family: Annotated[Family, immutable("family", "create another NodeClass for another family")]
    preset: Name | None = None
    node_selector: LabelMap | None = None
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    devices: Devices | None = None
    device: DeviceFacts | None = None
    topology: Annotated[list[TopologyLevel], ListMap(("level",)), Field(max_length=8)] | None = None
    rdma_resources: Annotated[dict[LabelKey, Annotated[int, Field(ge=1, le=64)]], MaxProperties(8)] | None = None
    cost_per_node_hour: Decimal | None = None


class DomainStatus(Model):
    """One domain of one level: its nodes and devices."""

    level: LevelName
    name: Annotated[str, Field(max_length=128)]
    nodes: int
    ready_nodes: int
    devices: int
    free_devices: int


class NodeClassStatus(Model):
    observed_generation: int | None = None
    nodes: int | None = None
    ready_nodes: int | None = None
    devices: int | None = None
    free_devices: int | None = None
    domains: Annotated[list[DomainStatus], ListMap(("level", "name")), Field(max_length=256)] = Field(
        default_factory=list
    )
    overlaps: Annotated[list[Annotated[str, Field(max_length=63)]], ListSet(), Field(max_length=64)] = Field(
        default_factory=list
    )
    conditions: Annotated[list[Condition], ListMap(("type",)), Field(max_length=16)] = Field(default_factory=list)


class NodeClass(Model):
    """A kind of node: family, devices, fabric, cost and how to recognise it."""

    kind_info: ClassVar[KindInfo] = KindInfo(
        kind="NodeClass",
        plural="nodeclasses",
        short_names=("nc",),
        namespaced=False,
        columns=(
            Column("Family", ".spec.family"),
            Column("Ready", '.status.conditions[?(@.type=="Ready")].status'),
            Column("Nodes", ".status.nodes", "integer"),
            Column("Ready-Nodes", ".status.readyNodes", "integer"),
            Column("Devices", ".status.devices", "integer"),
            Column("Free", ".status.freeDevices", "integer"),
            Column("Cost/h", ".spec.costPerNodeHour", description="per node and hour"),
            Column("Preset", ".spec.preset", priority=1),
            Column("Reason", '.status.conditions[?(@.type=="Ready")].reason', priority=1),
            Column("Age", ".metadata.creationTimestamp", "date"),
        ),
    )
    metadata: Metadata
    spec: NodeClassSpec
    status: NodeClassStatus = Field(default_factory=NodeClassStatus)
