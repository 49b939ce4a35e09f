"""Which devices to give together: the fewest link groups, and of those the ones that leave whole groups to others."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from .nodedevices import PluginDevice


def preferred(
    devices: Iterable[PluginDevice],
    *,
    available: Collection[str],
    must: Collection[str],
    size: int,
    cut: Collection[str] = frozenset(),
) -> tuple[str, ...]:
    """Ids of `size` devices out of `available`, all of `must` among them, in index order.

    A group with a device in `must` goes first. Then the smallest group that can hold all that is still wanted, so that
    larger groups stay whole; when none can, the largest. A device in `cut` has lost its links and is a group of its
    own. Fewer ids than `size` come back only when fewer are available.
    """
    known = [device for device in devices if device.id in available]
    chosen = {device.id for device in known if device.id in must}
    groups: dict[tuple[int, str], list[str]] = {}
    for device in known:
        groups.setdefault((device.group, device.id if device.id in cut else ""), []).append(device.id)
    begun = [group for group in groups.values() if chosen.intersection(group)]
    for candidates in (begun, list(groups.values())):
        chosen |= _fill([[id for id in group if id not in chosen] for group in candidates], size - len(chosen))
    return tuple(device.id for device in known if device.id in chosen)


def _fill(groups: list[list[str]], wanted: int) -> set[str]:
    """At most `wanted` ids, from as few groups as possible."""
    taken: set[str] = set()
    left = [group for group in groups if group]
    while left and len(taken) < wanted:
        rest = wanted - len(taken)
        # min and max take the first of equals, which keeps the choice the same from call to call.
        fitting = [group for group in left if len(group) >= rest]
        group = min(fitting, key=len) if fitting else max(left, key=len)
        taken.update(group[:rest])
        left.remove(group)
    return taken
