"""How much work there is, in units: what the jobs want, within the operator's limits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from math import ceil

from capacity.gpus import Gpu, shares, shares_of, worth_of_a_task
from capacity.nouns import Arrival, Placement, Policy, Seen, Service, Urgency

SPARE = 0.1
"""Of the longest wait: so much is left when On-Demand that was called at the last moment has done its work."""
EVENLY = 0.25
"""Of the time there is: within so much of it Spot does what waits. Sooner is more launches, later less to spare."""


@dataclass(frozen=True, kw_only=True)
class Needed:
    """Units of work, within the limits.

    `spot` is what Spot is asked for, `shared` how much of that On-Demand may make up for, and `on_demand` what only
    On-Demand may do.
    """

    spot: int
    shared: int
    on_demand: int

    @property
    def units(self) -> int:
        """All of it."""
        return self.spot + self.on_demand


def units_for(seen: Seen, policy: Policy) -> dict[str, int]:
    """How many units each service needs now: zero work is zero units."""
    worth = worth_of_a_task(seen, policy)
    return {
        service.name: _tasks(service, policy, worth) * policy.loads[service.name].units_per_task
        for service in seen.services
    }


def _tasks(service: Service, policy: Policy, worth: float) -> int:
    """In tasks of one unit, where those that were timed had so many."""
    load = policy.loads[service.name]
    tasks = ceil(service.backlog / load.jobs_per_task)
    if policy.urgency is Urgency.DEADLINE:
        tasks = max(tasks, _evenly(service, policy, worth), _pressing(service, policy, worth) or 0)
    return min(load.max_tasks, tasks)


def _evenly(service: Service, policy: Policy, worth: float) -> int:
    """How many tasks do what waits within a part of the time there is; what is in flight is half done."""
    max_wait, seconds = policy.loads[service.name].max_wait, service.job_seconds
    if max_wait is None or seconds is None:
        return 0
    time = max(_time(max_wait, seconds, policy), _soon(policy))
    work = timedelta(seconds=seconds * worth) * (service.backlog - service.in_flight / 2)
    return min(ceil(service.backlog * worth), ceil(work / (time * EVENLY)))


def lingering(
    seen: Seen, units: Mapping[str, int], gpus: Sequence[Gpu], policy: Policy
) -> tuple[dict[str, int], datetime | None]:
    """The units to keep, and since when that is more than is needed.

    Where the need has just fallen, though not to nothing, as many stay as there are: a backlog about a threshold would
    launch and end an instance each time it crosses it. More than is needed are the tasks that are beyond those that the
    need takes, whole ones.
    """
    there, enough = _units_there(seen, gpus, policy), shares(units, gpus, policy)
    kept = {name: ceil(there[name]) if 0 < enough[name].units < there[name] else count for name, count in units.items()}
    since = (seen.notes.ample_since or seen.at) if kept != units else None
    if since is None or seen.at - since >= policy.linger:
        return dict(units), None
    return kept, since


def _units_there(seen: Seen, gpus: Sequence[Gpu], policy: Policy) -> dict[str, Fraction]:
    """What the tasks are worth that a service has been asked for, be they there or not."""
    loads = policy.loads
    tasks = {service.name: service.desired * loads[service.name].units_per_task for service in seen.services}
    return {
        name: min(Fraction(loads[name].max_tasks * loads[name].units_per_task), share.units)
        for name, share in shares_of(tasks, gpus, policy).items()
    }


def tasks_for(units: Mapping[str, int], gpus: Sequence[Gpu], policy: Policy) -> dict[str, int]:
    """How many tasks ECS is asked for, of each service, to have so many units at work on these GPUs."""
    return {
        name: ceil(share.tasks / policy.loads[name].units_per_task)
        for name, share in shares(units, gpus, policy).items()
    }


def needed(units: Mapping[str, int], policy: Policy, gpus: Sequence[Gpu] = ()) -> Needed:
    """What so much work needs, with these GPUs there.

    Work for Spot alone leaves no trace in `shared`: Spot that is there counts for the shared work first, so that no
    backlog of work that may wait is ever a reason to buy.
    """
    spot, on_demand = ([gpu for gpu in gpus if gpu.spot is kind] for kind in (True, False))
    most = most_on_demand(policy) * policy.on_demand_units
    shared = 0 if policy.urgency is Urgency.SPOT_ONLY else _room(units, spot, policy, Placement.ANY)
    return Needed(
        spot=min(policy.max_units, _room(units, spot, policy, Placement.ANY, Placement.SPOT)),
        shared=min(policy.max_units, shared),
        on_demand=min(most, _room(units, on_demand, policy, Placement.ON_DEMAND)),
    )


def _room(units: Mapping[str, int], gpus: Sequence[Gpu], policy: Policy, *placements: Placement) -> int:
    """Units in which the services of these placements find room, beside each other.

    A GPU has one task, which none shares: all services but the last have whole GPUs, of those that are there.
    """
    wanted = {name: count for name, count in units.items() if count and policy.loads[name].placement in placements}
    whole = [share.units for share in shares(wanted, gpus, policy).values()]
    return ceil(sum(whole[:-1])) + [0, *wanted.values()][-1]


def pressing(seen: Seen, policy: Policy, spare: float = SPARE) -> int | None:
    """How many units get those jobs done in time with which On-Demand may wait no longer.

    It may while all that is allowed of it could still do them by itself, were there no Spot any more, with so much of
    the longest wait to spare: meanwhile Spot may come. None when that cannot be told of all shared work.
    """
    units, worth = 0, worth_of_a_task(seen, policy)
    for service in seen.services:
        load = policy.loads[service.name]
        if load.placement is Placement.ANY:
            if (tasks := _pressing(service, policy, worth, spare)) is None:
                return None
            units += min(tasks, load.max_tasks) * load.units_per_task
    return units


def _pressing(service: Service, policy: Policy, worth: float, spare: float = SPARE) -> int | None:
    """The same in tasks of one unit, of one service. A job waits for those that came before it."""
    load, seconds = policy.loads[service.name], service.job_seconds
    waits = service.visible + service.delayed
    if waits == 0:
        return 0
    if load.max_wait is None or seconds is None:
        return None
    most = max(1, min(load.max_tasks, _share_of_on_demand(policy) // load.units_per_task))
    time = _time(load.max_wait, seconds, policy)
    tasks = 0
    for age, jobs in _in_line(service.arrivals, waits):
        work, left = timedelta(seconds=jobs * seconds * worth), time - age
        if work >= (left - load.max_wait * spare) * most:
            tasks = max(tasks, min(ceil(jobs * worth), ceil(work / max(left, _soon(policy)))))
    return tasks


def _time(max_wait: timedelta, seconds: float, policy: Policy) -> timedelta:
    """How long a job may wait from its arrival on, and be done in time. Help is as far away as patience lasts."""
    return max_wait - timedelta(seconds=seconds) - policy.patience


def _soon(policy: Policy) -> timedelta:
    """Within what time that is done which is nearly late, or late already: else the last would be done ever slower."""
    return max(policy.patience / 2, policy.settle)


def _share_of_on_demand(policy: Policy) -> int:
    """Units for one service, should all need it at the same time."""
    sharing = sum(load.placement is Placement.ANY for load in policy.loads.values())
    return most_on_demand(policy) * policy.on_demand_units // sharing


def _in_line(arrivals: Sequence[Arrival], waits: int) -> Iterator[tuple[timedelta, int]]:
    """The waiting jobs by age: how old, and how many wait that are as old or older.

    SQS brings the oldest first, roughly, so those that wait are the last that came. What is not known to have come is
    taken for new: CloudWatch tells of it a minute or two later.
    """
    yield timedelta(0), waits
    waits -= max(0, waits - sum(arrival.jobs for arrival in arrivals))
    for arrival in arrivals:
        yield arrival.age, waits
        waits -= arrival.jobs


def limits(units: Mapping[str, int], policy: Policy) -> list[str]:
    """Which limits cut the work short, in words."""
    work = {
        placement: sum(count for name, count in units.items() if policy.loads[name].placement is placement)
        for placement in Placement
    }
    for_spot, for_on_demand = work[Placement.ANY] + work[Placement.SPOT], work[Placement.ON_DEMAND]
    most = most_on_demand(policy) * policy.on_demand_units
    met = [f"{for_spot} units of work meet the limit of {policy.max_units}"] if for_spot > policy.max_units else []
    if for_on_demand > most:
        met.append(f"{for_on_demand} units of work for On-Demand alone meet the limit of {most}")
    return met


def most_on_demand(policy: Policy) -> int:
    """The limit of On-Demand in whole instances."""
    return policy.max_on_demand_units // policy.on_demand_units
