"""Who comes back, who drains, who ends: among the instances of one kind, Spot or On-Demand. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto

from capacity.nouns import Instance, Joined, Policy


class Standing(Enum):
    """What an instance that is not under notice is good for."""

    USABLE = auto()
    """Joined, or booting and still expected."""
    LATE = auto()
    """Booting for too long to be counted on."""
    RESTING = auto()
    """We drained it, and may take it back."""
    LEAVING = auto()
    """Somebody else drained it."""
    BROKEN = auto()


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is wanted of one kind. `units` are to be there, booting or not.

    Of those that work `floor` stay in any case; who may be relieved leaves for them even if busy. What works and has
    lasted for `calm` has settled.
    """

    units: int
    floor: int
    calm: timedelta
    size: Callable[[Instance], int]
    may_be_relieved: Callable[[Instance], bool]


@dataclass(frozen=True, kw_only=True)
class Moves:
    """What becomes of the instances of one kind.

    `have` is what can be counted on, `joined` what of it is there and stays, `settled` what of that works and has
    lasted; `stay` are those that can be counted on hereafter, joined or booting.
    """

    have: int
    joined: int
    settled: int
    stay: tuple[Instance, ...]
    back: tuple[str, ...]
    drain: tuple[str, ...]
    relieve: tuple[str, ...]
    end: tuple[str, ...]


def standing(instance: Instance, at: datetime, policy: Policy) -> Standing:
    """What an instance is good for at this moment.

    GPUs may not be seen at first boot: an instance that joined without one takes no task, ever.
    """
    joined = instance.joined
    if joined is None:
        age = at - instance.launched
        if age < policy.patience:
            return Standing.USABLE
        return Standing.LATE if age < policy.broken else Standing.BROKEN
    if joined.gpus == 0:
        return Standing.BROKEN
    if not joined.draining:
        return Standing.USABLE
    return Standing.RESTING if instance.surplus else Standing.LEAVING


def works(joined: Joined) -> bool:
    """Whether a task runs, or none is to run: the first pulls its image, for minutes after the instance has joined."""
    return joined.running > 0 or joined.tasks == 0


def moves(instances: Iterable[Instance], wanted: Wanted, at: datetime, policy: Policy) -> Moves:
    """Bring back what rests and is wanted, drain what is not, end what has drained or never worked.

    First leaves who may be relieved, then what has not joined, what idles, what is busy; of these the newest.
    """
    size = wanted.size
    ranked = sorted(instances, key=lambda i: (i.launched, i.id), reverse=True)
    stands = {i.id: standing(i, at, policy) for i in ranked}
    usable = [i for i in ranked if stands[i.id] is Standing.USABLE]
    have = sum(size(i) for i in usable)

    back: dict[str, None] = {}
    # The largest first: then none that came back fits into what is spare, to be drained again by the next pass.
    for instance in sorted(ranked, key=size, reverse=True):
        if stands[instance.id] is Standing.RESTING and have < wanted.floor:
            back[instance.id] = None
            have += size(instance)

    drain: list[str] = []
    relieve: list[str] = []
    end: list[str] = []
    spare = have - wanted.units
    at_work = {i.id for i in usable if i.joined and works(i.joined)}
    over = sum(size(i) for i in usable if i.id in at_work) - wanted.floor
    ranked.sort(key=lambda i: (not wanted.may_be_relieved(i), i.joined is not None, bool(i.joined and i.joined.tasks)))
    for instance in ranked:
        joined, stand = instance.joined, stands[instance.id]
        units = size(instance) if stand is Standing.USABLE else 0
        room = over if instance.id in at_work else spare
        if instance.id in back:
            continue
        if joined is None:
            # What is late counts for nothing, so it is spare as soon as nothing is missing.
            leaves = end if stand is Standing.BROKEN or wanted.units == 0 or units <= spare else None
        elif joined.draining:
            leaves = None if joined.tasks else end
        elif stand is Standing.BROKEN:
            leaves = None if joined.tasks else drain
        elif joined.tasks:
            leaves = relieve if wanted.may_be_relieved(instance) and units <= room else None
        else:
            rested = wanted.units == 0 or at - joined.since >= policy.settle
            needless = units <= room and (units <= spare or wanted.may_be_relieved(instance))
            leaves = drain if rested and needless else None
        if leaves is not None:
            leaves.append(instance.id)
            spare -= units
            over -= units if instance.id in at_work else 0
    gone = {*drain, *relieve, *end}
    stay = [i for i in ranked if (i.id in back or stands[i.id] is Standing.USABLE) and i.id not in gone]
    working, able = [i for i in stay if i.joined], {*at_work, *back}
    return Moves(
        have=have,
        joined=sum(size(i) for i in working),
        settled=sum(size(i) for i in working if i.id in able and at - i.launched >= wanted.calm),
        stay=tuple(stay),
        back=tuple(back),
        drain=tuple(drain),
        relieve=tuple(relieve),
        end=tuple(end),
    )
