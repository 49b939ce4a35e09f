"""The inventory file: racks, node groups, devices, NVLink domains, taints and faults of an emulated cluster."""

from .facts import DeviceSlot, NodeFacts, Taint
from .load import InventoryError, example_inventory, example_names, expand, load_inventory, parse_inventory
from .model import Inventory

__all__ = [
    "DeviceSlot",
    "Inventory",
    "InventoryError",
    "NodeFacts",
    "Taint",
    "example_inventory",
    "example_names",
    "expand",
    "load_inventory",
    "parse_inventory",
]
