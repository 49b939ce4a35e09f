"""A NodeClass with its preset filled in: the facts that placement and builders use; explicit fields win."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from retinue.api import labels
from retinue.api.nodeclass import DeviceFacts as DeviceOverrides
from retinue.api.nodeclass import Family, NodeClassSpec
from retinue.api.types import Toleration
from retinue.catalog.facts import DeviceFacts, Preset, TopologyLevel
from retinue.catalog.load import CUSTOM_DEVICE, device_with
from retinue.catalog.load import preset as load_preset
from retinue.nodeclass.claims import counting_key
from retinue.nodeclass.nodes import Node, tolerated

NO_ANNOTATIONS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ResolvedClass:
    """What a node class means.

    Its nodes hand devices out as the extended resource `resource` or by the DRA class `device_class`; both are None for
    CPU classes. `device` is None where no facts are known.
    """

    name: str
    family: Family
    node_selector: Mapping[str, str]
    tolerations: tuple[Toleration, ...]
    resource: str | None
    device_class: str | None
    per_node: int
    topology: tuple[TopologyLevel, ...]
    device: DeviceFacts | None
    device_overrides: Mapping[str, Any]
    preset: str | None
    rdma: Mapping[str, int]
    cost_per_node_hour: float | None
    preliminary: bool = False
    time_scale: float = 1.0
    """Emulated nodes may run at a multiple of real speed; what the cost model says of them must follow."""

    @property
    def counted(self) -> str | None:
        """The name under which devices are counted on nodes and in what pods hold; None for a class without."""
        return self.resource if self.device_class is None else counting_key(self.device_class)

    def offers(self, node: Node) -> Mapping[str, int]:
        """What a node can give to pods of this class, when nothing is taken from it.

        Devices of a DRA class stand in no node's status: a ready node is taken to have as many as the class says.
        """
        if self.device_class is None:
            return node.allocatable
        return {**node.allocatable, counting_key(self.device_class): self.per_node if node.ready else 0}

    def devices_on(self, node: Node) -> int:
        """How many devices of the class a node has, taken or not."""
        return 0 if self.counted is None else self.offers(node).get(self.counted, 0)

    def matches(self, node: Node) -> bool:
        """Whether the node belongs to the class: it carries every label of the selector."""
        return all(node.labels.get(key) == value for key, value in self.node_selector.items())

    def accepts(self, node: Node) -> bool:
        """Whether pods of this class can run there now: it matches, is usable, and its taints are tolerated."""
        return self.matches(node) and node.usable and tolerated(node.taints, self.tolerations)

    def level(self, name: str) -> TopologyLevel | None:
        """The topology level of that name, or None."""
        return next((level for level in self.topology if level.level == name), None)

    def cost_per_device_hour(self) -> float | None:
        """The node's hourly cost divided over its devices, or None where the class states no cost."""
        return None if self.cost_per_node_hour is None else self.cost_per_node_hour / max(1, self.per_node)


def resolve(name: str, spec: NodeClassSpec, annotations: Mapping[str, str] = NO_ANNOTATIONS) -> ResolvedClass:
    """Fills a class's preset in; of the annotations, retinue.dev/time-scale counts.

    Raises:
        UnknownPreset: spec.preset is not in the catalogue; the message names the nearest.
    """
    base: Preset | None = load_preset(spec.preset) if spec.preset else None
    devices = spec.devices
    resource = devices.extended_resource if devices else (base.extended_resource if base else None)
    topology = (
        tuple(TopologyLevel(level.level, tuple(level.keys)) for level in spec.topology)
        if spec.topology is not None
        else (base.topology if base else ())
    )
    return ResolvedClass(
        name=name,
        family=spec.family,
        node_selector=spec.node_selector or dict(base.node_selector if base else {}),
        tolerations=tuple(spec.tolerations),
        resource=resource,
        device_class=devices.device_class if devices else None,
        per_node=devices.per_node if devices else ((base.devices_per_node if base else None) or 0),
        topology=topology,
        device=_device(base, spec.device),
        device_overrides=spec.device.to_wire() if spec.device is not None else {},
        preset=spec.preset,
        rdma=spec.rdma_resources or {},
        cost_per_node_hour=None if spec.cost_per_node_hour is None else float(spec.cost_per_node_hour),
        preliminary=bool(base and base.preliminary),
        time_scale=_time_scale(annotations.get(labels.TIME_SCALE)),
    )


def _device(base: Preset | None, own: DeviceOverrides | None) -> DeviceFacts | None:
    """The device's facts; None while neither a preset nor the class itself gives memory and its bandwidth."""
    overrides = own.to_wire() if own is not None else {}
    if base is not None and base.device is not None:
        return device_with(base.name, overrides)
    if "memory" in overrides and "memoryBandwidthGBps" in overrides:
        return device_with(base.name if base else CUSTOM_DEVICE, overrides)
    return None


def _time_scale(text: str | None) -> float:
    """The multiple of real speed; anything that is not a positive number counts as real time."""
    try:
        value = float(text) if text else 1.0
    except ValueError:
        return 1.0
    return value if 0 < value < float("inf") else 1.0
