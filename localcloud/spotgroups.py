"""Which pool an Auto Scaling group launches its next Spot instance from, in a zone: groups balance zones before.

Strategies as the Auto Scaling user guide has them ("Allocation strategies for multiple instance types"); how they rank
is in allocation.py.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from localcloud import catalog
from localcloud.allocation import Offer, Quote, choose
from localcloud.instances import Instance, Instances
from localcloud.launch import Subnet
from localcloud.market import Pool
from localcloud.requirements import affordable

if TYPE_CHECKING:
    from localcloud.groupkeeper import Settings

LOWEST_PRICE = "lowest-price"
STRATEGIES = {
    LOWEST_PRICE: "diversified",
    "capacity-optimized": "capacityOptimized",
    "capacity-optimized-prioritized": "capacityOptimizedPrioritized",
    "price-capacity-optimized": "priceCapacityOptimized",
}
"""A group's words for those of allocation.py; the lowest prices are picked before they are spread over."""
USUAL_POOLS = 2


@dataclass(frozen=True)
class SpotChoice:
    """How a group chooses."""

    strategy: str = LOWEST_PRICE
    pools: int = USUAL_POOLS
    """Over how many of a zone's cheapest pools `lowest-price` spreads."""
    wanted: Mapping[str, Any] = field(default_factory=dict)
    """InstanceRequirements, whose price protection is weighed at every launch."""


def quotes(instances: Instances, settings: Settings, subnet: Subnet, living: Sequence[Instance]) -> list[Quote]:
    """What the market asks in one zone for each type that the group may have."""
    market, world = instances.market, instances.world
    minute = timedelta(seconds=world.scaled(60))
    pools = {kind: Pool(kind, subnet.zone) for kind in settings.types}
    for kind, pool in pools.items():
        market.open(pool, catalog.on_demand_usd(kind), world.now(), minute)
    types = settings.types
    if settings.spot is not None and settings.spot.wanted:
        types = tuple(affordable(types, settings.spot.wanted, lambda kind: market.price(pools[kind])))
    found = []
    for rank, kind in enumerate(types):
        pool, weight = pools[kind], settings.weights.get(kind, 1)
        held = sum(weight for one in living if one.pool == pool)
        offer = Offer(pool, subnet, weight, rank, settings.blueprint)
        found.append(Quote(offer, market.price(pool), market.free(pool), held))
    return found


def ranked(choice: SpotChoice, found: Sequence[Quote], dice: random.Random) -> Iterator[str]:
    """The types in the order in which they are tried."""
    left = list(found)
    while left:
        candidates = left
        if choice.strategy == LOWEST_PRICE:
            candidates = sorted(left, key=lambda quote: quote.price_per_unit)[: choice.pools]
        best = choose(STRATEGIES[choice.strategy], candidates, dice)
        left.remove(best)
        yield best.offer.pool.type
