"""The market in spare capacity, pure: pools with a price and room for so many instances. Nothing here knows of AWS.

Every pool has dice of its own, seeded by the market's seed and its name, so the same seed gives the same weather
whatever was looked at first. Time is given from outside, in ticks of one AWS minute.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

SPOT = "spot"
ON_DEMAND = "on-demand"
GENEROUS = {SPOT: 60, ON_DEMAND: 500}
"""Instances a pool has room for unless told otherwise."""
TICK_SECONDS = 60.0
"""AWS seconds between two steps of prices and weather."""
PRICE_CHANGES_PER_HOUR = 2.0
CALM_CENTRE, CALM_SPREAD = 0.30, 0.06
"""Spot price as a share of On-Demand: what pools hover about (means of 0.28 to 0.42 were seen for GPU types
in 2022 to 2025), and by how much one differs from another."""
STORM_SAME_ZONE, STORM_OTHER_ZONE = 0.8, 0.45
"""Chance that a mass interruption that broke out in one zone takes a pool there, and elsewhere in the region: zones
of one region fail together (correlation 0.43 to 0.70 in public availability traces)."""
STORM_MINUTES = 20.0
"""Median length of a shortage; lengths are lognormal."""


@dataclass(frozen=True, order=True)
class Pool:
    """One instance type in one zone."""

    type: str
    zone: str

    def __str__(self) -> str:
        return f"{self.type}/{self.zone}"

    @classmethod
    def named(cls, name: str) -> Pool:
        """The pool written as TYPE/ZONE. Raises ValueError."""
        kind, slash, zone = name.partition("/")
        if not (kind and slash and zone):
            raise ValueError(f"{name!r} is not a pool; write TYPE/ZONE, e.g. g5.xlarge/us-east-1a")
        return cls(kind, zone)


@dataclass(frozen=True)
class Change:
    """What a tick did to one pool: a new Spot price (US dollars an hour), a new capacity (instances), or both."""

    pool: Pool
    price: float | None = None
    capacity: int | None = None


@dataclass
class _Stall:
    """One pool's Spot side."""

    dice: random.Random
    list_price: float
    centre: float
    price: float
    normal: int
    capacity: int
    history: list[tuple[datetime, float]] = field(default_factory=list)
    back_at: datetime | None = None
    scripted: bool = False
    """Whether the price stays as it is."""


class Market:
    """Prices and capacity of every pool, and how many instances are taken from each."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._stalls: dict[Pool, _Stall] = {}
        self._taken: Counter[tuple[str, Pool]] = Counter()
        self._room: dict[Pool, int] = {}
        self._dice = random.Random(f"{seed}/weather")  # noqa: S311
        self.storms_per_hour = 0.0
        """Mass interruptions an hour in the region; 0 is fine weather: nobody is interrupted without being told to."""

    def open(self, pool: Pool, list_price: float, at: datetime, tick: timedelta = timedelta(seconds=60)) -> None:
        """Let a pool exist, with a day of prices behind it. `list_price` is On-Demand's, in US dollars an hour."""
        if pool in self._stalls:
            return
        dice = random.Random(f"{self._seed}/{pool}")  # noqa: S311
        centre = max(0.15, dice.gauss(CALM_CENTRE, CALM_SPREAD))
        stall = _Stall(
            dice, list_price, centre, round(list_price * centre, 4), normal=GENEROUS[SPOT], capacity=GENEROUS[SPOT]
        )
        self._stalls[pool] = stall
        for hour in range(24, 0, -1):
            stall.history.append((at - tick * 60 * hour, stall.price))
            stall.price = _walked(stall)
        stall.history.append((at, stall.price))

    def pools(self) -> list[Pool]:
        """The pools that were opened, sorted."""
        return sorted(self._stalls)

    def price(self, pool: Pool, lifecycle: str = SPOT) -> float:
        """US dollars an hour that an instance costs now."""
        stall = self._stalls[pool]
        return stall.price if lifecycle == SPOT else stall.list_price

    def capacity(self, pool: Pool, lifecycle: str = SPOT) -> int:
        """Instances that the pool has room for in all."""
        if lifecycle == SPOT:
            return self._stalls[pool].capacity
        return self._room.get(pool, GENEROUS[ON_DEMAND])

    def taken(self, pool: Pool, lifecycle: str = SPOT) -> int:
        """Instances that run in the pool."""
        return self._taken[lifecycle, pool]

    def free(self, pool: Pool, lifecycle: str = SPOT) -> int:
        """Instances that could still be had."""
        return max(0, self.capacity(pool, lifecycle) - self.taken(pool, lifecycle))

    def excess(self, pool: Pool) -> int:
        """Spot instances more than the pool has room for: EC2 wants them back."""
        return max(0, self.taken(pool) - self.capacity(pool))

    def take(self, pool: Pool, lifecycle: str = SPOT) -> bool:
        """Have one instance of the pool, if there is room."""
        if not self.free(pool, lifecycle):
            return False
        self._taken[lifecycle, pool] += 1
        return True

    def give_back(self, pool: Pool, lifecycle: str = SPOT) -> None:
        """One instance of the pool is gone. Raises ValueError when none was taken."""
        if self._taken[lifecycle, pool] < 1:
            raise ValueError(f"no {lifecycle} instance of {pool} is out")
        self._taken[lifecycle, pool] -= 1

    def set_price(self, pool: Pool, usd: float, at: datetime) -> None:
        """Script a pool's Spot price, in US dollars an hour: from now on it stays. It is never above On-Demand's."""
        stall = self._stalls[pool]
        if not 0 < usd <= stall.list_price:
            raise ValueError(f"a Spot price is above 0 and at most On-Demand's {stall.list_price}, not {usd}")
        stall.price, stall.scripted = usd, True
        stall.history.append((at, usd))

    def set_capacity(self, pool: Pool, instances: int, lifecycle: str = SPOT) -> None:
        """Script a pool: from now on it has room for so many. Weather leaves it alone until the next storm."""
        if instances < 0:
            raise ValueError("capacity is 0 instances or more")
        if lifecycle == SPOT:
            stall = self._stalls[pool]
            stall.capacity, stall.normal, stall.back_at = instances, instances, None
        else:
            self._room[pool] = instances

    def history(self, pool: Pool, start: datetime, end: datetime) -> list[tuple[datetime, float]]:
        """Price changes between the two times, newest first, with the price that held at `start`."""
        past = self._stalls[pool].history
        within = [(at, price) for at, price in past if start < at <= end]
        before = [(at, price) for at, price in past if at <= start]
        return [*reversed(within), *before[-1:]]

    def tick(self, at: datetime, minute: timedelta = timedelta(seconds=60)) -> list[Change]:
        """One AWS minute passed (it lasts `minute` here). Returns what changed."""
        changes = [*self._storm(at, minute), *self._clearing(at)]
        for pool, stall in sorted(self._stalls.items()):
            if stall.dice.random() < PRICE_CHANGES_PER_HOUR / 60 and not stall.scripted:
                stall.price = _walked(stall)
                stall.history.append((at, stall.price))
                changes.append(Change(pool, price=stall.price))
        return changes

    def _storm(self, at: datetime, minute: timedelta) -> Iterable[Change]:
        if not self._stalls or self._dice.random() >= self.storms_per_hour / 60:
            return
        eye = self._dice.choice(sorted({pool.zone for pool in self._stalls}))
        for pool, stall in sorted(self._stalls.items()):
            # Its own dice: who asks for more prices does not change the weather.
            if stall.dice.random() < (STORM_SAME_ZONE if pool.zone == eye else STORM_OTHER_ZONE):
                stall.capacity = int(min(stall.capacity, max(self.taken(pool), 1)) * stall.dice.uniform(0, 0.4))
                stall.back_at = at + minute * stall.dice.lognormvariate(math.log(STORM_MINUTES), 0.6)
                yield Change(pool, capacity=stall.capacity)

    def _clearing(self, at: datetime) -> Iterable[Change]:
        for pool, stall in sorted(self._stalls.items()):
            if stall.back_at is not None and at >= stall.back_at:
                stall.capacity, stall.back_at = stall.normal, None
                yield Change(pool, capacity=stall.capacity)


def _walked(stall: _Stall) -> float:
    """The next price: a step of a few per cent, drawn back to the pool's own centre, never above On-Demand."""
    centre = stall.list_price * stall.centre
    step = stall.dice.gauss(0.0, 0.03) + 0.1 * math.log(centre / stall.price)
    return round(min(stall.list_price, stall.price * math.exp(step)), 4)
