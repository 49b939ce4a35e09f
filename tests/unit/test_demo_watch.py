"""What the demo sees: samples from API objects, decisions from the operator's record, and how sizes changed."""

import json
from typing import Any

import pytest

from retinue.autoscaling import history
from retinue_emulator.demo.timeline import Timeline, size_changes
from retinue_emulator.demo.watch import read_moves, read_sample
from retinue_emulator.loopback import LoopbackError

READY = [{"type": "Ready", "status": "True", "reason": "InstancesReady", "message": ""}]
NOT_READY = [{"type": "Ready", "status": "False", "reason": "NoFit", "message": "no node has 4 free devices"}]


def pool(kind: str, name: str, *, role: str, replicas: int, phases: list[str], ready: bool = True) -> dict[str, Any]:
    return {
        "kind": kind,
        "metadata": {"name": name, "labels": {"retinue.dev/role": role}},
        "spec": {"replicas": replicas},
        "status": {
            "conditions": READY if ready else NOT_READY,
            "instances": [{"name": f"{name}-{n}", "phase": phase} for n, phase in enumerate(phases)],
        },
    }


def tier(name: str, medium: str, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {"medium": medium, "replicas": 1},
        "status": {"conditions": READY, **status},
    }


AGENT_POOL = {
    "metadata": {"name": "coder"},
    "status": {
        "sessions": {"open": 12, "contextTokens": 640000},
        "hitRate": "0.951",
        "ttftP95": "120ms",
        "itlP95": "1ms",
        "costPerHour": "74.00",
        "roles": [{"name": "primary", "type": "Primary", "model": "m", "ready": True, "hitRate": "0.960"}],
        "lastDecision": {"reason": "CacheFloor", "message": "open sessions hold 1 token", "mode": "Auto"},
    },
}


def test_a_sample_counts_instances_by_phase_and_reads_the_status() -> None:
    phases = ["Ready", "Ready", "Starting", "Pending", "Draining"]
    sample = read_sample(
        3.0,
        AGENT_POOL,
        [pool("PrefillPool", "coder-primary", role="primary", replicas=4, phases=phases)],
        [pool("DecodePool", "coder-explorer", role="explorer", replicas=1, phases=["Ready"])],
        [tier("coder-cold", "ContextStorage", members=1, fill="0.250", capacity="128Gi")],
    )
    prefill = sample.pool("prefill/coder-primary")
    assert prefill is not None
    assert (prefill.desired, prefill.ready, prefill.starting, prefill.pending, prefill.draining) == (4, 2, 1, 1, 1)
    assert (sample.open_sessions, sample.hit_rate, sample.ttft_p95, sample.cost_per_hour) == (12, 0.951, 0.12, 74.0)
    assert sample.tiers[0].fill == 0.25
    assert sample.decision == "CacheFloor: open sessions hold 1 token"
    assert sample.all_ready


def test_an_agent_pool_without_status_gives_a_sample_without_numbers_that_is_not_ready() -> None:
    sample = read_sample(0.0, {"metadata": {"name": "coder"}}, [], [], [])
    assert sample.open_sessions is None
    assert sample.hit_rate is None
    assert sample.decision == ""
    assert not sample.all_ready


def test_one_pool_that_is_not_ready_makes_the_whole_not_ready_and_says_why() -> None:
    waiting = pool("DecodePool", "coder-primary", role="primary", replicas=1, phases=["Pending"], ready=False)
    ready = pool("PrefillPool", "coder-primary", role="primary", replicas=1, phases=["Ready"])
    sample = read_sample(0.0, AGENT_POOL, [ready], [waiting], [])
    assert not sample.all_ready
    found = sample.pool("decode/coder-primary")
    assert found is not None
    assert found.why == "NoFit: no node has 4 free devices"


def test_size_changes_tell_growth_from_shrinking() -> None:
    timeline = Timeline()
    for at, replicas in enumerate([1, 3, 2]):
        item = pool("PrefillPool", "coder-primary", role="primary", replicas=replicas, phases=["Ready"])
        timeline.add(read_sample(float(at), AGENT_POOL, [item], [], [tier("warm", "HostMemory")]))
    (change,) = size_changes(timeline)
    assert (change.key, change.first, change.peak, change.last) == ("prefill/coder-primary", 1, 3, 2)
    assert change.grew
    assert change.shrank


def test_a_new_zero_of_time_makes_older_samples_negative() -> None:
    timeline = Timeline()
    timeline.add(read_sample(2.0, AGENT_POOL, [], [], []))
    timeline.shift(5.0)
    assert timeline.samples[0].at == -3.0


def record(now: float, current: int, desired: int, *, apply: bool = True) -> str:
    target = {"kind": "prefill", "name": "coder-primary", "current": current, "desired": desired}
    target |= {"reason": "CacheFloor", "message": "open sessions hold more", "clamps": []}
    return json.dumps({"version": history.VERSION, "now": now, "decision": {"apply": apply, "targets": [target]}})


def test_only_decisions_that_change_a_size_and_are_carried_out_are_moves() -> None:
    lines = [record(100.0, 1, 1), record(102.0, 1, 2), record(104.0, 2, 3, apply=False), record(106.0, 2, 1)]
    moves = list(read_moves(lines, zero=100.0))
    assert [(move.at, move.key, move.before, move.after) for move in moves] == [
        (2.0, "prefill/coder-primary", 1, 2),
        (6.0, "prefill/coder-primary", 2, 1),
    ]
    assert [move.up for move in moves] == [True, False]


def test_a_line_that_is_still_being_written_is_left_out() -> None:
    assert len(list(read_moves([record(1.0, 1, 2), record(2.0, 2, 3)[:40]], zero=0.0))) == 1


def test_a_record_of_another_version_is_refused() -> None:
    line = record(1.0, 1, 2).replace(f'"version": {history.VERSION}', '"version": 99')
    with pytest.raises(LoopbackError, match="another version"):
        list(read_moves([line], zero=0.0))
