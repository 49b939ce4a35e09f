"""What the container statuses of a pod say: why it failed, and what keeps a container from being started."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from retinue.conditions import Reason
from retinue.plan import Manifest

_IMAGE = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)
_CREATION = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_SAID = 300
# While it waits, the kubelet puts its own words before those of the last attempt.
_WRAPPING = re.compile(r'^(Back-off pulling image "[^"]*":? ?)?(ErrImagePull: )?(rpc error: code = \w+ desc = )?')


@dataclass(frozen=True)
class Obstacle:
    """What keeps a pod from starting although it has its node; the kubelet tries again and again.

    `what` is the same at every attempt, `cause` repeats the kubelet and may differ; `remedy` says what to do.
    """

    reason: Reason
    what: str
    cause: str
    remedy: str

    @property
    def text(self) -> str:
        return f"{self.what}: {self.cause}" if self.cause else self.what


def failure(status: Manifest) -> str:
    """Why a pod failed, in the words of its containers."""
    for container in _containers(status):
        ended = container.get("state", {}).get("terminated")
        if ended and ended.get("exitCode", 0) != 0:
            reason = ended.get("reason") or "Error"
            said = " ".join(str(ended.get("message") or "").split())
            # The end of a message from the log is what matters: the error is in its last lines.
            text = f": {said[-_SAID:]}" if said else ""
            return f"container {container['name']} exited with code {ended['exitCode']} ({reason}){text}"
    return str(status.get("message") or status.get("reason") or "")


def obstacle(status: Manifest) -> Obstacle | None:
    """What keeps the first container that cannot be started; None where all run, or are about to."""
    for container in _containers(status):
        waiting = container.get("state", {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), str(waiting.get("message") or "")
        cause = " ".join(_WRAPPING.sub("", said).split()) or reason
        if reason in _IMAGE:
            return Obstacle(
                Reason.IMAGE_NOT_PULLED,
                f"image {container.get('image', '')} of container {container['name']} cannot be pulled",
                cause,
                "correct the image (spec.engine.image), or let the nodes have it (registry, imagePullSecrets)",
            )
        if reason in _CREATION:
            return Obstacle(
                Reason.CONTAINER_NOT_CREATED,
                f"container {container['name']} cannot be created",
                cause,
                "make the object that it misses, or correct spec.engine.env or spec.podTemplate",
            )
    return None


def _containers(status: Manifest) -> Iterator[Manifest]:
    yield from status.get("initContainerStatuses", [])
    yield from status.get("containerStatuses", [])
