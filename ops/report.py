"""What an operator is told of a stack, in words and for programs. Pure."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ops.obstacles import Machine, Market, Obstacle, Pass, Queue
from ops.text import count, lasting, short, table
from ops.work import Work

sys.path.append(str(Path(__file__).resolve().parent.parent / "lambdas"))

from market import prices

SHOWN = 12
"""Running jobs on the screen."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Units of one market: asked of EC2, on instances, and joined and not leaving."""

    requested: int
    present: int
    joined: int

    @classmethod
    def of(cls, market: Market, machines: Iterable[Machine]) -> Capacity:
        """What was asked of the market, and its instances."""
        ours = list(machines)
        return cls(
            requested=market.requested,
            present=sum(one.units for one in ours),
            joined=sum(one.units for one in ours if one.joined and not one.draining),
        )


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What the instances that run cost an hour, in US dollars, and what they would On-Demand."""

    usd: float
    on_demand_usd: float
    unknown: tuple[str, ...] = ()
    """Pools of ours without a price."""

    @property
    def saving(self) -> float | None:
        """As a share of On-Demand; None when nothing runs."""
        return 1 - self.usd / self.on_demand_usd if self.on_demand_usd else None


def spend(machines: Iterable[Machine], known: Mapping[str, Mapping[str, Any]], region: str) -> Spend:
    """What runs, at the prices of the table of pools, or of our own list for On-Demand. Pure."""
    usd = on_demand_usd = 0.0
    unknown = set()
    for one in machines:
        row = known.get(one.pool, {})
        listed = prices.tabled(one.pool.partition("/")[0], region)
        dear = row.get("on_demand_usd", listed.usd if listed else None)
        cheap = row.get("spot_usd") if one.spot else dear
        if dear is None or cheap is None:
            unknown.add(one.pool)
        else:
            usd, on_demand_usd = usd + float(cheap), on_demand_usd + float(dear)
    return Spend(usd=usd, on_demand_usd=on_demand_usd, unknown=tuple(sorted(unknown)))


@dataclass(frozen=True, kw_only=True)
class Report:
    """What an operator is told."""

    stack: str
    region: str
    at: datetime
    queues: Sequence[Queue]
    needed: int
    spot: Capacity
    on_demand: Capacity
    why: str
    """As the last pass of the capacity Lambda put it."""
    work: Work
    to_empty: timedelta | None
    """None when nothing is left, or nothing has ended lately."""
    spend: Spend
    dead_letters: int
    obstacle: Obstacle | None

    def json(self) -> str:
        """For programs, on one line: times in ISO 8601, spans in seconds, null for what is not known."""
        return json.dumps(
            {**asdict(self), "spend": {**asdict(self.spend), "saving": self.spend.saving}}, default=_for_json
        )

    def text(self) -> Iterator[str]:
        """As it is printed."""
        yield f"{self.stack} in {self.region}, {self.at:%Y-%m-%d %H:%M:%S} UTC"
        yield ""
        head = ("queue", "waiting", "in flight", "delayed", "oldest", "tasks", "wanted")
        rows = [
            (
                *(one.name, str(one.visible), str(one.in_flight), str(one.delayed)),
                *(lasting(one.oldest) if one.oldest is not None else "-", str(one.running), str(one.desired)),
            )
            for one in self.queues
        ]
        yield from table([head, *rows], numbers={1, 2, 3, 4, 5, 6})
        yield ""
        units = [("units", "requested", "present", "joined")]
        for name, one in (("Spot", self.spot), ("On-Demand", self.on_demand)):
            units.append((name, str(one.requested), str(one.present), str(one.joined)))
        yield from table(units, numbers={1, 2, 3})
        yield ""
        for name, words in self._facts():
            yield f"{name:<10}{words}"
        if self.work.running:
            yield ""
            yield from self._running()
        if self.obstacle:
            yield ""
            yield f"in the way: {self.obstacle.seen}"
            yield f"  -> {self.obstacle.do}"

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "needed", f"{count(self.needed, 'unit')}: {self.why}"
        jobs = [f"{number:,} {state}" for state, number in sorted(self.work.states.items())]
        if self.work.withdrawn:
            jobs.append(f"{self.work.withdrawn:,} withdrawn by bench")
        unread = "" if self.work.whole else "; there are more, which were not read"
        yield "jobs", (", ".join(jobs) or "none yet") + unread
        rate = "none ended lately" if self.work.per_minute is None else f"{self.work.per_minute:,.1f} jobs a minute"
        yield "pace", rate + (f", empty in about {lasting(self.to_empty)}" if self.to_empty else "")
        saving = f", {self.spend.saving:.0%} less than On-Demand" if self.spend.saving is not None else ""
        unknown = f"; no price for {', '.join(self.spend.unknown)}" if self.spend.unknown else ""
        yield "spend", f"{self.spend.usd:.2f} USD an hour now{saving}{unknown}"
        if self.work.today:
            cost, seconds = self.work.cost_usd, count(round(self.work.gpu_seconds), "GPU second")
            money = (
                "at a cost not known" if cost is None else f"for {cost:.4f} USD, {cost / self.work.today:.6f} USD each"
            )
            yield "today", f"{count(self.work.today, 'job')} {money}, {seconds}"
        if self.dead_letters:
            see = f"python build.py dlq list --stack {self.stack}"
            yield "dead", f"{self.dead_letters} in the dead-letter queue: {see}"

    def _running(self) -> Iterator[str]:
        head = ("working", "pool", "market", "for", "job", "key")
        rows = [
            (
                *(one.instance_id or "-", one.pool or "-", one.lifecycle or "-"),
                *(lasting(self.at - one.since), one.job_id, short(one.key, 40)),
            )
            for one in self.work.running[:SHOWN]
        ]
        yield from table([head, *rows], numbers={3})
        if len(self.work.running) > SHOWN:
            yield f"and {len(self.work.running) - SHOWN:,} more"


def why(last: Pass | None) -> str:
    """Why so many units are needed, by the last pass of the capacity Lambda."""
    if last is None:
        return "the capacity Lambda has said nothing lately"
    return "the services want them; the last pass of the capacity Lambda failed" if last.failed else last.why


def _for_json(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else str(value)
