"""Terminal tables of the replay: what a trace holds, how a run is going, what it measured."""

from __future__ import annotations

from rich.table import Table

from retinue_emulator.replay.events import Session, Trace
from retinue_emulator.replay.oracle import HitCount
from retinue_emulator.replay.records import Group, Quantiles, Summary, quantile
from retinue_emulator.replay.runner import Progress


def trace_table(trace: Trace, hits: HitCount) -> Table:
    """Totals and distributions of main agents and sub-agents; ``hits`` with a cache that never evicts."""
    table = Table(title=f"{trace.name} ({trace.format})", title_justify="left")
    for column in ("", "main agents", "sub-agents"):
        table.add_column(column, justify="left" if not column else "right")
    groups = (
        [s for s in trace.sessions if s.parent is None],
        [s for s in trace.sessions if s.parent is not None],
    )
    table.add_row("sessions", *(f"{len(group):,}" for group in groups))
    requests = [[r for s in group for r in s.requests] for group in groups]
    table.add_row("requests", *(f"{len(group):,}" for group in requests))
    table.add_row("input tokens", *(f"{sum(r.in_tokens for r in group):,}" for group in requests))
    table.add_row("output tokens", *(f"{sum(r.out_tokens for r in group):,}" for group in requests))
    table.add_row("input p50 / p95", *(_counts([r.in_tokens for r in group]) for group in requests))
    table.add_row("output p50 / p95", *(_counts([r.out_tokens for r in group]) for group in requests))
    gaps = [[r.gap for s in group for r in s.requests[1:]] for group in groups]
    table.add_row("gap p50 / p95", *(_pair(Quantiles(*_p50_p95(group))) for group in gaps))
    table.add_row("compactions", *(str(sum(r.compaction for r in group)) for group in requests))
    table.add_row("peak context", *(f"{max((s.peak_tokens for s in group), default=0):,}" for group in groups))
    table.add_row("hit rate, no eviction", f"{hits.main:.3f}", f"{hits.subagents:.3f}")
    return table


def session_table(trace: Trace, count: int) -> Table:
    """The first ``count`` families, one row each."""
    families = trace.families()
    shown = list(families.items())[:count]
    table = Table(title=f"{len(shown)} of {len(families):,} sessions", title_justify="left")
    table.add_column("session", no_wrap=True)
    for column in ("start", "length", "turns", "sub-agents", "first", "peak", "last"):
        table.add_column(column, justify="right")
    for name, family in shown:
        main = family[0]
        table.add_row(
            name,
            f"{main.start:,.0f} s",
            f"{_length(family) / 60:.1f} min",
            str(len(main.requests)),
            f"{len(family) - 1} ({sum(len(s.requests) for s in family[1:])})" if len(family) > 1 else "",
            f"{main.requests[0].in_tokens:,}" if main.requests else "",
            f"{main.peak_tokens:,}",
            f"{main.requests[-1].in_tokens:,}" if main.requests else "",
        )
    return table


def progress_table(progress: Progress) -> Table:
    """One row of live counters."""
    table = Table(box=None)
    columns = ("sessions", "open", "failed", "requests", "in flight", "input tokens", "hit rate")
    for column in columns:
        table.add_column(column, justify="right")
    table.add_row(
        f"{progress.finished_sessions}/{progress.sessions}",
        str(progress.open_sessions),
        str(progress.failed_sessions),
        f"{progress.answered}/{progress.requests}",
        str(progress.in_flight),
        f"{progress.prompt_tokens:,}",
        "" if progress.hit_rate is None else f"{progress.hit_rate:.3f}",
    )
    return table


def summary_table(summary: Summary, expected: HitCount) -> Table:
    """What a run measured next to what its schedule could reach. Times are model time."""
    minutes = summary.duration * summary.speed / 60
    title = f"{summary.sessions} sessions, {minutes:.1f} min of model time at speed {summary.speed:g}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("all", "main agents", "sub-agents"):
        table.add_column(column, justify="right")
    groups = (summary.all, summary.main, summary.subagents)
    table.add_row("requests", *(f"{g.requests:,}" for g in groups))
    table.add_row("failed", *(f"{g.failed:,}" for g in groups))
    table.add_row("input tokens", *(f"{g.prompt_tokens:,}" for g in groups))
    table.add_row("hit rate", *(_rate(g) for g in groups))
    table.add_row("hit rate, no eviction", f"{expected.all:.3f}", f"{expected.main:.3f}", f"{expected.subagents:.3f}")
    table.add_row("input cost ratio", *(f"{g.input_cost_ratio:.3f}" if g.prompt_tokens else "" for g in groups))
    table.add_row("TTFT p50 / p95", *(_pair(g.ttft.times(summary.speed)) for g in groups))
    table.add_row("ITL p50 / p95", *(_pair(g.itl.times(summary.speed)) for g in groups))
    table.add_row("failed sessions", str(len(summary.failed_sessions)), "", "")
    return table


def _length(family: tuple[Session, ...]) -> float:
    return max((r.t for s in family for r in s.requests), default=0.0)


def _rate(group: Group) -> str:
    return f"{group.hit_rate:.3f}" if group.prompt_tokens else ""


def _pair(quantiles: Quantiles) -> str:
    if quantiles.p50 is None or quantiles.p95 is None:
        return ""
    return f"{_seconds(quantiles.p50)} / {_seconds(quantiles.p95)}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.1f} s"


def _counts(values: list[int]) -> str:
    p50, p95 = _p50_p95([float(v) for v in values])
    return "" if p50 is None or p95 is None else f"{p50:,.0f} / {p95:,.0f}"


def _p50_p95(values: list[float]) -> tuple[float | None, float | None]:
    weighted = [(value, 1) for value in values]
    return quantile(weighted, 0.5), quantile(weighted, 0.95)
