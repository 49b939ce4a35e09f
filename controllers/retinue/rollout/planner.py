"""One step of scaling and rolling replacement, from what is observed alone, so that a restart changes nothing.

The step keeps two promises. At most ``replicas + surge`` instances exist, counting those that drain, while an old
revision is being replaced. And no ready instance is drained below ``replicas - unavailable`` ready ones. Instances of
the current revision that still drain are taken back before new ones are made: their cache is warm. An old instance that
served until a moment ago is waited for, because it holds a cache and streams, until enough others are ready.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retinue.api.pool import InstancePhase


@dataclass(frozen=True)
class Candidate:
    """One instance as the planner sees it.

    `current`: it has the wanted revision. `sessions` and `cached_tokens` say what would be lost with it; None when
    that is not known. `created` is in seconds since the epoch. `faltering`: not ready, but it was a moment ago.
    """

    name: str
    phase: InstancePhase
    current: bool
    sessions: int | None = None
    cached_tokens: int | None = None
    created: float = 0.0
    index: int = 0
    faltering: bool = False

    @property
    def live(self) -> bool:
        return self.phase in (InstancePhase.PENDING, InstancePhase.STARTING, InstancePhase.READY)

    @property
    def ready(self) -> bool:
        return self.phase == InstancePhase.READY


@dataclass(frozen=True)
class Step:
    """What to do now: how many instances to create, and which to take back, to drain and to remove undrained."""

    create: int = 0
    reclaim: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()

    @property
    def idle(self) -> bool:
        return self == Step()


def next_step(replicas: int, surge: int, unavailable: int, instances: Iterable[Candidate]) -> Step:
    """The next step towards `replicas` instances of the current revision; `Step()` when there is nothing to do."""
    known = tuple(instance for instance in instances if instance.phase != InstancePhase.GONE)
    live = [instance for instance in known if instance.live]
    updated = [instance for instance in live if instance.current]
    old = [instance for instance in live if not instance.current]
    # An old instance that does not serve has nothing to lose and may hold the devices that a new one needs.
    idle = [instance for instance in old if not instance.ready and not instance.faltering]
    missing = max(0, replicas - len(updated))
    reclaim = _reclaimable(known)[:missing]
    create = missing - len(reclaim)
    if any(not instance.current for instance in known):
        create = min(create, replicas + surge - (len(known) - len(idle)))
    surplus = victims(updated)[: max(0, len(updated) - replicas)]
    spare = sum(instance.ready for instance in live) - max(0, replicas - unavailable)
    leaving = [*victims(i for i in old if i.ready), *(i for i in surplus if i.ready)]
    needless = [i for i in old if i.faltering] if spare >= 0 else []
    return Step(
        create=max(0, create),
        reclaim=tuple(i.name for i in reclaim),
        drain=tuple(i.name for i in (*needless, *leaving[: max(0, spare)])),
        remove=tuple(i.name for i in (*idle, *(i for i in surplus if not i.ready))),
    )


def victims(instances: Iterable[Candidate]) -> list[Candidate]:
    """The instances in the order in which they should go: what serves nothing first, then what is cheapest to lose.

    Order: not ready before ready; outdated before current; fewest sessions; least cached tokens; youngest; highest
    index. What is not known sorts after what is known, because it may be worth something.
    """
    infinity = float("inf")
    return sorted(
        instances,
        key=lambda i: (
            i.ready,
            i.current,
            infinity if i.sessions is None else i.sessions,
            infinity if i.cached_tokens is None else i.cached_tokens,
            -i.created,
            -i.index,
        ),
    )


def _reclaimable(known: Sequence[Candidate]) -> list[Candidate]:
    draining = [i for i in known if i.phase == InstancePhase.DRAINING and i.current]
    return list(reversed(victims(draining)))
