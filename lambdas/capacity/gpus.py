"""What GPUs are worth, and how many tasks it takes: ECS counts tasks, of one GPU each, where we count units. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import ceil

from capacity.nouns import Instance, Placement, Policy, Seen

Worth = int | Fraction
"""Units. Whole ones are an int: a replay adds them by the million, and a Fraction is added thirty times slower."""


@dataclass(frozen=True)
class Gpu:
    """One that tasks may have, and its units."""

    worth: Worth
    spot: bool


@dataclass(frozen=True)
class Share:
    """Of a service: so many tasks, and what they are worth at least, on GPUs that are there and such as are to come."""

    tasks: int
    units: Fraction


def of(instances: Iterable[Instance]) -> list[Gpu]:
    """Their GPUs, the least first."""
    found: list[Gpu] = []
    for instance in instances:
        worth = _plain(instance.worth)
        found += [Gpu(worth, instance.spot)] * (instance.units // worth)
    return sorted(found, key=lambda gpu: (gpu.worth, gpu.spot))


def tasks_worth(units: int, there: Sequence[Worth], least: Worth) -> int:
    """The fewest tasks that are worth so many units, on whichever GPUs ECS places them.

    `there` are the GPUs that are, the least first; each that is yet to come is worth `least` or more.
    """
    sums = [*accumulate(there, initial=0)]
    if units <= sums[-1]:
        return bisect_left(sums, units)
    return len(there) + ceil(Fraction(units - sums[-1]) / least)


def shares(units: Mapping[str, int], gpus: Sequence[Gpu], policy: Policy) -> dict[str, Share]:
    """The tasks that are worth so many units, by service."""

    def share(wanted: int, there: Sequence[Worth]) -> Share:
        tasks = tasks_worth(wanted, there, policy.least)
        return Share(tasks, Fraction(max(wanted, sum(there[:tasks]))))

    return dict(_dealt(units, gpus, policy, share))


def shares_of(tasks: Mapping[str, int], gpus: Sequence[Gpu], policy: Policy) -> dict[str, Share]:
    """What so many tasks are worth, by service."""

    def share(count: int, there: Sequence[Worth]) -> Share:
        return Share(count, max(count * policy.least, Fraction(sum(there[:count]))))

    return dict(_dealt(tasks, gpus, policy, share))


def _dealt(
    wanted: Mapping[str, int], gpus: Sequence[Gpu], policy: Policy, share: Callable[[int, Sequence[Worth]], Share]
) -> Iterator[tuple[str, Share]]:
    """One service after the other takes the least GPUs that it may have, none takes another's."""
    free = list(gpus)
    for name, count in wanted.items():
        fits = _FITS[policy.loads[name].placement]
        places = [place for place, gpu in enumerate(free) if fits(gpu)]
        mine = share(count, [free[place].worth for place in places])
        yield name, mine
        taken = {*places[: mine.tasks]}
        free = [gpu for place, gpu in enumerate(free) if place not in taken]


_FITS: Mapping[Placement, Callable[[Gpu], bool]] = {
    Placement.ANY: lambda _: True,
    Placement.SPOT: lambda gpu: gpu.spot,
    Placement.ON_DEMAND: lambda gpu: not gpu.spot,
}


def worth_of_a_task(seen: Seen, policy: Policy) -> float:
    """Units of a task at work, on average; while none is, of a GPU that is there, and without one of the least.

    Jobs are timed by tasks, whichever GPU they had: this takes those that work now for those that were timed.
    """
    joined = [(i.worth, i.joined) for i in seen.instances if i.joined]
    at_work = sum(there.tasks for _, there in joined)
    if at_work:
        return float(sum(worth * there.tasks for worth, there in joined) / at_work)
    count = sum(there.gpus for _, there in joined)
    return float(sum(worth * there.gpus for worth, there in joined) / count if count else policy.least)


def _plain(worth: Fraction) -> Worth:
    return worth.numerator if worth.denominator == 1 else worth
