"""What is seen, what was chosen, what is decided: the nouns of a capacity decision, all of them values.

Capacity is counted in units: GPUs, or, where the operator weighs the types, so much throughput. A group is counted in
instances and a service in tasks, of one GPU each, as AWS does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction


class Urgency(StrEnum):
    """When On-Demand makes up for a shortage of Spot."""

    NOW = "now"
    """At once for what an interruption took, after `patience` for what the fleet has yet to launch."""
    DEADLINE = "deadline"
    """At the last safe moment, for jobs that would be later than `max_wait`; if none can be told, after patience."""
    SPOT_ONLY = "spot-only"
    """Never."""


class Placement(StrEnum):
    """Which instances may do the work of a service."""

    ANY = "any"
    """Meant for Spot; On-Demand makes up for it when Spot is short."""
    SPOT = "spot"
    """Spot alone: it waits until Spot is there."""
    ON_DEMAND = "on-demand"
    """On-Demand alone, bought at once whatever the urgency: nobody interrupts it."""


# What is seen


@dataclass(frozen=True)
class Arrival:
    """So many jobs came so long ago, at most."""

    age: timedelta
    jobs: int


@dataclass(frozen=True, kw_only=True)
class Service:
    """One ECS service and its queue. SQS gives the three counts of jobs, approximately."""

    name: str
    visible: int
    in_flight: int
    delayed: int
    desired: int
    arrivals: tuple[Arrival, ...] = ()
    """The latest first; as many as are known."""
    job_seconds: float | None = None
    """How long a task was at a job, lately and on average; None is not known."""

    @property
    def backlog(self) -> int:
        """Jobs not finished yet."""
        return self.visible + self.in_flight + self.delayed


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What ECS says of an instance: its tasks, running or pending, how many of them run, and the GPUs it registered."""

    arn: str
    draining: bool
    tasks: int
    running: int
    gpus: int
    since: datetime


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A pending or running EC2 instance of ours."""

    id: str
    spot: bool
    units: int
    launched: datetime
    worth: Fraction = Fraction(1)
    """Units of one of its GPUs."""
    pool: str = ""
    """Its type and zone, as "g5.xlarge/us-east-1a"."""
    joined: Joined | None = None
    surplus: bool = False
    """It is we who set it DRAINING, because it was not needed."""
    warned: datetime | None = None
    """When EC2 recommended to replace it (a rebalance recommendation)."""


@dataclass(frozen=True)
class Wave:
    """EC2 took this share of Spot within a few minutes from `at` on."""

    at: datetime
    share: float


@dataclass(frozen=True)
class Bad:
    """A machine that was of no use: its GPU was broken, or it joined without one, or it never joined."""

    id: str
    spot: bool
    launched: datetime


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What a pass leaves for the next one: AWS does not tell it, and memory does not last."""

    short_since: datetime | None = None
    """When Spot was first seen short of what was needed; None if the last pass saw it whole."""
    ample_since: datetime | None = None
    """When the services were first seen with more tasks than needed; None if the last pass saw no more."""
    waves: tuple[Wave, ...] = ()
    """Oldest first."""
    worked: int = 0
    """The most units that were at work at once on what On-Demand may make up for, while so much was needed."""
    on_demand_took: timedelta | None = None
    """From its launch until it joined: the On-Demand instance that joined last."""
    bad: tuple[Bad, ...] = ()
    """Of each kind the latest, since one that works was launched."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One look.

    `requested` is the fleet's target in units, `fulfilled` what it counts as its own. `noticed` are instances that will
    be taken, `overdue` those of them whose messenger would have been here by now; `warned` those for which a
    recommendation to replace them was just heard. `broken` are container instances of which a worker has just told that
    their GPU is broken.
    """

    at: datetime
    services: tuple[Service, ...]
    requested: int
    fulfilled: float
    on_demand_requested: int
    on_demand_present: int
    instances: tuple[Instance, ...]
    notes: Notes = field(default_factory=Notes)
    noticed: frozenset[str] = frozenset()
    overdue: frozenset[str] = frozenset()
    warned: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()


# What was chosen


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one task of a service takes on: so many jobs, so many units; how many tasks there may be, and where.

    That is a task of one unit (or of `units_per_task`). On a GPU that is worth more, it takes on more.
    """

    jobs_per_task: int
    max_tasks: int
    units_per_task: int
    placement: Placement = Placement.ANY
    max_wait: timedelta | None = None
    """How long a job may take from its upload to its result; minded by the urgency `deadline`."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the operator chose, and some times that nobody has to. `loads` is by name of service."""

    loads: Mapping[str, Load]
    on_demand_units: int
    """Units of one On-Demand instance."""
    max_units: int
    """Of Spot."""
    max_on_demand_units: int
    least: Fraction = Fraction(1)
    """Units of one GPU of the least type."""
    urgency: Urgency = Urgency.NOW
    patience: timedelta = timedelta(minutes=5)
    """How long the fleet may take to launch, and an instance to join, before it is not counted on."""
    calm: timedelta = timedelta(minutes=10)
    """How long Spot instances must have lasted before On-Demand leaves in their favour."""
    settle: timedelta = timedelta(seconds=30)
    """How long a new instance may wait for its first task before it can be surplus; without work there is none."""
    linger: timedelta = timedelta(minutes=3)
    """How long capacity outlasts a need that fell: about what it would take to have it again."""
    broken: timedelta = timedelta(minutes=10)
    """After so long an instance that has not joined never will."""
    risk: timedelta = timedelta(minutes=30)
    """How long a recommendation to replace an instance is minded."""
    risk_share: float = 0.25
    """Of Spot, so much may be had twice while instances at risk are replaced."""


# What is decided


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Absolute numbers, who leaves or comes back, and why: what is logged, measured, tested and replayed."""

    reason: str
    needed_units: int
    """Of Spot and On-Demand, within their limits."""
    healthy_units: int
    """Of Spot, joined or booting."""
    noticed_units: int
    spot_target: int
    on_demand_desired: int
    on_demand_target: int
    """Those instances in units."""
    top_up_units: int
    """Of these, units wanted because Spot is short, or not calm again yet; in whole instances."""
    services: Mapping[str, int]
    notes: Notes
    evacuate: tuple[str, ...] = ()
    """Under notice for a while and still ACTIVE: the messenger was lost, or came before the instance had joined."""
    taken: tuple[str, ...] = ()
    """Spot instances that EC2 takes from us, to be remembered of their pools."""
    warn: tuple[str, ...] = ()
    """At risk from now on."""
    drain: tuple[str, ...] = ()
    """Idle and not needed."""
    relieve: tuple[str, ...] = ()
    """Busy, and Spot that lasts is there in their place: they end their jobs and take no more."""
    reactivate: tuple[str, ...] = ()
    terminate_spot: tuple[str, ...] = ()
    terminate_on_demand: tuple[str, ...] = ()
    """Each takes one off its group's desired capacity."""
    replace_on_demand: tuple[str, ...] = ()
    """Broken where one is needed: the group launches another."""
