"""The record of decisions: one JSON line with all that went in and came out, and its replay to the same result."""

import json
from dataclasses import dataclass

from pydantic import TypeAdapter

from retinue.autoscaling.decide import decide
from retinue.autoscaling.decision import Decision, State
from retinue.autoscaling.inputs import Inputs

VERSION = 1


@dataclass(frozen=True)
class Record:
    """One evaluation: `decide(inputs, state, now)` gave `decision`."""

    now: float
    inputs: Inputs
    state: State
    decision: Decision


_INPUTS = TypeAdapter(Inputs)
_STATE = TypeAdapter(State)
_DECISION = TypeAdapter(Decision)


class Unreadable(ValueError):
    """A line that is not a record, or of another version."""


def write(record: Record) -> str:
    """The record as one line of JSON, keys in order, without the line end; numbers come back as the same numbers."""
    return json.dumps(
        {
            "version": VERSION,
            "now": record.now,
            "inputs": _INPUTS.dump_python(record.inputs, mode="json"),
            "state": _STATE.dump_python(record.state, mode="json"),
            "decision": _DECISION.dump_python(record.decision, mode="json"),
        },
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )


def read(line: str) -> Record:
    """The record of a line. Raises Unreadable with the place that is wrong."""
    try:
        data = json.loads(line)
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION:
            raise Unreadable(f"version {version!r} of a decision record, this program reads {VERSION}")
        return Record(
            now=float(data["now"]),
            inputs=_INPUTS.validate_python(data["inputs"]),
            state=_STATE.validate_python(data["state"]),
            decision=_DECISION.validate_python(data["decision"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"not a decision record: {error}") from error


def replay(line: str) -> Decision:
    """Decides again from what the line recorded; equal to its `decision` as long as the laws are the same."""
    record = read(line)
    return decide(record.inputs, record.state, record.now)


def dump_state(state: State) -> str:
    """The state as compact JSON, to be kept in the cluster."""
    return json.dumps(_STATE.dump_python(state, mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)


def load_state(text: str | None) -> State:
    """The state that `dump_state` wrote. An absent or unreadable one is an empty state: it only delays shrinking."""
    if not text:
        return State()
    try:
        return _STATE.validate_json(text)
    except ValueError:
        return State()
