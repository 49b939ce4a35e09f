"""Whether a session runs the whole of this folder, as the proof of rights must know: what was left out, and why."""

from pathlib import Path

import pytest

PROOF = "test_rbac_proof.py"
_FOLDER = Path(__file__).parent
_DESELECTED = pytest.StashKey[set[str]]()
_FAILED = pytest.StashKey[list[str]]()


def proof_last(items: list[pytest.Item]) -> None:
    """Moves the proof behind everything else, also behind other folders: it judges what the others have done."""
    items.sort(key=lambda item: item.path.parent == _FOLDER and item.path.name == PROOF)


def note_deselected(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remembers the modules of tests that were left out by -k, -m, --deselect or --last-failed."""
    config.stash.setdefault(_DESELECTED, set()).update(item.path.name for item in items if item.path.parent == _FOLDER)


def note_outcome(config: pytest.Config, report: pytest.TestReport) -> None:
    """Remembers tests that failed: they may not have come to where a right is used."""
    if report.failed:
        config.stash.setdefault(_FAILED, []).append(report.nodeid)


def left_out(session: pytest.Session) -> str:
    """Why this session is not the whole suite, in words; empty if it is."""
    chosen = {item.path.name for item in session.items if item.path.parent == _FOLDER}
    if missing := sorted({path.name for path in _FOLDER.glob("test_*.py")} - chosen):
        return f"not run: {', '.join(missing)}"
    if partly := sorted(session.config.stash.get(_DESELECTED, set())):
        return f"run in part only: {', '.join(partly)}"
    if single := [argument for argument in session.config.args if "::" in argument]:
        return f"run in part only: {', '.join(single)}"
    return ""


def failed(session: pytest.Session) -> list[str]:
    """The tests of this folder that failed so far."""
    return session.config.stash.get(_FAILED, [])
