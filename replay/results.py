"""One question, one answer for each policy: what it cost, and how long it was short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from replay.bounds import Plan, bound, bound_never_short
from replay.comparisons import COMPARISONS, Follow
from replay.files import Arrival
from replay.market import Market
from replay.shipped import Policy, Shipped, Urgency
from replay.work import Endless, Jobs, Work
from replay.world import Controller, Delays, Diary, World

SHIPPED = {"shipped": None, **{f"shipped-{urgency}": urgency for urgency in Urgency}}
"""The shipped policy as it is set, and with each urgency."""
BOUNDS: Mapping[str, Callable[[Market, int, Delays], Plan]] = {"bound": bound, "bound-never-short": bound_never_short}
POLICIES = (*SHIPPED, *COMPARISONS, *BOUNDS)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be survived. Without a load the need is `units` at all times, with one at most that."""

    market: Market
    delays: Delays
    units: int
    shipped: Policy
    job_seconds: float
    load: tuple[Arrival, ...] | None = None
    jobs_per_unit: int = 1
    max_wait: float | None = None

    def work(self) -> Work:
        """The work, from its beginning."""
        if self.load is None:
            return Endless(self.units, self.job_seconds)
        return Jobs(self.load, units=self.units, jobs_per_unit=self.jobs_per_unit)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one policy. Costs are shares of what On-Demand alone costs; None is what it does not have."""

    policy: str
    cost_share: float
    cost_share_free_hour: float | None
    """The same if what EC2 takes back in its first hour is free."""
    short_share: float
    """Of the time, with fewer units than needed."""
    short_capacity_share: float
    """Of the unit-hours needed, those that were not there."""
    interruptions: int | None
    launches: int | None
    on_demand_unit_hours: float
    jobs: int | None = None
    in_time_share: float | None = None
    """Of the jobs, those that were done within the longest wait after their arrival."""
    done_seconds_p50: float | None = None
    done_seconds_p99: float | None = None

    def plain(self, *, load: bool) -> dict[str, Any]:
        """The result for JSON; what only a load has is left out without one."""
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}
        return rounded if load else {key: rounded[key] for key in list(rounded)[:8]}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A result, and how it came about unless nobody asked."""

    result: Result
    diary: Diary | None


def answer(question: Question, name: str, on_demand_cost: float, *, diary: bool = False) -> Answer:
    """Replay one policy. Raises NoPlan when a bound cannot be found."""
    if name in BOUNDS:
        plan = BOUNDS[name](question.market, question.units, question.delays)
        return Answer(
            result=Result(
                policy=name,
                cost_share=plan.cost / on_demand_cost,
                cost_share_free_hour=None,
                short_share=0.0,
                short_capacity_share=0.0,
                interruptions=None,
                launches=None,
                on_demand_unit_hours=plan.on_demand_seconds / 3600,
            ),
            diary=None,
        )
    written = Diary() if diary else None
    work = question.work()
    bill = World(question.market, work, question.delays, written).run(_controller(question, name))
    waits = work.waits(question.market.end) if isinstance(work, Jobs) else None
    return Answer(
        result=Result(
            policy=name,
            cost_share=bill.cost / on_demand_cost,
            cost_share_free_hour=bill.cost_free_hour / on_demand_cost,
            short_share=bill.short / bill.span,
            short_capacity_share=bill.missing_seconds / max(1.0, bill.needed_seconds),
            interruptions=bill.interruptions,
            launches=bill.launches,
            on_demand_unit_hours=bill.on_demand_seconds / 3600,
            jobs=waits.jobs if waits else None,
            in_time_share=waits.within(question.max_wait) if waits and question.max_wait is not None else None,
            done_seconds_p50=waits.quantile(0.5) if waits else None,
            done_seconds_p99=waits.quantile(0.99) if waits else None,
        ),
        diary=written,
    )


def on_demand_cost(question: Question) -> float:
    """What On-Demand alone costs, against which all is measured."""
    return World(question.market, question.work(), question.delays).run(Follow(COMPARISONS["on-demand"])).cost


def _controller(question: Question, name: str) -> Controller:
    if name in SHIPPED:
        urgency = SHIPPED[name]
        return Shipped(replace(question.shipped, urgency=urgency) if urgency else question.shipped)
    return Follow(COMPARISONS[name])
