"""One simulated world: users, cluster, API server and operator, moved on by named actions, each with a small number."""

import random
from collections.abc import Awaitable, Callable
from typing import Any

from retinue.api import labels
from retinue.conditions import ConditionType, Reason
from retinue.plan import Manager, Manifest
from retinue_operator.errors import ApiDown, Conflict, KubeError, Throttled
from retinue_operator.resources import WATCHED, identity

from .api import Change, MemoryApi, Name
from .cluster import GPU, NAMESPACE, Cluster, gpu_node
from .invariants import INVARIANTS, Moment
from .operator_process import FakeMeasurer, Killed, OperatorProcess

START = 1_700_000_000.0
MODEL = {"name": "gpt-oss-20b", "precision": "MXFP4", "kvPrecision": "FP8", "contextWindow": 131072}
_API = "retinue.dev/v1alpha1"
_SELECTS = {resource.kind: resource.selects for resource in WATCHED}
_DURATIONS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 90.0)


class BrokenPromise(AssertionError):
    """An invariant did not hold at a write."""


class SimulatedWorld:
    """A world of four GPU nodes of class fast, two of class small, two for tiers. Deterministic by its seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.api = MemoryApi(lambda: self.cluster.now)
        self.cluster = Cluster(self.api, self._chance, START)
        self.measurer = FakeMeasurer(self._chance)
        self.operator: OperatorProcess | None = None
        self.writes: list[Change] = []
        self._requests_to_death: int | None = None
        self._troubles: list[KubeError] = []
        self.api.watch = self._changed
        self.api.trouble = self._trouble
        for number in range(4):
            self.api.write(gpu_node(f"fast-{number}", "fast", f"r{number // 2}"))
        for number in range(2):
            self.api.write(gpu_node(f"small-{number}", "small", "r2"))
            self.api.write(gpu_node(f"store-{number}", "none", "r3", gpus=0))
        for name, product in (("fast", "fast"), ("small", "small")):
            devices = {"extendedResource": GPU, "perNode": 4}
            spec = {"family": "GPU", "preset": "h100", "nodeSelector": {"gpu": product}, "devices": devices}
            self._make("NodeClass", name, spec, namespace="")
        self._make("NodeClass", "storage", {"family": "CPU", "nodeSelector": {"gpu": "none"}}, namespace="")
        self.make_agents()
        self.make_pool()

    # --- actions ------------------------------------------------------------------------------------------------------

    async def act(self, action: str, number: int) -> None:
        """One action by name; `number` from 0 to 7 says how much or which."""
        await ACTIONS[action](self, number)

    async def let_time_pass(self, number: int) -> None:
        """Seconds go by, and the cluster does what is due."""
        self.cluster.now += _DURATIONS[number]
        self.cluster.tick()

    async def deliver(self, number: int) -> None:
        """Some events of the watch arrive."""
        if self.operator is not None:
            self.operator.deliver(2**number)

    async def lose_events(self, number: int) -> None:
        """Some events never arrive."""
        if self.operator is not None:
            self.operator.lose(number)

    async def repeat_event(self, _: int) -> None:
        """An event arrives twice."""
        if self.operator is not None:
            self.operator.repeat()

    async def work(self, number: int) -> None:
        """The operator does what is due; without one, a new one starts."""
        try:
            if self.operator is None:
                self.operator = OperatorProcess(self.api, self.cluster, self._chance, self.measurer)
                await self.operator.sweep()
            await self.operator.work(2**number)
        except Killed:
            self.operator = None
        except KubeError:
            # The first list failed, so this one never began to work.
            self.operator = None

    async def sweep(self, _: int) -> None:
        """The operator lists everything anew."""
        if self.operator is not None:
            try:
                await self.operator.sweep()
            except (Killed, KubeError):
                self.operator = None

    async def kill(self, number: int) -> None:
        """The operator dies at the request after the next few."""
        self._requests_to_death = number

    async def trouble(self, number: int) -> None:
        """The API server refuses some of the next requests."""
        errors = (ApiDown("503", 503), Conflict("changed meanwhile", 409), Throttled("too many", 429, 1.0))
        self._troubles.extend(self._chance.choice(errors) for _ in range(number))

    async def edit_pool(self, number: int) -> None:
        """The user changes the pool that is not the autoscaler's."""
        name: Name = ("DecodePool", NAMESPACE, "solo")
        if self.api.find(*name) is None:
            self.make_pool()
        elif number == 7:
            self.api.begin_deletion(name, "user")
        elif number < 4:
            self.api.edit(name, "user", spec={"replicas": number})
        elif number == 4:
            arguments = [f"--seed={self._chance.randint(0, 9)}"]
            self.api.edit(name, "user", spec={"engine": {"type": "Simulated", "args": arguments}})
        elif number == 5:
            self.api.edit(name, "user", spec={"parallelism": {"tensor": self._chance.choice((1, 2, 4, 8))}})
        else:
            self.api.edit(name, "user", spec={"rollout": self._chance.choice(_ROLLOUTS)})

    async def edit_agents(self, number: int) -> None:
        """The user changes the AgentPool."""
        name: Name = ("AgentPool", NAMESPACE, "coder")
        if self.api.find(*name) is None:
            self.make_agents()
        elif number == 7:
            self.api.begin_deletion(name, "user")
        else:
            self.make_agents(most=1 + number % 3, mode=("Auto", "DryRun", "Off")[number // 3], explorer=number != 5)

    async def fail_pod(self, number: int) -> None:
        """An engine exits."""
        running = [p for p in self.cluster.pods() if p["status"].get("phase") == "Running"]
        if running:
            self.cluster.fail(running[number % len(running)])

    async def delete_pod(self, number: int) -> None:
        """Somebody deletes a pod by hand."""
        pods = [p for p in self.cluster.pods() if not p["metadata"].get("deletionTimestamp")]
        if pods:
            self.api.begin_deletion(identity(pods[number % len(pods)]), "user")

    async def lose_node(self, number: int) -> None:
        """A kubelet stops."""
        self.cluster.lose(f"fast-{number % 4}")

    async def bring_nodes_back(self, _: int) -> None:
        """All nodes are there again."""
        for number in range(4):
            if self.api.find("Node", "", f"fast-{number}") is None:
                self.api.write(gpu_node(f"fast-{number}", "fast", f"r{number // 2}"))
            else:
                self.cluster.bring_back(f"fast-{number}")

    async def crash_engines(self, number: int) -> None:
        """The engines of a pool exit at their start, or do no longer."""
        name = ("solo", "coder-primary")[number % 2]
        self.cluster.crashing ^= {name}

    async def ask_engines(self, number: int) -> None:
        """Requests come to engines that are ready and routable."""
        for pod in self.cluster.pods():
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or [])
            if ready and pod["metadata"]["labels"].get(labels.ROUTABLE) == "true":
                self.cluster.requests[pod["metadata"]["uid"]] = number

    async def change_metrics(self, number: int) -> None:
        """Prometheus goes, comes back, or tells nonsense."""
        self.measurer.mode = ("quiet", "wild", "down")[number % 3]

    async def meddle(self, number: int) -> None:
        """Somebody changes what the operator owns."""
        kind = ("Pod", "Service", "PrefillPool", "KVCacheTier")[number % 4]
        found = [m for m in self.api.all(kind) if not m["metadata"].get("deletionTimestamp")]
        if not found:
            return
        victim = identity(found[number % len(found)])
        if kind == "Pod":
            tags = {labels.ROUTABLE: "maybe", labels.REVISION: "mine"}
            self.api.edit(victim, "user", metadata={"labels": tags})
        elif kind == "Service":
            self.api.edit(victim, "user", spec={"selector": {"everything": "mine"}})
        else:
            self.api.begin_deletion(victim, "user")

    # --- the end ------------------------------------------------------------------------------------------------------

    async def calm_down(self, limit: float = 1200.0) -> None:
        """Nothing goes wrong any more; time passes until nothing happens. Raises AssertionError if that never comes."""
        self._troubles.clear()
        self._requests_to_death = None
        self.cluster.crashing.clear()
        self.measurer.mode = "quiet"
        await self.bring_nodes_back(0)
        ends, swept = self.cluster.now + limit, 0.0
        quiet = 0
        while quiet < 45:
            before = len(self.writes)
            self.cluster.now += 1.0
            self.cluster.tick()
            if self.operator is not None:
                self.operator.deliver(100_000)
            await self.work(7)
            if self.cluster.now - swept > 120:
                swept = self.cluster.now
                await self.sweep(0)
            quiet = quiet + 1 if len(self.writes) == before and not self.cluster.busy() else 0
            assert self.cluster.now < ends, f"not quiet after {limit:g} s: {self._last_writes()}"

    def unfinished(self) -> list[str]:
        """What is not as the specs want it, in words; empty when the cluster has converged."""
        found = []
        uids = {m["metadata"]["uid"] for kind in _SELECTS for m in self.api.all(kind)}
        for kind in ("Pod", "Service", "PrefillPool", "DecodePool", "KVCacheTier"):
            for child in self.api.all(kind):
                owners = child["metadata"].get("ownerReferences") or []
                if owners and not any(owner["uid"] in uids for owner in owners):
                    found.append(f"{kind} {child['metadata']['name']} is an orphan")
        for kind in ("AgentPool", "PrefillPool", "DecodePool", "KVCacheTier"):
            found += [text for wire in self.api.all(kind) for text in self._complaints(wire)]
        return found

    def make_agents(self, most: int = 2, mode: str = "Auto", explorer: bool = True) -> None:
        """An AgentPool with a tier of servers, a primary role with prefill, and perhaps a sub-agent role."""
        bounds = {"nodeClasses": ["fast", "small"], "replicas": {"min": 1, "max": most}, "drain": {"timeout": "20s"}}
        engine = {"type": "Simulated"}
        primary = {"name": "primary", "type": "Primary", "model": MODEL, "engine": engine, "prefill": bounds}
        roles: list[Manifest] = [{**primary, "decode": bounds, "kvCacheTiers": ["cold"]}]
        if explorer:
            sub = {"name": "explorer", "type": "SubAgent", "model": MODEL, "engine": engine}
            roles.append({**sub, "decode": {**bounds, "nodeClasses": ["small"]}})
        tier = {"medium": "ContextStorage", "backend": "Simulated", "capacityPerMember": "1Gi", "nodeClass": "storage"}
        spec: dict[str, Any] = {
            "roles": roles,
            "tiers": [{"name": "cold", "replicas": {"min": 1, "max": 2}, "spec": tier}],
            "slo": {"ttft": {"target": "2s"}, "itl": {"target": "20ms"}},
            "autoscaling": {
                "mode": mode,
                "evaluationInterval": "5s",
                "metricsWindow": "20s",
                "scaleDown": {"stabilization": "20s", "interval": "5s"},
            },
        }
        self._make("AgentPool", "coder", spec)

    def make_pool(self) -> None:
        """A pool of its own, of instances of two devices."""
        spec = {
            "serves": "PrefillAndDecode",
            "model": MODEL,
            "engine": {"type": "Simulated"},
            "nodeClasses": ["fast"],
            "parallelism": {"tensor": 2},
            "replicas": 2,
            "drain": {"timeout": "20s"},
        }
        self._make("DecodePool", "solo", spec)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _make(self, kind: str, name: str, spec: Manifest, namespace: str = NAMESPACE) -> None:
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        live = self.api.find(kind, namespace, name)
        made = live or {"apiVersion": _API, "kind": kind, "metadata": metadata}
        self.api.write({**made, "spec": spec})

    def _changed(self, change: Change) -> None:
        if change.by in set(Manager):
            self.writes.append(change)
        operator = self.operator
        if operator is None:
            return
        moment = Moment(change, operator.cache, self.cluster, self.measurer.mode)
        for invariant in INVARIANTS:
            if not invariant(moment):
                name = "/".join(identity(change.manifest))
                raise BrokenPromise(f"{invariant.__name__}: {change.by} wrote {name}")
        selects = _SELECTS.get(change.manifest["kind"])
        if selects is not None and selects(change.manifest):
            operator.backlog.append(change)

    def _trouble(self, verb: str, name: Name) -> KubeError | None:
        del verb, name
        if self._requests_to_death is not None:
            if self._requests_to_death == 0:
                self._requests_to_death = None
                raise Killed
            self._requests_to_death -= 1
        return self._troubles.pop() if self._troubles else None

    def _complaints(self, wire: Manifest) -> list[str]:
        kind, _, name = identity(wire)
        status, spec = wire.get("status") or {}, wire["spec"]
        conditions = {c["type"]: c for c in status.get("conditions") or []}
        ready = conditions.get(ConditionType.READY, {})
        if ready.get("status") == "True" or (kind != "AgentPool" and spec.get("replicas") == 0):
            wanted = spec.get("replicas", 1)
            counts = (status.get("replicas"), status.get("readyReplicas"))
            full = conditions.get(ConditionType.PLACED, {}).get("reason") == Reason.NO_FIT
            if kind in ("PrefillPool", "DecodePool") and counts != (wanted, wanted) and not full:
                return [f"{kind} {name} has {counts}, wanted {wanted}"]
            return []
        return [f"{kind} {name} is not Ready: {ready.get('reason')} {ready.get('message')}"]

    def _last_writes(self) -> str:
        return ", ".join(f"{c.by} {'/'.join(identity(c.manifest))}" for c in self.writes[-8:])


_ROLLOUTS = (
    {"maxSurge": 1, "maxUnavailable": 0},
    {"maxSurge": 0, "maxUnavailable": 1},
    {"maxSurge": 2, "maxUnavailable": 1},
)
ACTIONS: dict[str, Callable[[SimulatedWorld, int], Awaitable[None]]] = {
    "let_time_pass": SimulatedWorld.let_time_pass,
    "deliver": SimulatedWorld.deliver,
    "work": SimulatedWorld.work,
    "lose_events": SimulatedWorld.lose_events,
    "repeat_event": SimulatedWorld.repeat_event,
    "sweep": SimulatedWorld.sweep,
    "kill": SimulatedWorld.kill,
    "trouble": SimulatedWorld.trouble,
    "edit_pool": SimulatedWorld.edit_pool,
    "edit_agents": SimulatedWorld.edit_agents,
    "fail_pod": SimulatedWorld.fail_pod,
    "delete_pod": SimulatedWorld.delete_pod,
    "lose_node": SimulatedWorld.lose_node,
    "bring_nodes_back": SimulatedWorld.bring_nodes_back,
    "crash_engines": SimulatedWorld.crash_engines,
    "ask_engines": SimulatedWorld.ask_engines,
    "change_metrics": SimulatedWorld.change_metrics,
    "meddle": SimulatedWorld.meddle,
}
