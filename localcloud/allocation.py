"""Which pool a Spot Fleet launches from next and which instances it lets go first, pure.

Approximations of what the EC2 User Guide says of the allocation strategies; AWS keeps the real ones to itself:
lowestPrice: the lowest price per unit. diversified: the pool that has the fewest of the fleet's units.
capacityOptimized: the most free instances, which AWS estimates and the local cloud knows.
capacityOptimizedPrioritized: the override's priority, then the most free. priceCapacityOptimized: the lowest price per
unit among pools with at least half as many free instances as the best one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from localcloud.launch import Blueprint, Subnet
from localcloud.market import Pool

NEARLY_BEST = 0.5


@dataclass(frozen=True)
class Offer:
    """One override of a fleet in one subnet: a pool it may launch from."""

    pool: Pool
    subnet: Subnet
    weight: float
    """Units of one instance."""
    priority: float
    """Lower comes first."""
    blueprint: Blueprint


@dataclass(frozen=True)
class Quote:
    """An offer as the market stands."""

    offer: Offer
    price: float
    """US dollars an hour of one instance."""
    free: int
    held: float
    """Units that the fleet has in the pool."""

    @property
    def price_per_unit(self) -> float:
        """US dollars an hour of one unit."""
        return self.price / self.offer.weight


@dataclass(frozen=True)
class Running:
    """One instance of the fleet, as scale-in weighs it."""

    id: str
    pool: Pool
    weight: float
    price: float
    free: int


Rank = Callable[[Quote], tuple[float, ...]]
RANKS: Mapping[str, Rank] = {
    "lowestPrice": lambda quote: (quote.price_per_unit,),
    "diversified": lambda quote: (quote.held,),
    "capacityOptimized": lambda quote: (-quote.free,),
    "capacityOptimizedPrioritized": lambda quote: (quote.offer.priority, -quote.free),
    "priceCapacityOptimized": lambda quote: (quote.price_per_unit,),
}
"""By strategy: what is least comes first."""


def choose(strategy: str, quotes: Sequence[Quote], dice: random.Random) -> Quote:
    """The quote to launch one instance from. Ties are the dice's."""
    if strategy == "priceCapacityOptimized":
        enough = NEARLY_BEST * max(quote.free for quote in quotes)
        quotes = [quote for quote in quotes if quote.free >= enough]
    rank = RANKS[strategy]
    best = min(rank(quote) for quote in quotes)
    return dice.choice([quote for quote in quotes if rank(quote) == best])


def victims(strategy: str, running: Sequence[Running], target: float, dice: random.Random) -> list[str]:
    """Ids of the instances that leave so that the fleet no longer exceeds its target, without falling below it.

    As ModifySpotFleetRequest says: the highest price per unit (lowestPrice; here also priceCapacityOptimized), the
    pools with the least capacity left (capacityOptimized…), or across the pools (diversified: the fullest pool first).
    """
    left = list(running)
    dice.shuffle(left)
    leaving: list[str] = []
    while candidates := [one for one in left if sum(other.weight for other in left) - one.weight >= target]:
        victim = max(candidates, key=lambda one: _expendable(strategy, one, left))
        left.remove(victim)
        leaving.append(victim.id)
    return leaving


def _expendable(strategy: str, one: Running, left: Sequence[Running]) -> float:
    if strategy == "diversified":
        return sum(other.weight for other in left if other.pool == one.pool)
    if strategy.startswith("capacityOptimized"):
        return -one.free
    return one.price / one.weight
