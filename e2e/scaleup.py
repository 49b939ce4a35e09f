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
        times |= written(world.kind.audit_log, namespace, pod["metadata"]["name"], created, ready)
    seconds, before = {}, _epoch(decision)
    for stage in STAGES:
        now = max(_epoch(times[stage]), before)
        seconds[stage] = now - before
        before = now
    return ScaleUp(pod["metadata"]["labels"]["retinue.dev/instance"], seconds)


def written(log: Path, namespace: str, pod: str, created: str, ready: str) -> dict[str, str]:
    """When the API server was asked for three of the stages; `created` and `ready` are what the pod itself says.

    A request comes before the second that its object names as that of its making, if only by a moment: so the pod's
    making is the last request for it that came no later than that second. Raises LookupError when one is missing.
    """
    writes = [
        event
        for event in read_events(log)
        if (event.resource, event.namespace, event.name) == ("pods", namespace, pod) and event.code < 300
    ]
    # A pod is made by an apply that answers 201.
    made = max(
        (
            w.time
            for w in writes
            if w.code == 201 and w.field_manager == "retinue" and _second(w.time) <= _second(created)
        ),
        default="",
    )
    if not made:
        raise LookupError(f"none of {len(writes)} writes of pod {namespace}/{pod} in {log} made it at {created}")
    later = [w for w in writes if w.time > made]
    return {
        "pod made in its place": made,
        "scheduled": _first((w for w in later if w.subresource == "binding"), pod, "binds"),
        "engine ready": _first(
            (w for w in later if w.subresource == "status" and _second(w.time) >= _second(ready)), pod, "shows as ready"
        ),
    }


def _second(time: str) -> str:
    """A time without fractions of a second and zone, which statuses have in whole seconds; sorts like the time."""
    return time[: len("2026-01-01T00:00:00")]


def _first(writes: Iterable[AuditEvent], pod: str, does: str) -> str:
    """When the first of them came; LookupError when there is none."""
    for write in writes:
        return write.time
    raise LookupError(f"no write in the audit log {does} pod {pod}")


def _epoch(time: str) -> float:
    return datetime.datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp()
