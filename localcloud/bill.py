"""What the instances of a run cost, second by second, as EC2 bills them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

LEAST = timedelta(seconds=60)
"""Linux instances are billed by the second, at least one minute (EC2 On-Demand pricing page)."""


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
    launched: dict[str, Mapping[str, Any]] = {}
    ended: dict[str, datetime] = {}
    for line in diary:
        if line["what"] == "instance launched":
            launched[line["subject"]] = line
        elif line["what"] == "instance terminated":
            ended[line["subject"]] = datetime.fromisoformat(line["at"])
    spent = on_demand_only = 0.0
    for instance, line in launched.items():
        lasted = (ended.get(instance, now) - datetime.fromisoformat(line["at"])) * speed
        hours = max(lasted, LEAST) / timedelta(hours=1)
        spent += hours * line["price"]
        on_demand_only += hours * line["on_demand_price"]
    return Bill(round(spent, 4), round(on_demand_only, 4))
