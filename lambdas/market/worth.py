"""Which Spot pools are worth having. Pure: the clock is an argument, and memory is what was decided before.

docs/decisions/0021-pools-leave-and-come-back.md says why the numbers are as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from math import ceil

DEAR = 0.99
"""A share of On-Demand. From here Spot saves nothing; an hour at that price may come out a hair lower on average."""
CHEAP_AGAIN = 0.9
"""Under this share a pool that was dear comes back: a price that stays about On-Demand's changes nothing each time."""
FIRST_PENALTY = timedelta(minutes=15)
LONGEST_PENALTY = timedelta(hours=4)
TOGETHER = timedelta(minutes=10)
"""What is taken within this time is taken once: EC2 takes many instances of a pool in one go."""
REMEMBERED = timedelta(hours=24)
"""For so long an interruption makes the penalty of a later one longer."""
FEWEST_POOLS = 2


class State(StrEnum):
    """Whether the fleet may launch in a pool, or why it may not."""

    OPEN = "open"
    DEAR = "dear"
    AVOIDED = "avoided"


@dataclass(frozen=True, order=True)
class Pool:
    """One instance type in one zone."""

    type: str
    zone: str

    def __str__(self) -> str:
        """Its key in the table."""
        return f"{self.type}/{self.zone}"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is known of one pool. Prices are US dollars an hour of one instance; None is not known, and never zero."""

    pool: Pool
    spot_usd: float | None = None
    """The average of the past hour."""
    on_demand_usd: float | None = None
    score: int | None = None
    """Spot placement score, 1 to 10, of our types together in the pool's zone: EC2 has none for a single pool."""
    taken: tuple[datetime, ...] = ()
    """When EC2 announced to take instances of ours."""
    state: State = State.OPEN
    """What was decided last time."""

    @property
    def share(self) -> float | None:
        """What Spot costs as a share of On-Demand, None when one of the two is not known."""
        if not self.spot_usd or not self.on_demand_usd:
            return None
        return self.spot_usd / self.on_demand_usd


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is decided about one pool, and why, in a sentence."""

    state: State
    why: str
    until: datetime | None = None
    """How long it is avoided."""


def judge(looks: Iterable[Look], now: datetime) -> dict[Pool, Verdict]:
    """Decide about every pool. Half of them, and at least two, stay open however bad they are: the least bad."""
    seen = {look.pool: look for look in looks}
    verdicts = {pool: _alone(look, now) for pool, look in seen.items()}
    shut = [pool for pool, verdict in verdicts.items() if verdict.state is not State.OPEN]
    fewest = fewest_open(len(seen))
    missing = max(0, fewest - (len(seen) - len(shut)))
    for pool in sorted(shut, key=lambda one: _badness(seen[one], verdicts[one]))[:missing]:
        why = f"{verdicts[pool].why}; stays, for {fewest} of {len(seen)} pools must"
        verdicts[pool] = Verdict(state=State.OPEN, why=why)
    return verdicts


def fewest_open(pools: int) -> int:
    """How many of so many pools stay open in any case."""
    return min(pools, max(FEWEST_POOLS, ceil(pools / 2)))


def avoided_until(taken: Sequence[datetime]) -> datetime | None:
    """How long a pool is avoided from which instances were taken at these times; None when none was.

    The first time in a day it is a quarter of an hour, and twice as long each further time, up to four hours. It
    depends on the interruptions alone, so it does not move as time passes, and another one never shortens it.
    """
    penalties = (moment + min(LONGEST_PENALTY, FIRST_PENALTY * 2 ** (_times(taken, moment) - 1)) for moment in taken)
    return max(penalties, default=None)


def average(changes: Iterable[tuple[datetime, float]], start: datetime, end: datetime) -> float | None:
    """The average price from `start` to `end`, each price weighed by how long it held; None when none is known.

    `changes` are moments and the price from then on, in any order, and hold the last one before `start`. Without that
    one the average is of what is known.
    """
    ordered = [*sorted(dict(changes).items()), (end, 0.0)]
    spans = (
        (price, (min(after, end) - max(moment, start)) / timedelta(seconds=1))
        for (moment, price), (after, _) in pairwise(ordered)
    )
    held = [(price, seconds) for price, seconds in spans if seconds > 0]
    whole = sum(seconds for _, seconds in held)
    return sum(price * seconds for price, seconds in held) / whole if whole else None


def _alone(look: Look, now: datetime) -> Verdict:
    """What a pool deserves by itself."""
    until = avoided_until(look.taken)
    if until is not None and now < until:
        times = _times(look.taken, now)
        often = "once" if times == 1 else f"{times} times"
        why = f"EC2 took it {often} in a day, last at {max(look.taken):%H:%M}: avoided until {until:%H:%M} UTC"
        return Verdict(state=State.AVOIDED, why=why, until=until)
    if look.share is None:
        unknown = "On-Demand" if look.spot_usd else "Spot"
        return Verdict(state=State.OPEN, why=f"its {unknown} price is not known, which is no reason to leave it out")
    if look.share >= (CHEAP_AGAIN if look.state is State.DEAR else DEAR):
        return Verdict(state=State.DEAR, why=f"Spot costs {look.share:.0%} of On-Demand")
    return Verdict(state=State.OPEN, why=f"saves {1 - look.share:.0%} of On-Demand")


def _times(taken: Iterable[datetime], last: datetime) -> int:
    """How many times something was taken in the day up to `last`; what is taken together is once."""
    times, since = 0, None
    for moment in sorted(moment for moment in taken if last - REMEMBERED < moment <= last):
        if since is None or moment - since >= TOGETHER:
            times, since = times + 1, moment
    return times


def _badness(look: Look, verdict: Verdict) -> tuple[bool, float, int, Pool]:
    """Worst last. One to avoid is better than a dear one: it saves until it is taken."""
    how = verdict.until.timestamp() if verdict.until else look.share or 0.0
    return verdict.state is State.DEAR, how, -(look.score or 0), look.pool
