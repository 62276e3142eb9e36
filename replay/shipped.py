"""The only adapter between the replay and the product: the world as the capacity Lambda would see it, and what it does.

The policy is imported from where the Lambda's zip is made of, and driven as in production: at every event that
EventBridge would bring, again for the echo of what it did itself, and every minute.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from math import ceil, inf
from pathlib import Path

from replay.world import ON_DEMAND, Machine, World
from templates.settings import Settings

sys.path.append(str(Path(__file__).resolve().parent.parent / "lambdas"))

from capacity.breaker import QUIET
from capacity.nouns import Arrival, Decision, Instance, Joined, Load, Notes, Policy, Seen, Service, Urgency
from capacity.policy import decide
from capacity.trial import FORGOTTEN, PAUSE, PROVEN

__all__ = ["Policy", "Shipped", "Urgency", "as_set"]

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
SERVICE = "replayed"
MINUTE = 60.0
PHASE = 30.0
"""The minutes of EventBridge do not beat in time with the trace."""
ECHO = 2.0
"""What a pass changes comes back to it as an event, so soon."""


def as_set(
    settings: Settings, *, units: int, jobs_per_unit: int, urgency: Urgency | None, max_wait: float | None
) -> Policy:
    """Make the policy of what an operator chose; the limits are so many units of each kind, one to an instance."""
    chosen = settings.on_demand
    return Policy(
        loads={
            SERVICE: Load(
                jobs_per_task=jobs_per_unit,
                max_tasks=units,
                units_per_task=1,
                max_wait=None if max_wait is None else timedelta(seconds=max_wait),
            )
        },
        on_demand_units=1,
        max_units=units,
        max_on_demand_units=units,
        urgency=urgency or Urgency(chosen.urgency),
        patience=timedelta(seconds=chosen.patience_seconds),
        calm=timedelta(seconds=chosen.calm_seconds),
    )


class Shipped:
    """The shipped policy as a Controller.

    What production keeps in tags is kept here. A pass that would see nothing new is not made: while the work never
    ends, time alone changes a decision only when something comes to be as old as a time that the policy minds.
    `every_minute` makes all passes.
    """

    def __init__(self, policy: Policy, *, every_minute: bool = False) -> None:
        self._policy = policy
        self._settle = policy.settle.total_seconds()
        self._spans = [span.total_seconds() for span in (policy.patience, policy.calm, policy.broken)]
        self._longest = max(self._settle, *self._spans)
        self._every_minute = every_minute
        self._notes = Notes()
        self._machines: dict[str, Machine] = {}
        self._heard = -1
        self._looked = -1
        self._due = 0.0

    def begin(self, world: World) -> None:
        """Work that never ends finds capacity in place, On-Demand where the market has no Spot."""
        if world.work.endless:
            units = world.work.need()
            world.ask_spot(units)
            world.buy(min(units - sum(world.held), self._policy.max_on_demand_units))
            world.set_tasks(units)

    def act(self, world: World) -> float:
        """Make a pass if one is due."""
        if world.news != self._heard or world.now >= self._due:
            before = world.version
            seen = self._look(world)
            self._apply(world, decide(seen, self._policy))
            world.settle()
            self._due = self._next(world, seen) if world.version == before else world.now + ECHO
            self._heard, self._looked = world.news, world.version
        elif world.version != self._looked:
            self._due = min(self._due, _minute_from(world.now))
        return self._due

    def _look(self, world: World) -> Seen:
        backlog, running = world.work.backlog(), world.jobs_at_hand
        return Seen(
            at=_moment(world.now),
            services=(
                Service(
                    name=SERVICE,
                    visible=max(0, backlog - running),
                    in_flight=running,
                    delayed=0,
                    desired=world.tasks or 0,
                    arrivals=tuple(Arrival(timedelta(seconds=age), jobs) for age, jobs in world.work.came(world.now)),
                    job_seconds=world.work.pace(),
                ),
            ),
            requested=world.target,
            fulfilled=float(sum(world.held)),
            notes=self._notes,
            on_demand_requested=len(world.on_demand),
            on_demand_present=len(world.on_demand),
            instances=tuple(self._instance(machine) for machine in (*world.spot, *world.on_demand)),
            noticed=frozenset(_id(machine) for machine in world.spot if machine.noticed),
        )

    def _instance(self, machine: Machine) -> Instance:
        if not isinstance(machine.view, Instance):
            self._machines[_id(machine)] = machine
            machine.view = Instance(
                id=_id(machine),
                spot=machine.zone != ON_DEMAND,
                units=1,
                launched=_moment(machine.launched),
                joined=Joined(
                    arn=_id(machine),
                    # What is under notice, the handler has drained before it looks.
                    draining=machine.leaving,
                    tasks=int(machine.worker),
                    running=int(machine.worker and machine.started),
                    gpus=1,
                    since=_moment(machine.joins),
                )
                if machine.up
                else None,
                surplus=machine.draining,
            )
        return machine.view

    def _apply(self, world: World, decision: Decision) -> None:
        """Do what the capacity Lambda's apply does, in its order."""
        for name in decision.reactivate:
            world.reactivate(self._machines[name])
        world.buy(decision.on_demand_desired - len(world.on_demand))
        self._notes = decision.notes
        world.ask_spot(decision.spot_target)
        world.set_tasks(decision.services[SERVICE])
        for name in (*decision.drain, *decision.relieve):
            world.drain(self._machines[name])
        for name in (*decision.terminate_spot, *decision.terminate_on_demand, *decision.replace_on_demand):
            world.terminate(self._machines.pop(name))
        world.buy(len(decision.replace_on_demand))

    def _next(self, world: World, seen: Seen) -> float:
        """When the next pass may see something new, if nothing happens."""
        if self._every_minute or not world.work.endless:
            idle = not (world.work.backlog() or world.target or seen.instances)
            return inf if idle else _minute_from(world.now + ECHO)
        policy, notes = self._policy, self._notes
        of_joined = [self._settle, *([PROVEN.total_seconds()] if notes.bad else [])]
        ages = [
            moment + span
            for machine in (*world.spot, *world.on_demand)
            if machine.joins + self._longest > world.now
            for moment, spans in ((machine.joins, of_joined), (machine.launched, self._spans))
            for span in spans
        ]
        marks = [(notes.short_since, policy.patience), (notes.ample_since, policy.linger)]
        marks += [(wave.at, QUIET) for wave in notes.waves]
        marks += [(bad.launched, span) for bad in notes.bad for span in (PAUSE, FORGOTTEN)]
        ages += [(mark + span - EPOCH).total_seconds() for mark, span in marks if mark is not None]
        return _minute_from(min((age for age in ages if age > world.now), default=inf))


def _id(machine: Machine) -> str:
    return f"i-{machine.number}"


def _moment(now: float) -> datetime:
    return EPOCH + timedelta(seconds=now)


def _minute_from(moment: float) -> float:
    """The first minute of EventBridge's at this moment or later."""
    return moment if moment == inf else ceil((moment - PHASE) / MINUTE) * MINUTE + PHASE
