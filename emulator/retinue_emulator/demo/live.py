"""What a run looks like while it goes on: a live table on a terminal, one line every few seconds elsewhere.

Latencies are shown in model time (wall time x speed), which the titles say.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from retinue_emulator.replay.runner import Progress

from .timeline import Move, PoolSample, Sample, Timeline

_PLAIN_SECONDS = 5.0


def model_time(seconds: float | None) -> str:
    """`1.2 s`, `8.4 ms`, or `-` while unknown."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def ratio(value: float | None) -> str:
    """Three decimals, or `-` while unknown."""
    return "-" if value is None else f"{value:.3f}"


def describe_move(move: Move, speed: float) -> str:
    """`prefill/coder-primary 2 -> 3 CacheFloor: ...`, with the time of the load in model minutes."""
    return f"{clock(move.at * speed)} {move.key} {move.before} -> {move.after} {move.reason}: {move.message}"


def clock(model_seconds: float) -> str:
    """Model time as `12:05` (minutes and seconds)."""
    sign = "-" if model_seconds < 0 else ""
    minutes, seconds = divmod(int(abs(model_seconds)), 60)
    return f"{sign}{minutes}:{seconds:02d}"


def pool_table(sample: Sample) -> Table:
    """One row per pool and tier; it fits into 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("role", "pool"):
        table.add_column(name, no_wrap=True)
    for name in ("want", "pending", "starting", "ready", "draining", "hit rate", "fill"):
        table.add_column(name, justify="right", no_wrap=True)
    rates = {role.name: role.hit_rate for role in sample.roles}
    for pool in sample.pools:
        counts = (_count(pool.pending), _count(pool.starting), f"{pool.ready}", _count(pool.draining))
        rate = ratio(rates.get(pool.role)) if pool.kind == "prefill" or _alone(sample, pool) else ""
        table.add_row(pool.role, pool.kind, f"{pool.desired}", *counts, rate, "")
    for tier in sample.tiers:
        fill = "-" if tier.fill is None else f"{tier.fill:.0%} of {tier.capacity}"
        desired = f"{tier.desired}" if tier.medium == "ContextStorage" else ""
        name = tier.name.rsplit("-", 1)[-1]
        table.add_row(f"tier {name}", "", desired, "", "", f"{tier.members}", "", ratio(tier.hit_rate), fill)
    return table


def summary_line(sample: Sample, progress: Progress, speed: float) -> str:
    """Sessions, hit rate, latencies and cost of the moment."""
    cost = "-" if sample.cost_per_hour is None else f"{sample.cost_per_hour:.0f}/h"
    ttft = None if sample.ttft_p95 is None else sample.ttft_p95 * speed
    itl = None if sample.itl_p95 is None else sample.itl_p95 * speed
    return (
        f"sessions {progress.finished_sessions} done, {progress.open_sessions} open, {progress.failed_sessions} failed"
        f" | requests {progress.answered}/{progress.requests} | hit rate {ratio(progress.hit_rate)}"
        f" | TTFT p95 {model_time(ttft)} | ITL p95 {model_time(itl)} | cost {cost}"
    )


def sizes_line(sample: Sample) -> str:
    """Ready over wanted instances of every pool and tier."""
    parts = [f"{_short(pool.key)} {pool.ready}/{pool.desired}" for pool in sample.pools]
    parts += [f"{_short(t.key)} {t.members}/{t.desired}" for t in sample.tiers if t.medium == "ContextStorage"]
    return " ".join(parts)


class LiveView:
    """Shows samples as they come; made by `live_view`."""

    def __init__(self, console: Console, speed: float, progress: Progress, live: Live | None) -> None:
        self._console = console
        self._speed = speed
        self._progress = progress
        self._live = live
        self._printed = time.monotonic()
        self._moves = 0

    def show(self, timeline: Timeline) -> None:
        """The newest sample; on a terminal always, elsewhere every few seconds, and every new decision at once."""
        sample = timeline.last
        if sample is None:
            return
        if self._live is not None:
            self._live.update(self._render(sample, timeline), refresh=True)
            return
        for move in timeline.moves[self._moves :]:
            self._line(f"  >> {describe_move(move, self._speed)}")
        self._moves = len(timeline.moves)
        if time.monotonic() - self._printed >= _PLAIN_SECONDS:
            self._printed = time.monotonic()
            at = clock(sample.at * self._speed)
            self._line(f"  {at} {summary_line(sample, self._progress, self._speed)} | {sizes_line(sample)}")

    def _render(self, sample: Sample, timeline: Timeline) -> Group:
        head = Text(
            f"model time {clock(sample.at * self._speed)} (all times are model time: wall time x {self._speed:g})"
        )
        head.stylize("dim")
        lines = Text(summary_line(sample, self._progress, self._speed))
        moves = [
            Text(describe_move(move, self._speed), no_wrap=True, overflow="ellipsis") for move in timeline.moves[-4:]
        ]
        last = Text(f"last decision  {sample.decision or '-'}", no_wrap=True, overflow="ellipsis")
        return Group(head, pool_table(sample), lines, last, *moves)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def live_view(console: Console, speed: float, progress: Progress) -> Iterator[LiveView]:
    """A view for the length of a `with` block; leaves the terminal clean whatever happens."""
    if not console.is_terminal:
        yield LiveView(console, speed, progress, None)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield LiveView(console, speed, progress, live)


def _alone(sample: Sample, pool: PoolSample) -> bool:
    return not any(other.kind == "prefill" and other.role == pool.role for other in sample.pools)


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _count(value: int) -> str:
    return str(value) if value else ""


def _short(key: str) -> str:
    kind, name = key.split("/", 1)
    return f"{kind}/{name.rsplit('-', 1)[-1]}"
