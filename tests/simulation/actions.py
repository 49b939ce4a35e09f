"""What may happen to a simulated world: named actions, each with a number from 0 to 7 that says how much or which."""

from collections.abc import Awaitable, Callable

from pydantic import ValidationError

from retinue.api import labels
from retinue.plan import Manifest
from retinue_operator.errors import ApiDown, Conflict, Throttled
from retinue_operator.resources import identity

from .api import Name
from .cluster import GPU, NAMESPACE
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


async def scribble_on_pod(world: SimulatedWorld, number: int) -> None:
    """Somebody writes nonsense into annotations and labels of a pod."""
    pods = [pod for pod in world.cluster.pods() if not pod["metadata"].get("deletionTimestamp")]
    if pods:
        metadata = world.chance.choice(_POD_NONSENSE)
        world.api.edit(identity(pods[number % len(pods)]), "user", metadata=metadata)


async def scribble_on_node(world: SimulatedWorld, number: int) -> None:
    """A node says odd things about itself."""
    name: Name = ("Node", "", f"fast-{number % 4}")
    if world.api.find(*name) is not None:
        world.api.edit(name, "kubelet", **world.chance.choice(_NODE_NONSENSE))


async def scribble_on_status(world: SimulatedWorld, number: int) -> None:
    """Somebody else writes a status, or wipes it."""
    kind = ("DecodePool", "PrefillPool", "AgentPool", "KVCacheTier", "NodeClass")[number % 5]
    for found in world.api.all(kind):
        status = world.chance.choice(_STATUS_NONSENSE)
        try:
            world.api.write({**found, "status": status}, "user")
        except ValidationError:
            continue  # The API server would not take it either.


async def work(world: SimulatedWorld, number: int) -> None:
    """The operator does what is due; without one, a new one starts."""
    await world.work(2**number)


async def sweep(world: SimulatedWorld, _: int) -> None:
    """The operator lists everything anew."""
    await world.sweep()


async def bring_nodes_back(world: SimulatedWorld, _: int) -> None:
    """All nodes are there again."""
    world.bring_nodes_back()


_POD_NONSENSE: tuple[dict[str, dict[str, str]], ...] = (
    {"annotations": {labels.DRAIN_STARTED: "soon"}},
    {"annotations": {labels.DRAIN_STARTED: "2099-01-01T00:00:00Z"}},
    {"annotations": {labels.DRAIN_STARTED: ""}},
    {"annotations": {labels.DOMAIN: "the moon"}},
    {"annotations": {labels.TEMPLATE: "another"}},
    {"annotations": {labels.SPEC_HASH: "another"}},
    {"labels": {labels.RANK: "first"}},
    {"labels": {labels.NODE_CLASS: "lost"}},
    {"labels": {labels.INSTANCE: "another-9"}},
)
_NODE_NONSENSE: tuple[dict[str, Manifest], ...] = (
    {"status": {"allocatable": {GPU: "many"}}},
    {"status": {"allocatable": {GPU: "-4"}}},
    {"status": {"allocatable": {GPU: "1e12"}}},
    {"status": {"conditions": []}},
    {"status": {"conditions": [{"type": "Ready", "status": "Perhaps"}]}},
    {"spec": {"taints": [{"key": "a/b", "effect": "NoSchedule"}]}},
    {"metadata": {"labels": {"topology.kubernetes.io/rack": ""}}},
)
_STATUS_NONSENSE: tuple[Manifest, ...] = (
    {},
    {"replicas": 99, "readyReplicas": 99, "observedGeneration": 99},
    {"conditions": [{"type": "Ready", "status": "True", "reason": "Mine", "message": "all is well"}]},
    {"instances": [{"name": "ghost-9", "phase": "Ready", "revision": "none", "restarts": 50}]},
    {"costPerHour": "-1", "sessions": {"open": 7}},
)

ACTIONS: dict[str, Callable[[SimulatedWorld, int], Awaitable[None]]] = {
    action.__name__: action
    for action in (
        *(let_time_pass, deliver, work, lose_events, repeat_event, sweep, kill, trouble),
        *(edit_pool, edit_agents, meddle, delete_pod, ask_engines, change_metrics),
        *(scribble_on_pod, scribble_on_node, scribble_on_status),
        *(fail_pod, crash_engines, lose_node, bring_nodes_back),
    )
}
