"""The pure functions at full size: one decision, the plan of a large pool, the placement of many instances."""

import copy
import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import typer

from bench.objects import CLASS, GPU, Manifest, node, node_class, pool, running
from bench.report import Figure, Out, Report, Strict, command, quantile, stages
from retinue.api import DecodePool, NodeClass
from retinue.autoscaling import history
from retinue.autoscaling.decide import decide
from retinue.autoscaling.decision import State
from retinue.autoscaling.inputs import Inputs, PoolInputs, PoolKind, PoolSignals, RoleInputs, RoleSignals, Signal
from retinue.autoscaling.settings import Goals
from retinue.nodeclass.nodes import Hold, Nodes, holds_from, node_from
from retinue.nodeclass.resolve import ResolvedClass, resolve
from retinue.placement.pack import Placement, Request, place_in
from retinue.placement.room import Room
from retinue.pool.plan import plan
from retinue.pool.snapshot import PoolKind as Kind
from retinue.pool.snapshot import PoolSnapshot, pod_view

_NOW = 1_800_000_000.0


def main(
    roles: Annotated[int, typer.Option(help="Roles of the decision.", min=1)] = 8,
    instances: Annotated[int, typer.Option(help="Instances of the pool.", min=1)] = 200,
    nodes: Annotated[int, typer.Option(help="Nodes of the placement.", min=1)] = 10_000,
    placed: Annotated[int, typer.Option(help="Instances to place.", min=1)] = 500,
    repeat: Annotated[int, typer.Option(help="Measurements of each; the median counts.", min=1)] = 15,
    out: Out = None,
    strict: Strict = False,
) -> None:
    """Time of pure functions; the yardstick is writing the same inputs as JSON and reading them back."""
    report = Report("plans", {"roles": roles, "instances": instances, "nodes": nodes, "placed": placed})
    progress = stages()
    with progress.stage(f"decide for {roles} roles"):
        _decide(report, roles, repeat)
    with progress.stage(f"plan of {instances} instances"):
        _plan(report, instances, repeat)
    with progress.stage(f"placement of {placed} instances on {nodes} nodes"):
        _place(report, nodes, placed, max(1, repeat // 5))
    report.finish(out, strict)


def _timed(work: Callable[[], Any], repeat: int) -> float:
    """Median milliseconds of CPU time, which is wall time on a quiet machine."""
    taken = []
    for _ in range(repeat):
        gc.collect()
        began = time.process_time()
        work()
        taken.append((time.process_time() - began) * 1000)
    return quantile(taken, 0.5)


def _round_trip(wire: Any) -> Callable[[], Any]:
    return lambda: json.loads(json.dumps(wire))


# --- decide


def _inputs(roles: int) -> Inputs:
    """Busy roles, each on pools of its own with six instances per stage."""

    def seen(value: float) -> Signal:
        return Signal(value, 1.0)

    role = RoleSignals(
        ttft=seen(1.5),
        first_decode_time=seen(0.05),
        arrivals=seen(4.0),
        completions=seen(4.0),
        in_flight=seen(20.0),
        queued_prefill_tokens=seen(50_000.0),
        prompt_rate=seen(400_000.0),
        open_sessions=seen(60.0),
        context_tokens=seen(6_000_000.0),
    )
    stage = PoolSignals(
        prompt_rate=seen(400_000.0),
        hit_rate=seen(0.93),
        queue_time=seen(0.4),
        prefill_time=seen(0.8),
        inter_token_time=seen(0.02),
        running=seen(30.0),
        running_peak=seen(40.0),
        waiting=seen(3.0),
        kv_use=seen(0.6),
        prefill_speed=seen(12_000.0),
        reporting=seen(6.0),
    )

    def one(name: str, kind: PoolKind) -> PoolInputs:
        return PoolInputs(
            name=name,
            kind=kind,
            min=1,
            max=32,
            current=6,
            ready_ages=(5000.0,) * 6,
            kv_tokens=1_000_000.0,
            prefill_speed=10_000.0,
            slots=50.0,
            cost_per_hour=4.0,
            signals=stage,
        )

    names = [f"role-{n}" for n in range(roles)]
    return Inputs(
        namespace="bench",
        agent_pool="coder",
        roles=tuple(RoleInputs(name, name, name, signals=role) for name in names),
        pools=tuple(one(name, kind) for name in names for kind in (PoolKind.PREFILL, PoolKind.DECODE)),
        goals=Goals(ttft=2.0, itl=0.05),
    )


def _decide(report: Report, roles: int, repeat: int) -> None:
    inputs = _inputs(roles)
    state = State()
    # A state with history, as after ten minutes of evaluations.
    for step in range(40):
        state = decide(inputs, state, _NOW - 600 + 15 * step).state
    taken = _timed(lambda: decide(inputs, state, _NOW), repeat)
    record = history.write(history.Record(_NOW, inputs, state, decide(inputs, state, _NOW)))
    bare = _timed(lambda: json.dumps(json.loads(record)), repeat)
    name = "JSON round trip of its record"
    report.add(Figure(f"decide, {roles} roles", taken, "ms", 5.0, None, name, bare))


# --- plan


def _class(name: str = CLASS) -> ResolvedClass:
    return resolve(name, NodeClass.model_validate(node_class()).spec)


def _nodes(count: int) -> Nodes:
    return Nodes(node_from(node(number)) for number in range(count))


def _snapshot(wire: Manifest, pods: list[Manifest], nodes: Nodes) -> PoolSnapshot:
    return PoolSnapshot(
        kind=Kind.DECODE,
        pool=DecodePool.model_validate(wire),
        pods=tuple(pod_view(pod) for pod in pods),
        classes={CLASS: _class()},
        class_errors={},
        nodes=nodes,
        holds=holds_from(pods),
        tiers={},
        in_flight={},
        metrics=None,
    )


def _plan(report: Report, instances: int, repeat: int) -> None:
    wire = pool("bench", "coder", instances, 1, 2)
    wire["metadata"] |= {"uid": "uid-coder", "generation": 1}
    nodes = _nodes(-(-instances // 4))
    empty = _snapshot(wire, [], nodes)
    made = plan(empty, _NOW)
    pods = [copy.deepcopy(wish.manifest) for wish in made.apply if wish.manifest["kind"] == "Pod"]
    for number, pod in enumerate(pods):
        pod["metadata"] |= {"uid": f"uid-{number}", "creationTimestamp": "2026-01-01T00:00:00Z"}
        pod["spec"]["nodeName"] = f"node-{number // 4:05d}"
        pod["status"] = running(pod, "127.0.0.2", "2026-01-01T00:01:00Z")
    first = plan(_snapshot(wire, pods, nodes), _NOW)
    ready = {**wire, "status": first.status}
    steady = _snapshot(ready, pods, nodes)
    again = plan(steady, _NOW)
    if again.delete or again.status != first.status:
        raise RuntimeError("the pool of this benchmark is not at rest")
    bare = _timed(_round_trip([ready, pods]), repeat)
    name = "JSON round trip of pool and pods"
    taken = _timed(lambda: plan(steady, _NOW), repeat)
    report.add(Figure(f"plan at rest, {instances} instances", taken, "ms", 10.0, None, name, bare))
    taken = _timed(lambda: plan(empty, _NOW), repeat)
    report.add(Figure(f"plan that makes all {instances} instances", taken, "ms", None, None, name, bare))
    observed = _timed(lambda: _snapshot(ready, pods, nodes), repeat)
    report.add(Figure("reading the snapshot from the wire", observed, "ms", None, None, name, bare))


# --- placement


def _place(report: Report, count: int, placed: int, repeat: int) -> None:
    """Instances of two whole nodes in one rack each, on nodes of which every third is taken."""
    wires = [node(number) for number in range(count)]
    nodes = tuple(node_from(wire) for wire in wires)
    class_ = replace(_class(), topology=tuple(level for level in _class().topology if level.level == "rack"))
    taken = tuple(Hold(f"pod-{n}", found.name, CLASS, None, {GPU: 8}) for n, found in enumerate(nodes) if n % 3 == 0)
    request = Request(pods=2, requests={GPU: 8}, pack="rack", required=True, spread=None, occupied={})

    def work() -> None:
        room = Room(class_, Nodes(nodes), taken)
        for _ in range(placed):
            found = place_in(room, request)
            if not isinstance(found, Placement):
                raise RuntimeError(f"no room: {found.message}")
            room.take(request.pods, request.requests, found.domain)

    bare = _timed(_round_trip(wires), repeat)
    ms = _timed(work, repeat)
    report.add(
        Figure(f"placing {placed} instances on {count} nodes", ms, "ms", 1000.0, None, "JSON round trip of nodes", bare)
    )


if __name__ == "__main__":
    command(main)
