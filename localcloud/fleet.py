"""Spot Fleets of type maintain: they keep their target in units, launch, replace, and let go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from localcloud import catalog, substrate
from localcloud.allocation import Offer, Quote, Running, choose, victims
from localcloud.herald import Herald
from localcloud.instances import Instance, Instances, NoCapacity, OverQuota, SpotRequest
from localcloud.market import SPOT, Pool
from localcloud.world import ACCOUNT, REGION

MODIFY_SECONDS = (1.5, 3.5)
"""How long a request stays `modifying`, with the old target still shown: 3 s were seen (kube-aws issue 843)."""
LAUNCH_SECONDS = (1.5, 4.5)
CHECK_SECONDS = 5.0
RETRY_SECONDS = 30.0
"""A pool without room is left alone for so long. AWS says "at least 13 minutes" after repeated failures."""
VICTIMS = "default"
TAG = "aws:ec2spot:fleet-request-id"
INSTANCES = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/*"
May = Callable[[str, str, str, str, Mapping[str, str] | None], bool]
"""`(role ARN, session, action, resource, condition keys)`, see permissions.role_may."""


Choice = tuple[Sequence[Mapping[str, Any]], Sequence[Offer]]
"""LaunchTemplateConfigs, and the pools that they mean."""


@dataclass(kw_only=True)
class Fleet:
    """One Spot Fleet request."""

    id: str
    config: Mapping[str, Any]
    """As it was requested, in the API's shape."""
    offers: Sequence[Offer]
    target: int
    """Units."""
    excess_policy: str
    strategy: str
    created: datetime
    tags: dict[str, str]
    check_at: datetime
    state: str = "submitted"
    change: tuple[int, str] | None = None
    """Target and policy that a modification will set."""
    choice: Choice | None = None
    """What it will launch from after that, None when that stays."""
    change_at: datetime | None = None
    launch_at: datetime | None = None
    blocked: dict[Pool, tuple[datetime, SpotRequest]] = field(default_factory=dict)
    """Pools without room: until when they are left alone, and the request that stays open meanwhile."""
    weights: dict[str, float] = field(default_factory=dict)
    """Units by instance id, of all instances it ever launched that it has not seen end."""
    history: list[tuple[datetime, str, str, str, str]] = field(default_factory=list)
    """(at, type, subtype, description, instance id)"""
    failing: bool = False

    @property
    def arn(self) -> str:
        """Its ARN."""
        return f"arn:aws:ec2:{REGION}:{ACCOUNT}:spot-fleet-request/{self.id}"


class Fleets:
    """Keeps every fleet at its target. Every method is called with the world's lock held."""

    def __init__(self, instances: Instances, herald: Herald, may: May = substrate.role_may) -> None:
        self._may = may
        self._instances = instances
        self._world = instances.world
        self._market = instances.market
        self._herald = herald
        self._fleets: dict[str, Fleet] = {}
        self._world.every_heartbeat(self.step)

    def all(self) -> list[Fleet]:
        """Every fleet, oldest first."""
        return list(self._fleets.values())

    def get(self, fleet_id: str) -> Fleet:
        """The fleet of that id. Raises KeyError."""
        return self._fleets[fleet_id]

    def members(self, fleet: Fleet) -> list[Instance]:
        """Its instances that have not ended, oldest first."""
        return self._instances.of(fleet.id)

    def fulfilled(self, fleet: Fleet) -> float:
        """Units it has. A victim of its own scale-in no longer counts, one that the market wants back does."""
        return sum(fleet.weights[one.id] for one in self.members(fleet) if one.notice_by != "fleet")

    def price(self, pool: Pool) -> float:
        """What an instance of the pool costs now, in US dollars an hour."""
        minute = timedelta(seconds=self._world.scaled(60))
        self._market.open(pool, catalog.on_demand_usd(pool.type), self._world.now(), minute)
        return self._market.price(pool)

    def create(self, config: Mapping[str, Any], offers: Sequence[Offer], tags: Mapping[str, str]) -> Fleet:
        """A new fleet; it starts launching some seconds later."""
        now = self._world.now()
        self._open_pools(offers)
        digits = self._instances.new_id("", 32)
        fleet = Fleet(
            id=f"sfr-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}",
            config=config,
            offers=offers,
            target=int(config["TargetCapacity"]),
            excess_policy=config.get("ExcessCapacityTerminationPolicy", VICTIMS),
            strategy=config.get("AllocationStrategy", "lowestPrice"),
            created=now,
            tags=dict(tags),
            check_at=now + self._soon(MODIFY_SECONDS),
        )
        self._fleets[fleet.id] = fleet
        self._tell(fleet, now, "fleetRequestChange", "submitted")
        return fleet

    def modify(self, fleet: Fleet, target: int, excess_policy: str, caller: str, choice: Choice | None = None) -> None:
        """Change the target, and what is launched from, soon; until then the old is shown."""
        now = self._world.now()
        fleet.state, fleet.change, fleet.change_at = (
            "modifying",
            (target, excess_policy),
            now + self._soon(MODIFY_SECONDS),
        )
        description = f"Modify request received. Requested targetCapacity: {target}"
        self._tell(fleet, now, "fleetRequestChange", "modify_in_progress", description)
        if choice is None:
            self._world.note("spot target", fleet.id, target=target, caller=caller)
        else:
            fleet.choice = choice
            self._world.note("spot pools", fleet.id, pools=sorted(str(o.pool) for o in choice[1]), caller=caller)

    def cancel(self, fleet: Fleet, terminate: bool) -> None:
        """Launch nothing more; end its instances at once, or leave them be."""
        now = self._world.now()
        fleet.state = "cancelled_terminating" if terminate else "cancelled_running"
        fleet.launch_at, fleet.change, fleet.change_at = None, None, None
        self._unblock(fleet, now, everything=True)
        self._tell(fleet, now, "fleetRequestChange", fleet.state)
        if terminate and self._allowed(fleet, now, [("ec2:TerminateInstances", INSTANCES)]):
            for instance in self.members(fleet):
                self._instances.terminate(instance, "fleet", now)
        fleet.check_at = now

    def step(self, now: datetime) -> None:
        """Do for every fleet what is due."""
        for fleet in self._fleets.values():
            if fleet.state == "cancelled":
                continue
            if fleet.change is not None and fleet.change_at is not None and fleet.change_at <= now:
                (fleet.target, fleet.excess_policy), fleet.change, fleet.change_at = fleet.change, None, None
                self._choose(fleet)
                fleet.state, fleet.check_at = "active", now
                description = f"New targetCapacity: {fleet.target}"
                self._tell(fleet, now, "fleetRequestChange", "modify_succeeded", description)
            if fleet.launch_at is not None and fleet.launch_at <= now:
                fleet.launch_at = None
                self._launch(fleet, now)
            if fleet.check_at <= now:
                fleet.check_at = now + timedelta(seconds=self._world.scaled(CHECK_SECONDS))
                self._check(fleet, now)

    def _choose(self, fleet: Fleet) -> None:
        if fleet.choice is not None:
            configs, fleet.offers = fleet.choice
            fleet.config, fleet.choice = {**fleet.config, "LaunchTemplateConfigs": configs}, None
            self._open_pools(fleet.offers)

    def _open_pools(self, offers: Sequence[Offer]) -> None:
        for offer in offers:
            self.price(offer.pool)

    def _check(self, fleet: Fleet, now: datetime) -> None:
        living = {instance.id for instance in self.members(fleet)}
        for gone in sorted(set(fleet.weights) - living):
            del fleet.weights[gone]
            self._tell(fleet, now, "instanceChange", "terminated", instance_id=gone)
        if fleet.state.startswith("cancelled_"):
            if not living:
                fleet.state = "cancelled"
                self._tell(fleet, now, "fleetRequestChange", "cancelled")
            return
        if fleet.state == "submitted":
            fleet.state = "active"
            self._tell(fleet, now, "fleetRequestChange", "active")
        self._unblock(fleet, now)
        fulfilled = self.fulfilled(fleet)
        if fulfilled < fleet.target and fleet.launch_at is None and self._open(fleet):
            fleet.launch_at = now + self._soon(LAUNCH_SECONDS)
        elif fulfilled > fleet.target and fleet.excess_policy == VICTIMS:
            self._let_go(fleet, now)

    def _launch(self, fleet: Fleet, now: datetime) -> None:
        while (missing := fleet.target - self.fulfilled(fleet)) > 0 and (offers := self._open(fleet)):
            held = {offer.pool: 0.0 for offer in offers}
            for member in self.members(fleet):
                held[member.pool] = held.get(member.pool, 0.0) + fleet.weights[member.id]
            quotes = [
                Quote(offer, self._market.price(offer.pool), self._market.free(offer.pool), held[offer.pool])
                for offer in offers
            ]
            offer = choose(fleet.strategy, quotes, self._world.dice).offer
            if not self._allowed(fleet, now, _launching(offer)):
                fleet.launch_at = now + timedelta(seconds=self._world.scaled(RETRY_SECONDS))
                return
            try:
                instance = self._instances.launch(
                    offer.pool.type, SPOT, offer.subnet, offer.blueprint, fleet.id, {TAG: fleet.id}, now
                )
            except NoCapacity as error:
                self._block(fleet, offer.pool, str(error), now)
            except OverQuota as error:
                if not fleet.failing:
                    self._tell(fleet, now, "error", "spotInstanceCountLimitExceeded", str(error))
                fleet.failing = True
                fleet.launch_at = now + timedelta(seconds=self._world.scaled(RETRY_SECONDS))
                return
            else:
                fleet.failing = False
                fleet.weights[instance.id] = offer.weight
                description = f"{offer.pool}, capacityUnitsRequested: {missing}, targetCapacity: {fleet.target}"
                self._tell(fleet, now, "instanceChange", "launched", description, instance.id)

    def _let_go(self, fleet: Fleet, now: datetime) -> None:
        staying = [
            Running(one.id, one.pool, fleet.weights[one.id], self._market.price(one.pool), self._market.free(one.pool))
            for one in self.members(fleet)
            if one.notice is None
        ]
        if not self._allowed(fleet, now, [("ec2:TerminateInstances", INSTANCES)]):
            return
        taken = sum(fleet.weights[one.id] for one in self.members(fleet) if one.notice_by == "market")
        for victim in victims(fleet.strategy, staying, max(0.0, fleet.target - taken), self._world.dice):
            self._instances.warn(self._instances.get(victim), "fleet", now)
            self._tell(fleet, now, "instanceChange", "termination_notified", instance_id=victim)

    def _allowed(self, fleet: Fleet, now: datetime, needs: Sequence[tuple[str, str]]) -> bool:
        """Whether the fleet's role lets it do that; the history says when it does not."""
        role = fleet.config["IamFleetRole"]
        for action, resource in needs:
            keys = {"iam:passedtoservice": "ec2.amazonaws.com"} if action == "iam:PassRole" else None
            if not self._may(role, "SpotFleet", action, resource, keys):
                fleet.failing = True
                self._tell(fleet, now, "error", "iamFleetRoleInvalid", f"{role} may not {action} on {resource}")
                return False
        return True

    def _open(self, fleet: Fleet) -> list[Offer]:
        return [offer for offer in fleet.offers if offer.pool not in fleet.blocked]

    def _block(self, fleet: Fleet, pool: Pool, reason: str, now: datetime) -> None:
        request = self._instances.request(pool, fleet.id, now)
        message = "There is no capacity available that matches your request."
        self._instances.mark(request, "open", "capacity-not-available", message, now)
        fleet.blocked[pool] = (now + timedelta(seconds=self._world.scaled(RETRY_SECONDS)), request)
        self._tell(fleet, now, "information", "launchSpecTemporarilyBlacklisted", f"{pool}: {reason}")
        if not self._open(fleet):
            fleet.failing = True
            description = "Several attempts to launch instances have failed; none of the pools has capacity."
            self._tell(fleet, now, "error", "allLaunchSpecsTemporarilyBlacklisted", description)

    def _unblock(self, fleet: Fleet, now: datetime, everything: bool = False) -> None:
        for pool, (until, request) in list(fleet.blocked.items()):
            if everything or until <= now:
                del fleet.blocked[pool]
                message = "Your Spot request is canceled before it was fulfilled."
                self._instances.mark(request, "cancelled", "canceled-before-fulfillment", message, now)

    def _tell(
        self, fleet: Fleet, now: datetime, kind: str, subtype: str, description: str = "", instance_id: str = ""
    ) -> None:
        fleet.history.append((now, kind, subtype, description, instance_id))
        names = {
            "instanceChange": "EC2 Spot Fleet Instance Change",
            "fleetRequestChange": "EC2 Spot Fleet State Change",
            "information": "EC2 Spot Fleet Information",
            "error": "EC2 Spot Fleet Error",
        }
        detail = {"sub-type": subtype}
        if instance_id:
            detail["instance-id"] = instance_id
        if description:
            detail["description"] = description
        self._herald.say("aws.ec2spotfleet", names[kind], detail, [fleet.arn])

    def _soon(self, seconds: tuple[float, float]) -> timedelta:
        return timedelta(seconds=self._world.scaled(self._world.dice.uniform(*seconds)))


def _launching(offer: Offer) -> list[tuple[str, str]]:
    """What a fleet's role must allow before it launches (EC2 User Guide, "Service-linked roles and IAM roles for Spot
    Fleet"; AmazonEC2SpotFleetTaggingRole).
    """
    needs = [("ec2:RequestSpotInstances", "*"), ("ec2:RunInstances", INSTANCES), ("ec2:CreateTags", INSTANCES)]
    return [*needs, ("iam:PassRole", offer.blueprint.role_arn)] if offer.blueprint.role_arn else needs
