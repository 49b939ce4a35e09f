"""PromQL that survives restarts, duplicate series and quiet times: rate first, then sum, guard every ratio."""

from collections.abc import Sequence
from dataclasses import dataclass

from retinue.autoscaling.engine_metrics import Series

# How many windows back a series that ended is looked for, and at how many moments of each; before that it is missing.
_HISTORY_WINDOWS = 10
_MOMENTS = 6


@dataclass(frozen=True)
class Grouping:
    """Which series are meant (label matchers), by which labels results are told apart, over which window."""

    matchers: str
    by: tuple[str, ...]
    window: float

    def select(self, series: Series) -> str:
        parts = ",".join(part for part in (series.matchers, self.matchers) if part)
        return f"{series.name}{{{parts}}}"

    def labels(self, *more: str) -> str:
        return ", ".join((*self.by, *more))


def duration(seconds: float) -> str:
    """A PromQL duration: whole seconds if it is whole, else milliseconds."""
    milliseconds = max(1, round(seconds * 1000))
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


def rate(series: Series, group: Grouping) -> str:
    """Per second. rate() corrects each series for restarts; after a sum it no longer could."""
    return f"sum by ({group.labels()}) (rate({group.select(series)}[{duration(group.window)}]))"


def difference(left: str, right: str) -> str:
    """What is left of one rate after another; counters that move a scrape apart must not make it negative."""
    return f"clamp_min({left} - {right}, 0)"


def ratio(part: str, whole: str) -> str:
    """part / whole; nothing at all when whole is 0, because 0/0 is not 0."""
    return f"({part} / {whole}) and ({whole} > 0)"


def quantile(series: Series, group: Grouping, q: float) -> str:
    """A quantile of a classic histogram over all instances together: quantiles of instances cannot be averaged."""
    bucket = Series(f"{series.name}_bucket", series.matchers)
    return (
        f"histogram_quantile({q:g}, sum by ({group.labels('le')}) "
        f"(rate({group.select(bucket)}[{duration(group.window)}])))"
    )


def total(series: Sequence[Series], group: Grouping) -> str:
    """The sum of gauges over instances; series that several scrape jobs deliver twice count once.

    Of several gauges those that are missing count as nothing, if at least the first is there.
    """
    first, *others = (
        f"sum by ({group.labels()}) (max without (job, endpoint, service) ({group.select(one)}))" for one in series
    )
    return first + "".join(f" + ({other} or 0 * {first})" for other in others)


def peak(expression: str, window: float) -> str:
    """The highest value within the window, seen at twelve moments."""
    return f"max_over_time(({expression})[{duration(window)}:{duration(window / 12)}])"


def low(expression: str, seconds: float) -> str:
    """The lowest value within the last seconds, seen at four moments."""
    return f"min_over_time(({expression})[{duration(seconds)}:{duration(seconds / 4)}])"


def mean(series: Series, group: Grouping) -> str:
    """The mean of a gauge over instances, each with the highest of its ranks."""
    return f"avg by ({group.labels()}) (max by ({group.labels('retinue_instance')}) ({group.select(series)}))"


def extreme(function: str, series: Series, group: Grouping) -> str:
    """The min or max of a gauge."""
    return f"{function} by ({group.labels()}) ({group.select(series)})"


def instances(series: Series, group: Grouping) -> str:
    """How many instances have this series now."""
    return f"count by ({group.labels()}) (count by ({group.labels('retinue_instance')}) ({group.select(series)}))"


def busy(series: Series, group: Grouping) -> str:
    """Seconds per second that instances spend on what a histogram of times counts, each at most 1.

    Requests that share a batch count the same time twice: the bound keeps that error finite.
    """
    spent = Series(f"{series.name}_sum", series.matchers)
    each = f"sum by ({group.labels('retinue_instance')}) (rate({group.select(spent)}[{duration(group.window)}]))"
    return f"sum by ({group.labels()}) (clamp_max({each}, 1))"


def age(series: Series, group: Grouping) -> str:
    """Seconds since any of these series was scraped last.

    A rate goes on for a whole window after its target died, and an instant query always has the time of now; this does
    not. A series that ended is looked for in the past, at coarser steps.
    """
    chosen = group.select(series)
    past = f"{duration(_HISTORY_WINDOWS * group.window)}:{duration(group.window / _MOMENTS)}"
    alive = f"max by ({group.labels()}) (timestamp({chosen}))"
    ended = f"max by ({group.labels()}) (max_over_time(timestamp({chosen})[{past}]))"
    return f"time() - ({alive} or {ended})"
