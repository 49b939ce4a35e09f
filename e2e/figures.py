"""The table of what a run of the suite has measured."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table


def print_figures(artifacts: Path, console: Console) -> None:
    """Prints figures.jsonl as a table and writes it as figures.json; nothing when nothing was measured."""
    recorded = artifacts / "figures.jsonl"
    if not recorded.is_file():
        return
    figures = [json.loads(line) for line in recorded.read_text().splitlines()]
    (artifacts / "figures.json").write_text(json.dumps(figures, indent=1))
    table = Table(title="Measured by this run", title_justify="left")
    for name in ("what", "figure", "how"):
        table.add_column(name, overflow="fold")
    for figure in figures:
        table.add_row(figure["name"], f"{figure['value']:.4g} {figure['unit']}", figure["how"])
    console.print(table)
