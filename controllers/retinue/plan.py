"""What every planner returns: objects to have and to remove, the status to show, events, and when to look again."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Manifest = dict[str, Any]


class Manager(StrEnum):
    """Field managers of server-side apply: one per writer, so that other writers keep the fields they own."""

    OPERATOR = "retinue"
    INSTANCE = "retinue-instance"
    AUTOSCALER = "retinue-autoscaler"
    STATUS = "retinue-status"


@dataclass(frozen=True)
class Key:
    """The object that a reconcile looks at; namespace is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}" if self.namespace else f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Apply:
    """An object to have, as far as `manager` owns it. Written only if missing or different from the live object."""

    manifest: Manifest
    manager: Manager = Manager.OPERATOR


@dataclass(frozen=True)
class Delete:
    """An object to remove: exactly the one with this uid, so that a successor of the same name is never hit."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    grace_seconds: int | None = None


class EventType(StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event on the reconciled object.

    `writes` names the objects whose writes it tells of: it is kept back if one of these fails.
    """

    type: EventType
    reason: str
    message: str
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """The outcome of planning one object.

    `apply` is executed in order, then `delete`; `status` (wire form, None = leave as it is) is written if it differs.
    `status_can_wait`: the writes of this plan lead to another one at once, whose status makes this one superfluous; it
    is written all the same when nothing was written or a write failed.
    `events` are posted and logged; `requeue_after` is in seconds, None = only when something changes.
    """

    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()
    status: Manifest | None = None
    status_can_wait: bool = False
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None
    notes: tuple[str, ...] = field(default=())


def earliest(*delays: float | None) -> float | None:
    """The smallest of the given delays in seconds; None counts as never."""
    known = [delay for delay in delays if delay is not None]
    return min(known) if known else None
