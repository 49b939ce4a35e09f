"""One reconcile from key to what comes next: plan, apply, status, events, and the meaning of every failure."""

import time
from collections.abc import Sequence

import structlog

from retinue.plan import Event, EventType, Key, Manifest, Plan
from retinue_operator.apply import Applier, Outcome, WriteError
from retinue_operator.controller import Controller, World
from retinue_operator.errors import (
    BEHAVIOUR,
    NEEDS_ATTENTION,
    Behaviour,
    ErrorClass,
    classify,
    one_line,
    retry_after,
)
from retinue_operator.events import Recorder
from retinue_operator.queue import Next
from retinue_operator.status import StatusWriter, with_errors

_LOG = structlog.stdlib.get_logger(__name__)
_LOGGED_WRITES = 8
_REFUSED_RETRY_SECONDS = 30.0


class Reconciler:
    """Runs controllers and executes their plans; `__call__` is the handler of the work queue."""

    def __init__(
        self,
        controllers: Sequence[Controller],
        world: World,
        applier: Applier,
        statuses: StatusWriter,
        recorder: Recorder,
    ) -> None:
        self._controllers = {controller.kind: controller for controller in controllers}
        self._world = world
        self._applier = applier
        self._statuses = statuses
        self._recorder = recorder

    async def __call__(self, key: Key) -> Next:
        """Reconciles one object; reports every failure and never raises an Exception."""
        started = time.monotonic()
        with structlog.contextvars.bound_contextvars(kind=key.kind, namespace=key.namespace, name=key.name):
            try:
                with self._world.reconciling():
                    plan = await self._controllers[key.kind].reconcile(key, self._world)
                    result, following = ("Gone", Next()) if plan is None else await self._execute(key, plan)
            except Exception as error:
                result, following = self._failed(key, error)
        self._world.metrics.reconciles.labels(key.kind, result).inc()
        self._world.metrics.reconcile_seconds.labels(key.kind).observe(time.monotonic() - started)
        return following

    async def _execute(self, key: Key, plan: Plan) -> tuple[str, Next]:
        outcome = await self._applier.execute(plan)
        waits = plan.status_can_wait and outcome.written and not outcome.errors
        if plan.status is not None and not waits:
            outcome += await self._statuses.write(key, self._complete(key, plan.status, outcome))
        live = self._live(key)
        failed = {failure.name for failure in outcome.errors}
        for event in plan.events:
            if failed.isdisjoint(event.writes):
                self._tell(live, event)
        for failure in outcome.errors:
            # What goes away with its namespace or owner is no trouble to anybody.
            log = _LOG.debug if BEHAVIOUR[failure.error_class] is Behaviour.DROP else _LOG.warning
            log("write failed", reason=str(failure.error_class), error=str(failure))
            if live is not None and failure.error_class in NEEDS_ATTENTION:
                self._recorder.record(live, Event(EventType.WARNING, failure.error_class, str(failure)))
        if outcome.written or outcome.errors:
            _LOG.info(
                "reconciled",
                written=len(outcome.written),
                writes=list(outcome.written[:_LOGGED_WRITES]),
                failed=len(outcome.errors),
                again_in=plan.requeue_after,
                notes=list(plan.notes),
            )
        return _next(plan, outcome.errors)

    def _complete(self, key: Key, status: Manifest, outcome: Outcome) -> Manifest:
        live = self._live(key)
        if live is None:
            return status
        generation = int(live["metadata"].get("generation") or 0)
        return with_errors(status, live.get("status") or {}, outcome.errors, generation, self._world.now())

    def _tell(self, live: Manifest | None, event: Event) -> None:
        log = _LOG.warning if event.type == EventType.WARNING else _LOG.info
        log(event.message, reason=str(event.reason))
        if live is not None:
            self._recorder.record(live, event)

    def _failed(self, key: Key, error: Exception) -> tuple[str, Next]:
        error_class = classify(error)
        # A defect deserves its stack; everything else is told by its class and message.
        trace = error if error_class == ErrorClass.UNEXPECTED else None
        _LOG.error("reconcile failed", reason=str(error_class), error=one_line(error), exc_info=trace)
        live = self._live(key)
        if live is not None and error_class in NEEDS_ATTENTION:
            self._recorder.record(live, Event(EventType.WARNING, error_class, one_line(error)))
        behaviour = BEHAVIOUR[error_class]
        if behaviour in (Behaviour.DROP, Behaviour.TERMINAL):
            return str(error_class), Next()
        return str(error_class), Next(after=retry_after(error), failed=True)

    def _live(self, key: Key) -> Manifest | None:
        return self._world.cache.get(key.kind, key.namespace, key.name)


def _next(plan: Plan, errors: tuple[WriteError, ...]) -> tuple[str, Next]:
    """The result label and what follows: throttling and back-off win over the plan's own wish to look again."""
    by_behaviour = {BEHAVIOUR[error.error_class]: error for error in errors}
    if Behaviour.AFTER in by_behaviour:
        waits = [error.retry_after for error in errors if error.retry_after is not None]
        return str(ErrorClass.THROTTLED), Next(after=max(waits, default=None), failed=True)
    if Behaviour.BACK_OFF in by_behaviour:
        return str(by_behaviour[Behaviour.BACK_OFF].error_class), Next(failed=True)
    if Behaviour.TERMINAL in by_behaviour:
        # The plan wants to go on at once, but its objects would be refused again: changes wake it up, time hardly does.
        after = None if plan.requeue_after is None else max(plan.requeue_after, _REFUSED_RETRY_SECONDS)
        return str(by_behaviour[Behaviour.TERMINAL].error_class), Next(after=after)
    return "Done", Next(after=plan.requeue_after)
