"""What the demo plays: the manifests at a speed, and the sessions with their starts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

import yaml

from retinue_emulator.replay import data
from retinue_emulator.replay.events import Session, Trace, combine, stagger
from retinue_emulator.replay.generator import reference_trace
from retinue_emulator.replay.load import load

NAMESPACE = "agents"
AGENT_POOL = "coder"
REFERENCE_SESSION = "reference-0"
RECORDED_SESSIONS = 28
SESSIONS_THAT_GROW = 24
"""With fewer recorded sessions than this the load may be too small to need more than the least instances."""

MODEL_SECONDS: Mapping[str, float] = {
    "ttft": 6.0,
    "itl": 0.012,
    "evaluationInterval": 24.0,
    "metricsWindow": 120.0,
    "startupEstimate": 90.0,
    "stabilization": 240.0,
    "downInterval": 60.0,
    "maxAge": 120.0,
    "drain": 360.0,
    "toolGap": 300.0,
    "subAgentWait": 600.0,
    "humanGap": 3600.0,
}
"""The times in the manifests as model time; the placeholders of manifests.yaml by name."""

_RAMP_SECONDS = 600.0
_LONGEST_SECONDS = 2280.0


def manifests(speed: float, engine_args: Sequence[str] = ()) -> str:
    """The manifests as YAML text, with all times divided by `speed` (above zero).

    engine_args: for engines whose node does not say how fast they run. Such nodes are containers of one machine, and
    their host memory is real: the tier in it is smaller there.
    """
    if speed <= 0:
        raise ValueError(f"speed must be above zero, not {speed}")
    times = {name: _duration(seconds / speed) for name, seconds in MODEL_SECONDS.items()}
    text = (files("retinue_emulator.demo") / "manifests.yaml").read_text(encoding="utf-8")
    engine = json.dumps({"type": "Simulated", **({"args": list(engine_args)} if engine_args else {})})
    warm = "4Gi" if engine_args else "16Gi"
    return Template(text).substitute(times, speed=f"{speed:g}", engine=engine, warm=warm)


def objects(speed: float, engine_args: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The manifests as objects, in the order to apply them; see `manifests`."""
    return list(yaml.safe_load_all(manifests(speed, engine_args)))


def sessions(count: int = RECORDED_SESSIONS) -> Trace:
    """The reference session and `count` recorded ones, started over ten minutes of model time.

    A session that would end after the longest one starts earlier: the load rises for ten minutes, stays, and falls.
    trace_0712, the recorded session nearest to the reference session, is always there if `count` is above zero.
    """
    recorded = load(data.path(data.DEMO_SESSIONS))
    names = [root.id for root in recorded.roots()]
    # The nearest relative of the reference session first, then the order of the file.
    names.sort(key=lambda name: name != "trace_0712")
    trace = combine("demo", [reference_trace(), recorded.selected(names[:count])])
    lengths = [_length(family) for family in trace.families().values()]
    return trace.with_starts(lambda n: max(0.0, min(stagger(n, _RAMP_SECONDS), _LONGEST_SECONDS - lengths[n])))


def describe(trace: Trace) -> str:
    """One line about the load."""
    roots = trace.roots()
    requests = sum(len(session.requests) for session in trace.sessions)
    tokens = sum(request.in_tokens for request in trace.requests())
    return (
        f"{len(roots)} sessions ({len(roots) - 1} recorded, 1 reference) with {len(trace.sessions) - len(roots)} "
        f"sub-agents: {requests:,} requests, {tokens / 1e6:.1f} M input tokens"
    )


def as_list(items: list[dict[str, Any]]) -> str:
    """The objects as one JSON list for `kubectl apply -f -`."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _length(family: tuple[Session, ...]) -> float:
    return max((request.t for session in family for request in session.requests), default=0.0)


def _duration(seconds: float) -> str:
    """A duration as the API writes it: whole milliseconds from 100 ms on, microseconds below."""
    milliseconds = seconds * 1000
    return f"{round(milliseconds)}ms" if milliseconds >= 100 else f"{round(milliseconds, 3):g}ms"
