"""What a kubelet knows about one container, and how that looks in a pod's status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

JsonObject = dict[str, Any]

POWER_LOSS_EXIT = 255
"""Exit code of containers that were running when their machine went off, as containerd reports it."""


@dataclass(frozen=True)
class Waiting:
    """Not running, and will be: `reason` is such as ContainerCreating, ImagePullBackOff or CrashLoopBackOff."""

    reason: str = "ContainerCreating"
    message: str = ""


@dataclass(frozen=True)
class Running:
    """The process is up."""

    since: datetime


@dataclass(frozen=True)
class Terminated:
    """The process has ended."""

    exit_code: int
    reason: str
    message: str
    started: datetime
    finished: datetime


@dataclass(frozen=True)
class ContainerState:
    """One container. `last` is how its previous run ended; `ready` is what its readiness says."""

    name: str
    image: str
    now: Waiting | Running | Terminated = Waiting()
    last: Terminated | None = None
    restarts: int = 0
    ready: bool = False

    @property
    def succeeded(self) -> bool:
        """Ended with exit code 0."""
        return isinstance(self.now, Terminated) and self.now.exit_code == 0


def timestamp(moment: datetime) -> str:
    """A time as Kubernetes objects carry it: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(text: str | None, default: datetime) -> datetime:
    """The time in an object's field, or the default when the field is empty."""
    return datetime.fromisoformat(text) if text else default


def restored(container: JsonObject, statuses: list[JsonObject], now: datetime) -> ContainerState:
    """The state to start from when this process finds a pod that an earlier one has run.

    The engines of a pod live inside the plugin's process, so the end of the plugin is a power loss for its nodes: what
    was running has ended. What its restart policy starts again counts one restart more and has a cold cache; what it
    does not start again has failed.
    """
    state = ContainerState(container["name"], container["image"])
    status = next((s for s in statuses if s["name"] == state.name), None)
    if status is None:
        return state
    restarts = int(status.get("restartCount", 0))
    current = status.get("state", {})
    last = _terminated(status.get("lastState", {}), now)
    if running := current.get("running"):
        lost = Terminated(
            POWER_LOSS_EXIT, "Unknown", "the node went down", parse_timestamp(running.get("startedAt"), now), now
        )
        return ContainerState(state.name, state.image, lost, last, restarts)
    if ended := _terminated(current, now):
        return ContainerState(state.name, state.image, ended, last, restarts)
    return ContainerState(state.name, state.image, Waiting(), last, restarts)


def container_status(state: ContainerState, container: JsonObject, pod_uid: str) -> JsonObject:
    """The entry of status.containerStatuses (or initContainerStatuses)."""
    status: JsonObject = {
        "name": state.name,
        "image": state.image,
        "imageID": "" if isinstance(state.now, Waiting) and state.last is None else f"retinue://{state.image}",
        "ready": state.ready,
        "started": isinstance(state.now, Running),
        "restartCount": state.restarts,
        "state": _state(state.now, state, pod_uid),
        "lastState": {} if state.last is None else _state(state.last, state, pod_uid),
    }
    if not isinstance(state.now, Waiting):
        status["containerID"] = _container_id(state, pod_uid, state.restarts)
    if (resources := container.get("resources")) and isinstance(state.now, Running):
        status["resources"] = resources
    return status


def _state(what: Waiting | Running | Terminated, state: ContainerState, pod_uid: str) -> JsonObject:
    match what:
        case Waiting(reason, message):
            return {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        case Running(since):
            return {"running": {"startedAt": timestamp(since)}}
        case Terminated():
            # A container that waits for its next run has not counted that run yet.
            earlier = what is not state.now and not isinstance(state.now, Waiting)
            run = max(0, state.restarts - 1) if earlier else state.restarts
            return {
                "terminated": {
                    "exitCode": what.exit_code,
                    "reason": what.reason,
                    "startedAt": timestamp(what.started),
                    "finishedAt": timestamp(what.finished),
                    "containerID": _container_id(state, pod_uid, run),
                }
                | ({"message": what.message} if what.message else {})
            }


def _container_id(state: ContainerState, pod_uid: str, run: int) -> str:
    return f"retinue://{pod_uid}/{state.name}/{run}"


def _terminated(state: JsonObject, now: datetime) -> Terminated | None:
    ended = state.get("terminated")
    if not ended:
        return None
    return Terminated(
        int(ended.get("exitCode", 0)),
        ended.get("reason", "Error"),
        ended.get("message", ""),
        parse_timestamp(ended.get("startedAt"), now),
        parse_timestamp(ended.get("finishedAt"), now),
    )
