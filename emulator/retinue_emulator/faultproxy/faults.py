"""What can go wrong between client and server, as data: a program is a list of rules, each a fault for a request."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True)
class Request:
    """What a rule may look at; `path` is without the query, `agent` the User-Agent, `watch` a stream of events."""

    method: str
    path: str
    query: str
    agent: str
    watch: bool

    @property
    def writes(self) -> bool:
        """Whether the request may change something."""
        return self.method in WRITES


class Fault:
    """What happens to one exchange of request and answer."""


@dataclass(frozen=True)
class Delay(Fault):
    """The request comes `seconds` late to the server."""

    seconds: float


@dataclass(frozen=True)
class Hold(Fault):
    """The request waits until `released`, even if the client has gone: the network has it, and delivers it then."""

    released: asyncio.Event


@dataclass(frozen=True)
class LateAnswer(Fault):
    """The server does at once what it is asked, and its answer comes `seconds` late."""

    seconds: float


@dataclass(frozen=True)
class Refuse(Fault):
    """The server never hears of the request; the answer has this HTTP status and, in seconds, this Retry-After."""

    status: int
    retry_after: int | None = None
    message: str = "injected fault"


@dataclass(frozen=True)
class Reset(Fault):
    """The connection is reset before the server hears of the request."""


@dataclass(frozen=True)
class LostAnswer(Fault):
    """The server does what it is asked, and the connection is reset in place of the answer."""


@dataclass(frozen=True)
class HalfBody(Fault):
    """The answer ends in the middle of its body, and so does the connection; of a watch, in the middle of an event."""


@dataclass(frozen=True)
class Silence(Fault):
    """Nothing comes any more, while the connection stays: a half-open one. A watch is silent from its next event on."""


@dataclass(frozen=True)
class Expire(Fault):
    """A watch ends with 410: the server does not have its resource version any more."""


@dataclass(frozen=True)
class LoseEvents(Fault):
    """Events of a watch never arrive."""


@dataclass(frozen=True)
class RepeatEvents(Fault):
    """Events of a watch come twice."""


@dataclass(frozen=True)
class OldEvents(Fault):
    """After an event of a watch an earlier one comes again."""


@dataclass(frozen=True)
class SkewedDate(Fault):
    """The server's Date header is `seconds` ahead."""

    seconds: float


@dataclass(frozen=True)
class Meet(Fault):
    """`action` is called just before the server gets the request, or `answered`, before the client gets the answer.

    For faults that are not the network's: the client is killed or stopped at that very moment.
    """

    action: Callable[[Request], None]
    answered: bool = False


STREAM_FAULTS = (Silence, Expire, LoseEvents, RepeatEvents, OldEvents, HalfBody)
"""Those that strike a watch at an event, not at its beginning."""


@dataclass
class Rule:
    """`fault` strikes a `share` (0 to 1) of the requests that match, at most `times` of them."""

    fault: Fault
    matches: Callable[[Request], bool] = lambda _: True
    share: float = 1.0
    times: int | None = None
    struck: int = field(default=0, init=False)
    """How often it has struck so far."""

    def strikes(self, request: Request, chance: random.Random) -> bool:
        """Whether it strikes now; counts when it does."""
        if self.times is not None and self.struck >= self.times:
            return False
        if not self.matches(request) or (self.share < 1.0 and chance.random() >= self.share):
            return False
        self.struck += 1
        return True


def first_to_strike(
    program: Sequence[Rule], request: Request, chance: random.Random, *, on_event: bool
) -> Fault | None:
    """The fault of the first rule that strikes a request, or with `on_event` an event of its watch."""
    for rule in program:
        if on_event == (request.watch and isinstance(rule.fault, STREAM_FAULTS)) and rule.strikes(request, chance):
            return rule.fault
    return None
