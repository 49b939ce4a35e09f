"""A proxy in front of an API server or a Prometheus that does to its clients what networks and busy servers do.

It lives beside the other stand-ins of this package, and not in a folder of tests, because component tests, soak runs
and whoever wants to see an operator suffer on a loopback cluster need the same one.
"""

from .faults import (
    Delay,
    Expire,
    Fault,
    HalfBody,
    Hold,
    LateAnswer,
    LoseEvents,
    LostAnswer,
    Meet,
    OldEvents,
    Refuse,
    RepeatEvents,
    Request,
    Reset,
    Rule,
    Silence,
    SkewedDate,
)
from .proxy import FaultProxy, Seen

__all__ = [
    "Delay",
    "Expire",
    "Fault",
    "FaultProxy",
    "HalfBody",
    "Hold",
    "LateAnswer",
    "LoseEvents",
    "LostAnswer",
    "Meet",
    "OldEvents",
    "Refuse",
    "RepeatEvents",
    "Request",
    "Reset",
    "Rule",
    "Seen",
    "Silence",
    "SkewedDate",
]
