"""Reads the history of autoscaling decisions: shows each in a line, and replays it to see that it comes out equal."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retinue.autoscaling import history
from retinue.autoscaling.decision import Decision
from retinue.conditions import timestamp


@dataclass(frozen=True)
class Entry:
    """One line of the file. `same` says whether its replay gave the recorded decision; None if it was not replayed."""

    line: int
    record: history.Record
    same: bool | None

    def text(self) -> str:
        """When, for whom, what changed and why."""
        inputs, decision = self.record.inputs, self.record.decision
        verdict = {True: "  replays to the same", False: "  REPLAYS TO SOMETHING ELSE", None: ""}[self.same]
        who = f"{inputs.namespace}/{inputs.agent_pool}"
        return f"{timestamp(self.record.now)}  {who}  {_changes(decision)}  {decision.reason.value}{verdict}"


def entries(path: Path, *, replay: bool, every: bool) -> Iterator[Entry]:
    """The decisions of a file in order; without `every` only those that change something.

    Raises:
        OSError: the file cannot be read.
        history.Unreadable: a line that is not a record; the message names the line.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = history.read(line)
            except history.Unreadable as error:
                raise history.Unreadable(f"{path}:{number}: {error}") from error
            same = history.replay(line) == record.decision if replay else None
            if every or same is False or any(t.desired != t.current for t in record.decision.targets):
                yield Entry(number, record, same)


def _changes(decision: Decision) -> str:
    changed = [f"{t.key} {t.current} -> {t.desired}" for t in decision.targets if t.desired != t.current]
    return ", ".join(changed) or "no change"
