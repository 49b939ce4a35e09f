"""Writes the figures of the last runs into docs/performance.md, between its markers: only what was measured."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.report import RESULTS, Figure, command, number

PAGE = Path("docs/performance.md")
_NAMES = ("plans", "gateway", "pools", "fleet", "replay")
_BEGIN, _END = "<!-- figures -->\n", "<!-- end of figures -->\n"


def table(wire: dict[str, Any]) -> str:
    """One program's figures in Markdown."""
    machine = wire["machine"]
    lines = [
        f"### bench.{wire['name']}",
        "",
        f"{machine['time']}, {machine['cores']} cores, {machine['memory']}, Python {machine['python']}, "
        f"load {machine.get('load', 'not noted')}.",
        "",
        "| figure | value | target | yardstick in the same run | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for told in wire["figures"]:
        # The rest of it follows from these.
        figure = Figure(**{field.name: told[field.name] for field in fields(Figure)})
        target = f"{figure.target}: {'met' if figure.met else '**missed**'}" if figure.target else ""
        beside = figure.yardstick_value
        yardstick = "" if beside is None else f"{figure.yardstick}: {number(beside)} {figure.unit}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
        lines.append(f"| {figure.name} | {number(figure.value)} {figure.unit} | {target} | {yardstick} | {ratio} |")
    return "\n".join(lines) + "\n"


def main(
    results: Annotated[Path, typer.Option(help="Folder with the JSON of the programs.")] = RESULTS,
    page: Annotated[Path, typer.Option(help="The page to write into.")] = PAGE,
) -> None:
    """Puts the tables of all results that exist into the page; programs without a result are named as not run."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    parts = []
    for name in _NAMES:
        path = results / f"{name}.json"
        parts.append(table(json.loads(path.read_text())) if path.is_file() else f"### bench.{name}\n\nNot run yet.\n")
    page.write_text(before + _BEGIN + "\n" + "\n".join(parts) + "\n" + _END + after, encoding="utf-8")


if __name__ == "__main__":
    command(main)
