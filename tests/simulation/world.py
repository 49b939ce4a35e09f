"""One simulated world: users, cluster, API server and operator. What may happen to it is in actions.py."""

import random
from typing import Any

from retinue.conditions import ConditionType, Reason
from retinue.plan import Manager, Manifest
from retinue_operator.errors import KubeError
from retinue_operator.resources import WATCHED, identity

from .api import Change, MemoryApi, Name
from .cluster import GPU, NAMESPACE, Cluster, gpu_node
from .invariants import INVARIANTS, Moment
from .operator_process import FakeMeasurer, Killed, OperatorProcess

START = 1_700_000_000.0
# Longer than anything waits without a write: the window of scale-down, drains, restarts.
QUIET_SECONDS = 20
MODEL = {"name": "gpt-oss-20b", "precision": "MXFP4", "kvPrecision": "FP8", "contextWindow": 131072}
_API = "retinue.dev/v1alpha1"
_SELECTS = {resource.kind: resource.selects for resource in WATCHED}


class BrokenPromise(AssertionError):
    """An invariant did not hold at a write."""


class SimulatedWorld:
    """A world of four GPU nodes of class fast, two of class small, two for tiers. Deterministic by its seed.

    furnished: with an AgentPool and a pool of its own. like: begins as that one is now, but for its operator, which has
    to be started. requests_to_death: the operator dies at the request after so
    many. troubles: what its next requests are answered.
    """

    def __init__(self, seed: int, *, furnished: bool = True, like: "SimulatedWorld | None" = None) -> None:
        self.chance = random.Random(seed)
        if like is None:
            self.api = MemoryApi(lambda: self.cluster.now)
            self.cluster = Cluster(self.api, self.chance, START)
        else:
            self.api = like.api.copy(lambda: self.cluster.now)
            self.cluster = like.cluster.copy(self.api, self.chance)
        self.measurer = FakeMeasurer(self.chance)
        self.operator: OperatorProcess | None = None
        self.writes: list[Change] = []
        self.requests_to_death: int | None = None
        self.troubles: list[KubeError] = []
        self.api.watch = self._changed
        self.api.trouble = self._trouble
        if like is None:
            self._equip(furnished)

    def _equip(self, furnished: bool) -> None:
        for number in range(4):
            self.api.write(gpu_node(f"fast-{number}", "fast", f"r{number // 2}"))
        for number in range(2):
            self.api.write(gpu_node(f"small-{number}", "small", "r2"))
            self.api.write(gpu_node(f"store-{number}", "none", "r3", gpus=0))
        for name, product in (("fast", "fast"), ("small", "small")):
            devices = {"extendedResource": GPU, "perNode": 4}
            spec = {"family": "GPU", "preset": "h100", "nodeSelector": {"gpu": product}, "devices": devices}
            spec["costPerNodeHour"] = "8"
            self._make("NodeClass", name, spec, namespace="")
        self._make("NodeClass", "storage", {"family": "CPU", "nodeSelector": {"gpu": "none"}}, namespace="")
        if furnished:
            self.make_agents()
            self.make_pool()

    # --- the operator -------------------------------------------------------------------------------------------------

    async def work(self, limit: int) -> None:
        """The operator reconciles up to `limit` keys that are due; where there is none, a new one starts."""
        try:
            if self.operator is None:
                self.operator = OperatorProcess(self.api, self.cluster, self.chance, self.measurer)
                await self.operator.sweep()
            await self.operator.work(limit)
        except Killed:
            self.operator = None
        except KubeError:
            # The first list failed, so this one never began to work.
            self.operator = None

    async def sweep(self) -> None:
        """The operator lists everything anew."""
        if self.operator is not None:
            try:
                await self.operator.sweep()
            except (Killed, KubeError):
                self.operator = None

    def bring_nodes_back(self) -> None:
        """All nodes are there again."""
        for number in range(4):
            self.cluster.bring_back(f"fast-{number}")
            self.api.write(gpu_node(f"fast-{number}", "fast", f"r{number // 2}"))

    # --- the end ------------------------------------------------------------------------------------------------------

    async def calm_down(self, limit: float = 1200.0) -> None:
        """Nothing goes wrong any more; time passes until nothing happens. Raises AssertionError if that never comes."""
        self.troubles.clear()
        self.requests_to_death = None
        self.cluster.crashing.clear()
        self.bring_nodes_back()
        if self.operator is not None:
            self.operator.deliver(100_000)
        # What never arrived is noticed by the next complete list, as it is by the real one's periodic sweep.
        await self.sweep()
        ends, quiet = self.cluster.now + limit, 0
        while quiet < QUIET_SECONDS:
            before = len(self.writes)
            self.cluster.now += 1.0
            self.cluster.tick()
            if self.operator is not None:
                self.operator.deliver(100_000)
            await self.work(128)
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
        bounds = {"nodeClasses": ["fast", "small"], "replicas": {"min": 1, "max": most}, "drain": {"timeout": "10s"}}
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
                "scaleDown": {"stabilization": "10s", "interval": "5s"},
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
            "drain": {"timeout": "10s"},
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
        if self.requests_to_death is not None:
            if self.requests_to_death == 0:
                self.requests_to_death = None
                raise Killed
            self.requests_to_death -= 1
        return self.troubles.pop() if self.troubles else None

    def _complaints(self, wire: Manifest) -> list[str]:
        kind, _, name = identity(wire)
        status, spec = wire.get("status") or {}, wire["spec"]
        conditions = {c["type"]: c for c in status.get("conditions") or []}
        ready = conditions.get(ConditionType.READY, {})
        if conditions.get(ConditionType.PLACED, {}).get("reason") == Reason.NO_FIT:
            return []  # All is said and nothing can be done.
        if ready.get("status") == "True" or (kind != "AgentPool" and spec.get("replicas") == 0):
            wanted = spec.get("replicas", 1)
            counts = (status.get("replicas"), status.get("readyReplicas"))
            if kind in ("PrefillPool", "DecodePool") and counts != (wanted, wanted):
                return [f"{kind} {name} has {counts}, wanted {wanted}"]
            return []
        return [f"{kind} {name} is not Ready: {ready.get('reason')} {ready.get('message')}"]

    def _last_writes(self) -> str:
        return ", ".join(f"{c.by} {'/'.join(identity(c.manifest))}" for c in self.writes[-8:])
