"""What may happen to a simulated world: named actions, each with a number from 0 to 7 that says how much or which."""

from collections.abc import Awaitable, Callable

from retinue.api import labels
from retinue_operator.errors import ApiDown, Conflict, Throttled
from retinue_operator.resources import identity

from .api import Name
from .cluster import NAMESPACE
from .world import SimulatedWorld

_DURATIONS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 90.0)
_ROLLOUTS = (
    {"maxSurge": 1, "maxUnavailable": 0},
    {"maxSurge": 0, "maxUnavailable": 1},
    {"maxSurge": 2, "maxUnavailable": 1},
)


async def let_time_pass(world: SimulatedWorld, number: int) -> None:
    """Seconds go by, and the cluster does what is due."""
    world.cluster.now += _DURATIONS[number]
    world.cluster.tick()


async def deliver(world: SimulatedWorld, number: int) -> None:
    """Some events of the watch arrive."""
    if world.operator is not None:
        world.operator.deliver(2**number)


async def lose_events(world: SimulatedWorld, number: int) -> None:
    """Some events never arrive."""
    if world.operator is not None:
        world.operator.lose(number)


async def repeat_event(world: SimulatedWorld, _: int) -> None:
    """An event arrives twice."""
    if world.operator is not None:
        world.operator.repeat()


async def kill(world: SimulatedWorld, number: int) -> None:
    """The operator dies at the request after the next few."""
    world.requests_to_death = number


async def trouble(world: SimulatedWorld, number: int) -> None:
    """The API server refuses some of the next requests."""
    errors = (ApiDown("503", 503), Conflict("changed meanwhile", 409), Throttled("too many", 429, 1.0))
    world.troubles.extend(world.chance.choice(errors) for _ in range(number))


async def edit_pool(world: SimulatedWorld, number: int) -> None:
    """The user changes the pool that is not the autoscaler's."""
    name: Name = ("DecodePool", NAMESPACE, "solo")
    if world.api.find(*name) is None:
        world.make_pool()
    elif number == 7:
        world.api.begin_deletion(name, "user")
    elif number < 4:
        world.api.edit(name, "user", spec={"replicas": number})
    elif number == 4:
        arguments = [f"--max-num-seqs={world.chance.randint(1, 9)}"]
        world.api.edit(name, "user", spec={"engine": {"type": "Simulated", "args": arguments}})
    elif number == 5:
        world.api.edit(name, "user", spec={"parallelism": {"tensor": world.chance.choice((1, 2, 4, 8))}})
    else:
        world.api.edit(name, "user", spec={"rollout": world.chance.choice(_ROLLOUTS)})


async def edit_agents(world: SimulatedWorld, number: int) -> None:
    """The user changes the AgentPool."""
    name: Name = ("AgentPool", NAMESPACE, "coder")
    if world.api.find(*name) is None:
        world.make_agents()
    elif number == 7:
        world.api.begin_deletion(name, "user")
    else:
        world.make_agents(most=1 + number % 3, mode=("Auto", "DryRun", "Off")[number // 3], explorer=number != 5)


async def fail_pod(world: SimulatedWorld, number: int) -> None:
    """An engine exits."""
    running = [p for p in world.cluster.pods() if p["status"].get("phase") == "Running"]
    if running:
        world.cluster.fail(running[number % len(running)])


async def delete_pod(world: SimulatedWorld, number: int) -> None:
    """Somebody deletes a pod by hand."""
    pods = [p for p in world.cluster.pods() if not p["metadata"].get("deletionTimestamp")]
    if pods:
        world.api.begin_deletion(identity(pods[number % len(pods)]), "user")


async def lose_node(world: SimulatedWorld, number: int) -> None:
    """A kubelet stops."""
    world.cluster.lose(f"fast-{number % 4}")


async def crash_engines(world: SimulatedWorld, number: int) -> None:
    """The engines of a pool exit at their start, or do no longer."""
    name = ("solo", "coder-primary")[number % 2]
    world.cluster.crashing ^= {name}


async def ask_engines(world: SimulatedWorld, number: int) -> None:
    """Requests come to engines that are ready and routable."""
    for pod in world.cluster.pods():
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or [])
        if ready and pod["metadata"]["labels"].get(labels.ROUTABLE) == "true":
            world.cluster.requests[pod["metadata"]["uid"]] = number


async def change_metrics(world: SimulatedWorld, number: int) -> None:
    """Prometheus goes, comes back, or tells nonsense."""
    world.measurer.mode = ("quiet", "wild", "down")[number % 3]


async def meddle(world: SimulatedWorld, number: int) -> None:
    """Somebody changes what the operator owns."""
    kind = ("Pod", "Service", "PrefillPool", "KVCacheTier")[number % 4]
    found = [m for m in world.api.all(kind) if not m["metadata"].get("deletionTimestamp")]
    if not found:
        return
    victim = identity(found[number % len(found)])
    if kind == "Pod":
        tags = {labels.ROUTABLE: "maybe", labels.REVISION: "mine"}
        world.api.edit(victim, "user", metadata={"labels": tags})
    elif kind == "Service":
        world.api.edit(victim, "user", spec={"selector": {"everything": "mine"}})
    else:
        world.api.begin_deletion(victim, "user")


async def work(world: SimulatedWorld, number: int) -> None:
    """The operator does what is due; without one, a new one starts."""
    await world.work(2**number)


async def sweep(world: SimulatedWorld, _: int) -> None:
    """The operator lists everything anew."""
    await world.sweep()


async def bring_nodes_back(world: SimulatedWorld, _: int) -> None:
    """All nodes are there again."""
    world.bring_nodes_back()


ACTIONS: dict[str, Callable[[SimulatedWorld, int], Awaitable[None]]] = {
    action.__name__: action
    for action in (
        *(let_time_pass, deliver, work, lose_events, repeat_event, sweep, kill, trouble),
        *(edit_pool, edit_agents, meddle, delete_pod, ask_engines, change_metrics),
        *(fail_pod, crash_engines, lose_node, bring_nodes_back),
    )
}
