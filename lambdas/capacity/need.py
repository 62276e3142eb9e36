"""How much work there is, in tasks and in units: what the jobs want, within the operator's limits. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from capacity.nouns import Arrival, Placement, Policy, Seen, Service, Urgency

SOON = 0.1
"""Of the longest wait: what is late already is to be done within so much more."""


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


def tasks_for(seen: Seen, policy: Policy) -> dict[str, int]:
    """How many tasks each service needs now: zero work is zero tasks."""
    return {service.name: _tasks(service, policy) for service in seen.services}


def _tasks(service: Service, policy: Policy) -> int:
    load = policy.loads[service.name]
    tasks = ceil(service.backlog / load.jobs_per_task)
    if policy.urgency is Urgency.DEADLINE:
        tasks = max(tasks, _in_time(service, policy) or 0)
    return min(load.max_tasks, tasks)


def lingering(seen: Seen, tasks: Mapping[str, int], policy: Policy) -> tuple[dict[str, int], datetime | None]:
    """The tasks to keep, and since when that is more than is needed.

    Where the need has just fallen, though not to nothing, as many stay as there are: a backlog about a threshold would
    launch and end an instance each time it crosses it.
    """
    there = {service.name: min(service.desired, policy.loads[service.name].max_tasks) for service in seen.services}
    kept = {name: max(count, there[name]) if count else 0 for name, count in tasks.items()}
    since = (seen.notes.ample_since or seen.at) if kept != tasks else None
    if since is None or seen.at - since >= policy.linger:
        return dict(tasks), None
    return kept, since


def needed(tasks: Mapping[str, int], policy: Policy) -> Needed:
    """What so many tasks need.

    Work for Spot alone leaves no trace in `shared`: Spot that is there counts for the shared work first, so that no
    backlog of work that may wait is ever a reason to buy.
    """
    work = _work(tasks, policy)
    return Needed(
        spot=min(policy.max_units, work[Placement.ANY] + work[Placement.SPOT]),
        shared=0 if policy.urgency is Urgency.SPOT_ONLY else min(policy.max_units, work[Placement.ANY]),
        on_demand=min(most_on_demand(policy) * policy.on_demand_units, work[Placement.ON_DEMAND]),
    )


def units_in_time(seen: Seen, policy: Policy, share: float = 1.0) -> int | None:
    """How many units get the shared work done before it is late, in this share of the time that is left.

    None when that cannot be told of all of it.
    """
    units = 0
    for service in seen.services:
        load = policy.loads[service.name]
        if load.placement is Placement.ANY:
            if (tasks := _in_time(service, policy, share)) is None:
                return None
            units += min(tasks, load.max_tasks) * load.units_per_task
    return units


def _in_time(service: Service, policy: Policy, share: float = 1.0) -> int | None:
    """How many tasks get every waiting job done in time; None when that cannot be told.

    A job waits for those that came before it. Help is taken for as far away as patience lasts.
    """
    max_wait, seconds = policy.loads[service.name].max_wait, service.job_seconds
    waits = service.visible + service.delayed
    if waits == 0:
        return 0
    if max_wait is None or seconds is None:
        return None
    left = max_wait - timedelta(seconds=seconds) - policy.patience
    return max(
        ceil(jobs * seconds / max((left - age) * share, max_wait * SOON).total_seconds())
        for age, jobs in _in_line(service.arrivals, waits)
    )


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


def limits(tasks: Mapping[str, int], policy: Policy) -> list[str]:
    """Which limits cut the work short, in words."""
    work = _work(tasks, policy)
    for_spot, for_on_demand = work[Placement.ANY] + work[Placement.SPOT], work[Placement.ON_DEMAND]
    most = most_on_demand(policy) * policy.on_demand_units
    met = [f"{for_spot} units of work meet the limit of {policy.max_units}"] if for_spot > policy.max_units else []
    if for_on_demand > most:
        met.append(f"{for_on_demand} units of work for On-Demand alone meet the limit of {most}")
    return met


def most_on_demand(policy: Policy) -> int:
    """The limit of On-Demand in whole instances."""
    return policy.max_on_demand_units // policy.on_demand_units


def _work(tasks: Mapping[str, int], policy: Policy) -> dict[Placement, int]:
    """In units, without limits."""
    work = dict.fromkeys(Placement, 0)
    for name, count in tasks.items():
        work[policy.loads[name].placement] += count * policy.loads[name].units_per_task
    return work
