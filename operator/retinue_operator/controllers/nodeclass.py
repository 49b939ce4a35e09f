"""Reconciles NodeClasses: their status follows nodes and what pods hold on them."""

from collections.abc import Iterable

from retinue.api import NodeClass
from retinue.nodeclass.plan import NodeClassSnapshot, plan
from retinue.plan import Key, Manifest, Plan
from retinue_operator.controller import EVERY, World
from retinue_operator.controllers.observe import fleet, parse


class NodeClassController:
    """One NodeClass at a time; every node and every pod that takes devices concerns all of them."""

    kind = "NodeClass"

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
            return None
        seen = fleet(world.cache)
        return plan(
            NodeClassSnapshot(
                node_class=object_,
                nodes=seen.nodes,
                holds=seen.holds,
                others={name: class_ for name, class_ in seen.classes.items() if name != key.name},
            ),
            world.now(),
        )
