"""The plots of a report: contexts, cached against computed tokens, and the cluster over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from retinue_emulator.replay.records import RequestRecord

from .report import RunRecord
from .themedsvg import LINE, SOFT, TEXT, ThemedFigure, legend, style
from .timeline import Move, PoolSample, Sample, TierSample, known

MAIN, SUB, CACHED, COMPUTED = "#3b82f6", "#f59e0b", "#22a06b", "#e5484d"
STARTING, DRAINING, SECOND = "#f5b942", "#a78bfa", "#8b5cf6"
_WIDTH = 11.0
_DASHED = (0, (4, 3))
_COUNTS = FuncFormatter(lambda value, _: f"{value / 1000:.0f}K" if value >= 1000 else f"{value:.0f}")
_THOUSANDS = FuncFormatter(lambda value, _: f"{value / 1000:.0f}K" if value else "0")


def all_plots(record: RunRecord) -> dict[str, ThemedFigure]:
    """Every plot by its name in the page."""
    return {
        "context": ThemedFigure("context", context_plot(record)),
        "tokens": ThemedFigure("tokens", tokens_plot(record)),
        "cluster": ThemedFigure("cluster", cluster_plot(record)),
    }


def context_plot(record: RunRecord) -> Figure:
    """Prompt length of each request over time, main agents above, sub-agents below."""
    figure = Figure(figsize=(_WIDTH, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for session, requests in _sessions(record.records).items():
        first = requests[0]
        reference = session == record.reference or first.parent == record.reference
        axes = top if first.is_main else bottom
        times = [_minutes(request.started, record.speed) for request in requests]
        tokens = [request.in_tokens for request in requests]
        colour = MAIN if first.is_main else SUB
        width, alpha, size = (1.9, 1.0, 2.6) if reference else (0.8, 0.38, 1.5)
        axes.plot(
            times, tokens, color=colour, linewidth=width, alpha=alpha, marker="o", markersize=size, zorder=2 + reference
        )
    for axes, colour, name in ((top, MAIN, "main agents"), (bottom, SUB, "sub-agents")):
        axes.plot([], [], color=colour, linewidth=1.9, marker="o", markersize=2.6, label="reference session")
        axes.plot([], [], color=colour, linewidth=0.8, alpha=0.5, label="recorded sessions")
        style(axes, ylabel="prompt tokens", title=name.capitalize())
        axes.yaxis.set_major_formatter(_THOUSANDS)
        axes.set_ylim(bottom=0)
        legend(axes)
    _time_axis(bottom)
    return figure


def tokens_plot(record: RunRecord) -> Figure:
    """Cached and computed tokens: every request as two points, the reference session's main agent as stacked bars."""
    figure = Figure(figsize=(_WIDTH, 6.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    answered = [request for request in record.records if request.error is None]
    times = [_minutes(request.started, record.speed) for request in answered]
    cached = [request.cached_tokens for request in answered]
    computed = [request.prompt_tokens - request.cached_tokens for request in answered]
    top.scatter(times, cached, s=7, color=CACHED, alpha=0.55, linewidths=0, label="cached")
    top.scatter(times, computed, s=7, color=COMPUTED, alpha=0.55, linewidths=0, label="computed")
    # Logarithmic above a hundred tokens, linear below, because a first request hits nothing.
    top.set_yscale("symlog", linthresh=100, linscale=0.4)
    style(top, ylabel="tokens (log)", title="Every request")
    top.yaxis.set_major_formatter(_COUNTS)
    top.set_ylim(bottom=-20)
    legend(top)
    own = [request for request in answered if request.session == record.reference]
    starts = [_minutes(request.started, record.speed) for request in own]
    hits = [request.cached_tokens for request in own]
    bottom.bar(starts, hits, width=0.3, color=CACHED, label="cached")
    misses = [request.prompt_tokens - request.cached_tokens for request in own]
    bottom.bar(starts, misses, width=0.3, bottom=hits, color=COMPUTED, label="computed")
    style(bottom, ylabel="prompt tokens", title="Reference session, main agent")
    bottom.yaxis.set_major_formatter(_THOUSANDS)
    legend(bottom)
    _time_axis(bottom)
    return figure


def cluster_plot(record: RunRecord) -> Figure:
    """Sessions, hit rate, latencies, instances by phase, and tiers over time, with the decisions marked."""
    samples = [sample for sample in record.timeline.samples if sample.at >= 0]
    keys = [key for key in record.timeline.subjects() if not key.startswith("tier/")]
    tiers = list(dict.fromkeys(tier.key for sample in samples for tier in sample.tiers))
    panels: list[Callable[[Axes], None]] = [
        lambda axes: _sessions_panel(axes, record),
        lambda axes: _hit_panel(axes, record),
        lambda axes: _latency_panel(axes, record, "TTFT p95", lambda s: s.ttft_p95, record.ttft_goal, 1.0, "s"),
        lambda axes: _latency_panel(axes, record, "ITL p95", lambda s: s.itl_p95, record.itl_goal, 1000.0, "ms"),
    ]
    panels += [partial(_pool_panel, record=record, key=key) for key in keys]
    panels.append(lambda axes: _tier_panel(axes, record, tiers))
    figure = Figure(figsize=(_WIDTH, 1.75 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True)
    for axes, panel in zip(rows, panels, strict=True):
        panel(axes)
        for move in record.timeline.moves:
            axes.axvline(_minutes(move.at, record.speed), color=CACHED if move.up else SUB, linewidth=0.7, alpha=0.45)
    end = max((sample.at for sample in samples), default=0.0)
    rows[-1].set_xlim(0, _minutes(max(end, 1.0), record.speed))
    _time_axis(rows[-1])
    return figure


def _sessions_panel(axes: Axes, record: RunRecord) -> None:
    open_ = known((sample.at, sample.open_sessions) for sample in record.timeline.samples)
    axes.fill_between(_times(open_, record), [value for _, value in open_], step="post", color=MAIN, alpha=0.25)
    axes.step(_times(open_, record), [value for _, value in open_], where="post", color=MAIN, linewidth=1.2)
    style(axes, ylabel="sessions", title="Open sessions (main agents and sub-agents)")
    axes.set_ylim(bottom=0)


def _hit_panel(axes: Axes, record: RunRecord) -> None:
    window = known((sample.at, sample.hit_rate) for sample in record.timeline.samples)
    axes.plot(
        _times(window, record), [v for _, v in window], color=CACHED, linewidth=1.4, label="in the metrics window"
    )
    total = _running_hit_rate(record.records)
    axes.plot(_times(total, record), [v for _, v in total], color=MAIN, linewidth=1.2, label="since the start")
    expected = record.outcome.expected.all
    axes.axhline(
        expected, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label=f"one cache without limit: {expected:.1%}"
    )
    style(axes, ylabel="hit rate", title="Hit rate, by tokens")
    lowest = min((v for at, v in (*window, *total) if at > 10), default=0.5)
    axes.set_ylim(max(0.0, min(0.8, lowest - 0.02)), 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    legend(axes)


def _latency_panel(
    axes: Axes,
    record: RunRecord,
    name: str,
    value: Callable[[Sample], float | None],
    goal: float,
    scale: float,
    unit: str,
) -> None:
    points = known((sample.at, value(sample)) for sample in record.timeline.samples)
    axes.plot(_times(points, record), [v * record.speed * scale for _, v in points], color=SECOND, linewidth=1.3)
    axes.axhline(
        goal * scale, color=COMPUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"goal {goal * scale:g} {unit}"
    )
    style(axes, ylabel=unit, title=f"{name}, of the slowest role")
    axes.set_ylim(bottom=0)
    legend(axes)


def _pool_panel(axes: Axes, record: RunRecord, key: str) -> None:
    found = [(sample.at, pool) for sample in record.timeline.samples if (pool := sample.pool(key)) is not None]
    times = _times(found, record)
    phases: tuple[tuple[str, str, Callable[[PoolSample], int]], ...] = (
        ("ready", CACHED, lambda pool: pool.ready),
        ("starting", STARTING, lambda pool: pool.pending + pool.starting),
        ("draining", DRAINING, lambda pool: pool.draining),
    )
    layers = [[count(pool) for _, pool in found] for _, _, count in phases]
    below = [0.0] * len(times)
    for (name, colour, _), layer in zip(phases, layers, strict=True):
        above = [low + more for low, more in zip(below, layer, strict=True)]
        axes.fill_between(times, below, above, step="post", color=colour, alpha=0.75, linewidth=0, label=name)
        below = above
    axes.step(times, [pool.desired for _, pool in found], where="post", color=TEXT, linewidth=1.2, label="wanted")
    highest = max(below, default=1.0)
    for move in record.timeline.moves:
        if move.key == key:
            _mark(axes, move, record.speed, highest + 0.45)
    style(axes, ylabel="instances", title=f"Instances of {key}")
    axes.set_ylim(0, highest + 0.9)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    legend(axes)


def _tier_panel(axes: Axes, record: RunRecord, keys: Sequence[str]) -> None:
    for key, colour in zip(keys, (MAIN, SUB, SECOND, CACHED), strict=False):
        found: list[tuple[float, TierSample]] = [
            (sample.at, tier) for sample in record.timeline.samples for tier in sample.tiers if tier.key == key
        ]
        points = known((at, tier.fill) for at, tier in found)
        most = max((tier.members for _, tier in found), default=0)
        label = f"{key} (up to {most} members)"
        axes.plot(_times(points, record), [fill for _, fill in points], color=colour, linewidth=1.4, label=label)
    for move in record.timeline.moves:
        if move.key in keys:
            where = (_minutes(move.at, record.speed), 1.08)
            axes.plot(
                *where, marker="^" if move.up else "v", color=CACHED if move.up else SUB, markersize=6, clip_on=False
            )
    style(axes, ylabel="fill", title="KV cache tiers: used of their capacity")
    axes.set_ylim(0, 1.2)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    legend(axes)


def _mark(axes: Axes, move: Move, speed: float, height: float) -> None:
    colour = CACHED if move.up else SUB
    axes.plot(_minutes(move.at, speed), height, marker="^" if move.up else "v", color=colour, markersize=6)


def _sessions(records: Sequence[RequestRecord]) -> dict[str, list[RequestRecord]]:
    found: dict[str, list[RequestRecord]] = {}
    for record in sorted(records, key=lambda record: record.started):
        found.setdefault(record.session, []).append(record)
    return found


def _running_hit_rate(records: Sequence[RequestRecord]) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    prompt = cached = 0
    for record in sorted(records, key=lambda record: record.started):
        if record.error is None:
            prompt += record.prompt_tokens
            cached += record.cached_tokens
            if prompt:
                points.append((record.started, cached / prompt))
    return points


def _minutes(wall_seconds: float, speed: float) -> float:
    return wall_seconds * speed / 60


def _times(points: Sequence[tuple[float, object]], record: RunRecord) -> list[float]:
    return [_minutes(at, record.speed) for at, _ in points]


def _time_axis(axes: Axes) -> None:
    axes.set_xlabel("minutes of model time since the load began", color=SOFT, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    axes.tick_params(axis="x", colors=SOFT)
    axes.spines["bottom"].set_color(LINE)
