"""What a hit rate saves on input tokens, and what nodes and shares of nodes cost per hour."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


def input_cost_ratio(hit: float, write_premium: float = 1.0, hit_discount: float = 0.9) -> float:
    """Input bill relative to the same prompts without any cache: (1 - h) x w + h x (1 - d).

    Args:
        hit: token-weighted hit rate, 0..1.
        write_premium: price of an uncached token relative to the list price (some providers charge 1.25 for a write).
        hit_discount: discount on a cached token, 0..1.

    Raises:
        ValueError: `hit` or `hit_discount` outside 0..1, or a negative premium.
    """
    if not 0 <= hit <= 1:
        raise ValueError(f"hit rate must lie in 0..1, got {hit}")
    if not 0 <= hit_discount <= 1:
        raise ValueError(f"hit discount must lie in 0..1, got {hit_discount}")
    if write_premium < 0:
        raise ValueError(f"write premium must not be negative, got {write_premium}")
    return (1 - hit) * write_premium + hit * (1 - hit_discount)


@dataclass(frozen=True)
class NodeShare:
    """What one pod takes of a node: some of its devices, or all of it where the class has no devices."""

    cost_per_node_hour: float
    devices: int
    devices_per_node: int


def share_cost_per_hour(share: NodeShare) -> float:
    """Cost per hour of a share: by devices, because devices are what runs out first on an accelerator node.

    A class without devices (CPU) is charged as a whole node.
    """
    if share.devices_per_node <= 0:
        return share.cost_per_node_hour
    return share.cost_per_node_hour * share.devices / share.devices_per_node


def cost_per_hour(shares: Iterable[NodeShare]) -> float:
    """Sum of the shares' costs per hour."""
    return sum(share_cost_per_hour(share) for share in shares)
