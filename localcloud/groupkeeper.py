"""Auto Scaling groups: they keep their desired number over zones and types, all On-Demand or all Spot, and a warm pool.

A warm pool holds instances that were launched once and stopped (Auto Scaling User Guide, "Decrease latency for
applications with long boot times using warm pools"): a group that grows takes these first, and launches others only
when none is ready. An instance is stopped as soon as it runs, unless a lifecycle hook holds it: whether its user data
is done, nobody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from localcloud import catalog, spotgroups
from localcloud.groupnews import News
from localcloud.instances import Instance, Instances, NoCapacity, OverQuota
from localcloud.launch import Blueprint, Subnet
from localcloud.market import ON_DEMAND, SPOT
from localcloud.spotgroups import LOWEST_PRICE, SpotChoice

CHECK_SECONDS = 5.0
RETRY_SECONDS = 30.0
PRIORITIZED = "prioritized"
TAG = "aws:autoscaling:groupName"
LAUNCHING = "autoscaling:EC2_INSTANCE_LAUNCHING"
READY = ("Warmed:Stopped", "Warmed:Running")


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
    spot: SpotChoice | None = None
    """How Spot instances are chosen; None for a group of On-Demand ones."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """Units of an instance by type, when the group is sized in units; all its numbers are in these then."""
    cooldown: int = 300
    """Seconds after a simple scaling policy, unless it has its own."""


@dataclass(frozen=True)
class WarmPool:
    """What is kept ready beside a group."""

    least: int
    """Instances, whatever runs."""
    prepared: int | None
    """Instances in pool and group together; None for the group's maximum."""
    state: str
    """Stopped or Running."""

    def wanted(self, group: Group) -> int:
        """How many instances the pool should have (API reference, PutWarmPool)."""
        most = group.settings.maximum if self.prepared is None else self.prepared
        return max(self.least, most - group.desired)


@dataclass(frozen=True)
class Hook:
    """A lifecycle hook of instances that launch."""

    name: str
    heartbeat: int
    """Seconds that it waits for somebody to complete it."""
    result: str
    """What it takes nobody for: CONTINUE or ABANDON."""


@dataclass
class Stage:
    """How far the group is with one instance."""

    name: str
    """As LifecycleState has it."""
    activity: Activity
    until: datetime | None = None
    """While it waits for a hook."""
    result: str = ""
    """What the hook was completed with."""
    since: datetime | None = None
    """When it came into service."""

    @property
    def warm(self) -> bool:
        """Whether it is in the warm pool."""
        return self.name.startswith("Warmed:")


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
    stages: dict[str, Stage] = field(default_factory=dict)
    """By instance id, until the instance is terminated."""
    hook: Hook | None = None
    warm_pool: WarmPool | None = None
    pool_deleting: bool = False
    news: dict[str, list[str]] = field(default_factory=dict)
    """By topic: the kinds of news that it gets."""
    metrics: list[str] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)
    """Units by type, of every type that it ever weighed."""
    scaled: datetime | None = None
    """Until when simple scaling policies wait."""

    def units(self, one: Instance) -> int:
        """What an instance counts."""
        return self.weights.get(one.pool.type, 1)


class Groups:
    """Keeps every group at its desired number. Every method is called with the world's lock held."""

    def __init__(self, instances: Instances, news: News) -> None:
        self.instances = instances
        self.world = instances.world
        self.news = news
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
        group.weights.update(group.settings.weights)

    def change(self, group: Group, settings: Settings) -> None:
        """Other settings: they are for new instances, except for weights, which are for those there are as well."""
        group.settings = settings
        group.weights.update(settings.weights)

    def current(self, group: Group, warm_up: float, now: datetime) -> int:
        """Units in service whose warm-up of so many seconds of AWS's is over."""
        ready = now - timedelta(seconds=self.world.scaled(warm_up))
        serving = [(one, group.stages[one.id]) for one in self.members(group)]
        return sum(
            group.units(one)
            for one, stage in serving
            if stage.name == "InService" and stage.since is not None and stage.since <= ready
        )

    def members(self, group: Group, warm: bool = False) -> list[Instance]:
        """Its instances, those that are on their way out included, or those of its warm pool, oldest first."""
        chosen = [one for one in self.instances.all() if one.id in group.stages and one.state != "terminated"]
        return [one for one in chosen if group.stages[one.id].warm == warm]

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
        activity = self._record(group, f"Terminating EC2 instance: {instance.id}", cause, instance.id)
        stage = group.stages[instance.id]
        stage.name = "Warmed:Terminating" if stage.warm else "Terminating"
        stage.activity, instance.target_state = activity, "Terminated"
        return activity

    def step(self, now: datetime) -> None:
        """Bring every instance as far as it is, and check the groups that are due."""
        for group in list(self._groups.values()):
            for instance_id in list(group.stages):
                self._advance(group, self.instances.get(instance_id), now)
            if group.check_at > now:
                continue
            group.check_at = self._in(CHECK_SECONDS)
            if not group.deleting:
                self._keep(group, now)
                self._keep_warm(group, now)
                continue
            for instance in [*self.members(group), *self.members(group, warm=True)]:
                if not instance.ended_for_good:
                    self.terminate(group, instance, "the group is deleted")
            if not group.stages:
                del self._groups[group.name]

    def _advance(self, group: Group, instance: Instance, now: datetime) -> None:
        stage = group.stages[instance.id]
        if instance.ended_for_good:
            stage.name = "Warmed:Terminating" if stage.warm else "Terminating"
            if instance.state == "terminated":
                self.news.tell(group, "TERMINATE", stage.activity, instance, now)
                del group.stages[instance.id]
        elif stage.name.endswith(":Wait"):
            if stage.result or (stage.until is not None and stage.until <= now):
                self._complete(group, instance, stage, now)
        elif instance.state == "running" and stage.name in ("Pending", "Warmed:Pending"):
            if group.hook is None:
                self._settle(group, instance, stage, now)
            else:
                stage.name, stage.until, stage.result = f"{stage.name}:Wait", self._in(group.hook.heartbeat), ""
        elif instance.state == "stopped" and stage.warm:
            stage.name = "Warmed:Stopped"

    def _complete(self, group: Group, instance: Instance, stage: Stage, now: datetime) -> None:
        result = stage.result or (group.hook.result if group.hook else "CONTINUE")
        stage.until, stage.result = None, ""
        if result == "ABANDON":
            self.terminate(group, instance, "an instance failed to complete its lifecycle action")
        else:
            self._settle(group, instance, stage, now)

    def _settle(self, group: Group, instance: Instance, stage: Stage, now: datetime) -> None:
        """It has launched: into service, or into the warm pool, where it is stopped at once."""
        self.news.tell(group, "LAUNCH", stage.activity, instance, now)
        if not stage.warm:
            stage.name, stage.since = "InService", now
        elif group.warm_pool is not None and group.warm_pool.state == "Running":
            stage.name = "Warmed:Running"
        else:
            stage.name = "Warmed:Pending:Proceed"
            self.instances.stop(instance, now)

    def _keep(self, group: Group, now: datetime) -> None:
        living = [one for one in self.members(group) if one.living]
        units = sum(group.units(one) for one in living)
        group.protected &= {one.id for one in living}
        if group.retry_at is not None and now < group.retry_at and units < group.desired:
            return
        group.retry_at = None
        while units < group.desired and (launched := self._grow(group, living, now)):
            living.append(launched)
            units += group.units(launched)
        for victim in scale_in(living, group.protected, units - group.desired, group.units):
            cause = f"a difference between desired and actual capacity: {units} units, {group.desired} desired"
            self.terminate(group, victim, cause)

    def _keep_warm(self, group: Group, now: datetime) -> None:
        """Fill the warm pool up, or let go what is too much; drop it when it was deleted and is empty."""
        if group.warm_pool is None:
            return
        held = [one for one in self.members(group, warm=True) if not one.ended_for_good]
        wanted = 0 if group.pool_deleting else group.warm_pool.wanted(group)
        for _ in range(wanted - len(held)):
            if group.retry_at is not None or not self._launch(group, held, now, warm=True):
                return
        for surplus in held[wanted:]:
            self.terminate(group, surplus, "the warm pool is larger than it should be")
        if group.pool_deleting and not self.members(group, warm=True):
            group.warm_pool, group.pool_deleting = None, False

    def _grow(self, group: Group, living: Sequence[Instance], now: datetime) -> Instance | None:
        """One instance more: from the warm pool if one is ready, or a new one. None if there is no room."""
        cause = f"an instance was started in response to a difference: {len(living)} of {group.desired} desired"
        for instance in self.members(group, warm=True):
            if group.stages[instance.id].name not in READY or group.pool_deleting:
                continue
            description = f"Launching a new EC2 instance from warm pool: {instance.id}"
            try:
                if instance.state == "stopped":
                    self.instances.start(instance, now)
            except (NoCapacity, OverQuota) as error:
                trouble = f"{error}. Launching EC2 instance failed."
                self._record(group, description, cause, trouble=trouble)
                continue
            self._take(group, instance, "Pending", "InService", self._record(group, description, cause, instance.id))
            return instance
        return self._launch(group, living, now)

    def _launch(self, group: Group, living: Sequence[Instance], now: datetime, warm: bool = False) -> Instance | None:
        """One instance in the zone that has the least, or in another one when there is no room. None if nowhere."""
        lifecycle = ON_DEMAND if group.settings.spot is None else SPOT
        cause = f"an instance was started in response to a difference: {len(living)} of {group.desired} desired"
        if warm:
            cause = "an instance was started to keep the warm pool filled"
        tags = {key: value for key, (value, propagated) in group.tags.items() if propagated}
        trouble = ""
        for subnet, kind in self._places(group, living):
            try:
                launched = self.instances.launch(
                    kind, lifecycle, subnet, group.settings.blueprint, group.name, {**tags, TAG: group.name}, now
                )
            except (NoCapacity, OverQuota) as error:
                trouble = f"{error}. Launching EC2 instance failed."
                continue
            into = " into warm pool" if warm else ""
            activity = self._record(group, f"Launching a new EC2 instance{into}: {launched.id}", cause, launched.id)
            if warm and group.warm_pool is not None:
                self._take(group, launched, "Warmed:Pending", f"Warmed:{group.warm_pool.state}", activity)
            else:
                self._take(group, launched, "Pending", "InService", activity)
            return launched
        activity = self._record(group, "Launching a new EC2 instance", cause, trouble=trouble)
        self.news.tell(group, "LAUNCH_ERROR", activity, None, now)
        group.retry_at = self._in(RETRY_SECONDS)
        return None

    def _places(self, group: Group, living: Sequence[Instance]) -> Iterator[tuple[Subnet, str]]:
        """Where to try, and with which type, best first."""
        settings = group.settings
        held = {
            subnet.zone: sum(group.units(one) for one in living if one.pool.zone == subnet.zone)
            for subnet in settings.subnets
        }
        types = list(settings.types)
        if settings.strategy == LOWEST_PRICE:
            types.sort(key=catalog.on_demand_usd)
        for subnet in sorted(settings.subnets, key=lambda one: held[one.zone]):
            if settings.spot is None:
                yield from ((subnet, kind) for kind in types)
            else:
                quotes = spotgroups.quotes(self.instances, settings, subnet, living)
                yield from ((subnet, kind) for kind in spotgroups.ranked(settings.spot, quotes, self.world.dice))

    def _take(self, group: Group, instance: Instance, stage: str, target: str, activity: Activity) -> None:
        group.stages[instance.id] = Stage(stage, activity)
        instance.target_state = target
        if group.settings.protect_new and target == "InService":
            group.protected.add(instance.id)

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


def scale_in(
    living: Sequence[Instance], protected: set[str], excess: int, units: Callable[[Instance], int] = lambda _: 1
) -> list[Instance]:
    """Whom the default termination policy lets go: from the zone that has the most, then the oldest launch template
    version, then (for the next billing hour, which no longer matters) the oldest. Protected instances stay, and nobody
    goes who is more than is too much: a group is at its desired capacity or above it.
    """
    staying = list(living)
    leaving: list[Instance] = []
    while True:
        zones = [one.pool.zone for one in staying]
        too_much = excess - sum(units(one) for one in leaving)
        free = [one for one in staying if one.id not in protected and units(one) <= too_much]
        if not free:
            break
        victim = min(free, key=lambda one: (-zones.count(one.pool.zone), one.blueprint.version, one.launched))
        staying.remove(victim)
        leaving.append(victim)
    return leaving
