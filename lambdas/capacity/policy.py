"""How much capacity, of which kind, and who leaves: a pure function of one look, with its reason.

Capacity is counted in units (GPUs). Nothing is remembered between passes but what AWS keeps for us, so a pass that is
repeated, cut short, or run twice at once ends in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, StrEnum, auto
from math import ceil


class Urgency(StrEnum):
    """When On-Demand makes up for a shortage of Spot."""

    NOW = "now"
    """At once for what an interruption took, after `patience` for what the fleet has yet to launch."""
    DEADLINE = "deadline"
    """After `patience`, whatever the cause."""
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


@dataclass(frozen=True, kw_only=True)
class Service:
    """One ECS service and its queue. SQS gives the three counts of jobs, approximately."""

    name: str
    visible: int
    in_flight: int
    delayed: int
    desired: int

    @property
    def backlog(self) -> int:
        """Jobs not finished yet."""
        return self.visible + self.in_flight + self.delayed


@dataclass(frozen=True, kw_only=True)
class Joined:
    """What ECS says of an instance: its tasks (running and pending) and the units it registered."""

    arn: str
    draining: bool
    tasks: int
    units: int
    since: datetime


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A pending or running EC2 instance of ours. `surplus`: it is we who set it DRAINING, because it was not needed."""

    id: str
    spot: bool
    units: int
    launched: datetime
    joined: Joined | None = None
    surplus: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One look.

    `requested` is the fleet's target in units, `fulfilled` what it holds. `short_since` is when a pass first saw Spot
    short of what was needed, None if the last pass saw it whole. `noticed` are instances that will be taken.
    `on_demand_requested` and `on_demand_present` count instances, as their group does.
    """

    at: datetime
    services: tuple[Service, ...]
    requested: int
    fulfilled: float
    short_since: datetime | None
    on_demand_requested: int
    on_demand_present: int
    instances: tuple[Instance, ...]
    noticed: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one task of a service takes on: so many jobs, so many units; how many tasks there may be, and where."""

    jobs_per_task: int
    max_tasks: int
    units_per_task: int
    placement: Placement = Placement.ANY


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the operator chose. `loads` is by name of service, the limits are in units."""

    loads: Mapping[str, Load]
    on_demand_units: int
    """Units of one On-Demand instance."""
    max_units: int
    """Of Spot."""
    max_on_demand_units: int
    urgency: Urgency = Urgency.NOW
    patience: timedelta = timedelta(minutes=5)
    """How long the fleet may take to launch, and an instance to join, before it is not counted on."""
    calm: timedelta = timedelta(minutes=10)
    """How long Spot instances must have lasted before On-Demand leaves in their favour."""
    settle: timedelta = timedelta(seconds=30)
    """How long a new instance may wait for its first task before it can be surplus; without work there is none."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Absolute numbers, who leaves or comes back, and why: what is logged, measured, tested and replayed."""

    reason: str
    needed_units: int
    """Of Spot and On-Demand, within their limits."""
    healthy_units: int
    noticed_units: int
    spot_target: int
    on_demand_desired: int
    on_demand_target: int
    """Those instances in units."""
    top_up_units: int
    """Of these, units wanted because Spot is short, or not calm again yet; in whole instances."""
    services: Mapping[str, int]
    short_since: datetime | None
    evacuate: tuple[str, ...] = ()
    """Under notice and still ACTIVE: the messenger was lost, or came before the instance had joined."""
    drain: tuple[str, ...] = ()
    """Idle and not needed."""
    reactivate: tuple[str, ...] = ()
    terminate_spot: tuple[str, ...] = ()
    terminate_on_demand: tuple[str, ...] = ()
    """Each takes one off its group's desired capacity."""
    replace_on_demand: tuple[str, ...] = ()
    """Broken where one is needed: the group launches another."""


def decide(seen: Seen, policy: Policy) -> Decision:
    """Turn one look into absolute numbers and the reason for them."""
    tasks = {service.name: _tasks(service, policy.loads[service.name]) for service in seen.services}
    needed, limits = _needed(tasks, policy)

    staying = [i for i in seen.instances if i.id not in seen.noticed]
    spot = _moves((i for i in staying if i.spot), needed.spot, _units, seen.at, policy)
    wanted, why = _on_demand(seen, policy, needed, spot)
    on_demand = _moves((i for i in staying if not i.spot), wanted, _one, seen.at, policy)
    desired = _desired(wanted, seen)
    too_many = desired - wanted

    return Decision(
        reason="; ".join([why, *limits]),
        needed_units=needed.spot + needed.on_demand,
        healthy_units=spot.have,
        noticed_units=_doomed(seen),
        spot_target=needed.spot,
        on_demand_desired=desired,
        on_demand_target=desired * policy.on_demand_units,
        top_up_units=(wanted - ceil(needed.on_demand / policy.on_demand_units)) * policy.on_demand_units,
        services=tasks,
        short_since=(seen.short_since or seen.at) if spot.have < needed.spot else None,
        evacuate=tuple(i.id for i in seen.instances if i.id in seen.noticed and i.joined and not i.joined.draining),
        drain=on_demand.drain + spot.drain,
        reactivate=spot.back + on_demand.back,
        terminate_spot=spot.end,
        terminate_on_demand=on_demand.end[:too_many],
        replace_on_demand=on_demand.end[too_many:],
    )


def _tasks(service: Service, load: Load) -> int:
    return min(load.max_tasks, ceil(service.backlog / load.jobs_per_task))


@dataclass(frozen=True, kw_only=True)
class _Needed:
    """Units of work, within the limits.

    `spot` is what Spot is asked for, `shared` how much of that On-Demand may make up for, and `on_demand` what only
    On-Demand may do.
    """

    spot: int
    shared: int
    on_demand: int


def _needed(tasks: Mapping[str, int], policy: Policy) -> tuple[_Needed, list[str]]:
    """What the tasks need, and which limits cut it short.

    Work for Spot alone leaves no trace in `shared`: Spot that is there counts for the shared work first, so that no
    backlog of work that may wait is ever a reason to buy.
    """
    work = dict.fromkeys(Placement, 0)
    for name, count in tasks.items():
        work[policy.loads[name].placement] += count * policy.loads[name].units_per_task
    for_spot, for_on_demand = work[Placement.ANY] + work[Placement.SPOT], work[Placement.ON_DEMAND]
    most = _most_on_demand(policy) * policy.on_demand_units
    limits = [f"{for_spot} units of work meet the limit of {policy.max_units}"] if for_spot > policy.max_units else []
    if for_on_demand > most:
        limits.append(f"{for_on_demand} units of work for On-Demand alone meet the limit of {most}")
    return _Needed(
        spot=min(policy.max_units, for_spot),
        shared=0 if policy.urgency is Urgency.SPOT_ONLY else min(policy.max_units, work[Placement.ANY]),
        on_demand=min(most, for_on_demand),
    ), limits


def _most_on_demand(policy: Policy) -> int:
    """In whole instances."""
    return policy.max_on_demand_units // policy.on_demand_units


def _on_demand(seen: Seen, policy: Policy, needed: _Needed, spot: _Moves) -> tuple[int, str]:
    """How many On-Demand instances are wanted, and why.

    What only On-Demand may do is wanted at once; the rest makes up for Spot. An interruption is told from a fleet that
    still launches without counting events: if Spot was whole at the last pass, then whatever is missing of the target
    *requested* then has been lost since. If Spot was short already, only what is under notice now is known to be lost.
    What was bought stays while there is work for it, until Spot is whole and calm; so it is enough that one pass sees a
    loss.
    """
    shortage = max(0, needed.shared - spot.have)
    lost = max(_doomed(seen), 0 if seen.short_since else seen.requested - spot.have)
    impatient = seen.short_since is not None and seen.at - seen.short_since >= policy.patience
    making_up = 0
    if impatient:
        making_up = shortage
    elif policy.urgency is Urgency.NOW:
        making_up = min(shortage, lost)
    calm = spot.settled >= needed.shared and not _doomed(seen)
    size = policy.on_demand_units
    own = ceil(needed.on_demand / size)
    kept = 0 if calm else min(seen.on_demand_requested, ceil((needed.on_demand + needed.shared) / size))
    wanted = min(_most_on_demand(policy), max(kept, ceil((needed.on_demand + making_up) / size)))

    if needed.spot + needed.on_demand == 0:
        return wanted, "no work"
    if making_up and impatient:
        why = f"Spot short of {shortage} for longer than {policy.patience}: On-Demand makes up for it"
    elif making_up:
        why = f"Spot lost {making_up}: On-Demand makes up for it at once"
    elif needed.spot > spot.have:
        why = f"Spot has {needed.spot - spot.have} more to bring"
    elif wanted > own:
        why = "Spot is whole but not calm yet: On-Demand stays"
    elif seen.on_demand_present > wanted:
        why = "Spot is whole and calm: On-Demand leaves"
    else:
        why = "Spot is whole"
    told = f", {needed.on_demand} of them On-Demand alone" if needed.on_demand else ""
    return wanted, f"{needed.spot + needed.on_demand} units needed{told}, {why}"


def _desired(wanted: int, seen: Seen) -> int:
    """Raise at once; lower only what has not been launched.

    A group whose desired capacity falls below its size picks a victim itself, perhaps a busy one.
    """
    return max(wanted, min(seen.on_demand_requested, seen.on_demand_present))


class _Standing(Enum):
    USABLE = auto()
    RESTING = auto()
    LEAVING = auto()
    BROKEN = auto()


def _standing(instance: Instance, at: datetime, policy: Policy) -> _Standing:
    """What an instance that is not under notice is good for.

    GPUs may not be seen at first boot: an instance that joined without one takes no task, ever.
    """
    joined = instance.joined
    if joined is None:
        return _Standing.USABLE if at - instance.launched < policy.patience else _Standing.BROKEN
    if joined.units == 0:
        return _Standing.BROKEN
    if not joined.draining:
        return _Standing.USABLE
    return _Standing.RESTING if instance.surplus else _Standing.LEAVING


@dataclass(frozen=True, kw_only=True)
class _Moves:
    """What becomes of the instances of one kind. `have` is what can be counted on, `settled` what lasted for `calm`."""

    have: int
    settled: int
    back: tuple[str, ...]
    drain: tuple[str, ...]
    end: tuple[str, ...]


def _moves(
    instances: Iterable[Instance], wanted: int, size: Callable[[Instance], int], at: datetime, policy: Policy
) -> _Moves:
    """Bring back what rests and is wanted, drain what idles and is not, end what has drained or never worked.

    The newest leave first. A busy instance neither drains nor ends, whatever is wanted.
    """
    ranked = sorted(instances, key=lambda i: (i.launched, i.id), reverse=True)
    standing = {i.id: _standing(i, at, policy) for i in ranked}
    have = sum(size(i) for i in ranked if standing[i.id] is _Standing.USABLE)
    settled = sum(
        size(i)
        for i in ranked
        if i.joined and at - i.launched >= policy.calm and standing[i.id] in (_Standing.USABLE, _Standing.RESTING)
    )

    back: list[str] = []
    # The largest first: then none that came back fits into what is spare, to be drained again by the next pass.
    for instance in sorted(ranked, key=size, reverse=True):
        if standing[instance.id] is _Standing.RESTING and have < wanted:
            back.append(instance.id)
            have += size(instance)

    drain: list[str] = []
    end: list[str] = []
    spare = have - wanted
    for instance in ranked:
        joined = instance.joined
        stands = standing[instance.id]
        if joined is None:
            if stands is _Standing.BROKEN or wanted == 0:
                end.append(instance.id)
        elif joined.tasks or instance.id in back:
            continue
        elif joined.draining:
            end.append(instance.id)
        elif stands is _Standing.BROKEN:
            drain.append(instance.id)
        elif (wanted == 0 or at - joined.since >= policy.settle) and size(instance) <= spare:
            drain.append(instance.id)
            spare -= size(instance)
    return _Moves(have=have, settled=settled, back=tuple(back), drain=tuple(drain), end=tuple(end))


def _units(instance: Instance) -> int:
    return instance.units


def _one(_: Instance) -> int:
    return 1


def _doomed(seen: Seen) -> int:
    """Units of Spot instances under notice."""
    return sum(i.units for i in seen.instances if i.spot and i.id in seen.noticed)
