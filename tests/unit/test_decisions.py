"""The history of decisions can be read and checked by hand."""

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from retinue.autoscaling import history
from retinue.autoscaling.decide import decide
from retinue.autoscaling.decision import State
from retinue.autoscaling.inputs import Inputs, PoolInputs, PoolKind, RoleInputs
from retinue_operator.cli import app
from retinue_operator.controllers.agentpool import keep_record

NOW = 1_800_000_000.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two decisions: one that raises a pool to its minimum, one that changes nothing."""
    lines = []
    for current in (1, 3):
        pool = PoolInputs("coder-primary", PoolKind.DECODE, min=3, max=5, current=current, aggregated=True)
        role = RoleInputs("primary", prefill=None, decode="coder-primary")
        inputs = Inputs("agents", "coder", roles=(role,), pools=(pool,))
        lines.append(history.write(history.Record(NOW, inputs, State(), decide(inputs, State(), NOW))))
    path = tmp_path / "decisions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_changes_are_shown_with_time_pool_and_reason(file: Path) -> None:
    result = CliRunner().invoke(app, ["decisions", str(file)])
    assert result.exit_code == 0
    assert "2027-01-15T08:00:00Z  agents/coder  decode/coder-primary 1 -> 3" in result.output
    assert result.output.splitlines()[-1] == "1 decisions"


def test_all_decisions_replay_to_the_same(file: Path) -> None:
    result = CliRunner().invoke(app, ["decisions", "--replay", "--all", str(file)])
    assert result.exit_code == 0
    assert result.output.count("replays to the same") == 2


def test_a_record_that_was_tampered_with_is_found(file: Path) -> None:
    first = json.loads(file.read_text().splitlines()[0])
    first["decision"]["targets"][0]["desired"] = 4
    file.write_text(json.dumps(first) + "\n")
    result = CliRunner().invoke(app, ["decisions", "--replay", str(file)])
    assert result.exit_code == 1
    assert "REPLAYS TO SOMETHING ELSE" in result.output


def test_a_line_that_is_no_record_is_named(file: Path) -> None:
    file.write_text(file.read_text() + "nonsense\n")
    result = CliRunner().invoke(app, ["decisions", str(file)])
    assert result.exit_code == 2
    assert f"{file}:3:" in result.output


async def test_records_are_appended_and_a_file_that_cannot_be_written_is_only_logged(tmp_path: Path) -> None:
    with capture_logs() as logs:
        for line in ("one", "two"):
            await keep_record(tmp_path / "decisions.jsonl", line)
        await keep_record(tmp_path / "missing" / "decisions.jsonl", "three")
    assert (tmp_path / "decisions.jsonl").read_text() == "one\ntwo\n"
    assert [(entry["log_level"], Path(entry["file"]).parent.name) for entry in logs] == [("warning", "missing")]
