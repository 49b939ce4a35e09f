"""Engines that do not start, and pods that somebody takes away: what served serves on, and it is said what to do."""

from .clients import begin, client
from .manifests import Object, decode_pool, pool_of
from .world import World, condition, uids

SLOW = {"type": "Simulated", "args": ["--speed=0.1", "--cold-start-seconds=0.1"]}
NO_REGISTRY = "127.0.0.1:1/nobody/engine:1"


async def test_a_rollout_that_cannot_start_says_so_and_cuts_nothing(world: World, namespace: str) -> None:
    def changed(**engine: object) -> Object:
        return decode_pool(namespace, "rolling", 1, engine={**SLOW, **engine})

    world.apply(changed(), pool_of(namespace, "rolling"))
    await world.ready(namespace, "agentpool", "solo")
    before = await world.replicas(namespace, "dp", "rolling", 1)
    async with client(world.base_url(namespace, "solo")) as agents:
        running = await begin(agents, 6, tokens=900)

        world.apply(changed(image=NO_REGISTRY))
        degraded = await world.conditioned(namespace, "dp", "rolling", "Degraded", "True", "ImageNotPulled")
        assert f"image {NO_REGISTRY} of container engine cannot be pulled" in degraded["message"]
        assert "correct the image (spec.engine.image)" in degraded["message"]
        _serves_on(world, namespace)
        assert "ImageNotPulled rolling-decode-1 does not start" in world.events(namespace, "DecodePool", "rolling")

        world.apply(changed(args=[*SLOW["args"], "--num-gpu-blocks-override=1"]))
        await world.until(lambda: _backs_off(world, namespace), "the next start of the crash loop is announced")
        degraded = condition(world.get("dp", "rolling", "-n", namespace), "Degraded")
        assert degraded["reason"] == "InstanceFailed"
        # The engine's own last words, although its pod and its log are gone.
        assert "does not fit the KV cache of" in degraded["message"]
        assert "take the last change of the spec back" in degraded["message"]
        _serves_on(world, namespace)

        world.apply(changed(args=[*SLOW["args"], "--max-num-seqs=128"]))
        ended = [await task for task in running]
        assert {(s.tokens, s.finished, s.error, s.instance) for s in ended} == {(900, True, None, "rolling-decode-0")}
    after = await world.replicas(namespace, "dp", "rolling", 1)
    assert after["status"]["revision"] != before["status"]["revision"]
    assert after["status"]["instances"][0]["restarts"] == 0
    await world.conditioned(namespace, "dp", "rolling", "Degraded", "False", "Healthy")
    await world.conditioned(namespace, "dp", "rolling", "Progressing", "False", "AsDesired")


async def test_an_instance_whose_pod_is_deleted_or_evicted_comes_back(world: World, namespace: str) -> None:
    world.apply(decode_pool(namespace, "back", 2, engine=SLOW), pool_of(namespace, "back"))
    await world.ready(namespace, "agentpool", "solo")
    await world.replicas(namespace, "dp", "back", 2)
    first, second = world.pods(namespace).values()
    old = uids({"first": first, "second": second})
    async with client(world.base_url(namespace, "solo")) as agents:
        running = await begin(agents, 6, tokens=500)
        world.kubectl("delete", "pod", first["metadata"]["name"], "-n", namespace, "--wait=false")
        world.evict(namespace, second["metadata"]["name"])

        async def back() -> bool:
            live = world.pods(namespace)
            serving = [p for p in live.values() if condition(p, "Ready").get("status") == "True"]
            return len(serving) == 2 and not uids(live) & old

        assert not any(task.done() for task in running)
        await world.until(back, "two new instances serve")
        ended = [await task for task in running]
    # A pod that is deleted finishes what it streams.
    assert {(s.tokens, s.finished, s.error) for s in ended} == {(500, True, None)}
    assert len({s.instance for s in ended}) == 2
    await world.replicas(namespace, "dp", "back", 2)


def _serves_on(world: World, namespace: str) -> None:
    found = world.get("dp", "rolling", "-n", namespace)
    assert condition(found, "Ready")["status"] == "True"
    assert found["status"]["readyReplicas"] == 1
    assert condition(found, "Progressing")["reason"] == "RollingOut"


async def _backs_off(world: World, namespace: str) -> bool:
    found = world.get("dp", "rolling", "-n", namespace)
    restarts = max(record["restarts"] for record in found["status"]["instances"])
    return restarts >= 2 and "; next start at 20" in condition(found, "Degraded").get("message", "")
