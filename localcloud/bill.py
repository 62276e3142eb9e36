"""What the instances of a run cost, second by second, as EC2 bills them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

LEAST = timedelta(seconds=60)
"""Linux instances are billed by the second, each start at least one minute (EC2 On-Demand pricing page). A stopped one
costs its volume only, which is left out as it is for one that runs."""


@dataclass(frozen=True)
class Bill:
    """Dollars: what was spent, and what the same instances would have cost On-Demand."""

    spent: float
    on_demand_only: float


def bill(diary: Iterable[Mapping[str, Any]], now: datetime, speed: float = 1.0) -> Bill:
    """Add up a cloud's diary. `speed` turns its real seconds back into AWS's.

    An instance that EC2 takes back in its first hour is free (EC2 User Guide, "Billing for interrupted Spot
    Instances"); that saving is left out, so that the bill never flatters.
    """
    prices: dict[str, tuple[float, float]] = {}
    running: dict[str, datetime] = {}
    spans: list[tuple[str, timedelta]] = []
    for line in diary:
        instance, at = line["subject"], datetime.fromisoformat(line["at"])
        if line["what"] == "instance launched":
            prices[instance] = (line["price"], line["on_demand_price"])
        if line["what"] in ("instance launched", "instance started"):
            running[instance] = at
        elif line["what"] in ("instance stopped", "instance terminated") and instance in running:
            spans.append((instance, at - running.pop(instance)))
    spans += [(instance, now - at) for instance, at in running.items()]
    spent = on_demand_only = 0.0
    for instance, lasted in spans:
        hours = max(lasted * speed, LEAST) / timedelta(hours=1)
        spent += hours * prices[instance][0]
        on_demand_only += hours * prices[instance][1]
    return Bill(round(spent, 4), round(on_demand_only, 4))
