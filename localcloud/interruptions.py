"""EC2 taking capacity back: because the weather says so, or because the hand of fate does."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from localcloud import catalog
from localcloud.control import Control, Refused
from localcloud.instances import Instance, Instances
from localcloud.market import ON_DEMAND, SPOT, TICK_SECONDS, Pool


class Interruptions:
    """Lets the market's minutes pass and reclaims what it has no room for. Offers `market/…` and `instances/show`."""

    def __init__(self, instances: Instances, control: Control) -> None:
        self._instances = instances
        self._world = instances.world
        self._market = instances.market
        self._next_tick = self._world.now() + self._minute()
        self._world.every_heartbeat(self.step)
        control.offer("market/show", self.show)
        control.offer("market/capacity", self.capacity)
        control.offer("market/price", self.price)
        control.offer("market/quota", self.quota)
        control.offer("market/reclaim", self.reclaim)
        control.offer("market/rebalance", self.rebalance)
        control.offer("market/weather", self.weather)
        control.offer("instances/show", self.instances)

    def step(self, now: datetime) -> None:
        """Pass the market's minutes that are over, and take back what exceeds a pool's room."""
        while self._next_tick <= now:
            for change in self._market.tick(self._next_tick, self._minute()):
                if change.price is not None:
                    self._world.note("price", str(change.pool), price=change.price)
                if change.capacity is not None:
                    self._world.note("capacity", str(change.pool), instances=change.capacity)
            self._next_tick += self._minute()
        for pool in self._market.pools():
            excess = self._market.excess(pool)
            if not excess:
                continue
            spot = self._spot(pool)
            doomed = sum(one.notice is not None for one in spot)
            safe = [one for one in spot if one.notice is None]
            for instance in self._world.dice.sample(safe, min(len(safe), max(0, excess - doomed))):
                self._instances.warn(instance, "market", now)

    def show(self) -> dict[str, dict[str, dict[str, float]]]:
        """`{"pools": {NAME: …}}`: each pool's prices, and how much of it is taken."""
        return {
            "pools": {
                str(pool): {
                    "price": self._market.price(pool),
                    "capacity": self._market.capacity(pool),
                    "taken": self._market.taken(pool),
                    "on_demand_price": self._market.price(pool, ON_DEMAND),
                    "on_demand_capacity": self._market.capacity(pool, ON_DEMAND),
                    "on_demand_taken": self._market.taken(pool, ON_DEMAND),
                }
                for pool in self._market.pools()
            }
        }

    def capacity(self, pool: str, instances: int, market: str = SPOT) -> dict[str, Any]:
        """Give a pool room for so many instances. Spot instances above that are reclaimed, with notice."""
        if market not in (SPOT, ON_DEMAND):
            raise Refused(f"market is {SPOT} or {ON_DEMAND}")
        self._market.set_capacity(self._open(pool), instances, market)
        self._world.note("capacity", pool, instances=instances, market=market)
        return {"pool": pool, "market": market, "instances": instances}

    def price(self, pool: str, usd: float) -> dict[str, Any]:
        """Have a pool's Spot price stay at so many US dollars an hour."""
        try:
            self._market.set_price(self._open(pool), usd, self._world.now())
        except ValueError as error:
            raise Refused(str(error)) from error
        self._world.note("price", pool, price=usd)
        return {"pool": pool, "usd": usd}

    def quota(self, vcpus: int | None, market: str = SPOT) -> dict[str, Any]:
        """Let the account run so many vCPUs (None: no limit)."""
        if vcpus is None:
            self._instances.quota.pop(market, None)
        else:
            self._instances.quota[market] = vcpus
        return {"market": market, "vcpus": vcpus}

    def reclaim(self, instance: str = "", pool: str = "", notice: bool = True) -> list[str]:
        """Take one Spot instance, or all of a pool, with the two-minute notice or at once.

        Returns the ids of those that it happened to: one that has notice gets no other.
        """
        now = self._world.now()
        victims = [self._one(instance)] if instance else self._spot(self._open(pool))
        victims = [victim for victim in victims if not (notice and victim.notice)]
        for victim in victims:
            if victim.lifecycle != SPOT:
                raise Refused(f"{victim.id} is On-Demand: EC2 does not take those")
            if notice:
                self._instances.warn(victim, "market", now)
            else:
                self._world.note("reclaimed without notice", victim.id)
                self._instances.terminate(victim, "reclaimed", now)
        return [victim.id for victim in victims]

    def rebalance(self, instance: str) -> str:
        """Send a rebalance recommendation."""
        self._instances.recommend_rebalance(self._one(instance), self._world.now())
        return instance

    def weather(self, storms_per_hour: float) -> dict[str, float]:
        """Have mass interruptions happen by themselves, so many an hour of AWS's time on average (0: none)."""
        if storms_per_hour < 0:
            raise Refused("storms_per_hour is 0 or more")
        self._market.storms_per_hour = storms_per_hour
        return {"storms_per_hour": storms_per_hour}

    def instances(self) -> list[dict[str, Any]]:
        """Every visible instance, in short."""
        return [
            {
                "id": one.id,
                "type": one.pool.type,
                "zone": one.pool.zone,
                "lifecycle": one.lifecycle,
                "state": one.state,
                "owner": one.owner,
                "launched": one.launched.isoformat(),
                "notice": one.notice.isoformat() if one.notice else None,
            }
            for one in self._instances.all()
        ]

    def _minute(self) -> timedelta:
        return timedelta(seconds=self._world.scaled(TICK_SECONDS))

    def _spot(self, pool: Pool) -> list[Instance]:
        return [one for one in self._instances.all() if one.pool == pool and one.lifecycle == SPOT and one.living]

    def _open(self, name: str) -> Pool:
        pool = Pool.named(name)
        self._market.open(pool, catalog.on_demand_usd(pool.type), self._world.now(), self._minute())
        return pool

    def _one(self, instance_id: str) -> Instance:
        instance = self._instances.get(instance_id)
        if not instance.living:
            raise Refused(f"{instance_id} is {instance.state}")
        return instance
