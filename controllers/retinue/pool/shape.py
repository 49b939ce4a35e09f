"""The shape of one instance on a node class: how many pods, what each takes, how much KV it holds, what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass

from retinue.api import KVCacheTier
from retinue.api.kvcachetier import Medium
from retinue.api.pool import ModelSpec, Parallelism
from retinue.api.units import quantity
from retinue.catalog.facts import MissingFact
from retinue.catalog.load import UnknownModel, model
from retinue.economics.costmodel import DoesNotFit, EngineShape, kv_capacity_tokens
from retinue.nodeclass.claims import DeviceClaim, counting_key
from retinue.nodeclass.resolve import ResolvedClass


@dataclass(frozen=True)
class InstanceShape:
    """One instance on one class. Memory in bytes; cost per hour None where unknown.

    `resources` is what the engine's container of each pod requests, `claim` the devices that each pod claims by DRA
    (None where devices are an extended resource and thus among `resources`).
    """

    node_class: ResolvedClass
    pods: int
    devices_per_pod: int
    resources: Mapping[str, int]
    claim: DeviceClaim | None
    host_cache_bytes: int
    kv_capacity_tokens: int
    engine: EngineShape
    cost_per_hour: float | None

    @property
    def requests(self) -> Mapping[str, int]:
        """What placement counts for each pod: resources, and claimed devices under their counting key."""
        if self.claim is None:
            return self.resources
        return {counting_key(self.claim.device_class): self.claim.count, **self.resources}


@dataclass(frozen=True)
class Misfit:
    """Why an instance can never run on a class, whatever is free."""

    message: str


def engine_shape(spec: ModelSpec, parallelism: Parallelism, class_: ResolvedClass) -> EngineShape | Misfit:
    """The cost model's view of an instance on a class."""
    if class_.device is None:
        return Misfit(f"node class {class_.name} states no device facts: set preset, or device.memory and bandwidth")
    try:
        return EngineShape(
            model=model(spec.name),
            precision=spec.precision,
            kv_precision=spec.kv_precision,
            device=class_.device,
            tensor=parallelism.tensor,
            pipeline=parallelism.pipeline,
            data=parallelism.data,
            expert=parallelism.expert,
            context=parallelism.context,
            devices=parallelism.devices,
        )
    except (UnknownModel, ValueError) as error:
        return Misfit(f"spec.model.name: {error}" if isinstance(error, UnknownModel) else str(error))


def instance_shape(
    spec: ModelSpec, parallelism: Parallelism, class_: ResolvedClass, host_tiers: Mapping[str, KVCacheTier]
) -> InstanceShape | Misfit:
    """Pods, requests and KV capacity of one instance on `class_`.

    `host_tiers` are the HostMemory tiers of the pool: each instance keeps their capacity in host memory, shared over
    its pods.
    """
    if class_.counted is None:
        return Misfit(f"node class {class_.name} (family {class_.family}) has no devices: engines need a GPU class")
    devices = parallelism.devices
    per_node = max(1, class_.per_node)
    if devices > per_node and devices % per_node:
        return Misfit(
            f"{devices} devices do not divide into nodes of {per_node} on class {class_.name}: choose parallelism so "
            f"that tensor x pipeline x data x context is below or a multiple of {per_node}"
        )
    pods = max(1, devices // per_node)
    shape = engine_shape(spec, parallelism, class_)
    if isinstance(shape, Misfit):
        return shape
    try:
        capacity = kv_capacity_tokens(shape)
    except (DoesNotFit, MissingFact) as error:
        return Misfit(str(error))
    if capacity < spec.context_window:
        return Misfit(
            f"one context of {spec.context_window} tokens does not fit: {devices} x {class_.name} hold {capacity} "
            f"tokens of KV in {spec.kv_precision} beside {spec.name} in {spec.precision}; lower "
            f"spec.model.contextWindow, or use more devices per instance or a narrower precision"
        )
    host_bytes = sum(
        quantity(tier.spec.capacity_per_member)
        for tier in host_tiers.values()
        if tier.spec.medium == Medium.HOST_MEMORY and tier.spec.capacity_per_member
    )
    resources = {} if class_.resource is None else {class_.resource: devices // pods}
    if host_bytes:
        resources["memory"] = -(-host_bytes // pods)
    resources.update(class_.rdma)
    per_device = class_.cost_per_device_hour()
    return InstanceShape(
        node_class=class_,
        pods=pods,
        devices_per_pod=devices // pods,
        resources=resources,
        claim=None if class_.device_class is None else DeviceClaim(class_.device_class, devices // pods),
        host_cache_bytes=host_bytes,
        kv_capacity_tokens=capacity,
        engine=shape,
        cost_per_hour=None if per_device is None else per_device * devices,
    )
