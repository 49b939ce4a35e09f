"""A cluster in memory for one pool: it executes plans, schedules, starts and fails pods, and lets time pass.

Apply has the parts of server-side apply that plans rely on: a manager's fields merge into the object, and a field that
the manager stops naming goes away. Delete needs the uid. The scheduler knows selector, affinity, taints and capacity.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from retinue.api import DecodePool, KVCacheTier, NodeClass, PrefillPool, labels
from retinue.api.types import Toleration
from retinue.api.units import seconds
from retinue.conditions import timestamp
from retinue.nodeclass.claims import TEMPLATE_KIND, template_from, template_names
from retinue.nodeclass.nodes import Hold, Node, Taint, holds_from, is_gated, tolerated
from retinue.nodeclass.resolve import ResolvedClass, resolve
from retinue.plan import Apply, Delete, Manager, Manifest, Plan
from retinue.pool.drain import DRAIN_SETTLE_SECONDS
from retinue.pool.plan import plan
from retinue.pool.release import PLACEMENT_RETRY_SECONDS
from retinue.pool.snapshot import PodView, PoolKind, PoolMetrics, PoolSnapshot, pod_view

GPU = "nvidia.com/gpu"
RACK = "topology.kubernetes.io/rack"
CLIQUE = "nvidia.com/gpu.clique"
TOPOLOGY_DOMAIN = "accelerator.topograph.run/domain"
START = 1_700_000_000.0
QUIET = (None, PLACEMENT_RETRY_SECONDS)
MODEL = "gpt-oss-20b"


def gpu_node(name: str, product: str = "h", rack: str = "r0", clique: str | None = None, gpus: int = 4) -> Node:
    """A node of class `product` with `gpus` devices in one rack and, if given, one NVLink clique."""
    tags = {"gpu": product, RACK: rack, "kubernetes.io/hostname": name}
    if clique is not None:
        tags[CLIQUE] = clique
    return Node(name, tags, ready=True, schedulable=True, allocatable={GPU: gpus, "memory": 2**40})


def gpu_class(name: str, product: str = "h", **spec: Any) -> ResolvedClass:
    """A class of nodes with four H100-like devices, NVLink cliques and racks."""
    wire = {
        "family": "GPU",
        "preset": "h100",
        "nodeSelector": {"gpu": product},
        "devices": {"extendedResource": GPU, "perNode": 4},
        "topology": [
            {"level": "nvlinkDomain", "keys": [CLIQUE, TOPOLOGY_DOMAIN]},
            {"level": "rack", "keys": [RACK]},
        ],
        "costPerNodeHour": "8",
        **spec,
    }
    manifest = {"metadata": {"name": name}, "spec": wire}
    return resolve(name, NodeClass.model_validate(manifest).spec)


def make_pool(kind: str = "prefill", name: str = "coder", **spec: Any) -> PrefillPool | DecodePool:
    """A pool of simulated engines; one device on class `fast` unless the spec says otherwise."""
    model: type[PrefillPool] | type[DecodePool] = PrefillPool if kind == "prefill" else DecodePool
    wire = {
        "model": {"name": MODEL},
        "engine": {"type": "Simulated"},
        "nodeClasses": ["fast"],
        "drain": {"timeout": "1m"},
        **spec,
    }
    metadata = {"name": name, "namespace": "agents", "uid": f"uid-{name}-{kind}", "generation": 1}
    return model.model_validate({"metadata": metadata, "spec": wire})


@dataclass
class FakeWorld:
    """One pool and everything around it. Times in seconds; `start_delay` is asked once per pod that gets a node."""

    pool: PrefillPool | DecodePool
    nodes: dict[str, Node]
    classes: dict[str, ResolvedClass]
    tiers: dict[str, KVCacheTier] = field(default_factory=dict)
    now: float = START
    start_delay: Callable[[str], float] = lambda _: 5.0
    termination: float = 2.0
    pods: dict[str, Manifest] = field(default_factory=dict)
    others: list[Manifest] = field(default_factory=list)
    services: dict[str, Manifest] = field(default_factory=dict)
    templates: dict[str, Manifest] = field(default_factory=dict)
    published: dict[str, dict[str, int]] = field(default_factory=dict)
    """What DRA drivers publish: numbers of devices by counting key, by node."""
    in_flight: dict[str, int | None] = field(default_factory=dict)
    metrics: PoolMetrics | None = None
    applied: dict[tuple[str, Manager], Manifest] = field(default_factory=dict)
    events: list[tuple[str, str]] = field(default_factory=list)
    ready_at: dict[str, float] = field(default_factory=dict)
    gone_at: dict[str, float] = field(default_factory=dict)
    writes: int = 0
    made: int = 0

    # --- what a plan sees

    def snapshot(self) -> PoolSnapshot:
        views = tuple(pod_view(pod) for _, pod in sorted(self.pods.items()))
        draining = {view.instance for view in views if view.drain_started is not None}
        return PoolSnapshot(
            kind=PoolKind.PREFILL if isinstance(self.pool, PrefillPool) else PoolKind.DECODE,
            pool=self.pool,
            pods=views,
            classes=self.classes,
            class_errors={},
            nodes=tuple(self.nodes.values()),
            holds=self.holds(),
            tiers=self.tiers,
            in_flight={name: self.in_flight.get(name, 0) for name in draining},
            metrics=self.metrics,
            claim_templates=tuple(map(template_from, self.templates.values())),
        )

    def holds(self) -> tuple[Hold, ...]:
        return holds_from([*self.pods.values(), *self.others], map(template_from, self.templates.values()))

    def plan(self) -> Plan:
        """The plan for the world as it is, checked against the promises."""
        snapshot = self.snapshot()
        planned = plan(snapshot, self.now)
        assert plan(snapshot, self.now) == planned, "planning the same world twice gives two plans"
        keeps_its_promises(self, snapshot, planned)
        return planned

    # --- what an operator does

    def reconcile(self, write_limit: int | None = None, write_status: bool = True) -> Plan:
        """Plans and executes; with a limit the operator dies after that many writes, before the status."""
        planned = self.plan()
        before = self.writes
        writes: tuple[Apply | Delete, ...] = (*planned.apply, *planned.delete)
        for entry in writes:
            if write_limit is not None and self.writes - before >= write_limit:
                return planned
            if isinstance(entry, Apply):
                self.apply(entry)
            else:
                self.delete(entry)
        self.events.extend((event.reason, event.message) for event in planned.events)
        if write_status and planned.status is not None:
            self.write_status(planned.status)
        return planned

    def write_status(self, status: Manifest) -> None:
        if status == self.pool.status.to_wire():
            return
        self.writes += 1
        self.pool = type(self.pool).model_validate({**self.pool.to_wire(), "status": status})

    def apply(self, entry: Apply) -> None:
        """Server-side apply, forced: no write when nothing changes."""
        manifest, name = entry.manifest, entry.manifest["metadata"]["name"]
        store = self._store(manifest["kind"])
        live = store.get(name)
        if live is None:
            assert entry.manager == Manager.OPERATOR, f"{entry.manager} would make an empty {name}"
            live = {"status": {"phase": "Pending"}}
            self.made += 1
            live["metadata"] = {"uid": f"pod-{self.made}", "creationTimestamp": timestamp(self.now)}
        elif live["metadata"].get("deletionTimestamp"):
            return
        key = (live["metadata"]["uid"], entry.manager)
        merged = _merged(_without(live, self.applied.get(key, {}), manifest), manifest)
        if merged != live:
            _check_update(live, merged)
            self.writes += 1
            store[name] = merged
        self.applied[key] = copy.deepcopy(manifest)

    def delete(self, entry: Delete) -> None:
        store = self._store(entry.kind)
        live = store.get(entry.name)
        if live is None or live["metadata"]["uid"] != entry.uid or live["metadata"].get("deletionTimestamp"):
            return
        self.writes += 1
        if store is self.pods:
            self.begin_deletion(entry.name)
        else:
            del store[entry.name]

    def _store(self, kind: str) -> dict[str, Manifest]:
        return {"Pod": self.pods, "Service": self.services, TEMPLATE_KIND: self.templates}[kind]

    def begin_deletion(self, name: str) -> None:
        """What the API server does: a pod without a node goes at once, another one ends first."""
        live = self.pods[name]
        if not live["spec"].get("nodeName") or live["status"]["phase"] in ("Failed", "Succeeded"):
            del self.pods[name]
            return
        live["metadata"]["deletionTimestamp"] = timestamp(self.now)
        self.gone_at[live["metadata"]["uid"]] = self.now + self.termination

    # --- what time does

    def advance(self, seconds: float) -> None:
        """Lets time pass: pods end, get nodes, become ready."""
        self.now += seconds
        for name, pod in list(self.pods.items()):
            gone = self.gone_at.get(pod["metadata"]["uid"])
            if gone is not None and self.now >= gone:
                del self.pods[name]
        for name in sorted(self.pods):
            self._schedule(name)
            self._start(name)

    def _schedule(self, name: str) -> None:
        pod = self.pods[name]
        spec = pod["spec"]
        if spec.get("nodeName") or spec.get("schedulingGates") or pod["metadata"].get("deletionTimestamp"):
            return
        fitting = [node for node in self.nodes.values() if self._fits(pod, node)]
        if fitting:
            spec["nodeName"] = min(fitting, key=lambda node: node.name).name
            _set_condition(pod, "PodScheduled", "True", "", self.now)
            self.ready_at[pod["metadata"]["uid"]] = self.now + self.start_delay(name)
        else:
            _set_condition(pod, "PodScheduled", "False", "Unschedulable", self.now)

    def _fits(self, pod: Manifest, node: Node) -> bool:
        spec = pod["spec"]
        terms = (
            spec.get("affinity", {})
            .get("nodeAffinity", {})
            .get("requiredDuringSchedulingIgnoredDuringExecution", {})
            .get("nodeSelectorTerms", [{"matchExpressions": []}])
        )
        if not any(all(_matches(node, e) for e in term["matchExpressions"]) for term in terms):
            return False
        if any(node.labels.get(key) != value for key, value in spec.get("nodeSelector", {}).items()):
            return False
        tolerations = [Toleration.model_validate(wire) for wire in spec.get("tolerations", [])]
        if not node.usable or not tolerated(node.taints, tolerations):
            return False
        if not set(template_names(spec)) <= self.templates.keys():
            return False
        used: dict[str, int] = {}
        for hold in self.holds():
            if hold.node == node.name:
                for resource, amount in hold.requests.items():
                    used[resource] = used.get(resource, 0) + amount
        (wanted,) = holds_from([pod], map(template_from, self.templates.values()))
        has = {**node.allocatable, **self.published.get(node.name, {})}
        return all(used.get(r, 0) + a <= has.get(r, 0) for r, a in wanted.requests.items())

    def _start(self, name: str) -> None:
        pod = self.pods[name]
        due = self.ready_at.get(pod["metadata"]["uid"])
        if due is None or pod["status"]["phase"] in ("Failed", "Succeeded"):
            return
        pod["status"]["phase"] = "Running"
        if self.now >= due and not pod["metadata"].get("deletionTimestamp"):
            _set_condition(pod, "Ready", "True", "", self.now)

    def run(self, limit: int = 300, tick: float = 1.0) -> None:
        """Reconciles and lets time pass until a reconcile writes nothing and nothing moves by itself any more."""
        calm = 0
        for _ in range(limit):
            before = (self.writes, copy.deepcopy(self.pods))
            planned = self.reconcile()
            self.advance(tick)
            calm = calm + 1 if before == (self.writes, self.pods) else 0
            status = self.pool.status
            waiting = planned.requeue_after not in QUIET and (status.starting_replicas or status.draining_replicas)
            if calm > 2 and not self._moves() and not waiting:
                return
        raise AssertionError(f"not quiet after {limit} rounds: {self.describe()}")

    def _moves(self) -> bool:
        """Whether a pod still ends or starts by itself."""
        uids = {pod["metadata"]["uid"] for pod in self.pods.values()}
        starting = any(self.ready_at.get(view.uid, 0) > self.now for view in self.views() if not view.ready)
        return starting or bool(self.gone_at.keys() & uids)

    def describe(self) -> str:
        return "; ".join(
            f"{view.name}: {view.phase} ready={view.ready} gated={view.gated} node={view.node} rev={view.revision} "
            f"deleting={view.deleting} drain={view.drain_started}"
            for view in self.views()
        )

    # --- what goes wrong, and what users do

    def fail(self, name: str, code: int = 1) -> None:
        """The pod's engine exits."""
        status = self.pods[name]["status"]
        status["phase"] = "Failed"
        status["containerStatuses"] = [
            {"name": "engine", "state": {"terminated": {"exitCode": code, "reason": "Error"}}}
        ]
        _set_condition(self.pods[name], "Ready", "False", "PodFailed", self.now)

    def break_device(self, name: str, health: str = "Unhealthy") -> None:
        """The kubelet reports the health of the device that a pod holds."""
        device = {"resourceID": "GPU-7", "health": health}
        status = {"name": "engine", "allocatedResourcesStatus": [{"name": GPU, "resources": [device]}]}
        self.pods[name]["status"]["containerStatuses"] = [status]

    def falter(self, name: str) -> None:
        """The engine answers no probe any more, though its container runs on."""
        started = {"running": {"startedAt": timestamp(self.now - 100)}}
        self.pods[name]["status"]["containerStatuses"] = [{"name": "engine", "state": started}]
        self.ready_at.pop(self.pods[name]["metadata"]["uid"], None)
        _set_condition(self.pods[name], "Ready", "False", "ContainersNotReady", self.now)

    def hold_up(self, name: str, reason: str, message: str) -> None:
        """The kubelet cannot start the pod's container, for example for lack of its image; "" ends that."""
        pod = self.pods[name]
        pod["status"]["phase"] = "Pending"
        self.ready_at.pop(pod["metadata"]["uid"], None)
        state = {"waiting": {"reason": reason, "message": message}} if reason else {"running": {}}
        pod["status"]["containerStatuses"] = [{"name": "engine", "image": "registry/engine:9", "state": state}]
        if not reason:
            self.ready_at[pod["metadata"]["uid"]] = self.now

    def lose_node(self, name: str) -> None:
        """A node and its pods vanish, as after the pod garbage collector has run."""
        del self.nodes[name]
        for pod_name in [n for n, pod in self.pods.items() if pod["spec"].get("nodeName") == name]:
            del self.pods[pod_name]

    def change(self, **spec: Any) -> None:
        """A user changes the spec."""
        wire = self.pool.to_wire()
        wire["spec"] = {**wire["spec"], **spec}
        wire["metadata"]["generation"] += 1
        self.pool = type(self.pool).model_validate(wire)

    def forget_status(self) -> None:
        """The status is lost altogether."""
        wire = self.pool.to_wire()
        wire["status"] = {}
        self.pool = type(self.pool).model_validate(wire)

    # --- what a test asks

    def views(self) -> list[PodView]:
        return [pod_view(pod) for _, pod in sorted(self.pods.items())]

    def instances(self) -> dict[str, list[PodView]]:
        found: dict[str, list[PodView]] = {}
        for view in self.views():
            found.setdefault(view.instance, []).append(view)
        return found

    def condition(self, type_: str) -> tuple[str, str, str]:
        """Status, reason and message of a condition."""
        found = next(c for c in self.pool.status.conditions if c.type == type_)
        return found.status, found.reason, found.message

    def record(self, name: str) -> Any:
        return next(record for record in self.pool.status.instances if record.name == name)


def world(
    pool: PrefillPool | DecodePool | None = None,
    nodes: Iterable[Node] = (),
    classes: Mapping[str, ResolvedClass] | None = None,
    **more: Any,
) -> FakeWorld:
    """A world with four nodes in two NVLink cliques and two racks, unless told otherwise."""
    given = tuple(nodes) or tuple(gpu_node(f"n{i}", rack=f"r{i // 2}", clique=f"c{i // 2}") for i in range(4))
    return FakeWorld(
        pool=pool or make_pool(),
        nodes={node.name: node for node in given},
        classes=dict(classes) if classes is not None else {"fast": gpu_class("fast")},
        **more,
    )


def tainted(node: Node, key: str, effect: str = "NoSchedule") -> Node:
    return replace(node, taints=(*node.taints, Taint(key, effect)))


def _matches(node: Node, expression: Manifest) -> bool:
    key = expression["key"]
    if expression["operator"] == "In":
        return node.labels.get(key) in expression["values"]
    assert expression["operator"] == "DoesNotExist", expression
    return key not in node.labels


def _set_condition(pod: Manifest, type_: str, status: str, reason: str, now: float) -> None:
    conditions = pod["status"].setdefault("conditions", [])
    old = next((c for c in conditions if c["type"] == type_), None)
    since = old["lastTransitionTime"] if old and old["status"] == status else timestamp(now)
    conditions[:] = [c for c in conditions if c["type"] != type_]
    conditions.append({"type": type_, "status": status, "reason": reason, "lastTransitionTime": since})


def _without(live: Manifest, before: Manifest, now: Manifest) -> Manifest:
    """The live object without what the manager named last time and names no more."""
    left: Manifest = {}
    for key, value in live.items():
        if key in before and key not in now:
            continue
        if isinstance(value, dict) and isinstance(before.get(key), dict) and isinstance(now.get(key), dict):
            left[key] = _without(value, before[key], now[key])
        else:
            left[key] = copy.deepcopy(value)
    return left


def _merged(live: Any, planned: Any) -> Any:
    if isinstance(live, dict) and isinstance(planned, dict):
        return {
            key: _merged(live[key], planned[key]) if key in live and key in planned else live.get(key, planned.get(key))
            for key in {**live, **planned}
        }
    return copy.deepcopy(planned)


def _check_update(old: Manifest, new: Manifest) -> None:
    """What the API server allows to change in a spec: of pods, gates go, and while they are there placement narrows."""
    if not old.get("spec"):
        return
    before, after = dict(old["spec"]), dict(new["spec"])
    gates = before.pop("schedulingGates", None)
    left = after.pop("schedulingGates", None)
    assert left is None or left == gates, "a scheduling gate was added to an existing pod"
    if gates:
        before.pop("affinity", None)
        after.pop("affinity", None)
    assert before == after, f"immutable fields of {new['kind']} {new['metadata']['name']} would change"


def keeps_its_promises(world: FakeWorld, snapshot: PoolSnapshot, planned: Plan) -> None:
    """Asserts what every plan of a pool must keep, whatever the world looks like."""
    before = world.instances()
    _deletes_whole_instances_that_may_go(world, snapshot, planned, before)
    _releases_together(world, planned)
    _keeps_enough_ready(snapshot, planned, before)
    _has_every_template_that_a_pod_names(world, planned)
    for name, views in before.items():
        assert len({view.revision for view in views}) == 1, f"{name} runs two revisions"
        assert all(view.node_class == views[0].node_class for view in views), f"{name} is on two classes"


def _healthy(views: Iterable[PodView]) -> bool:
    return all(view.ready and not view.deleting and view.phase == "Running" for view in views)


def _deletes_whole_instances_that_may_go(
    world: FakeWorld, snapshot: PoolSnapshot, planned: Plan, before: Mapping[str, list[PodView]]
) -> None:
    doomed = {entry.uid for entry in planned.delete}
    assert len(doomed) == len(planned.delete), "a pod is deleted twice"
    for name, views in before.items():
        going = [view for view in views if view.uid in doomed]
        if not going:
            continue
        assert {v.uid for v in views if not v.deleting} == {v.uid for v in going}, f"only a part of {name} is deleted"
        complete = len(views) == int(_environment(world.pods[views[0].name])["RETINUE_WORLD_SIZE"])
        if not _healthy(views) or not complete:
            continue
        drained = all(view.drain_started is not None and not view.routable for view in views)
        assert drained, f"{name} is deleted undrained"
        elapsed = world.now - (views[0].drain_started or 0.0)
        timeout = seconds(snapshot.pool.spec.drain.timeout)
        idle = snapshot.in_flight.get(name) == 0 and elapsed >= DRAIN_SETTLE_SECONDS
        assert idle or elapsed >= timeout, f"{name} is deleted while it serves"


def _releases_together(world: FakeWorld, planned: Plan) -> None:
    released: dict[str, list[Manifest]] = {}
    for entry in planned.apply:
        manifest = entry.manifest
        live = world.pods.get(manifest["metadata"]["name"])
        if manifest["kind"] != "Pod" or entry.manager != Manager.OPERATOR:
            continue
        if live is None:
            alone = _environment(manifest)["RETINUE_WORLD_SIZE"] == "1"
            assert alone or is_gated(manifest["spec"]), "a part of an instance is created without its gate"
        else:
            assert is_gated(live["spec"]), "a released pod is written again"
            if not is_gated(manifest["spec"]):
                released.setdefault(manifest["metadata"]["labels"][labels.INSTANCE], []).append(manifest)
    for name, manifests in released.items():
        views = world.instances()[name]
        assert {v.name for v in views if v.gated} == {m["metadata"]["name"] for m in manifests}, f"part of {name} waits"
        bound = [m["spec"].get("affinity") for m in manifests]
        bound.extend(world.pods[v.name]["spec"].get("affinity") for v in views if not v.gated)
        assert all(affinity == bound[0] for affinity in bound), f"{name} is released into two domains"


def _keeps_enough_ready(snapshot: PoolSnapshot, planned: Plan, before: Mapping[str, list[PodView]]) -> None:
    spec = snapshot.pool.spec
    serving = {n for n, views in before.items() if _healthy(views) and all(v.routable for v in views)}
    marked = {
        entry.manifest["metadata"]["name"]
        for entry in planned.apply
        if entry.manager == Manager.INSTANCE and entry.manifest["metadata"]["labels"][labels.ROUTABLE] == "false"
    }
    left = [name for name in serving if not marked & {view.name for view in before[name]}]
    assert len(left) >= min(spec.replicas - spec.rollout.max_unavailable, len(serving)), "too few go on serving"


def _has_every_template_that_a_pod_names(world: FakeWorld, planned: Plan) -> None:
    there = set(world.templates)
    for entry in planned.apply:
        if entry.manifest["kind"] == TEMPLATE_KIND:
            there.add(entry.manifest["metadata"]["name"])
        assert set(template_names(entry.manifest.get("spec", {}))) <= there, "a pod is made before its claim template"
    named = {name for pod in world.pods.values() for name in template_names(pod["spec"])}
    gone = {entry.name for entry in planned.delete if entry.kind == TEMPLATE_KIND}
    assert not named & gone, "a claim template is deleted while a pod names it"


def _environment(pod: Manifest) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in pod["spec"]["containers"][0]["env"]}
