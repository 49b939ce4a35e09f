"""What faults make of the events of one watch, line by line."""

import json
from collections import deque

from .faults import Expire, Fault, HalfBody, LoseEvents, OldEvents, RepeatEvents

_REMEMBERED = 50
_EXPIRED = {
    "type": "ERROR",
    "object": {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "too old resource version (injected fault)",
        "reason": "Expired",
        "code": 410,
    },
}


class EventStream:
    """One watch; `ended` once it must not go on."""

    def __init__(self) -> None:
        self.ended = False
        self._past: deque[bytes] = deque(maxlen=_REMEMBERED)

    def passed(self, line: bytes, fault: Fault | None) -> list[bytes]:
        """What the client gets when this event comes from the server."""
        # The oldest that is remembered: its object has most likely changed or gone since.
        old = self._past[0] if self._past else line
        self._past.append(line)
        match fault:
            case LoseEvents():
                return []
            case RepeatEvents():
                return [line, line]
            case OldEvents():
                return [line, old]
            case HalfBody():
                return [line[: len(line) // 2]]
            case Expire():
                self.ended = True
                return [json.dumps(_EXPIRED).encode() + b"\n"]
        return [line]
