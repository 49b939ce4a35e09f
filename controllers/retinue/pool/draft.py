"""What the plan of a pool has decided so far."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from retinue.conditions import Reason
from retinue.placement.pack import NoFit
from retinue.plan import Apply, Delete, Event, EventType, earliest
from retinue.pool.snapshot import PodView


@dataclass
class Draft:
    """Collects the parts of a Plan; the sets and mappings are keyed by instance name."""

    apply: list[Apply] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    requeue: float | None = None
    restarted: dict[str, str] = field(default_factory=dict)
    unplaced: list[NoFit] = field(default_factory=list)
    removed: set[str] = field(default_factory=set)
    drained: set[str] = field(default_factory=set)
    reclaimed: set[str] = field(default_factory=set)
    told_later: bool = False
    """Pods are made or released: what the status says of them is true only when they are there."""

    def say(self, reason: Reason, message: str, warning: bool = False, writes: Iterable[str] = ()) -> None:
        type_ = EventType.WARNING if warning else EventType.NORMAL
        self.events.append(Event(type_, reason.value, message, tuple(writes)))

    def again(self, delay: float) -> None:
        self.requeue = earliest(self.requeue, max(0.05, delay))

    def remove(self, pods: Iterable[PodView], namespace: str) -> None:
        for pod in pods:
            removal = Delete("v1", "Pod", namespace, pod.name, pod.uid)
            if not pod.deleting and removal not in self.delete:
                self.delete.append(removal)
