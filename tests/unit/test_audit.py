"""The audit of dependencies: what is not known is never taken for "no vulnerabilities"."""

import runpy
from pathlib import Path
from typing import Any

import pytest

VERDICT = runpy.run_path(str(Path(__file__).resolve().parents[2] / "audit" / "__main__.py"))["verdict"]
CLEAN = {"name": "good", "version": "1", "vulns": []}
FLAWED = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
UNKNOWN = {"name": "own", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([CLEAN], 0, "1 packages asked about, 0 known vulnerabilities"),
        ([CLEAN, FLAWED], 1, "bad 2: PYSEC-1, fixed in 2.1"),
        ([FLAWED, UNKNOWN], 1, "not known for 1 packages, such as own"),
        ([CLEAN, UNKNOWN], 3, "not known for 1 packages"),
        ([UNKNOWN], 3, "0 packages asked about"),
        ([], 3, "0 packages asked about"),
    ],
)
def test_the_exit_code_tells_none_from_some_from_not_known(
    packages: list[dict[str, Any]], code: int, said: str
) -> None:
    exit_code, text = VERDICT({"dependencies": packages})
    assert exit_code == code
    assert said in text
