"""What an attempt costs (pure): the seconds in which it had a processor, at its share of what its instance costs.

The market Lambda keeps the prices, one row for each pool, of Spot on average of the past hour: this is an estimate. The
sum over all jobs is less than the bill, for nobody pays here for booting and for waiting. What is not known is left
out, and is never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

ASK_EVERY = timedelta(minutes=15)
"""A Spot price moves slowly; the market Lambda looks every five minutes."""
ASK_AGAIN = timedelta(seconds=10)
"""Where there was no answer, or the pool is not known yet."""
HOUR = timedelta(hours=1)
COLUMNS = {"spot": "spot_usd", "on-demand": "on_demand_usd"}
"""Of a pool's row, by what the instance's metadata calls its life cycle."""


@dataclass(frozen=True)
class Spent:
    """What an attempt took: seconds of a whole GPU, and US dollars, None where the price is not known."""

    gpu_seconds: float
    usd: float | None


NOTHING = Spent(0.0, None)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one processor has: so many of its instance's GPUs go to the task, and so many processors share them."""

    instance_gpus: int = 1
    task_gpus: int = 1
    lanes: int = 1

    def spent(self, worked: timedelta, usd_per_hour: float | None) -> Spent:
        """What a processor spends in this time, at this price of the whole instance."""
        gpu_time = worked * self.task_gpus / self.lanes
        usd = None if usd_per_hour is None else gpu_time / HOUR * usd_per_hour / self.instance_gpus
        return Spent(round(gpu_time.total_seconds(), 3), None if usd is None else round(usd, 9))


def pool_of(facts: Mapping[str, str]) -> str | None:
    """The name of the instance's pool, None while the instance is not known."""
    kind, zone = facts.get("instance_type"), facts.get("zone")
    return f"{kind}/{zone}" if kind and zone else None


def usd_per_hour(row: Mapping[str, Any] | None, lifecycle: str | None) -> float | None:
    """What an instance costs an hour by its pool's row, None where that does not say."""
    price = row.get(COLUMNS.get(lifecycle or "", "")) if row else None
    return float(price) if price else None


@dataclass
class Price:
    """The price of this instance as it was last told, and when to ask for it again."""

    usd_per_hour: float | None = None
    due: datetime | None = None

    def is_due(self, now: datetime) -> bool:
        """Whether to ask now. Who asks says so: the others go on with what is known."""
        if self.due is not None and now < self.due:
            return False
        self.due = now + ASK_AGAIN
        return True

    def told(self, price: float | None, now: datetime) -> None:
        """Keep the answer; an unknown price leaves the one that was."""
        if price is not None:
            self.usd_per_hour, self.due = price, now + ASK_EVERY
