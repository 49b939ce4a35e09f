"""What is free where: nodes of a class minus what pods hold or were promised."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from retinue.nodeclass.nodes import Hold, Node
from retinue.nodeclass.resolve import ResolvedClass
from retinue.placement.room import Room

MEMORY = "memory"


@dataclass(frozen=True)
class Free:
    """One node that the class accepts, and what it can still give (whole units; memory in bytes)."""

    node: Node
    free: Mapping[str, int]


def free_capacity(class_: ResolvedClass, nodes: Iterable[Node], holds: Iterable[Hold]) -> tuple[Free, ...]:
    """Free capacity of the class's nodes, ordered by name; see `Room` for how pods are charged."""
    return free_in(Room(class_, nodes, holds))


def free_in(room: Room) -> tuple[Free, ...]:
    """What each node of a room has left, ordered by name."""
    return tuple(Free(node, room.free(node.name)) for node in room.members.accepted)
