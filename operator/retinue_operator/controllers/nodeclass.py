"""Reconciles NodeClasses: their status follows nodes and what pods hold on them."""

from collections.abc import Iterable

from retinue.api import NodeClass
from retinue.nodeclass.plan import NodeClassSnapshot, plan
from retinue.plan import Key, Manifest, Plan
from retinue_operator.controller import EVERY, World
from retinue_operator.controllers.fleet import fleet
from retinue_operator.controllers.observe import parse

CALM_SECONDS = 1.0
"""What is free changes with every pod: a thousand pods that come must not be a thousand statuses of their class."""


class NodeClassController:
    """One NodeClass at a time; every node and every pod that takes devices concerns all of them."""

    kind = "NodeClass"

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, float]] = {}

    def keys_for(self, kind: str, obj: Manifest) -> Iterable[Key]:
        """Nodes change what a class has, pods what is free, other classes what overlaps.

        The claim template that says what a pod holds is there before the pod and does not change.
        """
        del obj
        return [Key("NodeClass", "", EVERY)] if kind in ("Node", "Pod", "NodeClass") else []

    async def reconcile(self, key: Key, world: World) -> Plan | None:
        """The class's status."""
        object_ = parse(NodeClass, world.cache.get("NodeClass", "", key.name))
        if object_ is None:
            self._last.pop(key.name, None)
            return None
        now = world.now()
        generation, last = self._last.get(key.name, (-1, 0.0))
        if generation == object_.metadata.generation and 0 <= now - last < CALM_SECONDS:
            return Plan(requeue_after=CALM_SECONDS - (now - last))
        self._last[key.name] = object_.metadata.generation, now
        seen = fleet(world.cache)
        return plan(
            NodeClassSnapshot(
                node_class=object_,
                nodes=seen.nodes,
                holds=seen.holds,
                others={name: class_ for name, class_ in seen.classes.items() if name != key.name},
            ),
            now,
        )
