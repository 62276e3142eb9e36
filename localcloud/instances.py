"""Instances and Spot requests: how they begin, are warned, and end. The truth that EC2's answers are made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from localcloud import catalog, launchtimes
from localcloud.herald import Herald
from localcloud.launch import Blueprint, Subnet
from localcloud.market import ON_DEMAND, SPOT, Market, Pool
from localcloud.world import ACCOUNT, REGION, World

NOTICE_SECONDS = 120.0
SHUTTING_DOWN_SECONDS = 8.0
STOPPING_SECONDS = 20.0
VISIBLE_SECONDS = 3600.0
"""A terminated instance stays visible for about an hour (EC2 User Guide, "Terminate your instance")."""
LIVING = ("pending", "running")
STATE_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}


class NoCapacity(Exception):
    """The pool has no room (InsufficientInstanceCapacity)."""


class OverQuota(Exception):
    """The account may not run so many vCPUs (MaxSpotInstanceCountExceeded, VcpuLimitExceeded)."""


class Inside(Protocol):
    """What is inside the instances. Neither call may block: they are made with the lock held."""

    def boot(self, instance: Instance) -> None:
        """Power on: run the user data, start the agents."""
        ...

    def halt(self, instance: Instance) -> None:
        """Power off; what is on the disk stays for the next start."""
        ...

    def kill(self, instance: Instance) -> None:
        """Power off for good."""
        ...


@dataclass(kw_only=True)
class SpotRequest:
    """One Spot Instance request of a fleet (always one-time)."""

    id: str
    pool: Pool
    fleet: str
    created: datetime
    updated: datetime
    state: str = "open"
    code: str = "pending-evaluation"
    message: str = "Your Spot request has been submitted for review, and is pending evaluation."
    instance_id: str = ""


@dataclass(kw_only=True)
class Instance:
    """One instance. Prices are US dollars an hour."""

    id: str
    pool: Pool
    lifecycle: str
    subnet: Subnet
    blueprint: Blueprint
    owner: str
    """Id of the fleet or name of the group that launched it."""
    price: float
    launched: datetime
    due: datetime
    """When the state it is in ends by itself."""
    ip: str
    tags: dict[str, str] = field(default_factory=dict)
    request_id: str = ""
    state: str = "pending"
    notice: datetime | None = None
    """When EC2 will take it, once it has said so."""
    notice_by: str = ""
    """`market` or `fleet`."""
    rebalance: datetime | None = None
    target_state: str = ""
    """What Auto Scaling is making of it (the metadata's target-lifecycle-state); "" when it is in no group."""
    reason_code: str = ""
    reason: str = ""
    ended: datetime | None = None

    @property
    def arn(self) -> str:
        """Its ARN."""
        return f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/{self.id}"

    @property
    def living(self) -> bool:
        """Pending or running."""
        return self.state in LIVING

    @property
    def ended_for_good(self) -> bool:
        """Shutting down or terminated."""
        return self.state in ("shutting-down", "terminated")


class Instances:
    """All instances of the account. Every method is called with the world's lock held."""

    def __init__(self, world: World, market: Market, inside: Inside, herald: Herald) -> None:
        self.world = world
        self.market = market
        self.quota: dict[str, int] = {}
        """vCPUs that may run, by lifecycle; none is no limit."""
        self._inside = inside
        self._herald = herald
        self._all: dict[str, Instance] = {}
        self._requests: dict[str, SpotRequest] = {}
        self._table = world.table("instances")
        self._launched = 0
        self._table.clear()  # what ran when the cloud stopped last time stopped with it
        world.every_heartbeat(self.step)

    def all(self) -> list[Instance]:
        """Every instance that is still visible, oldest first."""
        return list(self._all.values())

    def of(self, owner: str) -> list[Instance]:
        """The living instances of a fleet or group, oldest first."""
        return [instance for instance in self._all.values() if instance.owner == owner and instance.living]

    def get(self, instance_id: str) -> Instance:
        """The instance of that id. Raises KeyError."""
        return self._all[instance_id]

    def requests(self) -> list[SpotRequest]:
        """Every Spot request, oldest first."""
        return list(self._requests.values())

    def launch(
        self,
        kind: str,
        lifecycle: str,
        subnet: Subnet,
        blueprint: Blueprint,
        owner: str,
        tags: Mapping[str, str],
        now: datetime,
    ) -> Instance:
        """Launch one instance. Raises NoCapacity or OverQuota."""
        pool = Pool(kind, subnet.zone)
        self.market.open(pool, catalog.on_demand_usd(kind), now, timedelta(seconds=self.world.scaled(60)))
        self._within_quota(kind, lifecycle)
        if not self.market.take(pool, lifecycle):
            raise NoCapacity(f"There is no {lifecycle} capacity for {pool}")
        self._launched += 1
        instance = Instance(
            id=self.new_id("i-"),
            pool=pool,
            lifecycle=lifecycle,
            subnet=subnet,
            blueprint=blueprint,
            owner=owner,
            price=self.market.price(pool, lifecycle),
            launched=now,
            due=now + self._spread(launchtimes.PENDING, 0.3),
            ip=f"10.0.{self._launched // 250 % 250}.{self._launched % 250 + 4}",
            tags={
                **blueprint.tags,
                "aws:ec2launchtemplate:id": blueprint.template_id,
                "aws:ec2launchtemplate:version": str(blueprint.version),
                **tags,
            },
        )
        if lifecycle == SPOT:
            request = self.request(pool, owner, now)
            request.state, request.code, request.message = "active", "fulfilled", "Your Spot request is fulfilled."
            request.instance_id, instance.request_id = instance.id, request.id
        self._all[instance.id] = instance
        self._keep(instance)
        self.world.note(
            "instance launched",
            instance.id,
            type=kind,
            zone=pool.zone,
            lifecycle=lifecycle,
            price=instance.price,
            on_demand_price=self.market.price(pool, ON_DEMAND),
            **{"fleet" if owner.startswith("sfr-") else "group": owner},
        )
        self._announce(instance)
        return instance

    def request(self, pool: Pool, fleet: str, now: datetime) -> SpotRequest:
        """A new Spot request, still open."""
        request = SpotRequest(id=self.new_id("sir-", 8), pool=pool, fleet=fleet, created=now, updated=now)
        self._requests[request.id] = request
        return request

    def mark(self, request: SpotRequest, state: str, code: str, message: str, now: datetime) -> None:
        """Set a request's state and status."""
        request.state, request.code, request.message, request.updated = state, code, message, now

    def warn(self, instance: Instance, by: str, now: datetime) -> None:
        """Give the two-minute notice: in the metadata now, on EventBridge some seconds later, the end at its deadline.

        A fleet that scales in gives its victims the same notice as the market does (design, fact 1).
        """
        if instance.notice is not None or not instance.living:
            return
        instance.notice = now + timedelta(seconds=self.world.scaled(NOTICE_SECONDS))
        instance.notice_by = by
        self.mark(
            self._requests[instance.request_id],
            "active",
            "marked-for-termination",
            "Your Spot Instance is marked for termination.",
            now,
        )
        self._keep(instance)
        self.world.note("notice", instance.id, deadline=instance.notice.isoformat(), by=by)
        self._herald.say(
            "aws.ec2",
            "EC2 Spot Instance Interruption Warning",
            {"instance-id": instance.id, "instance-action": "terminate"},
            [f"arn:aws:ec2:{instance.pool.zone}:instance/{instance.id}"],
            within=5.0,
        )

    def recommend_rebalance(self, instance: Instance, now: datetime) -> None:
        """Say that the instance is at an elevated risk of interruption; nothing follows of itself."""
        if instance.rebalance is not None or not instance.living:
            return
        instance.rebalance = now
        self._keep(instance)
        self.world.note("rebalance", instance.id)
        self._herald.say(
            "aws.ec2",
            "EC2 Instance Rebalance Recommendation",
            {"instance-id": instance.id},
            [f"arn:aws:ec2:{instance.pool.zone}:instance/{instance.id}"],
            within=5.0,
        )

    def terminate(self, instance: Instance, reason: str, now: datetime) -> None:
        """End it now. `reason`: `reclaimed` (the market took it), `api`, `fleet` or `group`."""
        if instance.ended_for_good:
            return
        if instance.living:
            self.market.give_back(instance.pool, instance.lifecycle)
        if reason == "reclaimed":
            code, message = "Server.SpotInstanceTermination", "Spot instance termination"
            status = ("instance-terminated-no-capacity", "There is no Spot capacity available for your request.")
        else:
            code, message = "Client.UserInitiatedShutdown", "User initiated shutdown"
            status = ("instance-terminated-by-user", "The Spot Instance was terminated by the user.")
        instance.state, instance.ended = "shutting-down", now
        instance.reason_code, instance.reason = code, f"{code}: {message}"
        instance.due = now + self._spread(SHUTTING_DOWN_SECONDS, 0.4)
        if instance.request_id:
            self.mark(self._requests[instance.request_id], "closed", *status, now)
        self._inside.kill(instance)
        self._keep(instance)
        self.world.note("instance terminated", instance.id, reason=reason)
        self._announce(instance)

    def stop(self, instance: Instance, now: datetime) -> None:
        """Switch a running instance off, to be started again. It costs nothing then, and its place may be taken."""
        instance.state = "stopping"
        instance.due = now + self._spread(STOPPING_SECONDS, 0.4)
        self.market.give_back(instance.pool, instance.lifecycle)
        self._inside.halt(instance)
        self._keep(instance)
        self.world.note("instance stopped", instance.id)
        self._announce(instance)

    def start(self, instance: Instance, now: datetime) -> None:
        """Switch a stopped instance on. Raises NoCapacity or OverQuota."""
        self._within_quota(instance.pool.type, instance.lifecycle)
        if not self.market.take(instance.pool, instance.lifecycle):
            raise NoCapacity(f"There is no {instance.lifecycle} capacity for {instance.pool}")
        instance.state = "pending"
        instance.due = now + self._spread(launchtimes.PENDING, 0.3)
        instance.price = self.market.price(instance.pool, instance.lifecycle)
        self._keep(instance)
        self.world.note("instance started", instance.id, price=instance.price)
        self._announce(instance)

    def retag(self, instance: Instance, tags: dict[str, str]) -> None:
        """Give the instance these tags in place of those it had."""
        instance.tags = tags
        self._keep(instance)

    def step(self, now: datetime) -> None:
        """Let every instance become what it is due to become."""
        for instance in list(self._all.values()):
            if instance.living and instance.notice is not None and instance.notice <= now:
                self.terminate(instance, "reclaimed" if instance.notice_by == "market" else "fleet", now)
            elif instance.state == "pending" and instance.due <= now:
                instance.state = "running"
                self._keep(instance)
                self.world.note("instance running", instance.id)
                self._announce(instance)
                self._inside.boot(instance)
            elif instance.state == "stopping" and instance.due <= now:
                instance.state = "stopped"
                self._keep(instance)
                self._announce(instance)
            elif instance.state == "shutting-down" and instance.due <= now:
                instance.state = "terminated"
                instance.due = now + timedelta(seconds=self.world.scaled(VISIBLE_SECONDS))
                self._keep(instance)
                self._announce(instance)
            elif instance.state == "terminated" and instance.due <= now:
                del self._all[instance.id], self._table[instance.id]

    def new_id(self, prefix: str, digits: int = 17) -> str:
        """An id of AWS's form, by the world's dice."""
        return prefix + "".join(self.world.dice.choices("0123456789abcdef", k=digits))

    def _within_quota(self, kind: str, lifecycle: str) -> None:
        limit = self.quota.get(lifecycle)
        if limit is None:
            return
        mine = [one for one in self._all.values() if one.living and one.lifecycle == lifecycle]
        running = sum(catalog.vcpus(one.pool.type) for one in mine)
        if running + catalog.vcpus(kind) > limit:
            raise OverQuota(f"The {lifecycle} quota is {limit} vCPUs, and {running} are running")

    def _announce(self, instance: Instance) -> None:
        self._herald.say(
            "aws.ec2",
            "EC2 Instance State-change Notification",
            {"instance-id": instance.id, "state": instance.state},
            [instance.arn],
        )

    def _spread(self, seconds: float, share: float) -> timedelta:
        return timedelta(seconds=self.world.scaled(seconds * self.world.dice.uniform(1 - share, 1 + share)))

    def _keep(self, instance: Instance) -> None:
        self._table[instance.id] = _plain(asdict(instance))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value.isoformat() if isinstance(value, datetime) else value
