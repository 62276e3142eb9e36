"""Zones that give and take instances, a fleet that keeps its target, work, and a bill. Only its clock moves it.

What EC2 does is here; what a policy does comes from a Controller. An instance that is launched is billed from then on
and serves after its delay. When a zone has less than is held there, the youngest instances get their notice, serve on
until it ends, and are replaced by the fleet at once, where there is room. On-Demand can always be had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Protocol

from replay.market import Market
from replay.work import Job, Work

ON_DEMAND = -1
"""The zone of an instance that is not Spot: the last place in a list by zone."""
LEAST_BILLED = 60.0
FREE = 3600.0
"""Spot that EC2 takes back within its first hour is not billed (EC2 User Guide, "Billing for interrupted Spot")."""
LAST_CALL = 20.0
"""A worker under notice finishes a job only if so much of the notice is left then."""

ENDED, JOB_DONE, JOINED, READY, AVAILABLE, ARRIVED, WAKE = range(7)
"""What happens, in the order in which it does when it is at the same moment."""


@dataclass(frozen=True, kw_only=True)
class Delays:
    """Seconds from a launch to the first work, and from a notice to the end.

    The last so many of a launch begin when the instance, having joined, has its first task: the image is pulled for it.
    """

    spot: float
    on_demand: float
    notice: float
    spot_starting: float = 0.0
    on_demand_starting: float = 0.0


@dataclass(slots=True, eq=False)
class Machine:
    """One instance of one unit. `up`: it has joined; `pulls`: it had a task, and so `started`: tasks work, some seconds
    later. `worker`: it has a task, which may still be starting, with a job at hand or without.
    """

    number: int
    zone: int
    launched: float
    joins: float
    starting: float
    up: bool = False
    pulls: bool = False
    started: bool = False
    noticed: bool = False
    ends: float = inf
    draining: bool = False
    serving: bool = False
    worker: bool = False
    job: Job | None = None
    view: object = None
    """What a controller has made of it; forgotten when it changes."""

    @property
    def leaving(self) -> bool:
        """It takes no new work."""
        return self.noticed or self.draining


@dataclass(kw_only=True)
class Bill:
    """What it came to: money in the market's unit, unit-seconds, and counts."""

    cost: float = 0.0
    cost_free_hour: float = 0.0
    interruptions: int = 0
    launches: int = 0
    on_demand_seconds: float = 0.0
    needed_seconds: float = 0.0
    missing_seconds: float = 0.0
    short: float = 0.0
    """How long, in seconds, fewer units served than were needed."""
    span: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Diary:
    """What happened when: units needed, units that served by zone (On-Demand last), and the zones of notices."""

    moments: list[tuple[float, int, tuple[int, ...]]] = field(default_factory=list)
    notices: list[tuple[float, int]] = field(default_factory=list)


class World:
    """One market being lived through."""

    def __init__(self, market: Market, work: Work, delays: Delays, diary: Diary | None = None) -> None:
        self.market = market
        self.work = work
        self.bill = Bill()
        self.now = 0.0
        self.news = 0
        """Grows with everything that AWS announces by an event: what becomes of instances."""
        self.version = 0
        """Grows with everything that a look would show."""
        self.spot: dict[Machine, None] = {}
        """Oldest first, like `on_demand`."""
        self.on_demand: dict[Machine, None] = {}
        self.held = [0] * len(market.zones)
        """Spot by zone, without what is under notice."""
        self.target = 0
        self.caps: Sequence[int] | None = None
        """The most that the fleet may hold by zone, if it may not choose freely."""
        self.tasks: int | None = None
        """How many workers there are to be; None is one on every instance."""
        self._delays = delays
        self._diary = diary
        self._available = (0,) * len(market.zones)
        self._serving = [0] * (len(market.zones) + 1)
        self._workers = 0
        self._free: dict[Machine, None] = {}
        self._idle: dict[Machine, None] = {}
        self._events: list[tuple[float, int, int, Machine | Job | None]] = []
        self._holder: dict[Job, Machine] = {}
        self._rows = iter(market.available)
        self._row = next(self._rows)
        self._order = count()
        self._numbers = count()

    def run(self, controller: Controller) -> Bill:
        """Live through the whole market."""
        self._at(0.0, AVAILABLE)
        for moment in self.work.arrivals:
            self._at(moment, ARRIVED)
        wake = inf
        begun = False
        while self._events and (at := self._events[0][0]) < self.market.end:
            self._pass_time(at)
            while self._events and self._events[0][0] <= at:
                _, kind, _, what = heappop(self._events)
                self._happen(kind, what)
            if not begun:
                controller.begin(self)
                begun = True
            self.settle()
            woken = controller.act(self)
            self.settle()
            if woken != wake and woken < inf:
                self._at(woken, WAKE)
            wake = woken
            if self._diary is not None:
                self._diary.moments.append((at, self.work.need(), tuple(self._serving)))
        self._pass_time(self.market.end)
        for machine in [*self.spot, *self.on_demand]:
            self._charge(machine)
        return self.bill

    @property
    def jobs_at_hand(self) -> int:
        """Jobs that workers are at."""
        return len(self._holder)

    def ready(self) -> int:
        """Spot that works and is not under notice."""
        return sum(machine.started and not machine.noticed for machine in self.spot)

    def ask_spot(self, target: int, caps: Sequence[int] | None = None) -> None:
        """Set the fleet's target. What it holds beyond stays (ExcessCapacityTerminationPolicy noTermination)."""
        if (target, caps) != (self.target, self.caps):
            self.target, self.caps = target, caps
            self.version += 1
        self._fill()

    def buy(self, units: int) -> None:
        """Launch On-Demand."""
        for _ in range(units):
            self.on_demand[self._launch(ON_DEMAND, self._delays.on_demand, self._delays.on_demand_starting)] = None

    def terminate(self, machine: Machine) -> None:
        """End an instance; a job that it has at hand is given back."""
        self._end(machine)

    def drain(self, machine: Machine) -> None:
        """Let a machine finish the job at hand and take no other."""
        self._replace_worker(machine)
        machine.draining = True
        self._changed(machine)
        self._stop_feeding(machine)
        if machine.job is None:
            self._serve(machine, on=False)
        elif machine.job.endless:
            self._at(machine.job.break_after(self.now), JOB_DONE, machine.job)

    def reactivate(self, machine: Machine) -> None:
        """Take back what was drained."""
        was_leaving, machine.draining = machine.leaving, False
        self._workers += machine.worker and was_leaving and not machine.leaving
        self._changed(machine)
        if machine.up and not machine.noticed:
            self._serve(machine, on=machine.started)
            if not machine.worker:
                self._free[machine] = None

    def set_tasks(self, tasks: int) -> None:
        """Say how many workers there are to be. One that has a job is not stopped (ECS task scale-in protection)."""
        if tasks != self.tasks:
            self.tasks = tasks
            self.version += 1

    def settle(self) -> None:
        """Let EC2 and ECS do what they do by themselves."""
        self._fill()
        self._place()

    def _at(self, moment: float, kind: int, what: Machine | Job | None = None) -> None:
        heappush(self._events, (moment, kind, next(self._order), what))

    def _happen(self, kind: int, what: Machine | Job | None) -> None:
        if kind == AVAILABLE:
            self._available = self._row[1]
            self._take_back()
            if row := next(self._rows, None):
                self._row = row
                self._at(row[0], AVAILABLE)
        elif kind == ARRIVED:
            if self.work.backlog() == 0:
                # The first upload after a quiet time wakes the capacity Lambda.
                self.news += 1
            self.work.arrive(self.now)
            self.version += 1
        elif isinstance(what, Job):
            if what in self._holder:
                self._finish(self._holder.pop(what), what)
        elif isinstance(what, Machine) and (what in self.spot or what in self.on_demand):
            if kind == ENDED:
                self._end(what)
            elif kind == JOINED:
                self._join(what)
            elif kind == READY:
                self._start(what)

    def _pass_time(self, until: float) -> None:
        span = until - self.now
        need = self.work.need()
        missing = need - sum(self._serving)
        bill = self.bill
        bill.span += span
        bill.needed_seconds += need * span
        if missing > 0:
            bill.short += span
            bill.missing_seconds += missing * span
        self.now = until

    def _take_back(self) -> None:
        for zone, room in enumerate(self._available):
            excess = self.held[zone] - room
            if excess <= 0:
                continue
            victims = [machine for machine in self.spot if machine.zone == zone and not machine.noticed][-excess:]
            for machine in victims:
                self._notice(machine)

    def _notice(self, machine: Machine) -> None:
        self._replace_worker(machine)
        machine.noticed = True
        machine.ends = self.now + self._delays.notice
        self.held[machine.zone] -= 1
        self.bill.interruptions += 1
        self._changed(machine)
        if self._diary is not None:
            self._diary.notices.append((self.now, machine.zone))
        self._at(machine.ends, ENDED, machine)
        self._stop_feeding(machine)
        job = machine.job
        if job is None:
            return
        if job.break_after(self.now) > machine.ends - LAST_CALL:
            self._give_back(machine)
            self._stop_worker(machine)
        elif job.endless:
            self._at(job.break_after(self.now), JOB_DONE, job)

    def _fill(self) -> None:
        """Launch Spot up to the target, spread as evenly as there is room: the fleet's strategy `diversified`.

        Among zones that hold the same, the cheapest comes first.
        """
        missing = self.target - sum(self.held)
        if missing <= 0:
            return
        caps = self._available if self.caps is None else self.caps
        most = [min(room, cap) for room, cap in zip(self._available, caps, strict=True)]
        if all(held >= room for held, room in zip(self.held, most, strict=True)):
            return
        prices = [price.at(self.now) for price in self.market.prices]
        for _ in range(missing):
            room = [zone for zone, held in enumerate(self.held) if held < most[zone]]
            if not room:
                return
            zone = min(room, key=lambda zone: (self.held[zone], prices[zone], zone))
            self.held[zone] += 1
            self.spot[self._launch(zone, self._delays.spot, self._delays.spot_starting)] = None

    def _launch(self, zone: int, delay: float, starting: float) -> Machine:
        """Launch one instance. Endless work has begun before the trace: what is launched at its start is ready then."""
        there = self.now == 0 and self.work.endless
        launched = self.now - delay if there else self.now
        joins = launched + delay - starting
        machine = Machine(next(self._numbers), zone, launched, joins, 0.0 if there else starting)
        self.bill.launches += 1
        self._changed(machine)
        if machine.joins > self.now:
            self._at(machine.joins, JOINED, machine)
        else:
            self._join(machine)
        return machine

    def _join(self, machine: Machine) -> None:
        machine.up = True
        self._changed(machine)
        if not machine.starting:
            machine.started = True
            self._serve(machine, on=True)
        if not machine.leaving:
            self._free[machine] = None

    def _start(self, machine: Machine) -> None:
        """Its image is there. The task that it was pulled for has been stopped by ECS if the instance leaves."""
        machine.started = True
        self._changed(machine)
        if not machine.leaving:
            self._serve(machine, on=True)
        if machine.worker:
            self._idle[machine] = None

    def _end(self, machine: Machine) -> None:
        self._stop_feeding(machine)
        if machine.job is not None:
            self._give_back(machine)
        self._stop_worker(machine)
        self._serve(machine, on=False)
        self._charge(machine)
        self._changed(machine)
        if machine.zone == ON_DEMAND:
            del self.on_demand[machine]
        else:
            del self.spot[machine]
            self.held[machine.zone] -= not machine.noticed

    def _charge(self, machine: Machine) -> None:
        start = max(0.0, machine.launched)
        lived = self.now - start
        billed = max(LEAST_BILLED, lived)
        if machine.zone == ON_DEMAND:
            cost = self.market.on_demand * billed / 3600
            self.bill.on_demand_seconds += billed
        else:
            cost = self.market.prices[machine.zone].between(start, start + billed)
        self.bill.cost += cost
        if not (machine.noticed and machine.ends <= self.now and lived < FREE):
            self.bill.cost_free_hour += cost

    def _place(self) -> None:
        """Start and stop workers until there are as many as there are to be, and give the idle ones jobs."""
        wanted = inf if self.tasks is None else self.tasks
        while self._free and self._workers < wanted:
            machine = next(iter(self._free))
            del self._free[machine]
            machine.worker = True
            self._workers += 1
            if machine.started:
                self._idle[machine] = None
            elif not machine.pulls:
                machine.pulls = True
                self._at(self.now + machine.starting, READY, machine)
            self._changed(machine)
        while self._idle and self._workers > wanted:
            machine = next(reversed(self._idle))
            del self._idle[machine]
            self._stop_worker(machine)
            self._free[machine] = None
        while self._idle and (job := self.work.take(self.now)):
            machine = next(iter(self._idle))
            del self._idle[machine]
            machine.job = job
            self._holder[job] = machine
            if job.done < inf:
                self._at(job.done, JOB_DONE, job)

    def _finish(self, machine: Machine, job: Job) -> None:
        self.work.finish(job, self.now)
        self.version += 1
        machine.job = None
        if not machine.leaving:
            self._idle[machine] = None
            return
        self._stop_worker(machine)
        if not machine.noticed:
            self._serve(machine, on=False)

    def _give_back(self, machine: Machine) -> None:
        if machine.job is not None:
            del self._holder[machine.job]
            self.work.give_back(machine.job)
            machine.job = None

    def _stop_feeding(self, machine: Machine) -> None:
        """Take it off the lists of those that may get work."""
        self._free.pop(machine, None)
        if machine in self._idle or not machine.started:
            self._idle.pop(machine, None)
            self._stop_worker(machine)

    def _replace_worker(self, machine: Machine) -> None:
        """It is to leave: ECS starts another task in the place of its own, which ends its job."""
        self._workers -= machine.worker and not machine.leaving

    def _stop_worker(self, machine: Machine) -> None:
        if machine.worker:
            machine.worker = False
            self._workers -= not machine.leaving
            self._changed(machine)

    def _serve(self, machine: Machine, *, on: bool) -> None:
        self._serving[machine.zone] += on - machine.serving
        machine.serving = on

    def _changed(self, machine: Machine) -> None:
        machine.view = None
        self.news += 1
        self.version += 1


class Controller(Protocol):
    """Who decides. It may look at the whole world, and acts by the methods of World that have no underscore."""

    def begin(self, world: World) -> None:
        """Set up what is to be there when time begins to pass."""

    def act(self, world: World) -> float:
        """React to what has just happened; return when to be asked again if nothing happens, or inf."""


def newest(machines: Iterable[Machine], most: int) -> list[Machine]:
    """So many of the youngest, or all."""
    return list(machines)[-most:] if most > 0 else []
