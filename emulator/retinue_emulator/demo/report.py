"""The report of a run as one HTML file without outside references, and its numbers as JSON beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from retinue_emulator.loopback.locate import cache_root
from retinue_emulator.replay.records import Group, Quantiles, RequestRecord

from .live import clock, model_time
from .outcome import Check, Outcome
from .timeline import Move, Timeline

HTML_NAME = "report.html"
SUMMARY_NAME = "summary.json"
REQUESTS_NAME = "requests.jsonl"


@dataclass(frozen=True)
class RunRecord:
    """Everything a report is made of. Times are wall seconds; `speed` turns them into model time."""

    speed: float
    load: str
    outcome: Outcome
    checks: Sequence[Check]
    records: Sequence[RequestRecord]
    timeline: Timeline
    reference: str
    """Id of the session that the plots highlight."""
    ttft_goal: float
    """Model seconds."""
    itl_goal: float
    """Model seconds."""
    setup_seconds: float
    """From the start of the command until all pools were ready."""
    wall_seconds: float
    """From the start of the command until the report."""

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def write_report(record: RunRecord, folder: Path) -> Path:
    """Writes the report into `folder`, which is made if needed, and returns the HTML file's path.

    Beside it: the numbers as JSON, the requests as JSON lines, and each plot as an SVG file for documents.
    """
    # matplotlib keeps a font list in a folder of its own; without this it would be one in the user's home.
    os.environ.setdefault("MPLCONFIGDIR", str(cache_root(os.environ) / "matplotlib"))
    # It also takes a second to import, which only a run that gets this far should pay.
    from .plots import all_plots

    folder.mkdir(parents=True, exist_ok=True)
    plots = all_plots(record)
    for name, figure in plots.items():
        (folder / f"{name}.svg").write_text(figure.image(), encoding="utf-8")
    page = render(record, {name: figure.svg() for name, figure in plots.items()})
    (folder / HTML_NAME).write_text(page, encoding="utf-8")
    (folder / SUMMARY_NAME).write_text(json.dumps(numbers(record), indent=2) + "\n", encoding="utf-8")
    lines = (request.as_json(record.speed) + "\n" for request in record.records)
    (folder / REQUESTS_NAME).write_text("".join(lines), encoding="utf-8")
    return folder / HTML_NAME


def numbers(record: RunRecord) -> dict[str, object]:
    """The run as JSON: the replay's summary, the oracle, sizes, checks, moves."""
    outcome = record.outcome
    return {
        "speed": record.speed,
        "setup_wall_seconds": record.setup_seconds,
        "wall_seconds": record.wall_seconds,
        "replay": outcome.summary.as_dict(),
        "expected_hit_rate": {
            "all": outcome.expected.all,
            "main": outcome.expected.main,
            "subagents": outcome.expected.subagents,
        },
        "sizes": [{"key": c.key, "first": c.first, "peak": c.peak, "last": c.last} for c in outcome.changes],
        "behind": outcome.behind,
        "mean_cost_per_hour": mean_cost(record.timeline),
        "checks": [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in record.checks],
        "moves": [
            {
                "model_seconds": move.at * record.speed,
                "key": move.key,
                "before": move.before,
                "after": move.after,
                "reason": move.reason,
                "message": move.message,
                "clamps": list(move.clamps),
            }
            for move in record.timeline.moves
        ],
    }


def mean_cost(timeline: Timeline) -> float | None:
    """Mean cost per hour over the samples since the load began; None while never known."""
    costs = [s.cost_per_hour for s in timeline.samples if s.at >= 0 and s.cost_per_hour is not None]
    return sum(costs) / len(costs) if costs else None


def render(record: RunRecord, plots: dict[str, str]) -> str:
    """The HTML page around SVG plots by name."""
    page = Template((files("retinue_emulator.demo") / "report.html").read_text(encoding="utf-8"))
    verdict = "All checks passed" if record.passed else "Some checks failed"
    return page.substitute(
        plots,
        speed=f"{record.speed:g}",
        verdict=verdict,
        verdict_class="good" if record.passed else "bad",
        load=escape(record.load),
        cards="".join(_card(*card) for card in _cards(record)),
        checks="".join(_check_row(check) for check in record.checks),
        groups=_group_rows(record),
        moves="".join(_move_row(move, record.speed) for move in record.timeline.moves)
        or '<tr><td colspan="5">no decision changed a size</td></tr>',
        setup=f"{record.setup_seconds:.0f}",
        wall=f"{record.wall_seconds:.0f}",
        minutes=f"{record.outcome.summary.duration * record.speed / 60:.1f}",
    )


def _cards(record: RunRecord) -> Iterable[tuple[str, str, str]]:
    summary, expected = record.outcome.summary, record.outcome.expected
    every = summary.all
    yield "Hit rate", f"{every.hit_rate:.1%}", f"one cache without limit: {expected.all:.1%}"
    yield "Input cost", f"{every.input_cost_ratio:.1%}", "of the bill without a cache"
    ttft = every.ttft.times(record.speed)
    yield "TTFT p95", model_time(ttft.p95), f"goal {model_time(record.ttft_goal)}, median {model_time(ttft.p50)}"
    itl = every.itl.times(record.speed)
    yield "ITL p95", model_time(itl.p95), f"goal {model_time(record.itl_goal)}, median {model_time(itl.p50)}"
    failed = len(summary.failed_sessions)
    yield "Requests", f"{every.requests:,}", f"{summary.sessions} sessions, {failed} failed"
    cost = mean_cost(record.timeline)
    yield "Mean cost", "-" if cost is None else f"{cost:.0f} / h", "instances and tier servers, at assumed node costs"


def _card(title: str, value: str, note: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3><b>{escape(value)}</b><span>{escape(note)}</span></div>'


def _check_row(check: Check) -> str:
    mark = '<td class="good">passed</td>' if check.passed else '<td class="bad">failed</td>'
    return f"<tr>{mark}<td>{escape(check.name)}</td><td>{escape(check.detail)}</td></tr>"


def _group_rows(record: RunRecord) -> str:
    summary, expected = record.outcome.summary, record.outcome.expected
    groups = (summary.all, summary.main, summary.subagents)
    limits = (expected.all, expected.main, expected.subagents)

    def pair(quantiles: Quantiles) -> str:
        scaled = quantiles.times(record.speed)
        return f"{model_time(scaled.p50)} / {model_time(scaled.p95)}"

    def row(name: str, cells: Iterable[str]) -> str:
        return f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"

    def rate(group: Group) -> str:
        return f"{group.hit_rate:.3f}" if group.prompt_tokens else "-"

    return "".join(
        (
            row("requests", (f"{g.requests:,}" for g in groups)),
            row("input tokens", (f"{g.prompt_tokens:,}" for g in groups)),
            row("of them cached", (f"{g.cached_tokens:,}" for g in groups)),
            row("output tokens", (f"{g.completion_tokens:,}" for g in groups)),
            row("hit rate", (rate(g) for g in groups)),
            row(
                "hit rate of one cache without limit",
                (f"{limit:.3f}" for limit in limits),
            ),
            row("input cost ratio", (f"{g.input_cost_ratio:.3f}" for g in groups)),
            row("TTFT p50 / p95", (pair(g.ttft) for g in groups)),
            row("ITL p50 / p95", (pair(g.itl) for g in groups)),
        )
    )


def _move_row(move: Move, speed: float) -> str:
    arrow = '<td class="up">&#9650;' if move.up else '<td class="down">&#9660;'
    clamps = f" <i>limited: {escape(', '.join(move.clamps))}</i>" if move.clamps else ""
    return (
        f"<tr><td>{clock(move.at * speed)}</td><td>{escape(move.key)}</td>"
        f"{arrow} {move.before} &rarr; {move.after}</td>"
        f"<td>{escape(move.reason)}</td><td>{escape(move.message)}{clamps}</td></tr>"
    )
