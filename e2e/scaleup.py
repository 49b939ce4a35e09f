"""Where the time goes between a decision to grow and an instance that is ready, from timestamps in the cluster."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from retinue_emulator.loopback.audit import AuditEvent, read_events

from .manifests import Object
from .world import World, condition

STAGES = ("pod made in its place", "scheduled", "container started", "engine ready")
"""In this order, each counted from the end of the one before; the first from the decision."""


@dataclass(frozen=True)
class ScaleUp:
    """One instance that a decision made: seconds of each stage."""

    instance: str
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """From the decision until the engine is ready."""
        return sum(self.seconds.values())


def scale_up(world: World, namespace: str, pod: Object, decision: str) -> ScaleUp:
    """The stages of a one-pod instance; `decision`: the time of the AgentPool's event that grew its pool.

    Writes are to the microsecond where there is an audit log; what the kubelet says is to the second, so that a stage
    may seem up to a second longer or shorter than it was. None is below zero.
    """
    status = pod["status"]
    created = pod["metadata"]["creationTimestamp"]
    scheduled = condition(pod, "PodScheduled")["lastTransitionTime"]
    ready = condition(pod, "Ready")["lastTransitionTime"]
    times = {
        "pod made in its place": created,
        "scheduled": scheduled,
        "container started": status["containerStatuses"][0]["state"]["running"]["startedAt"],
        "engine ready": ready,
    }
    if world.kind is not None:
        writes = _writes(world.kind.audit_log, namespace, pod["metadata"]["name"], created)
        # A pod is made by an apply that answers 201.
        times["pod made in its place"] = _first(w for w in writes if w.code == 201 and w.field_manager == "retinue")
        times["scheduled"] = _first(w for w in writes if w.subresource == "binding")
        times["engine ready"] = _first(w for w in writes if w.subresource == "status" and not _before(w, ready))
    seconds, before = {}, _epoch(decision)
    for stage in STAGES:
        now = max(_epoch(times[stage]), before)
        seconds[stage] = now - before
        before = now
    return ScaleUp(pod["metadata"]["labels"]["retinue.dev/instance"], seconds)


def _writes(log: Path, namespace: str, pod: str, since: str) -> list[AuditEvent]:
    """Successful writes of a pod since a time, oldest first."""
    return [
        event
        for event in read_events(log)
        if (event.resource, event.namespace, event.name) == ("pods", namespace, pod)
        and event.code < 300
        and not _before(event, since)
    ]


def _before(event: AuditEvent, second: str) -> bool:
    """Whether the event is older than a time of a status, which is without fractions of a second."""
    return event.time < second.removesuffix("Z")


def _first(writes: Iterable[AuditEvent]) -> str:
    """When the first of them came. Raises StopIteration when there is none."""
    return next(write.time for write in writes)


def _epoch(time: str) -> float:
    return datetime.datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()
