"""Profile `groups`: two Auto Scaling groups, of Spot and of On-Demand, and the one that is worth it grows. Pure.

What is needed follows the backlog, as in the other profile (`need`). Groups grow and empty by their own scaling
policies, which the template has: Spot by all that is missing, On-Demand by an instance at a time. They replace by
themselves what EC2 takes or we end, and no group gives up an instance before all do, when there has been no work for a
while. So nothing is drained here but for a notice, and recommendations to replace an instance, which EC2 often does not
follow up, are let be (docs/decisions/0024-what-the-groups-policy-rests-on.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil

from capacity.moves import Standing, standing
from capacity.need import Needed, limits, most_on_demand, needed, units_for
from capacity.nouns import Instance, Notes, Policy, Seen
from capacity.topup import doomed
from capacity.trial import doubts, in_a_row, is_doubted, tried
from capacity.worth import DEAR


class Kind(StrEnum):
    """Which of the two groups."""

    SPOT = "spot"
    ON_DEMAND = "on-demand"


@dataclass(frozen=True, kw_only=True)
class GroupPolicy(Policy):
    """What the operator chose, and how long nothing may have waited or been in flight before every instance leaves.

    Urgency `deadline` is `now` here: On-Demand grows too slowly to be timed.
    """

    grace: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class SeenGroups(Seen):
    """One look at two groups: `requested` is the Spot group's desired capacity, in units, `fulfilled` what of it is in
    service; `on_demand_requested` and `on_demand_present` are the On-Demand group's, in instances.
    """

    on_demand_in_service: int = 0
    idle_since: datetime | None = None
    """When there was first no work for the instances that are there; None if the last pass saw some, or no instance."""
    spot_share: float | None = None
    """What Spot costs as a share of On-Demand, where it saves most; None is not known."""
    failing: Mapping[Kind, datetime] = field(default_factory=dict)
    """Since when every launch of a group has failed."""


@dataclass(frozen=True, kw_only=True)
class GroupDecision:
    """Which scaling policies to execute, whom to end, and why: what is logged, measured and tested."""

    reason: str
    needed_units: int
    healthy_units: int
    """Of Spot, joined or booting."""
    noticed_units: int
    spot_target: int
    """The Spot group's desired capacity from now on, in units."""
    on_demand_target: int
    """What the On-Demand group is to come to, step by step, in units."""
    top_up_units: int
    """Of these, units wanted in the place of Spot; in whole instances."""
    notes: Notes
    idle_since: datetime | None
    grow: Mapping[Kind, int]
    """For a step scaling policy: how far a group's capacity in service is below the one that it is to have.

    That is the MetricValue of ExecutePolicy, above a BreachThreshold of 0. EC2 Auto Scaling adds the step to what is in
    service and has had its warm-up, and never asks for less than it already does (EC2 Auto Scaling User Guide, "Step
    scaling", instance warmup). So what is on its way must not be taken off: it would be counted twice, and missing.
    """
    shrink: tuple[Kind, ...] = ()
    """To be emptied."""
    replace: tuple[str, ...] = ()
    """Of no use, and idle: their group launches others."""
    give_up: tuple[str, ...] = ()
    """The same of a kind that is doubted: their group becomes smaller by each."""
    evacuate: tuple[str, ...] = ()
    """Under notice for a while and still ACTIVE: the messenger was lost, or came before the instance had joined."""
    taken: tuple[str, ...] = ()
    """Spot instances that EC2 takes from us, to be remembered of their pools."""


def decide(seen: SeenGroups, policy: GroupPolicy) -> GroupDecision:
    """Turn one look into what the groups are to do, and the reason for it."""
    units = units_for(seen, policy)
    work = needed(units, policy)
    usable = [i for i in seen.instances if i.id not in seen.noticed and standing(i, seen.at, policy) is Standing.USABLE]
    have = sum(i.units for i in usable if i.spot)
    bad = in_a_row(seen, policy)
    choice = _choose(seen, policy, work, have, is_doubted(bad, spot=False))

    asked = {Kind.SPOT: seen.requested, Kind.ON_DEMAND: seen.on_demand_requested}
    ready = {Kind.SPOT: int(seen.fulfilled), Kind.ON_DEMAND: seen.on_demand_in_service}
    wanted = {
        Kind.SPOT: tried(choice.spot, seen, bad, policy, spot=True),
        Kind.ON_DEMAND: tried(choice.on_demand, seen, bad, policy, spot=False),
    }
    idle = not any(service.backlog for service in seen.services) and any(asked.values())
    idle_since = (seen.idle_since or seen.at) if idle else None
    shrink: tuple[Kind, ...] = ()
    if idle_since is not None and seen.at - idle_since >= policy.grace:
        shrink = tuple(kind for kind in Kind if asked[kind])
    useless = [i for i in seen.instances if _is_useless(i, seen, policy)] if work.units else []
    replace = tuple(i.id for i in useless if not is_doubted(bad, spot=i.spot))

    return GroupDecision(
        reason="; ".join(
            [
                choice.why if work.units else _why_idle(idle_since, bool(shrink), policy),
                *limits(units, policy),
                *([f"{len(replace)} of no use are replaced"] if replace else []),
                *(doubts(bad) if work.units else []),
            ]
        ),
        needed_units=work.units,
        healthy_units=have,
        noticed_units=doomed(seen),
        spot_target=0 if shrink else max(seen.requested, wanted[Kind.SPOT]),
        on_demand_target=0
        if shrink
        else max(seen.on_demand_requested, wanted[Kind.ON_DEMAND]) * policy.on_demand_units,
        top_up_units=max(0, choice.on_demand - ceil(work.on_demand / policy.on_demand_units)) * policy.on_demand_units,
        notes=Notes(short_since=(seen.notes.short_since or seen.at) if have < work.spot else None, bad=bad),
        idle_since=idle_since,
        # What is in service beyond what is asked for is about to leave: the next look tells.
        grow={kind: wanted[kind] - ready[kind] for kind in Kind if wanted[kind] > max(asked[kind], ready[kind])},
        shrink=shrink,
        replace=replace,
        give_up=tuple(i.id for i in useless if is_doubted(bad, spot=i.spot)),
        evacuate=tuple(i.id for i in seen.instances if i.id in seen.overdue and i.joined and not i.joined.draining),
        taken=tuple(i.id for i in seen.instances if i.spot and i.id in seen.noticed),
    )


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """What each group is to have, Spot in units and On-Demand in instances, and why."""

    spot: int
    on_demand: int
    why: str


def _choose(seen: SeenGroups, policy: GroupPolicy, work: Needed, have: int, on_demand_is_doubted: bool) -> _Choice:
    """Which group does what is missing.

    Spot, unless it costs what On-Demand costs, and until it has been short for `patience`, or did not launch for so
    long just before. What On-Demand may not do, or cannot launch, or launches in vain, is Spot's at any price, which is
    never above On-Demand's. A price that is not known speaks for Spot.
    """
    shortage = max(0, work.shared - have)
    share, failing = seen.spot_share, seen.failing.get(Kind.SPOT)
    hopeless = on_demand_is_doubted or _lasts(seen.failing.get(Kind.ON_DEMAND), seen.at, policy)
    dear = share is not None and share >= DEAR and not hopeless
    late = any(_lasts(since, seen.at, policy) for since in (seen.notes.short_since, failing))
    most = most_on_demand(policy)
    aid = min(shortage, most * policy.on_demand_units - work.on_demand) if dear or late else 0

    told = f", {work.on_demand} of them On-Demand alone" if work.on_demand else ""
    costs = "Spot's price is not known" if share is None else f"Spot costs {share:.0%} of On-Demand"
    if aid and dear:
        why = f"{costs}: On-Demand is worth more"
    elif aid:
        how = "does not launch" if failing else "is short"
        why = f"Spot {how} for longer than {policy.patience}: On-Demand makes up for {aid}"
    elif have < work.spot:
        why = f"Spot has {work.spot - have} more to bring, {costs}"
    else:
        why = "Spot is whole"
    return _Choice(
        spot=work.spot - (aid if dear else 0),
        on_demand=min(most, ceil((work.on_demand + aid) / policy.on_demand_units)),
        why=f"{work.units} units needed{told}, {why}",
    )


def _lasts(since: datetime | None, at: datetime, policy: GroupPolicy) -> bool:
    return since is not None and at - since >= policy.patience


def _is_useless(instance: Instance, seen: SeenGroups, policy: GroupPolicy) -> bool:
    """Whether it takes no task any more, or never did, and has none left."""
    if instance.id in seen.noticed or (instance.joined and instance.joined.tasks):
        return False
    return standing(instance, seen.at, policy) in (Standing.BROKEN, Standing.RESTING, Standing.LEAVING)


def _why_idle(idle_since: datetime | None, leaves: bool, policy: GroupPolicy) -> str:
    if leaves:
        return f"no work for {policy.grace}: every instance leaves"
    if idle_since is None:
        return "no work"
    return f"no work since {idle_since:%H:%M:%S} UTC: every instance leaves when that has lasted for {policy.grace}"
