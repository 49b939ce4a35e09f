"""Groups a pool's pods into instances and says what state each is in."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from retinue.api.pool import InstancePhase, InstanceStatus
from retinue.conditions import epoch_or_none
from retinue.nodeclass.nodes import Node, by_name
from retinue.pool.containers import Obstacle
from retinue.pool.snapshot import PodView

UNSCHEDULABLE_SECONDS = 60.0
"""How long a released pod may find no node before its instance is taken back and placed anew."""

NODE_LOST_SECONDS = 30.0
"""How long a node may be NotReady before its instances are replaced; the node controller has waited before that."""

FALTER_SECONDS = 60.0
"""How long an instance that was ready and is not any more counts as one that may come back, in a rollout."""

_INDEX = re.compile(r"-(\d+)$")


@dataclass(frozen=True)
class Instance:
    """One instance: its pods, what is remembered of it, and its state.

    `failure` says why the whole instance must be restarted in its place, `lost` why it must be replaced by another;
    `unhealthy` names a broken device that it holds: it may still serve, so another one is made before it drains.
    `obstacle` says why its containers cannot be started; `unready_since` when one that served stopped serving.
    `going` means that all its pods are being deleted.
    """

    name: str
    index: int
    pods: tuple[PodView, ...]
    expected_pods: int
    revision: str
    node_class: str
    phase: InstancePhase
    restarts: int = 0
    last_restart: float = 0.0
    drain_started: float | None = None
    failure: str | None = None
    lost: str | None = None
    unhealthy: str | None = None
    obstacle: Obstacle | None = None
    unready_since: float | None = None
    going: bool = False
    remembered: InstanceStatus | None = field(default=None, compare=False)

    @property
    def gated(self) -> bool:
        """All its pods exist and one at least waits behind the placement gate."""
        return len(self.pods) == self.expected_pods and any(pod.gated for pod in self.pods)

    @property
    def incomplete(self) -> bool:
        """It was never released and lacks pods: creation was interrupted, or it waits to be started again."""
        return len(self.pods) < self.expected_pods and all(pod.gated for pod in self.pods)

    @property
    def ready_pods(self) -> int:
        return sum(pod.ready for pod in self.pods)

    @property
    def hidden(self) -> bool:
        """It serves, but somebody has taken the label away by which routers find it."""
        serves = self.phase == InstancePhase.READY and not (self.failure or self.lost)
        return serves and not all(pod.routable for pod in self.pods)

    @property
    def created(self) -> float:
        return min((pod.created for pod in self.pods), default=0.0)

    @property
    def domain(self) -> str | None:
        return next((pod.domain for pod in self.pods if pod.domain), None)


def lost_nodes(pods: Iterable[PodView], nodes: Iterable[Node], now: float) -> dict[str, str]:
    """Nodes on which pods were placed and that are gone or NotReady for long, with a sentence about each.

    The pods there end only when the node comes back or is removed, so nothing can be started again in their place.
    """
    known = by_name(nodes)
    lost: dict[str, str] = {}
    for name in {pod.node for pod in pods if pod.node is not None}:
        node = known.get(name)
        if node is None:
            lost[name] = f"node {name} is gone"
        elif node.not_ready_since is not None and now - node.not_ready_since >= NODE_LOST_SECONDS:
            lost[name] = f"node {name} is NotReady for {now - node.not_ready_since:.0f}s"
    return lost


def group(
    pods: Iterable[PodView],
    remembered: Iterable[InstanceStatus],
    expected: Mapping[str, int],
    lost: Mapping[str, str],
    now: float,
) -> tuple[Instance, ...]:
    """The pool's instances by index.

    `expected` is the number of pods per instance on each node class, for pods that do not say it themselves; `lost`
    what `lost_nodes` found. `remembered` is the status of the last reconcile: an instance without pods is kept only
    while it waits to be restarted.
    """
    members: dict[str, list[PodView]] = {}
    for pod in pods:
        members.setdefault(pod.instance, []).append(pod)
    memory = {record.name: record for record in remembered}
    waiting = {name for name, record in memory.items() if name not in members and _awaits_restart(record)}
    found = [
        _instance(name, tuple(members.get(name, ())), memory.get(name), expected, lost, now)
        for name in {*members, *waiting}
        if name
    ]
    return tuple(sorted(found, key=lambda instance: (instance.index, instance.name)))


def instance_name(pool: str, kind: str, index: int) -> str:
    return f"{pool}-{kind}-{index}"


def pod_name(instance: str, rank: int) -> str:
    return f"{instance}-{rank}"


def free_indexes(instances: Iterable[Instance], count: int) -> list[int]:
    """The `count` smallest indexes that no instance has."""
    taken = {instance.index for instance in instances}
    found: list[int] = []
    index = 0
    while len(found) < count:
        if index not in taken:
            found.append(index)
        index += 1
    return found


def _instance(
    name: str,
    pods: tuple[PodView, ...],
    record: InstanceStatus | None,
    expected: Mapping[str, int],
    lost_nodes: Mapping[str, str],
    now: float,
) -> Instance:
    pods = tuple(sorted(pods, key=lambda pod: pod.rank))
    node_class = pods[0].node_class if pods else (record.node_class or "" if record else "")
    # By its own pods, not by the spec of today: one of another size serves on until it is replaced.
    wanted = max((pod.world_size for pod in pods), default=0) or expected.get(node_class, max(len(pods), 1))
    draining = min((pod.drain_started for pod in pods if pod.drain_started is not None), default=None)
    restarted = epoch_or_none(record.last_restart) if record else None
    going = bool(pods) and all(pod.deleting for pod in pods)
    lost = next((lost_nodes[pod.node] for pod in pods if pod.node is not None and pod.node in lost_nodes), None)
    failure = None if going or lost else _failure(pods, wanted, now)
    match = _INDEX.search(name)
    return Instance(
        name=name,
        index=int(match.group(1)) if match else 0,
        pods=pods,
        expected_pods=wanted,
        revision=pods[0].revision if pods else (record.revision if record else ""),
        node_class=node_class,
        phase=_phase(pods, wanted, draining is not None, going, _awaits_restart(record) and not lost),
        restarts=record.restarts if record else 0,
        # What lies ahead was written by somebody else, or before a clock was set back: nothing waits for it.
        last_restart=min(restarted or 0.0, now),
        drain_started=None if draining is None else min(draining, now),
        failure=failure,
        lost=None if going else lost,
        unhealthy=None if going or lost else _unhealthy(pods),
        obstacle=None if going or lost or failure else next((pod.obstacle for pod in pods if pod.obstacle), None),
        unready_since=max((pod.unready_since for pod in pods if pod.unready_since is not None), default=None),
        going=going,
        remembered=record,
    )


def _awaits_restart(record: InstanceStatus | None) -> bool:
    """Its pods were taken down to be started again, so it still counts as one of the pool's instances."""
    return record is not None and record.phase == InstancePhase.PENDING and record.restarts > 0


def _phase(pods: tuple[PodView, ...], wanted: int, draining: bool, going: bool, restarting: bool) -> InstancePhase:
    if going:
        return InstancePhase.PENDING if restarting else InstancePhase.GONE
    if draining:
        return InstancePhase.DRAINING
    if len(pods) < wanted or any(pod.gated or pod.node is None for pod in pods):
        return InstancePhase.PENDING
    if all(pod.ready for pod in pods):
        return InstancePhase.READY
    return InstancePhase.STARTING


def _failure(pods: tuple[PodView, ...], wanted: int, now: float) -> str | None:
    for pod in pods:
        if pod.phase == "Failed":
            return f"pod {pod.name} failed: {pod.message or 'no reason given'}"
        if pod.phase == "Succeeded":
            return f"pod {pod.name} ended although an engine must run"
        if pod.deleting:
            return f"pod {pod.name} is being deleted while its instance still runs"
    released = [pod for pod in pods if not pod.gated]
    if released and len(pods) < wanted:
        missing = sorted(set(range(wanted)) - {pod.rank for pod in pods})
        return f"pod of rank {', '.join(map(str, missing))} is gone"
    if released and len(released) < len(pods):
        return None
    since = [pod.unschedulable_since for pod in released if pod.node is None and pod.unschedulable_since is not None]
    if since and now - min(since) >= UNSCHEDULABLE_SECONDS:
        return f"pod {released[0].name} found no node for {UNSCHEDULABLE_SECONDS:.0f}s after it was placed"
    return None


def _unhealthy(pods: tuple[PodView, ...]) -> str | None:
    return next((f"{pod.unhealthy} on node {pod.node} is unhealthy" for pod in pods if pod.unhealthy), None)
