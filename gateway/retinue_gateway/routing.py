"""Which instance gets a request: the one that holds its cache, or else the one that will serve it best. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

# A running request takes a share of its engine even when its prompt is done; it counts as this many queued tokens.
_REQUEST_TOKENS = 1024


class ChoiceReason(StrEnum):
    """Why an instance was chosen."""

    STICKY = "sticky"
    PARENT = "parent"
    LEAST_LOADED = "least_loaded"


class MoveReason(StrEnum):
    """Why a session left the instance that held its cache."""

    GONE = "gone"
    UNROUTABLE = "unroutable"
    FAILED = "failed"
    OVERLOADED = "overloaded"


@dataclass(frozen=True)
class Candidate:
    """A routable instance and what it carries.

    queued_tokens: prompt tokens that it has yet to compute for requests of this gateway; placed_tokens: summed context
    of the open sessions whose cache it holds; placed_sessions: their number.
    """

    uid: str
    name: str
    in_flight: int = 0
    queued_tokens: int = 0
    placed_tokens: int = 0
    placed_sessions: int = 0

    @property
    def queue(self) -> int:
        return self.queued_tokens + self.in_flight * _REQUEST_TOKENS


@dataclass(frozen=True)
class Policy:
    """See the settings of the same names."""

    context_weight: float = 0.25
    parent_slack_tokens: int = 32_768
    spill_queue_tokens: int | None = None


@dataclass(frozen=True)
class Choice:
    """overloaded: the session's own instance was passed over because of its queue."""

    uid: str
    reason: ChoiceReason
    overloaded: bool = False


def choose(
    candidates: Sequence[Candidate], *, sticky: str | None, parent: str | None, stateful: bool, policy: Policy
) -> Choice | None:
    """The instance for one request; None if there is no candidate.

    sticky: uid of the instance that holds the session's cache; parent: that of the parent session's; stateful: the
    request belongs to a session, so that its context will stay where it is placed.

    Checks in order: its own instance, its parent's, the least loaded. Leaving the own instance recomputes the whole
    context, and most recomputed tokens come from such moves, so only an exceptional queue is worth it. A new session is
    bound for its whole life, so it is placed by the context that instances hold, not only by the queue of the moment.
    """
    by_uid = {candidate.uid: candidate for candidate in candidates}
    if not by_uid:
        return None
    shortest = min(candidate.queue for candidate in candidates)
    overloaded = False
    if sticky is not None and (own := by_uid.get(sticky)) is not None:
        overloaded = _worth_leaving(own, shortest, policy)
        if not overloaded:
            return Choice(own.uid, ChoiceReason.STICKY)
    if (
        not overloaded
        and parent is not None
        and (family := by_uid.get(parent)) is not None
        and family.queue - shortest <= policy.parent_slack_tokens
    ):
        return Choice(family.uid, ChoiceReason.PARENT)
    weight = policy.context_weight if stateful else 0.0

    def cost(candidate: Candidate) -> tuple[float, int, str]:
        return (candidate.queue + weight * candidate.placed_tokens, candidate.placed_sessions, candidate.name)

    others = [candidate for candidate in candidates if not (overloaded and candidate.uid == sticky)]
    return Choice(min(others, key=cost).uid, ChoiceReason.LEAST_LOADED, overloaded)


def _worth_leaving(own: Candidate, shortest: int, policy: Policy) -> bool:
    """Only when the own queue is beyond the limit and another's is less than half as long: not when all are full."""
    limit = policy.spill_queue_tokens
    return limit is not None and own.queued_tokens > limit and 2 * shortest < own.queue
