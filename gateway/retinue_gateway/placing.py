"""Finds the instance for each stage of a request, waiting for one if need be, and remembers where sessions are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from retinue_gateway.directory import Instance, Route
from retinue_gateway.errors import GatewayError
from retinue_gateway.keys import RoleKey, Stage
from retinue_gateway.load import LoadBook
from retinue_gateway.routing import Candidate, Choice, ChoiceReason, MoveReason, Policy, choose
from retinue_gateway.sessions import Session, SessionTable
from retinue_gateway.table import RoutingTable

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_RETRY_AFTER_SECONDS = 5


@dataclass
class Avoided:
    """Instances that failed this request. When no other is left they are tried again, after a growing pause."""

    uids: set[str] = field(default_factory=set)
    pause: float = _FIRST_PAUSE

    def forgive(self) -> None:
        self.uids.clear()
        self.pause = min(2 * self.pause, _LONGEST_PAUSE)


@dataclass(frozen=True)
class Place:
    """Where a stage of a request runs. warm: the session's cache is there already."""

    instance: Instance
    warm: bool


class Placer:
    """Chooses instances from the routing table of the moment."""

    def __init__(
        self,
        table: RoutingTable,
        sessions: SessionTable,
        loads: LoadBook[str],
        *,
        policy: Policy,
        clock: Callable[[], float],
        max_waiting: int,
        on_move: Callable[[RoleKey, Stage, MoveReason], None],
    ) -> None:
        self._table = table
        self._sessions = sessions
        self._loads = loads
        self._policy = policy
        self._clock = clock
        self._max_waiting = max_waiting
        self._on_move = on_move
        self._waiting = 0

    async def wait_route(self, role: RoleKey, avoided: Avoided, deadline: float) -> Route:
        """The role's route as soon as every stage has an instance. Raises GatewayError: 404 when the role is gone, 503
        when the deadline has passed or too many requests wait."""
        route = self._route(role)
        if _lacking(route, avoided) is None:
            return route
        if self._waiting >= self._max_waiting:
            raise GatewayError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self._waiting} requests are already waiting for an instance; {_explain(route)}",
                code="too_many_waiting",
                retry_after=_RETRY_AFTER_SECONDS,
            )
        self._waiting += 1
        try:
            while _lacking(route, avoided) is not None:
                left = deadline - self._clock()
                if left <= 0:
                    raise GatewayError(
                        HTTPStatus.SERVICE_UNAVAILABLE,
                        _explain(route),
                        code="no_ready_instance",
                        retry_after=_RETRY_AFTER_SECONDS,
                    )
                pausing = all(route.instances(stage) for stage in route.stages)
                changed = await self._table.wait_change(min(left, avoided.pause) if pausing else left)
                if pausing and not changed:
                    avoided.forgive()
                route = self._route(role)
            return route
        finally:
            self._waiting -= 1

    def place(self, route: Route, stage: Stage, session: Session | None, avoided: Avoided) -> Place:
        """The instance for one stage of a request, from a route that `wait_route` returned in this turn of the loop."""
        instances = {found.uid: found for found in route.instances(stage) if found.uid not in avoided.uids}
        sticky = session.placement.get(stage) if session else None
        choice = choose(
            [self._candidate(instance) for instance in instances.values()],
            sticky=sticky,
            parent=self._parent_place(session, stage),
            stateful=session is not None,
            policy=self._policy,
        )
        if choice is None:
            raise GatewayError(HTTPStatus.SERVICE_UNAVAILABLE, _explain(route), code="no_ready_instance", retry_after=1)
        if session is not None:
            if sticky is not None and sticky != choice.uid:
                self._on_move(route.key, stage, self._move_reason(sticky, choice, avoided))
            self._sessions.place(session, stage, choice.uid)
        return Place(instances[choice.uid], warm=choice.reason is ChoiceReason.STICKY)

    def _route(self, role: RoleKey) -> Route:
        route = self._table.current.routes.get(role)
        if route is None:
            raise GatewayError(HTTPStatus.NOT_FOUND, f"the role {role} was removed", code="role_not_found")
        return route

    def _candidate(self, instance: Instance) -> Candidate:
        load, held = self._loads.of(instance.uid), self._sessions.held_by_instance(instance.uid)
        return Candidate(
            uid=instance.uid,
            name=instance.name,
            in_flight=load.in_flight,
            queued_tokens=load.queued_tokens,
            placed_tokens=held.tokens,
            placed_sessions=held.sessions,
        )

    def _parent_place(self, session: Session | None, stage: Stage) -> str | None:
        if session is None or stage in session.placement:
            return None
        parent = self._sessions.parent_of(session)
        return parent.placement.get(stage) if parent else None

    def _move_reason(self, left: str, choice: Choice, avoided: Avoided) -> MoveReason:
        if choice.overloaded:
            return MoveReason.OVERLOADED
        if left in avoided.uids:
            return MoveReason.FAILED
        return MoveReason.UNROUTABLE if left in self._table.current.instances else MoveReason.GONE


def _lacking(route: Route, avoided: Avoided) -> Stage | None:
    """The first stage without an instance to try."""
    for stage in route.stages:
        if all(instance.uid in avoided.uids for instance in route.instances(stage)):
            return stage
    return None


def _explain(route: Route) -> str:
    """What a request for this role waits for."""
    empty = [stage for stage in route.stages if not route.instances(stage)]
    if not empty:
        return f"every instance of role {route.key} failed this request; it may be sent again"
    pools = " and ".join(f"{stage} pool {route.pool_of(stage) or '(not reported yet)'}" for stage in empty)
    return (
        f"role {route.key} has no ready and routable instance in its {pools};"
        f" see: kubectl get agentpools,prefillpools,decodepools -n {route.key.namespace}"
    )
