"""A release that looks after one namespace: it works there with the rights of a Role, and sees nothing elsewhere."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator

import pytest

from .clients import client, stream
from .manifests import decode_pool, pool_of
from .world import World

pytestmark = pytest.mark.alone


@pytest.fixture
def outside(world: World) -> Iterator[str]:
    """A second namespace, which the release does not look after."""
    name = f"outside-{secrets.token_hex(3)}"
    world.kubectl("create", "namespace", name)
    yield name
    world.kubectl("delete", "namespace", name, "--wait=false")


async def test_with_one_namespace_watched_it_works_there_and_sees_nothing_outside(
    world: World, namespace: str, outside: str
) -> None:
    try:
        await asyncio.to_thread(world.release.install, {**world.values, "watch": {"namespaces": [namespace]}})
        for place in (outside, namespace):
            world.apply(decode_pool(place, "small", 1), pool_of(place, "small"))
        await world.ready(namespace, "agentpool", "solo")
        async with client(world.base_url(namespace, "solo")) as agents:
            answer = await stream(agents, "a", tokens=5)
        assert (answer.tokens, answer.finished, answer.error) == (5, True, None)
        world.kubectl("scale", "dp", "small", "-n", namespace, "--replicas=2")
        await world.replicas(namespace, "dp", "small", 2)

        for kind, name in (("agentpool", "solo"), ("decodepool", "small")):
            assert not world.get(kind, name, "-n", outside).get("status")
        assert not world.pods(outside)
        async with client(world.base_url(outside, "solo")) as agents:
            refused = await stream(agents, "a", tokens=5)
        assert "NotFoundError" in str(refused.error)
        account = f"--as=system:serviceaccount:{world.release.namespace}:{world.release.name}-operator"
        assert world.kubectl("auth", "can-i", "list", "pods", "-n", namespace, account).strip() == "yes"
        # What was forbidden to the operator would be in its log.
        for component in ("operator", "gateway"):
            for pod in world.system_pods(component):
                assert "orbidden" not in world.kubectl("logs", pod, "-n", world.release.namespace)
    finally:
        await asyncio.to_thread(world.release.install, world.values)
    # The release of all namespaces takes up what was out of sight.
    await world.ready(outside, "agentpool", "solo")
