"""The layout rules that keep the halves of the design apart and the standard library intact."""

import operator
import subprocess
import sys
import sysconfig
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_standard_operator_module_wins_over_the_folder_of_the_same_name() -> None:
    assert Path(str(operator.__file__)).is_relative_to(sysconfig.get_path("stdlib"))


def test_no_python_file_lies_directly_in_the_folders_that_are_roots() -> None:
    roots = [REPOSITORY / name for name in ("controllers", "operator", "gateway", "emulator")]
    assert [path for root in roots for path in root.glob("*.py")] == []


def test_the_standard_operator_module_wins_in_a_program_started_from_the_root() -> None:
    program = "import operator, collections; print(operator.__file__)"
    found = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(sysconfig.get_path("stdlib"))


def test_the_import_rules_of_the_design_hold() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    found = subprocess.run([str(lint)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert "2 kept, 0 broken" in found.stdout


def test_no_folder_or_module_is_named_after_nothing_in_particular() -> None:
    vague = {"utils", "helpers", "common", "misc", "util", "helper"}
    sources = [
        path
        for root in ("controllers", "operator", "gateway", "emulator")
        for path in (REPOSITORY / root).rglob("*.py")
    ]
    assert [path for path in sources if path.stem in vague or path.parent.name in vague] == []
