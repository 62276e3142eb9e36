"""Small markets, and what became of them."""

from __future__ import annotations

from datetime import timedelta

from capacity.nouns import Load, Urgency
from replay.comparisons import COMPARISONS, Follow
from replay.market import Market, Price
from replay.shipped import SERVICE, Policy
from replay.work import Endless
from replay.world import Delays, World

HOUR = 3600.0
STEP = 600.0


def market(*rows, spot=1.0, on_demand=3.0, prices=None, step=STEP):
    """One row of counts for each step; a price for all zones, or one for each."""
    rows = [row if isinstance(row, tuple) else (row,) for row in rows]
    zones = tuple(f"zone-{letter}" for letter in "abcdef"[: len(rows[0])])
    changes = [(index * step, row) for index, row in enumerate(rows) if not index or row != rows[index - 1]]
    return Market(
        zones=zones,
        available=changes,
        prices=prices or [Price([(0.0, spot)])] * len(zones),
        on_demand=on_demand,
        end=len(rows) * step,
    )


def delays(**parts):
    return Delays(**{"spot": 180.0, "on_demand": 180.0, "notice": 120.0, **parts})


def lived(market, who, work=None, units=2, diary=None, **parts):
    """The bill of a rule by name, or of a controller."""
    world = World(market, work or Endless(units, 10.0), delays(**parts), diary)
    return world.run(Follow(COMPARISONS[who]) if isinstance(who, str) else who)


def policy(units=2, jobs_per_unit=1, urgency=Urgency.NOW, patience=180, calm=180, max_wait=None):
    return Policy(
        loads={SERVICE: Load(jobs_per_task=jobs_per_unit, max_tasks=units, units_per_task=1, max_wait=max_wait)},
        on_demand_units=1,
        max_units=units,
        max_on_demand_units=units,
        urgency=urgency,
        patience=timedelta(seconds=patience),
        calm=timedelta(seconds=calm),
    )
