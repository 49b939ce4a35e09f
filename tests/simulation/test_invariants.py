"""Each invariant notices what it is for: a write in the operator's name that breaks it is a broken promise."""

import asyncio
from collections.abc import Callable

import pytest

from retinue.api import labels
from retinue.plan import Manager, Manifest

from .cluster import NAMESPACE
from .world import BrokenPromise, SimulatedWorld


def _pod(world: SimulatedWorld, name: str) -> Manifest:
    found = world.api.find("Pod", NAMESPACE, name)
    assert found is not None
    return found


def _deletes_what_serves(world: SimulatedWorld) -> None:
    world.api.begin_deletion(("Pod", NAMESPACE, "solo-decode-0-0"), Manager.OPERATOR)


def _drains_one_of_two(world: SimulatedWorld) -> None:
    tags = {labels.ROUTABLE: "false"}
    world.api.edit(("Pod", NAMESPACE, "solo-decode-0-0"), Manager.INSTANCE, metadata={"labels": tags})


def _adds_a_pod_of_another_revision(world: SimulatedWorld) -> None:
    pod = _pod(world, "solo-decode-0-0")
    metadata = {**pod["metadata"], "name": "solo-decode-0-1", "labels": {**pod["metadata"]["labels"]}}
    metadata["labels"][labels.REVISION] = "another"
    world.api.write({**pod, "metadata": metadata}, Manager.OPERATOR)


def _grows_beyond_the_bounds(world: SimulatedWorld) -> None:
    world.api.edit(("PrefillPool", NAMESPACE, "coder-primary"), Manager.AUTOSCALER, spec={"replicas": 3})


def _shrinks_without_metrics(world: SimulatedWorld) -> None:
    world.api.edit(("PrefillPool", NAMESPACE, "coder-primary"), "user", spec={"replicas": 2})
    world.measurer.mode = "down"
    world.api.edit(("PrefillPool", NAMESPACE, "coder-primary"), Manager.AUTOSCALER, spec={"replicas": 1})


@pytest.mark.parametrize(
    ("sabotage", "promise"),
    [
        (_deletes_what_serves, "a_serving_instance_ends_only_drained"),
        (_drains_one_of_two, "enough_instances_serve_on"),
        (_adds_a_pod_of_another_revision, "an_instance_has_one_revision"),
        (_grows_beyond_the_bounds, "pools_stay_within_their_bounds"),
        (_shrinks_without_metrics, "nothing_shrinks_in_ignorance"),
    ],
)
def test_a_write_that_breaks_a_promise_is_noticed(sabotage: Callable[[SimulatedWorld], None], promise: str) -> None:
    async def run() -> None:
        world = SimulatedWorld(0)
        await world.calm_down()
        with pytest.raises(BrokenPromise, match=promise):
            sabotage(world)

    asyncio.run(run())
