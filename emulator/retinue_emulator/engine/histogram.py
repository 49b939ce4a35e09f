"""A histogram that takes many equal observations at once, and exposes itself as Prometheus does."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client.core import HistogramMetricFamily


class BulkHistogram:
    """Counts per bucket of one label set.

    Args:
        bounds: upper bounds, ascending; +Inf is added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._labels = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self._counts)

    @property
    def total(self) -> float:
        """Sum of the observed values."""
        return self._sum

    def observe(self, value: float, times: int = 1) -> None:
        """Book `times` observations of `value`."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add the cumulative buckets and the sum to a metric family."""
        cumulative, running = [], 0
        for label, count in zip(self._labels, self._counts, strict=True):
            running += count
            cumulative.append((label, running))
        family.add_metric(list(labels), buckets=cumulative, sum_value=self._sum)
