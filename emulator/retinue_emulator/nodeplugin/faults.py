"""The annotation `retinue.dev/fault`: what a node or a pod is told to suffer from, until the annotation goes."""

from __future__ import annotations

from dataclasses import dataclass

from retinue.api.units import seconds


class FaultError(ValueError):
    """A fault annotation that says nothing this plugin can do; the message lists what it can."""


@dataclass(frozen=True)
class NodeFaults:
    """Faults of a node.

    down: the machine is off, and the control plane has noticed (condition Ready is Unknown at once).
    silent: the machine is off; the control plane finds out by the missing lease (about 45 s).
    unhealthy: indexes of broken devices.
    """

    down: bool = False
    silent: bool = False
    unhealthy: frozenset[int] = frozenset()

    @property
    def off(self) -> bool:
        """Nothing runs on the node."""
        return self.down or self.silent


@dataclass(frozen=True)
class PodFaults:
    """Faults of a pod.

    crash: its container exits with 1 once, as soon as the annotation appears.
    crash_loop: its container exits with 1 right after each start.
    image_pull: its image cannot be pulled.
    slow_start_seconds: model seconds that are added to each start.
    hang: its engine takes requests and produces nothing, and fails its probes.
    metrics_gone: its engine serves no series on /metrics.
    """

    crash: bool = False
    crash_loop: bool = False
    image_pull: bool = False
    slow_start_seconds: float = 0.0
    hang: bool = False
    metrics_gone: bool = False


NODE_FAULTS = "down, silent, device-unhealthy=<index>[+<index>...]"
POD_FAULTS = "crash, crash-loop, image-pull, slow-start=<duration>, hang, metrics-gone"


def parse_node_faults(text: str) -> NodeFaults:
    """Reads a comma-separated list such as `device-unhealthy=3` or `down`; empty means healthy.

    Raises:
        FaultError: an unknown fault or a bad value.
    """
    faults = NodeFaults()
    for name, value in _items(text):
        match name, value:
            case "down", "":
                faults = NodeFaults(True, faults.silent, faults.unhealthy)
            case "silent", "":
                faults = NodeFaults(faults.down, True, faults.unhealthy)
            case "device-unhealthy", indexes if all(index.isdigit() for index in indexes.split("+")):
                broken = frozenset(int(index) for index in indexes.split("+"))
                faults = NodeFaults(faults.down, faults.silent, faults.unhealthy | broken)
            case _:
                raise FaultError(f"{text!r} is not a node fault; use {NODE_FAULTS}")
    return faults


def parse_pod_faults(text: str) -> PodFaults:
    """Reads a comma-separated list such as `slow-start=30s,metrics-gone`; empty means healthy.

    Raises:
        FaultError: an unknown fault or a bad value.
    """
    flags = {"crash": False, "crash-loop": False, "image-pull": False, "hang": False, "metrics-gone": False}
    slow = 0.0
    for name, value in _items(text):
        if name in flags and not value:
            flags[name] = True
        elif name == "slow-start":
            try:
                slow = seconds(value)
            except ValueError as error:
                raise FaultError(f"{text!r}: {error}") from error
        else:
            raise FaultError(f"{text!r} is not a pod fault; use {POD_FAULTS}")
    return PodFaults(
        crash=flags["crash"],
        crash_loop=flags["crash-loop"],
        image_pull=flags["image-pull"],
        slow_start_seconds=slow,
        hang=flags["hang"],
        metrics_gone=flags["metrics-gone"],
    )


def _items(text: str) -> list[tuple[str, str]]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [(name, value) for name, _, value in (part.partition("=") for part in parts)]
