"""What could be had in each zone, at what price, from the start of a trace to its end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


class Price:
    """The price of one zone over time. A value holds until the next one, and the first held ever before."""

    def __init__(self, changes: Iterable[tuple[float, float]]) -> None:
        changes = list(changes)
        self.times = [at for at, _ in changes]
        """When it changes."""
        self._values = [value for _, value in changes]
        self._paid = [0.0]
        for (start, value), (end, _) in pairwise(changes):
            self._paid.append(self._paid[-1] + value * (end - start))

    def at(self, moment: float) -> float:
        """Per hour."""
        return self._values[max(0, bisect_right(self.times, moment) - 1)]

    def between(self, start: float, end: float) -> float:
        """What one instance costs from start to end, billed per second."""
        return (self._paid_until(end) - self._paid_until(start)) / 3600

    def _paid_until(self, moment: float) -> float:
        index = max(0, bisect_right(self.times, moment) - 1)
        return self._paid[index] + self._values[index] * (moment - self.times[index])


@dataclass(frozen=True, kw_only=True)
class Market:
    """A trace, ready to be lived through.

    `available` says from when on how many instances one could hold in each zone: its first row is at 0, and each row
    differs from the one before. `on_demand` is the price of On-Demand, in the unit of `prices`.
    """

    zones: tuple[str, ...]
    available: Sequence[tuple[float, tuple[int, ...]]]
    prices: Sequence[Price]
    on_demand: float
    end: float
