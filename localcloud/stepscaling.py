"""What a scaling policy makes of a capacity, pure: step adjustments, rounding, bounds.

The rules are those of "Step and simple scaling policies" in the EC2 Auto Scaling user guide; Application Auto Scaling's
guide has the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

EXACT, CHANGE, PERCENT = "ExactCapacity", "ChangeInCapacity", "PercentChangeInCapacity"
MOST_STEPS = 20


class Ill(ValueError):
    """The policy is none that AWS takes; the message says why."""


def check(adjustment: str, steps: Sequence[Mapping[str, Any]]) -> None:
    """Raise Ill for step adjustments that AWS refuses: too many, overlapping, with a gap, without an end."""
    if adjustment not in (EXACT, CHANGE, PERCENT):
        raise Ill(f"{adjustment} is no adjustment type")
    if not 1 <= len(steps) <= MOST_STEPS:
        raise Ill(f"there must be 1 to {MOST_STEPS} step adjustments")
    spans = sorted((_low(one), _high(one)) for one in steps)
    if any(low >= high or (low, high) == (-math.inf, math.inf) for low, high in spans):
        raise Ill("a step adjustment needs a lower bound below its upper one, and one of the two")
    if any(before[1] != after[0] for before, after in itertools.pairwise(spans)):
        raise Ill("there are gaps between the ranges of the step adjustments, or they overlap")
    if (spans[0][0] < 0 and spans[0][0] != -math.inf) or (spans[-1][1] > 0 and spans[-1][1] != math.inf):
        raise Ill("the step adjustments must be open at their ends")


def beyond(aggregation: str | None, values: Sequence[float], threshold: float) -> float:
    """How far a metric is above its threshold, by the newest values of an alarm: their average unless said otherwise.

    Raises Ill when there are none.
    """
    if not values:
        raise Ill("the alarm has no data")
    if aggregation == "Maximum":
        return max(values) - threshold
    if aggregation == "Minimum":
        return min(values) - threshold
    return sum(values) / len(values) - threshold


def step(steps: Sequence[Mapping[str, Any]], beyond: float) -> int | None:
    """The adjustment for a metric that is `beyond` its threshold; None when no step is for that.

    Above the threshold a step begins at its lower bound and ends before its upper one; below it is the other way, and
    at the threshold both are for it: the console shows steps out as `50 <= metric < …`, steps in as `50 >= metric > …`.
    """
    for one in steps:
        low, high = _low(one), _high(one)
        if (beyond >= 0 and low <= beyond < high) or (beyond <= 0 and low < beyond <= high):
            return int(one["ScalingAdjustment"])
    return None


def adjusted(capacity: int, adjustment: str, by: int, least: int = 0) -> int:
    """The capacity that an adjustment asks for, before any bounds. `least`: MinAdjustmentMagnitude."""
    if adjustment == EXACT:
        return by
    change = by if adjustment == CHANGE else _rounded(capacity * by / 100)
    if adjustment == PERCENT and change:
        change = int(math.copysign(max(abs(change), least), change))
    return capacity + change


def _rounded(change: float) -> int:
    """Towards zero, but never to it."""
    whole = math.trunc(change)
    return whole if whole or not change else int(math.copysign(1, change))


def within(capacity: int, least: int, most: int) -> int:
    """The capacity within its bounds."""
    return min(max(capacity, least), most)


def _low(one: Mapping[str, Any]) -> float:
    return float(one.get("MetricIntervalLowerBound", -math.inf))


def _high(one: Mapping[str, Any]) -> float:
    return float(one.get("MetricIntervalUpperBound", math.inf))
