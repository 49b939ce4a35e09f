"""The reference in docs/ is what the models say, and tells something of every field, condition and reason."""

import re
from pathlib import Path

import pytest

from retinue.api import KINDS
from retinue.api.reference import FILE, main, render
from retinue.conditions import ConditionType, Reason

_ROOT = Path(__file__).resolve().parents[2]
_CELL = re.compile(r"(?<!\\)\|")


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in _CELL.split(line)[1:-1]] for line in lines]


def row(section: str, field: str) -> list[str]:
    """The row of a field in the section of a kind."""
    text = render().split(f"\n## {section}\n")[1].split("\n## ")[0]
    (found,) = [cells for cells in rows(text) if cells[0] == f"`{field}`"]
    return found


def test_the_checked_in_reference_is_what_the_models_say() -> None:
    assert main(["--check", "--out", str(_ROOT / "docs" / "reference")]) == 0


def test_check_fails_and_names_the_file_when_it_is_missing_or_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reference"
    assert main(["--check", "--out", str(folder)]) == 1
    assert main(["--out", str(folder)]) == 0
    assert main(["--check", "--out", str(folder)]) == 0
    (folder / FILE).write_text("old\n")
    assert main(["--check", "--out", str(folder)]) == 1
    assert capsys.readouterr().err.count(str(folder / FILE)) == 2


def test_two_runs_write_the_same_text() -> None:
    assert render() == render()


def test_every_row_has_as_many_cells_as_its_table_and_ends_in_an_explanation() -> None:
    tables = [rows(block) for block in render().split("\n\n") if block.startswith("|")]
    assert len(tables) > 2 * len(KINDS)
    for head, *body in tables:
        for cells in body:
            assert len(cells) == len(head), cells
            assert cells[0], cells
            assert cells[-1], cells


def test_every_kind_has_its_section_and_its_two_tables() -> None:
    text = render()
    for kind in KINDS:
        name = kind.kind_info.kind
        for heading in (f"\n## {name}\n", f"\n### {name} spec\n", f"\n### {name} status\n"):
            assert text.count(heading) == 1


def test_a_row_shows_type_default_bounds_and_description() -> None:
    assert row("DecodePool", "spec.rollout.maxSurge")[:4] == [
        "`spec.rollout.maxSurge`",
        "integer",
        "`1`",
        "0 to 64",
    ]
    assert row("AgentPool", "spec.slo.ttft.target")[1:4] == [
        "string",
        "required",
        "a duration such as 500ms, 30s, 5m or 1h30m; at most 24 characters",
    ]
    assert '"target": "2s"' in row("AgentPool", "spec.slo.ttft")[2]
    assert row("AgentPool", "spec.slo")[2] != "required"
    assert row("NodeClass", "spec.nodeSelector")[1] == "map of string"
    assert row("KVCacheTier", "spec.podTemplate")[1] == "object"


def test_the_reference_says_that_off_must_be_quoted() -> None:
    assert 'must be quoted ("Off")' in row("AgentPool", "spec.autoscaling.mode")[-1]


def test_rules_are_listed_with_the_field_they_blame() -> None:
    assert "- `spec.rollout`: maxSurge and maxUnavailable must not both be 0" in render()
    assert "- `spec.nextTier`: spec.nextTier must name another tier" in render()


def test_every_condition_type_and_reason_has_a_row_with_its_meaning() -> None:
    found = {cells[0]: cells[-1] for cells in rows(render()) if len(cells) == 2}
    for member in (*ConditionType, *Reason):
        assert member.meaning.endswith("."), member
        assert found[f"`{member.value}`"], member


def test_every_reason_is_given_by_the_code_somewhere() -> None:
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("controllers", "operator", "gateway")
        for path in (_ROOT / folder).rglob("*.py")
    )
    unused = [reason.name for reason in Reason if not re.search(rf"\bReason\.{reason.name}\b", code)]
    assert unused == []
