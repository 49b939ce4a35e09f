"""What follows from a plan whose writes fail: nothing untrue is told, and what is refused is not tried in a loop."""

from typing import Any, cast

import pytest

from retinue.plan import Event, EventType, Key, Manifest, Plan
from retinue_operator.apply import Applier, Outcome, WriteError
from retinue_operator.cache import Cache
from retinue_operator.controller import World
from retinue_operator.errors import ErrorClass
from retinue_operator.events import Recorder
from retinue_operator.metrics import Metrics
from retinue_operator.queue import Next
from retinue_operator.reconciler import Reconciler
from retinue_operator.status import StatusWriter

KEY = Key("DecodePool", "agents", "coder")
LIVE: Manifest = {
    "apiVersion": "retinue.dev/v1alpha1",
    "kind": "DecodePool",
    "metadata": {"name": "coder", "namespace": "agents", "uid": "1", "resourceVersion": "1"},
}
CREATED = Event(EventType.NORMAL, "InstanceCreated", "created coder-decode-0", ("coder-decode-0-0",))
READY = Event(EventType.NORMAL, "InstanceReady", "coder-decode-1 is ready")


class Parts:
    """A controller with one fixed plan, an applier with one fixed outcome, and a recorder that remembers."""

    kind = "DecodePool"

    def __init__(self, plan: Plan, failed: ErrorClass | None, written: tuple[str, ...] = ()) -> None:
        self._plan = plan
        self._failed = failed
        self._written = written
        self.told: list[str] = []
        self.statuses: list[Manifest] = []

    def keys_for(self, _kind: str, _obj: Manifest) -> list[Key]:
        return []

    async def reconcile(self, _key: Key, _world: World) -> Plan:
        return self._plan

    async def execute(self, _plan: Plan) -> Outcome:
        if self._failed is None:
            return Outcome(written=self._written)
        return Outcome(
            written=self._written,
            errors=(WriteError("apply", "Pod", "agents", "coder-decode-0-0", self._failed, "no"),),
        )

    def record(self, _live: Manifest, event: Event) -> None:
        self.told.append(event.reason)

    async def write(self, _key: Key, status: Manifest) -> Outcome:
        self.statuses.append(status)
        return Outcome()


async def outcome(failed: ErrorClass | None, requeue: float | None) -> tuple[Next, list[str]]:
    parts = Parts(Plan(events=(CREATED, READY), requeue_after=requeue), failed)
    cache = Cache()
    cache.put(LIVE)
    world = World(cache, cast(Any, None), cast(Any, None), Metrics(), cast(Any, None), lambda: 0.0)
    reconciler = Reconciler([parts], world, cast(Applier, parts), cast(StatusWriter, None), cast(Recorder, parts))
    return await reconciler(KEY), parts.told


async def test_what_was_done_is_told() -> None:
    following, told = await outcome(None, 1.0)
    assert told == ["InstanceCreated", "InstanceReady"]
    assert following == Next(after=1.0)


@pytest.mark.parametrize("failed", [ErrorClass.INVALID_OBJECT, ErrorClass.API_DOWN])
async def test_an_event_about_a_write_that_failed_is_kept_back_and_others_are_told(failed: ErrorClass) -> None:
    _, told = await outcome(failed, 1.0)
    assert "InstanceCreated" not in told
    assert "InstanceReady" in told


async def test_objects_that_the_server_refuses_are_not_sent_again_each_second() -> None:
    following, _ = await outcome(ErrorClass.INVALID_OBJECT, 1.0)
    assert following == Next(after=30.0)
    following, _ = await outcome(ErrorClass.INVALID_OBJECT, None)
    assert following == Next()


@pytest.mark.parametrize(
    ("written", "failed", "shown"),
    [
        (("apply Pod a",), None, False),
        ((), None, True),
        (("apply Pod a",), ErrorClass.API_DOWN, True),
    ],
)
async def test_a_status_that_can_wait_is_written_only_if_nothing_else_was_or_something_failed(
    written: tuple[str, ...], failed: ErrorClass | None, shown: bool
) -> None:
    parts = Parts(Plan(status={"replicas": 1}, status_can_wait=True), failed, written)
    cache = Cache()
    cache.put(LIVE)
    world = World(cache, cast(Any, None), cast(Any, None), Metrics(), cast(Any, None), lambda: 0.0)
    reconciler = Reconciler([parts], world, cast(Applier, parts), cast(StatusWriter, parts), cast(Recorder, parts))
    await reconciler(KEY)
    assert bool(parts.statuses) == shown
