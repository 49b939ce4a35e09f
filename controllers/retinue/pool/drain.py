"""Ends drains: keeps their pods marked, and deletes an instance once nothing is in flight."""

from collections.abc import Iterable

from retinue.api.pool import InstancePhase
from retinue.api.units import seconds
from retinue.conditions import Reason, timestamp
from retinue.plan import Apply, Manager
from retinue.pool.build import build_marks
from retinue.pool.draft import Draft
from retinue.pool.instances import Instance
from retinue.pool.snapshot import PoolSnapshot

DRAIN_POLL_SECONDS = 1.0
DRAIN_SETTLE_SECONDS = 2.0
"""Routers learn of an unroutable pod by watch: a drain is not over before they surely have."""


def finish_drains(snapshot: PoolSnapshot, instances: Iterable[Instance], draft: Draft, now: float) -> None:
    """Deletes a drained instance once nothing is in flight on it, or its time is up."""
    timeout = seconds(snapshot.pool.spec.drain.timeout)
    for instance in instances:
        if (
            instance.phase != InstancePhase.DRAINING
            or instance.drain_started is None
            or instance.failure
            or instance.lost
        ):
            continue
        if instance.name in draft.reclaimed:
            continue
        elapsed = now - instance.drain_started
        in_flight = snapshot.in_flight.get(instance.name)
        if elapsed >= timeout:
            left = "unknown" if in_flight is None else str(in_flight)
            draft.say(Reason.DRAIN_TIMED_OUT, f"{instance.name} still had {left} requests after {timeout:.0f}s", True)
        elif elapsed < DRAIN_SETTLE_SECONDS or (in_flight != 0 and instance.ready_pods > 0):
            _mark_all(snapshot, instance, instance.drain_started, draft)
            draft.again(DRAIN_POLL_SECONDS)
            continue
        else:
            draft.say(Reason.DRAINED, f"{instance.name} drained in {elapsed:.0f}s")
        draft.remove(instance.pods, snapshot.pool.metadata.namespace)
        draft.removed.add(instance.name)


def _mark_all(snapshot: PoolSnapshot, instance: Instance, started: float, draft: Draft) -> None:
    for pod in instance.pods:
        if not pod.deleting:
            draft.apply.append(Apply(build_marks(snapshot, pod, timestamp(started)), Manager.INSTANCE))
