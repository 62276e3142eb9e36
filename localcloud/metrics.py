"""What CloudWatch has measured: samples by metric, each shown only once AWS would show it, and their statistics.

Times are seconds since the epoch. A period of CloudWatch lasts its seconds divided by the speed of the world, so that
an alarm that looks back over five minutes looks back over five of AWS's minutes.
"""

from __future__ import annotations

import bisect
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,10})?|100)")
"""As ExtendedStatistic and Stat write them; trimmed means and ranks are not played."""
NO_UNIT = "None"


class Unknown(ValueError):
    """A statistic that is not played."""


@dataclass(frozen=True, order=True)
class Metric:
    """A metric's identity: every combination of dimensions is a metric of its own."""

    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...] = ()
    """Sorted."""

    @classmethod
    def of(cls, namespace: str, name: str, dimensions: Mapping[str, str]) -> Metric:
        """The metric with these dimensions, in whatever order they come."""
        return cls(namespace, name, tuple(sorted(dimensions.items())))


@dataclass(frozen=True)
class Sample:
    """Some values of one moment: distinct ones with how often each was seen, or a set of statistics of them."""

    at: float
    shown_at: float
    """When CloudWatch first knows of it."""
    counts: tuple[tuple[float, float], ...]
    """(value, how often). Of a set of statistics its least and greatest, which say nothing of percentiles."""
    count: float
    total: float
    unit: str = NO_UNIT
    whole: bool = True
    """Whether `counts` are all values."""


def sample(at: float, shown_at: float, counts: Sequence[tuple[float, float]], unit: str = NO_UNIT) -> Sample:
    """A sample of values, each with how often it was seen."""
    counts = [(float(value), float(often)) for value, often in counts]
    count = sum(often for _, often in counts)
    return Sample(at, shown_at, tuple(counts), count, sum(value * often for value, often in counts), unit)


class Metrics:
    """Every metric of the account. Any thread may call."""

    def __init__(self) -> None:
        self._samples: dict[Metric, list[Sample]] = {}
        self._lock = threading.Lock()

    def put(self, metric: Metric, taken: Sample) -> None:
        """Keep a sample."""
        with self._lock:
            bisect.insort(self._samples.setdefault(metric, []), taken, key=lambda one: one.at)

    def all(self, now: float) -> list[Metric]:
        """The metrics that CloudWatch knows of."""
        with self._lock:
            return sorted(metric for metric, kept in self._samples.items() if any(one.shown_at <= now for one in kept))

    def series(
        self, metric: Metric, statistic: str, starts: Iterable[float], seconds: float, now: float, unit: str = ""
    ) -> dict[float, float]:
        """By start of a period of `seconds`: the statistic over it, as far as CloudWatch knows at `now`.

        Periods without a sample are left out. Raises Unknown.
        """
        found = {}
        with self._lock:
            kept = self._samples.get(metric, [])
            for start in starts:
                ends = (start, start + seconds)
                first, last = (bisect.bisect_left(kept, moment, key=lambda one: one.at) for moment in ends)
                shown = [one for one in kept[first:last] if one.shown_at <= now and unit in ("", one.unit)]
                value = statistic_of(shown, statistic) if shown else None
                if value is not None:
                    found[start] = value
        return found


def statistic_of(samples: Sequence[Sample], statistic: str) -> float | None:
    """One statistic over samples, at least one; None for a percentile that they do not tell. Raises Unknown."""
    count, total = sum(one.count for one in samples), sum(one.total for one in samples)
    values = [value for one in samples for value, _ in one.counts]
    simple = {"SampleCount": count, "Sum": total, "Minimum": min(values), "Maximum": max(values)}
    if statistic in simple:
        return simple[statistic]
    if statistic == "Average":
        return total / count if count else None
    return _percentile(samples, percent_of(statistic))


def percent_of(statistic: str) -> float:
    """99.9 of `p99.9`. Raises Unknown for what is no percentile."""
    if not (written := PERCENTILE.fullmatch(statistic)):
        raise Unknown(f"the local cloud does not play the statistic {statistic}")
    return float(written[1])


def check(statistic: str) -> None:
    """Raise Unknown for a statistic that is not played."""
    if statistic not in ("SampleCount", "Sum", "Minimum", "Maximum", "Average"):
        percent_of(statistic)


def _percentile(samples: Sequence[Sample], percent: float) -> float | None:
    """The least value that so many per cent do not exceed. Sets of statistics tell it only when all values are one
    (CloudWatch user guide, "Percentiles").
    """
    if not all(one.whole or min(one.counts) == max(one.counts) for one in samples):
        return None
    counts = sorted(pair for one in samples for pair in one.counts)
    rank = math.ceil(percent / 100 * sum(often for _, often in counts))
    passed = 0.0
    for value, often in counts:
        passed += often
        if passed >= rank:
            return value
    return counts[-1][0]
