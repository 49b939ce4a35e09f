"""The command line of the emulator as a user meets it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from retinue_emulator.cli import build_app

RUN = CliRunner()


def test_every_part_of_the_emulator_has_a_command() -> None:
    shown = RUN.invoke(build_app(), ["--help"])
    assert shown.exit_code == 0
    for command in ("node-plugin", "inventory", "engine", "tier", "loopback", "replay"):
        assert command in shown.output


def test_an_inventory_is_shown_with_its_totals() -> None:
    shown = RUN.invoke(build_app(), ["inventory", "demo"])
    assert shown.exit_code == 0
    assert "14 nodes, 80 nvidia.com/gpu" in shown.output


@pytest.mark.parametrize("command", [["inventory"], ["node-plugin", "--inventory"]])
def test_a_bad_inventory_ends_with_status_2_and_one_line_per_mistake(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("apiVersion: emulator.retinue.dev/v1alpha1\nkind: Inventory\ncluster: c\nrackz: []\n")
    refused = RUN.invoke(build_app(), [*command, str(file)])
    assert refused.exit_code == 2
    assert "racks: is required; add it" in refused.output
    assert "rackz: unknown key; did you mean racks?" in refused.output


def test_bad_engine_arguments_end_with_status_2() -> None:
    refused = RUN.invoke(build_app(), ["engine", "--role=nonsense"])
    assert refused.exit_code == 2


def test_a_missing_kubeconfig_is_refused_by_name(tmp_path: Path) -> None:
    refused = RUN.invoke(build_app(), ["node-plugin", "--kubeconfig", str(tmp_path / "none")])
    assert refused.exit_code == 2
    assert "kubeconfig" in refused.output
