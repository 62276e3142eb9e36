"""What somebody who knows the future would pay for never being short: two lower bounds.

Work is the same need at all times. Instances come in parts, and no least time is billed, so that no plan that can be
carried out is cheaper.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf

from replay.market import Market
from replay.world import Delays


class NoPlan(Exception):
    """The linear program was not solved."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What it costs, in the market's unit, and how much On-Demand is in it, in unit-seconds."""

    cost: float
    on_demand_seconds: float


def bound(market: Market, units: int, delays: Delays) -> Plan:
    """As if launches took no time: then each moment stands for itself, and takes the cheapest that it can have.

    What a zone takes back serves on until the notice ends.
    """
    times = [at for at, _ in market.available]
    moments = {*times, *(at + delays.notice for at in times), *(at for price in market.prices for at in price.times)}
    cost = on_demand = 0.0
    for start, end in _spans(moments, market.end):
        first, last = bisect_right(times, start - delays.notice) - 1, bisect_right(times, start)
        rooms = [
            max(room) for room in zip(*(counts for _, counts in market.available[max(0, first) : last]), strict=True)
        ]
        left = units
        for price, room in sorted(zip((price.at(start) for price in market.prices), rooms, strict=True)):
            taken = min(left, room) if price < market.on_demand else 0
            cost += taken * price * (end - start) / 3600
            left -= taken
        on_demand += left * (end - start)
    return Plan(cost=cost + on_demand * market.on_demand / 3600, on_demand_seconds=on_demand)


def bound_never_short(market: Market, units: int, delays: Delays) -> Plan:
    """Find the cheapest plan that has its launches ready in time: a linear program.

    What serves changes only when Spot that was launched as its zone gave more becomes ready, when what a zone takes
    back ends, and when a price changes. Each span between two such moments has variables for the units of On-Demand
    that serve and that start to, and for each zone for those of Spot that serve, start and stop. Raises NoPlan.
    """
    moments = {at for price in market.prices for at in price.times}
    for (_, before), (at, now) in pairwise(market.available):
        if any(more > less for more, less in zip(now, before, strict=True)):
            moments.add(at + delays.spot)
        if any(less < more for less, more in zip(now, before, strict=True)):
            moments.add(at + delays.notice)
    spans = _spans(moments, market.end)
    program = _Program()

    hours = [(end - start) / 3600 for start, end in spans]
    on_demand = [program.variable(market.on_demand * each) for each in hours]
    # What starts at the beginning has been there: its launch is not in the bill.
    bought = [program.variable(market.on_demand * delays.on_demand / 3600 if start else 0.0) for start, _ in spans]
    for index, begun in enumerate(bought):
        last = {on_demand[index - 1]: -1.0} if index else {}
        program.must(-inf, {on_demand[index]: 1.0, begun: -1.0, **last}, 0.0)
    serving = [_add_zone(program, market, zone, spans, delays) for zone in range(len(market.zones))]
    for index, own in enumerate(on_demand):
        program.must(units, {own: 1.0, **{zone[index]: 1.0 for zone in serving}}, inf)

    cost, values = program.solve()
    return Plan(
        cost=cost,
        on_demand_seconds=sum(values[own] * hour * 3600 for own, hour in zip(on_demand, hours, strict=True))
        + sum(values[begun] * delays.on_demand for begun in bought[1:]),
    )


def _spans(moments: Iterable[float], end: float) -> list[tuple[float, float]]:
    return list(pairwise([*sorted({0.0, *(moment for moment in moments if 0 < moment < end)}), end]))


def _add_zone(
    program: _Program, market: Market, zone: int, spans: Sequence[tuple[float, float]], delays: Delays
) -> list[int]:
    """Add one zone's variables, and that what is held in it never exceeds what it has; return those that serve.

    A unit that serves from a to b is held from a - delay to b - notice.
    """
    price = market.prices[zone]
    times = [at for at, _ in market.available]
    rooms = [counts[zone] for _, counts in market.available]
    begins = [start for start, _ in spans]

    serve = [program.variable(price.between(start, end)) for start, end in spans]
    starts, stops = [], []
    for index, begin in enumerate(begins):
        launch = max(0.0, begin - delays.spot)
        cost = price.between(launch, launch + delays.spot) if begin else 0.0
        room = rooms[bisect_right(times, launch) - 1]
        starts.append(program.variable(cost, most=room))
        stops.append(program.variable(0.0))
        before = {serve[index - 1]: -1.0} if index else {}
        program.must(0.0, {serve[index]: 1.0, starts[index]: -1.0, stops[index]: 1.0, **before}, 0.0)

    looks = {begin - delay for begin in begins for delay in (delays.spot, delays.notice)}
    looks |= {
        at for (at, room), before in zip(zip(times, rooms, strict=True), [None, *rooms], strict=False) if room != before
    }
    tightest: dict[tuple[int, int], int] = {}
    for look in looks:
        # What is under notice when the market ends has served to its end.
        if 0 <= look < market.end - delays.notice:
            started, stopped = bisect_right(begins, look + delays.spot), bisect_right(begins, look + delays.notice)
            room = rooms[bisect_right(times, look) - 1]
            tightest[started, stopped] = min(room, tightest.get((started, stopped), room))
    for (started, stopped), room in tightest.items():
        booting = {starts[index]: 1.0 for index in range(stopped, started)}
        held = {serve[stopped - 1]: 1.0} | booting
        held |= {starts[index]: -1.0 for index in range(started, stopped)}
        program.must(-inf, held, room)
    return serve


@dataclass
class _Program:
    """A linear program: variables from 0 with a price each, and sums of them between two limits."""

    costs: list[float] = field(default_factory=list)
    mosts: list[float] = field(default_factory=list)
    limits: list[tuple[float, float]] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)

    def variable(self, cost: float, most: float = inf) -> int:
        self.costs.append(cost)
        self.mosts.append(most)
        return len(self.costs) - 1

    def must(self, least: float, factors: dict[int, float], most: float) -> None:
        self.limits.append((least, most))
        self.columns.extend(factors)
        self.factors.extend(factors.values())
        self.starts.append(len(self.columns))

    def solve(self) -> tuple[float, Sequence[float]]:
        """The least cost, and the variables that give it."""
        # Here and not above: they take a fifth of a second to import, and most replays want no bound.
        import highspy  # noqa: PLC0415
        import numpy as np  # noqa: PLC0415

        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self.costs), len(self.limits)
        model.col_cost_, model.col_upper_ = np.array(self.costs), np.array(self.mosts)
        model.col_lower_ = np.zeros(len(self.costs))
        model.row_lower_, model.row_upper_ = np.array(self.limits).T.copy()
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self.starts)
        model.a_matrix_.index_ = np.array(self.columns)
        model.a_matrix_.value_ = np.array(self.factors)
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.passModel(model)
        solver.run()
        if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise NoPlan(f"the linear program ended as {solver.modelStatusToString(solver.getModelStatus())}")
        return solver.getInfo().objective_function_value, solver.getSolution().col_value
