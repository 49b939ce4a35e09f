"""What many pods hold, summed up as they come and go: a plan must not read thousands of pods to place a few."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from retinue.nodeclass.nodes import Hold


@dataclass(frozen=True, order=True)
class Promise:
    """Pods that were released and are not bound to a node yet: where they may go and what each takes, by name."""

    node_class: str
    domain: str
    requests: tuple[tuple[str, int], ...]


class Sums:
    """Holds by node, and how many pods have the same promise."""

    def __init__(self, holds: Iterable[Hold] = ()) -> None:
        self.used: dict[str, dict[str, int]] = {}
        """What is taken by node and resource."""
        self.promised: Counter[Promise] = Counter()
        for hold in holds:
            self.add(hold)

    def add(self, hold: Hold) -> None:
        """Counts one more."""
        self._count(hold, 1)

    def subtract(self, hold: Hold) -> None:
        """Takes one that was added out again."""
        self._count(hold, -1)

    def _count(self, hold: Hold, sign: int) -> None:
        if hold.node is None:
            promise = Promise(hold.node_class, hold.domain or "", tuple(sorted(hold.requests.items())))
            self.promised[promise] += sign
            if not self.promised[promise]:
                del self.promised[promise]
            return
        used = self.used.setdefault(hold.node, {})
        for name, amount in hold.requests.items():
            used[name] = used.get(name, 0) + sign * amount
            if not used[name]:
                del used[name]
        if not used:
            del self.used[hold.node]


class HoldBook(Collection[Hold]):
    """The holds of pods by a key of the caller's, with their sums; snapshots read it, only its owner changes it."""

    def __init__(self) -> None:
        self._holds: dict[str, Hold] = {}
        self.sums = Sums()

    def put(self, key: str, hold: Hold | None) -> None:
        """The hold under this key is now `hold`; None = nothing."""
        old = self._holds.pop(key, None)
        if old is not None:
            self.sums.subtract(old)
        if hold is not None:
            self._holds[key] = hold
            self.sums.add(hold)

    def __iter__(self) -> Iterator[Hold]:
        return iter(self._holds.values())

    def __len__(self) -> int:
        return len(self._holds)

    def __contains__(self, hold: object) -> bool:
        return hold in self._holds.values()


def sums_of(holds: Iterable[Hold]) -> Sums:
    """The sums of any holds; those of a book are there already."""
    return holds.sums if isinstance(holds, HoldBook) else Sums(holds)


def without(offers: Mapping[str, int], taken: Mapping[str, int] | None) -> dict[str, int]:
    """What is left of an offer; below zero where more is taken than was offered."""
    if not taken:
        return dict(offers)
    return {**offers, **{name: offers.get(name, 0) - amount for name, amount in taken.items()}}
