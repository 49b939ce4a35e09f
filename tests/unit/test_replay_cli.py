"""The replay commands: readable output, clear errors, exit status."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from retinue_emulator.replay.cli import app
from retinue_emulator.replay.generator import reference_session
from retinue_emulator.replay.load import load

runner = CliRunner(env={"COLUMNS": "120"})


def test_show_gives_totals_and_sessions() -> None:
    result = runner.invoke(app, ["show", "reference"])
    assert result.exit_code == 0
    for expected in ("4,419,981", "6,870,000", "0.947", "0.877", "156,216", "reference-0"):
        assert expected in result.output


def test_show_refuses_what_is_not_a_trace_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"timestamp": 0, "input_length": "long"}')
    result = runner.invoke(app, ["show", str(tmp_path / "x.jsonl")])
    assert result.exit_code == 2
    assert "x.jsonl:1: field input_length: must be a whole number, not 'long'" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_show_refuses_a_file_that_is_not_there() -> None:
    result = runner.invoke(app, ["show", "no-such-trace"])
    assert result.exit_code == 2
    assert "no-such-trace" in result.stderr


def test_generate_writes_the_reference_session(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    assert runner.invoke(app, ["generate", "-o", str(path)]).exit_code == 0
    assert load(path).sessions == reference_session().sessions


def test_run_without_a_gateway_fails_every_session_and_says_so(tmp_path: Path) -> None:
    trace, records, summary = tmp_path / "t.jsonl", tmp_path / "records.jsonl", tmp_path / "summary.json"
    trace.write_text('{"timestamp":0,"input_length":64,"output_length":1,"hash_ids":[1]}\n')
    outputs = ("--records", str(records), "--summary", str(summary))
    result = runner.invoke(app, ["run", str(trace), "--url", "http://127.0.0.1:1", "--speed", "1000", *outputs])
    assert result.exit_code == 1
    assert "session s0: request r0: ClientConnectorError" in result.stderr
    assert [json.loads(line)["session"] for line in records.read_text().splitlines()] == ["s0"]
    assert len(json.loads(summary.read_text())["failed_sessions"]) == 1
