"""NodeClass: a kind of node (GPU, LPX or CPU), its devices, fabric and cost, and how to recognise it."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from retinue.api.markers import Cel, Column, KindInfo, ListMap, ListSet, MaxProperties, Pattern, immutable
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

DeviceClassName = Annotated[
    str,
    Pattern(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "must be the name of a DeviceClass such as gpu.nvidia.com"),
    Field(min_length=1, max_length=253),
]
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
    """Resource that a device plugin advertises, such as nvidia.com/gpu."""
    device_class: DeviceClassName | None = None
    """DRA DeviceClass, such as gpu.nvidia.com. Each pod claims its devices by a ResourceClaimTemplate that its pool
    makes, in place of an extended resource. Needs a driver that publishes ResourceSlices. Instances that run keep the
    devices that they have when this changes."""
    per_node: Annotated[int, Field(ge=1, le=256)]
    """Devices of one node. With deviceClass placement counts so many on each ready node, and the scheduler has the last
    word: it knows the ResourceSlices."""


class Teraflops(Model):
    """Dense peak throughput of one device in TFLOPS, by data type."""

    bf16: Annotated[int, Field(ge=1, le=1000000)] | None = None
    """BF16, TFLOPS."""
    fp8: Annotated[int, Field(ge=1, le=1000000)] | None = None
    """FP8, TFLOPS."""
    fp4: Annotated[int, Field(ge=1, le=1000000)] | None = None
    """FP4 (NVFP4, MXFP4), TFLOPS."""


class DeviceFacts(Model):
    """Facts of one device; what is set here wins over the preset."""

    memory: Quantity | None = None
    """Bytes of memory (HBM, or SRAM of an LPX) that the device shows."""
    memory_bandwidth_gbps: Annotated[GigabytesPerSecond | None, Field(alias="memoryBandwidthGBps")] = None
    """Memory bandwidth in GB/s (10^9 bytes per second)."""
    teraflops: Teraflops | None = None
    """Dense peak throughput in TFLOPS, by data type."""
    scale_up_gbps: Annotated[GigabytesPerSecond | None, Field(alias="scaleUpGBps")] = None
    """Bandwidth to the other devices of the nearest domain (NVLink), one direction, in GB/s."""
    scale_out_gbps: Annotated[GigabytesPerSecond | None, Field(alias="scaleOutGBps")] = None
    """Network bandwidth of the device beyond that domain, one direction, in GB/s."""
    host_gbps: Annotated[GigabytesPerSecond | None, Field(alias="hostGBps")] = None
    """Bandwidth to host memory, one direction, in GB/s."""


class TopologyLevel(Model):
    """One level of fast fabric: nodes with the same value of the first key they carry share a domain."""

    level: LevelName
    """Name that pools use in topology, such as nvlinkDomain or rack."""
    keys: Annotated[list[LabelKey], ListSet(), Field(min_length=1, max_length=8)]
    """Node label keys. The first that a node carries names its domain."""


class NodeClassSpec(Model):
    """How to recognise the nodes, and what they have."""

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
    """GPU runs engines, CPU runs tier servers. LPX runs the FFN side of AFD, which is not available in this version:
    its nodes are counted only."""
    preset: Name | None = None
    """Class of Retinue's catalogue that fills in devices, device facts, node labels and topology, such as gb300. Fields
    set here win. An unknown name is refused by condition Valid, which names the nearest."""
    node_selector: LabelMap | None = None
    """Labels that the nodes of the class carry. Without it, those of the preset. Two classes must not share nodes."""
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(default_factory=list)
    """Taints that pods on the class tolerate."""
    devices: Devices | None = None
    """How the nodes advertise their devices. Without it, as the preset says. Refused for family CPU."""
    device: DeviceFacts | None = None
    """Facts of one device for the cost model. Without a preset, memory and memoryBandwidthGBps are needed before a pool
    can use the class."""
    topology: Annotated[list[TopologyLevel], ListMap(("level",)), Field(max_length=8)] | None = None
    """Levels of fast fabric, nearest first. Without it, those of the preset."""
    rdma_resources: Annotated[dict[LabelKey, Annotated[int, Field(ge=1, le=64)]], MaxProperties(8)] | None = None
    """Extended resources for RDMA that each engine pod requests, with amounts, such as rdma/ib 1."""
    cost_per_node_hour: Decimal | None = None
    """Cost of one node per hour, in a currency of your choice, the same for all classes. Divided over the devices.
    Without it costs are unknown, and pools do not grow under a budget."""


class DomainStatus(Model):
    """One domain of one level: its nodes and devices."""

    level: LevelName
    """Name of the level."""
    name: Annotated[str, Field(max_length=128)]
    """Name of the domain: the value of its label."""
    nodes: int
    """Nodes in it."""
    ready_nodes: int
    """Nodes whose condition Ready is True."""
    devices: int
    """Devices that its nodes offer; with deviceClass, perNode of each node that is Ready."""
    free_devices: int
    """Devices on usable nodes that no pod managed by Retinue holds; pods of others are not counted."""


class NodeClassStatus(Model):
    """What the operator observes of a class; only the operator writes it."""

    observed_generation: int | None = None
    """Generation of the spec that this status is about."""
    nodes: int | None = None
    """Nodes that carry the class's labels."""
    ready_nodes: int | None = None
    """Nodes whose condition Ready is True."""
    devices: int | None = None
    """Devices that the nodes offer; with deviceClass, perNode of each node that is Ready."""
    free_devices: int | None = None
    """Devices on usable nodes that no pod managed by Retinue holds; pods of others are not counted."""
    domains: Annotated[list[DomainStatus], ListMap(("level", "name")), Field(max_length=256)] = Field(
        default_factory=list
    )
    """Domains per level, the first 256."""
    overlaps: Annotated[list[Annotated[str, Field(max_length=63)]], ListSet(), Field(max_length=64)] = Field(
        default_factory=list
    )
    """Other NodeClasses that share nodes with this one."""
    conditions: Annotated[list[Condition], ListMap(("type",)), Field(max_length=16)] = Field(default_factory=list)
    """Ready and Valid, and Degraded when classes overlap. The reference says what types and reasons mean."""


class NodeClass(Model):
    """A kind of node: its family, devices, fabric and cost, and how to recognise it. Pools name it in nodeClasses."""

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
