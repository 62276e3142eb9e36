"""Auto Scaling groups of On-Demand instances: they keep their desired number over zones and types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from localcloud import catalog
from localcloud.instances import Instance, Instances, NoCapacity, OverQuota
from localcloud.launch import Blueprint, Subnet
from localcloud.market import ON_DEMAND

CHECK_SECONDS = 5.0
RETRY_SECONDS = 30.0
PRIORITIZED, LOWEST_PRICE = "prioritized", "lowest-price"
TAG = "aws:autoscaling:groupName"


@dataclass(kw_only=True)
class Activity:
    """One scaling activity."""

    id: str
    start: datetime
    description: str
    cause: str
    instance_id: str = ""
    """Whose state tells how far it is; "" for one that failed."""
    trouble: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an update of the group may change, in our terms."""

    minimum: int
    maximum: int
    blueprint: Blueprint
    types: tuple[str, ...]
    """In order of preference when `strategy` is `prioritized`."""
    strategy: str
    subnets: tuple[Subnet, ...]
    protect_new: bool
    shown: Mapping[str, Any]
    """LaunchTemplate or MixedInstancesPolicy as it was given."""


@dataclass(kw_only=True)
class Group:
    """One Auto Scaling group."""

    name: str
    arn: str
    settings: Settings
    desired: int
    created: datetime
    tags: dict[str, tuple[str, bool]]
    """Value, and whether instances get the tag too."""
    check_at: datetime
    protected: set[str] = field(default_factory=set)
    activities: list[Activity] = field(default_factory=list)
    deleting: bool = False
    retry_at: datetime | None = None


class Groups:
    """Keeps every group at its desired number. Every method is called with the world's lock held."""

    def __init__(self, instances: Instances) -> None:
        self.instances = instances
        self.world = instances.world
        self._groups: dict[str, Group] = {}
        self.world.every_heartbeat(self.step)

    def all(self) -> list[Group]:
        """Every group, oldest first."""
        return list(self._groups.values())

    def get(self, name: str) -> Group:
        """The group of that name. Raises KeyError."""
        return self._groups[name]

    def add(self, group: Group) -> None:
        """Keep the group from now on."""
        self._groups[group.name] = group

    def members(self, group: Group) -> list[Instance]:
        """Its instances, those that are on their way out included, oldest first."""
        return [one for one in self.instances.all() if one.owner == group.name and one.state != "terminated"]

    def set_desired(self, group: Group, desired: int, caller: str) -> None:
        """Change the number; the group reacts some seconds later."""
        if desired != group.desired:
            group.desired = desired
            self.world.note("group desired", group.name, desired=desired, caller=caller)
        group.check_at = min(group.check_at, self._in(CHECK_SECONDS))

    def terminate(self, group: Group, instance: Instance, cause: str) -> Activity:
        """End one member."""
        self.instances.terminate(instance, "group", self.world.now())
        group.protected.discard(instance.id)
        return self._record(group, f"Terminating EC2 instance: {instance.id}", cause, instance.id)

    def step(self, now: datetime) -> None:
        """Check the groups that are due."""
        for group in list(self._groups.values()):
            if group.check_at > now:
                continue
            group.check_at = self._in(CHECK_SECONDS)
            members = self.members(group)
            if group.deleting:
                for instance in members:
                    self.instances.terminate(instance, "group", now)
                if not members:
                    del self._groups[group.name]
                continue
            self._keep(group, now)

    def _keep(self, group: Group, now: datetime) -> None:
        living = self.instances.of(group.name)
        group.protected &= {one.id for one in living}
        if group.retry_at is not None and now < group.retry_at and len(living) < group.desired:
            return
        group.retry_at = None
        while len(living) < group.desired and (launched := self._launch(group, living, now)):
            living.append(launched)
        for victim in scale_in(living, group.protected, len(living) - group.desired):
            cause = (
                f"a difference between desired and actual capacity: {len(living)} instances, {group.desired} desired"
            )
            self.terminate(group, victim, cause)

    def _launch(self, group: Group, living: Sequence[Instance], now: datetime) -> Instance | None:
        """One instance in the zone that has the fewest, or in another one when there is no room. None if nowhere."""
        zones = [one.pool.zone for one in living]
        subnets = sorted(group.settings.subnets, key=lambda subnet: zones.count(subnet.zone))
        types = list(group.settings.types)
        if group.settings.strategy == LOWEST_PRICE:
            types.sort(key=catalog.on_demand_usd)
        cause = f"an instance was started in response to a difference: {len(living)} of {group.desired} desired"
        tags = {key: value for key, (value, propagated) in group.tags.items() if propagated}
        trouble = ""
        for subnet in subnets:
            for kind in types:
                try:
                    launched = self.instances.launch(
                        kind, ON_DEMAND, subnet, group.settings.blueprint, group.name, {**tags, TAG: group.name}, now
                    )
                except (NoCapacity, OverQuota) as error:
                    trouble = f"{error}. Launching EC2 instance failed."
                    continue
                if group.settings.protect_new:
                    group.protected.add(launched.id)
                self._record(group, f"Launching a new EC2 instance: {launched.id}", cause, launched.id)
                return launched
        self._record(group, "Launching a new EC2 instance", cause, trouble=trouble)
        group.retry_at = self._in(RETRY_SECONDS)
        return None

    def _record(self, group: Group, description: str, cause: str, instance_id: str = "", trouble: str = "") -> Activity:
        digits = self.instances.new_id("", 32)
        activity = Activity(
            id=f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}",
            start=self.world.now(),
            description=description,
            cause=f"At {self.world.now():%Y-%m-%dT%H:%M:%SZ} {cause}.",
            instance_id=instance_id,
            trouble=trouble,
        )
        group.activities.insert(0, activity)
        return activity

    def _in(self, seconds: float) -> datetime:
        return self.world.now() + timedelta(seconds=self.world.scaled(seconds))


def scale_in(living: Sequence[Instance], protected: set[str], excess: int) -> list[Instance]:
    """Whom the default termination policy lets go: from the zone that has the most, then the oldest launch template
    version, then (for the next billing hour, which no longer matters) the oldest. Protected instances stay.
    """
    staying = list(living)
    leaving: list[Instance] = []
    for _ in range(excess):
        zones = [one.pool.zone for one in staying]
        free = [one for one in staying if one.id not in protected]
        if not free:
            break
        victim = min(free, key=lambda one: (-zones.count(one.pool.zone), one.blueprint.version, one.launched))
        staying.remove(victim)
        leaving.append(victim)
    return leaving
