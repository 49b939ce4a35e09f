"""What a benchmark found: figures with targets and yardsticks, as a table on standard output and as JSON in a file."""

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from retinue_emulator.replay import records
from retinue_emulator.stages import Stages

RESULTS = Path("build/bench")

Out = Annotated[Path | None, typer.Option(help=f"File for the JSON. Default: {RESULTS}/NAME.json.")]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 if a target is missed.")]


@dataclass(frozen=True)
class Figure:
    """One measured number. `most`: the target is met at or below it; `least`: at or above it; neither: no target.

    `yardstick` names what was measured beside it in the same run, `yardstick_value` is that in the same unit.
    """

    name: str
    value: float
    unit: str
    most: float | None = None
    least: float | None = None
    yardstick: str = ""
    yardstick_value: float | None = None

    @property
    def ratio(self) -> float | None:
        """The figure over its yardstick."""
        return self.value / self.yardstick_value if self.yardstick_value else None

    @property
    def target(self) -> str:
        if self.most is not None:
            return f"<= {self.most:g}"
        return f">= {self.least:g}" if self.least is not None else ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.most is not None:
            return self.value <= self.most
        return self.value >= self.least if self.least is not None else None


@dataclass
class Report:
    """The figures of one program; `facts` says what was run (sizes, versions)."""

    name: str
    facts: dict[str, object] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)

    def add(self, figure: Figure) -> None:
        """Takes a figure down."""
        self.figures.append(figure)

    def finish(self, out: Path | None, strict: bool) -> None:
        """Prints the table, writes the JSON, and with `strict` exits with 1 if a target is missed."""
        path = out or RESULTS / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        figures = [{**asdict(f), "ratio": f.ratio, "met": f.met} for f in self.figures]
        where = machine()
        wire = {"name": self.name, "machine": where, "facts": self.facts, "figures": figures}
        path.write_text(json.dumps(wire, indent=2, default=str) + "\n", encoding="utf-8")
        console = Console(width=max(120, Console().width) if not sys.stdout.isatty() else None)
        console.print(self.table())
        console.print("; ".join(f"{key}: {value}" for key, value in {**where, **self.facts}.items()), markup=False)
        console.print(f"written to {path}", markup=False)
        if strict and any(figure.met is False for figure in self.figures):
            raise typer.Exit(1)

    def table(self) -> Table:
        """All figures, one a row."""
        table = Table(title=f"bench.{self.name}")
        for title in ("figure", "value", "unit", "target", "met", "yardstick", "its value", "ratio"):
            table.add_column(title, justify="right" if title in ("value", "its value", "ratio", "target") else "left")
        for f in self.figures:
            met = {True: "yes", False: "[red]MISSED[/red]", None: ""}[f.met]
            beside = "" if f.yardstick_value is None else number(f.yardstick_value)
            ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
            table.add_row(f.name, number(f.value), f.unit, f.target, met, f.yardstick, beside, ratio)
        return table


def number(value: float) -> str:
    """Three significant digits, and whole numbers as they are."""
    return f"{value:.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def machine() -> dict[str, object]:
    """Where and when this runs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory / 2**30:.0f} GiB",
        "python": platform.python_version(),
        # More than the cores means that others were measured, too.
        "load": f"{os.getloadavg()[0]:.1f}",
        "time": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank)."""
    found = records.quantile([(value, 1) for value in values], share)
    if found is None:
        raise ValueError("no values were measured")
    return found


def stages() -> Stages:
    """Progress on standard error."""
    return Stages(Console(stderr=True))


def command(function: Callable[..., None]) -> None:
    """Runs a program of one command."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    app()
