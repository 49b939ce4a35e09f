"""The session table: which sessions are open, how long their context is, and which instances hold their cache."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import takewhile
from typing import TypeVar

from retinue_gateway.keys import PoolKey, RoleKey, SessionKey, Stage

K = TypeVar("K", bound=Hashable)


class CloseReason(StrEnum):
    """Why a session is no longer open."""

    FINAL = "final"
    IDLE = "idle"
    EVICTED = "evicted"
    ROLE_GONE = "role_gone"


@dataclass(eq=False)
class Session:
    """One session. placement: uid of the instance that holds its cache, by stage; context_tokens: length of its last
    known context. Change it through the table only, which keeps sums over these fields."""

    key: SessionKey
    parent: str | None
    last_seen: float
    context_tokens: int = 0
    in_flight: int = 0
    open: bool = False
    final: bool = False
    placement: dict[Stage, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """Open sessions and the sum of their context lengths."""

    sessions: int = 0
    tokens: int = 0


NONE_HELD = Held()


class SessionTable:
    """Sessions by key. It has no clock: callers pass `now` in seconds, never decreasing.

    A session is open from its first request until one marked final has ended, or until it was idle for `idle_timeout`.
    Where its cache is stays known for another `memory` seconds, for a session that comes back. At most `capacity`
    sessions are kept: those no longer open go first, then open ones that have been idle longest; one with a request in
    flight never goes.
    """

    def __init__(
        self,
        *,
        idle_timeout: float,
        memory: float,
        capacity: int,
        on_close: Callable[[Session, CloseReason], None] = lambda _session, _reason: None,
    ) -> None:
        self._idle_timeout = idle_timeout
        self._memory = memory
        self._capacity = capacity
        self._on_close = on_close
        # Both in the order of last activity, so that the oldest are found without a search.
        self._open: OrderedDict[SessionKey, Session] = OrderedDict()
        self._dormant: OrderedDict[SessionKey, Session] = OrderedDict()
        self._keys_of_id: dict[tuple[PoolKey, str, str], set[SessionKey]] = {}
        self._by_role: dict[RoleKey, Held] = {}
        self._by_instance: dict[str, Held] = {}
        self._by_role_instance: dict[tuple[RoleKey, str], Held] = {}

    def __len__(self) -> int:
        return len(self._open) + len(self._dormant)

    def __iter__(self) -> Iterator[Session]:
        yield from self._open.values()
        yield from self._dormant.values()

    def get(self, key: SessionKey) -> Session | None:
        return self._open.get(key) or self._dormant.get(key)

    def begin(self, key: SessionKey, *, parent: str | None, context_tokens: int, final: bool, now: float) -> Session:
        """A request of this session starts, with that many prompt tokens. Pair it with `end`."""
        session = self._open.get(key) or self._dormant.pop(key, None)
        if session is None:
            session = Session(key=key, parent=parent, last_seen=now)
            self._keys_of_id.setdefault((key.role.pool, key.tenant, key.id), set()).add(key)
        if not session.open:
            session.open = True
            self._open[key] = session
            self._count(session, 1)
        session.parent = parent or session.parent
        session.final = session.final or final
        session.in_flight += 1
        self._touch(session, now)
        self._resize(session, context_tokens)
        self._evict()
        return session

    def end(self, session: Session, *, context_tokens: int | None, now: float) -> None:
        """The request has ended; context_tokens is the context's length after it, None if it failed."""
        session.in_flight -= 1
        self._touch(session, now)
        if context_tokens is not None:
            self._resize(session, context_tokens)
        if session.final and session.in_flight == 0:
            self._forget(session, CloseReason.FINAL)
        self._evict()

    def place(self, session: Session, stage: Stage, uid: str) -> None:
        """The session's cache of that stage is now on this instance."""
        if session.placement.get(stage) != uid:
            self._count(session, -1)
            session.placement[stage] = uid
            self._count(session, 1)

    def parent_of(self, session: Session) -> Session | None:
        """The parent session of the same tenant, in whichever role of the AgentPool it is; the one seen last if in
        several."""
        if session.parent is None:
            return None
        keys = self._keys_of_id.get((session.key.role.pool, session.key.tenant, session.parent), ())
        found = [known for key in keys if key != session.key and (known := self.get(key)) is not None]
        return max(found, key=lambda parent: (parent.last_seen, parent.key), default=None)

    def expire(self, now: float) -> None:
        """Closes sessions that were idle too long, and forgets those whose memory has run out."""
        idle_since = now - self._idle_timeout
        for session in _unseen(self._open.values(), idle_since):
            if session.in_flight == 0:
                self._close(session, CloseReason.IDLE)
        for session in _unseen(self._dormant.values(), idle_since - self._memory):
            self._drop(session)

    def keep_roles(self, roles: Iterable[RoleKey]) -> None:
        """Forgets the sessions of all other roles, except those with a request in flight."""
        known = frozenset(roles)
        for session in list(self):
            if session.key.role not in known and session.in_flight == 0:
                self._forget(session, CloseReason.ROLE_GONE)

    def held_by_role(self, role: RoleKey) -> Held:
        """All open sessions of a role."""
        return self._by_role.get(role, NONE_HELD)

    def held_by_instance(self, uid: str) -> Held:
        """Open sessions of any role whose cache is on the instance."""
        return self._by_instance.get(uid, NONE_HELD)

    def held_by_role_on_instance(self, role: RoleKey, uid: str) -> Held:
        """Open sessions of one role whose cache is on the instance."""
        return self._by_role_instance.get((role, uid), NONE_HELD)

    def _touch(self, session: Session, now: float) -> None:
        session.last_seen = now
        if session.open:
            self._open.move_to_end(session.key)

    def _resize(self, session: Session, context_tokens: int) -> None:
        self._count(session, -1)
        session.context_tokens = context_tokens
        self._count(session, 1)

    def _evict(self) -> None:
        while len(self) > self._capacity:
            if self._dormant:
                self._drop(next(iter(self._dormant.values())))
                continue
            idle = next((session for session in self._open.values() if session.in_flight == 0), None)
            if idle is None:
                return
            self._forget(idle, CloseReason.EVICTED)

    def _close(self, session: Session, reason: CloseReason) -> None:
        """From open to dormant."""
        self._count(session, -1)
        session.open = False
        del self._open[session.key]
        self._dormant[session.key] = session
        self._on_close(session, reason)

    def _forget(self, session: Session, reason: CloseReason) -> None:
        if session.open:
            self._close(session, reason)
        self._drop(session)

    def _drop(self, session: Session) -> None:
        del self._dormant[session.key]
        index = (session.key.role.pool, session.key.tenant, session.key.id)
        self._keys_of_id[index].discard(session.key)
        if not self._keys_of_id[index]:
            del self._keys_of_id[index]

    def _count(self, session: Session, sign: int) -> None:
        """Adds an open session to the sums, or takes it out."""
        if not session.open:
            return
        role, tokens = session.key.role, sign * session.context_tokens
        _add(self._by_role, role, sign, tokens)
        for uid in set(session.placement.values()):
            _add(self._by_instance, uid, sign, tokens)
            _add(self._by_role_instance, (role, uid), sign, tokens)


def _unseen(sessions: Iterable[Session], since: float) -> list[Session]:
    """The leading sessions, in order of last activity, that were not seen after `since`."""
    return list(takewhile(lambda session: session.last_seen <= since, sessions))


def _add(sums: dict[K, Held], key: K, sessions: int, tokens: int) -> None:
    before = sums.get(key, NONE_HELD)
    after = Held(before.sessions + sessions, before.tokens + tokens)
    if after == NONE_HELD:
        sums.pop(key, None)
    else:
        sums[key] = after
