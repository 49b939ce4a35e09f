"""Computes a pod's status from the states of its containers, by the rules of a kubelet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from .containerstate import ContainerState, JsonObject, Terminated, Waiting, container_status, timestamp


class RestartPolicy(StrEnum):
    """When a container that ended is started again."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"

    def restarts(self, exit_code: int) -> bool:
        """Whether a container that ended with this code runs again."""
        return self is RestartPolicy.ALWAYS or (self is RestartPolicy.ON_FAILURE and exit_code != 0)


class Phase(StrEnum):
    """A pod's phase."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def final(self) -> bool:
        """Nothing of the pod runs, and never will again."""
        return self in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class Failure:
    """Why the whole pod failed, beyond what its containers did: refused by the node."""

    reason: str
    message: str


@dataclass(frozen=True)
class PodView:
    """All that the status is computed from. `ending`: the pod was deleted, so containers are not started again."""

    pod: JsonObject
    host_ip: str
    pod_ip: str | None
    started: datetime
    init: tuple[ContainerState, ...]
    containers: tuple[ContainerState, ...]
    failure: Failure | None = None
    ending: bool = False


def restart_policy(pod: JsonObject) -> RestartPolicy:
    """The pod's restart policy."""
    return RestartPolicy(pod["spec"].get("restartPolicy", "Always"))


def phase_of(view: PodView) -> Phase:
    """The pod's phase."""
    if view.failure is not None:
        return Phase.FAILED
    policy = RestartPolicy.NEVER if view.ending else restart_policy(view.pod)
    if any(
        isinstance(c.now, Terminated) and not policy.restarts(c.now.exit_code) and c.now.exit_code for c in view.init
    ):
        return Phase.FAILED
    if all(isinstance(c.now, Terminated) for c in view.containers):
        codes = [c.now.exit_code for c in view.containers if isinstance(c.now, Terminated)]
        if any(policy.restarts(code) for code in codes):
            return Phase.RUNNING
        return Phase.FAILED if any(codes) else Phase.SUCCEEDED
    if any(isinstance(c.now, Waiting) and c.last is None for c in view.containers):
        return Phase.PENDING
    return Phase.RUNNING


def pod_status(view: PodView, now: datetime) -> JsonObject:
    """The status as the API server should store it, without the conditions that others write."""
    phase = phase_of(view)
    status: JsonObject = {
        "phase": phase.value,
        "hostIP": view.host_ip,
        "hostIPs": [{"ip": view.host_ip}],
        "startTime": timestamp(view.started),
        "conditions": _conditions(view, phase, now),
        "containerStatuses": _statuses(view.pod, "containers", view.containers),
    }
    if generation := view.pod["metadata"].get("generation"):
        status["observedGeneration"] = generation
    if view.init:
        status["initContainerStatuses"] = _statuses(view.pod, "initContainers", view.init)
    if view.pod_ip is not None:
        status["podIP"] = view.pod_ip
        status["podIPs"] = [{"ip": view.pod_ip}]
    if view.failure is not None:
        status["reason"] = view.failure.reason
        status["message"] = view.failure.message
    return status


def _statuses(pod: JsonObject, field: str, states: Iterable[ContainerState]) -> list[JsonObject]:
    by_name = {container["name"]: container for container in pod["spec"].get(field, [])}
    return [container_status(state, by_name[state.name], pod["metadata"]["uid"]) for state in states]


def _conditions(view: PodView, phase: Phase, now: datetime) -> list[JsonObject]:
    known = {condition["type"]: condition for condition in view.pod.get("status", {}).get("conditions", [])}
    initialized = all(c.succeeded for c in view.init) or _any_started(view.containers)
    uninitialized = "" if initialized else _listed("incomplete", (c.name for c in view.init if not c.succeeded))
    facts = {
        "PodReadyToStartContainers": _Fact(view.pod_ip is not None and not phase.final),
        "Initialized": _Fact(initialized, "" if initialized else "ContainersNotInitialized", uninitialized),
        "ContainersReady": _containers_ready(view, phase),
        "Ready": _ready(view, phase, known),
    }
    return [_condition(kind, fact, known.get(kind), now) for kind, fact in facts.items()]


@dataclass(frozen=True)
class _Fact:
    """Whether a condition holds, and why not."""

    true: bool
    reason: str = ""
    message: str = ""


def _containers_ready(view: PodView, phase: Phase) -> _Fact:
    if phase.final:
        return _Fact(False, "PodCompleted" if phase is Phase.SUCCEEDED else "PodFailed")
    unready = [c.name for c in view.containers if not c.ready]
    return _Fact(False, "ContainersNotReady", _listed("unready", unready)) if unready else _Fact(True)


def _ready(view: PodView, phase: Phase, known: Mapping[str, JsonObject]) -> _Fact:
    containers = _containers_ready(view, phase)
    gates = [
        gate["conditionType"]
        for gate in view.pod["spec"].get("readinessGates", [])
        if known.get(gate["conditionType"], {}).get("status") != "True"
    ]
    if containers.true and gates:
        return _Fact(False, "ReadinessGatesNotReady", f"readiness gates that are not True: {', '.join(gates)}")
    return containers


def _listed(what: str, names: Iterable[str]) -> str:
    return f"containers with {what} status: [{' '.join(names)}]"


def _condition(kind: str, fact: _Fact, known: JsonObject | None, now: datetime) -> JsonObject:
    status = "True" if fact.true else "False"
    since = timestamp(now)
    if known is not None and known.get("status") == status:
        since = known.get("lastTransitionTime") or since
    # Empty reason and message are written too: a patch must be able to take away what an earlier one said.
    return {
        "type": kind,
        "status": status,
        "reason": fact.reason,
        "message": fact.message,
        "lastTransitionTime": since,
    }


def _any_started(states: Iterable[ContainerState]) -> bool:
    return any(not isinstance(state.now, Waiting) or state.last is not None for state in states)
