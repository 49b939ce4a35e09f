"""Reads an inventory file, says precisely what is wrong with it, and expands it to one value per node."""

from __future__ import annotations

import difflib
import math
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from retinue.api.units import quantity
from retinue.catalog.facts import Preset
from retinue.catalog.load import preset

from .facts import DeviceSlot, NodeFacts, Taint
from .model import Inventory, NodeGroup, Rack
from .nodelabels import architecture, node_labels, stable_uuid

_EXAMPLES = resources.files("retinue_emulator.inventory") / "examples"


class InventoryError(ValueError):
    """An inventory that cannot be used; `problems` has one line per field, with its path and what to do."""

    def __init__(self, source: str, problems: tuple[str, ...]) -> None:
        super().__init__(f"{source}: " + "; ".join(problems))
        self.source = source
        self.problems = problems


def load_inventory(path: Path) -> Inventory:
    """The inventory in the file `path`.

    Raises:
        InventoryError: the file cannot be read, is not YAML, or does not describe an inventory.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InventoryError(str(path), (f"cannot be read: {error.strerror}; give the path of a file",)) from error
    return parse_inventory(text, source=str(path))


def example_names() -> tuple[str, ...]:
    """Names of the inventories that come with the package."""
    return tuple(sorted(item.name.removesuffix(".yaml") for item in _EXAMPLES.iterdir() if item.name.endswith(".yaml")))


def example_inventory(name: str) -> Inventory:
    """An inventory that comes with the package, such as `demo`.

    Raises:
        InventoryError: no such example; the message lists them.
    """
    if name not in example_names():
        raise InventoryError(name, (f"no such example; there are {', '.join(example_names())}",))
    text = (_EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_inventory(text, source=f"{name}.yaml")


def parse_inventory(text: str, *, source: str = "inventory") -> Inventory:
    """The inventory in a YAML text; `source` names it in errors.

    Raises:
        InventoryError: the text is not YAML or does not describe an inventory.
    """
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Of the last two are a date that no calendar has, a number of thousands of digits, thousands of brackets.
        raise InventoryError(source, (f"is not YAML: {' '.join(str(error).split())}",)) from error
    if not isinstance(document, dict):
        raise InventoryError(source, ("must be a mapping with apiVersion, kind, cluster and racks",))
    try:
        return Inventory.model_validate(document)
    except ValidationError as error:
        raise InventoryError(source, tuple(_problem(item) for item in _root_causes(error.errors()))) from error


def expand(inventory: Inventory) -> tuple[NodeFacts, ...]:
    """One value per node, in file order."""
    return tuple(
        node
        for rack in inventory.racks
        for group in rack.node_groups
        for node in _group_nodes(inventory, rack, group, preset(group.preset))
    )


def _group_nodes(inventory: Inventory, rack: Rack, group: NodeGroup, facts: Preset) -> list[NodeFacts]:
    per_node = group.devices.per_node if group.devices.per_node is not None else facts.devices_per_node or 0
    resource = group.devices.resource or facts.extended_resource or ""
    device_memory = quantity(group.devices.memory) if group.devices.memory else 0
    if not device_memory and facts.device is not None:
        device_memory = facts.device.memory_bytes
    domains = _domains(rack, group, facts, per_node)
    faults = {fault.node: fault.fault for fault in group.faults}
    nodes = []
    for index, name in enumerate(group.names()):
        # Consecutive nodes share a domain, as consecutive trays of a rack do.
        domain = domains[index * len(domains) // group.count] if domains else None
        labels = node_labels(
            name=name,
            preset=facts,
            devices=per_node,
            device_memory_bytes=device_memory,
            cluster=inventory.cluster,
            rack=rack.name,
            region=inventory.region,
            zone=rack.zone or inventory.zone,
            block=rack.block,
            domain=domain,
        )
        nodes.append(
            NodeFacts(
                name=name,
                group=group.name,
                rack=rack.name,
                preset=facts.name,
                family=facts.family,
                cpu_millis=_millis(group.cpu),
                memory_bytes=quantity(group.memory) if group.memory else facts.host_memory_bytes or 0,
                ephemeral_storage_bytes=quantity(group.ephemeral_storage),
                max_pods=group.max_pods,
                architecture=architecture(facts),
                devices=tuple(
                    DeviceSlot(slot, f"GPU-{stable_uuid(inventory.cluster, name, str(slot))}", resource)
                    for slot in range(per_node)
                ),
                domain=domain,
                resources=MappingProxyType(dict(group.rdma)),
                labels=MappingProxyType({**labels, **inventory.labels, **rack.labels, **group.labels}),
                taints=tuple(Taint(taint.key, taint.value, taint.effect.value) for taint in group.taints),
                fault=faults.get(index),
            )
        )
    return nodes


def _domains(rack: Rack, group: NodeGroup, facts: Preset, per_node: int) -> tuple[str, ...]:
    """Names of the domains that span the group's nodes; empty when the fabric ends at the node."""
    size = facts.device.domain_devices if facts.device is not None else None
    if not size or per_node == 0 or size <= per_node:
        return ()
    if group.nvlink_domains is not None:
        return group.nvlink_domains
    needed = math.ceil(group.count * per_node / size)
    return tuple(f"{rack.name}-{group.name}-domain-{number}" for number in range(needed))


def _millis(cpu: str) -> int:
    return int(cpu.removesuffix("m")) if cpu.endswith("m") else quantity(cpu) * 1000


def _root_causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without "list is too short" where it only says that a bad item of the list did not count."""
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(other is not error and other["loc"][: len(error["loc"])] == error["loc"] for other in errors)
    ]


def _problem(error: ErrorDetails) -> str:
    # A bad key of a map is told apart from a bad value by a last part "[key]", which no reader needs.
    location = error["loc"][:-1] if error["loc"][-1:] == ("[key]",) else error["loc"]
    path = "".join(map(_step, location)).lstrip(".")
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key; {_remedy(error['loc'])}"
    if error["type"] == "missing":
        return f"{path}: is required; add it"
    if error["type"] == "too_short":
        return f"{path}: is empty; add at least one entry"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def _step(part: int | str) -> str:
    if isinstance(part, str) and part.isidentifier():
        return f".{part}"
    return f"[{part!r}]"


def _remedy(location: tuple[int | str, ...]) -> str:
    """What the writer of an unknown key probably meant."""
    known = _known_keys(location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Inventory
    for part in location:
        if isinstance(part, str):
            field = next(f for f in model.model_fields.values() if f.alias == part)
            model = _model_inside(field.annotation)
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_inside(annotation: Any) -> type[BaseModel]:
    """The one model class in an annotation such as `tuple[Rack, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_model_inside(part) for part in annotation.__args__ if part is not Ellipsis)
