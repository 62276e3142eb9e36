"""Whether a group is worth growing: what Spot costs, and how launches went lately. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

DEAR = 0.99
"""A share of On-Demand, as the market Lambda has it: from here Spot saves nothing."""
FRESH = timedelta(minutes=30)
"""How long a row of the table of pools tells of now. The market Lambda writes each pool of ours every five minutes, and
none that is no longer ours.
"""
RECENT = timedelta(minutes=30)
"""How long a launch that failed tells of the next one. After repeated failures Auto Scaling itself may wait for a
quarter of an hour.
"""


@dataclass(frozen=True)
class Launch:
    """One launch that a group has ended with or given up: when it began, and whether it failed."""

    at: datetime
    failed: bool


def spot_share(rows: Iterable[Mapping[str, Any]], at: datetime) -> float | None:
    """What Spot costs as a share of On-Demand, in the pool where it saves most; None when no pool tells.

    The rows are the table's: averages of the past hour, in the zones that have our subnets. A pool is held against its
    own type's On-Demand price: what a type is worth beside another, the operator said by naming it.
    """
    shares = [
        float(row["spot_usd"]) / float(row["on_demand_usd"])
        for row in rows
        if row.get("spot_usd")
        and row.get("on_demand_usd")
        and at - datetime.fromtimestamp(int(row.get("seen_at", 0)), UTC) < FRESH
    ]
    return min(shares, default=None)


def failing_since(launches: Sequence[Launch], at: datetime) -> datetime | None:
    """Since when nothing but failures came of launches, the latest first; None when the last one worked, or was long
    ago.
    """
    failed = list(takewhile(lambda launch: launch.failed, launches))
    return failed[-1].at if failed and at - failed[0].at < RECENT else None
