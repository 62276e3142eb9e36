"""Valid things for tests of the Lambdas; a test names only what it is about."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

from capacity.nouns import Decision, Instance, Joined, Load, Notes, Placement, Policy, Seen, Service
from capacity.policy import decide

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
LONG_AGO = NOON - timedelta(hours=1)
PLACED = {"worker": Placement.ANY, "patient": Placement.SPOT, "steady": Placement.ON_DEMAND}
NOTED = ("short_since", "ample_since", "waves", "worked", "on_demand_took", "bad")
EVENTS = Path(__file__).parent.parent / "docs" / "events"


def sample(name):
    """The text of a sample event, as the body of an SQS record would have it."""
    return (EVENTS / f"{name}.json").read_text()


def batch(*bodies):
    """An SQS event with message ids m0, m1, …"""
    return {"Records": [{"messageId": f"m{n}", "body": body} for n, body in enumerate(bodies)]}


def notice(instance, **parts):
    return json.dumps({"schema": "spindrift.notice/1", "kind": "interruption", "instanceId": instance, **parts})


def policy(**parts):
    return Policy(
        **{
            "loads": {"worker": Load(jobs_per_task=1, max_tasks=50, units_per_task=1)},
            "on_demand_units": 1,
            "max_units": 20,
            "max_on_demand_units": 10,
            **parts,
        }
    )


def instance(name, *, tasks=0, pulls=0, draining=False, gpus=None, joined=True, took=timedelta(), **parts):
    """A Spot instance of one unit that joined long ago, `took` after its launch, and idles.

    Of its tasks, `pulls` are those that still pull their image.
    """
    whole = Instance(**{"id": name, "spot": True, "units": 1, "launched": LONG_AGO, **parts})
    if not joined:
        return whole
    gpus = whole.units if gpus is None else gpus
    since, running = whole.launched + took, tasks - pulls
    there = Joined(arn=f"arn/{name}", draining=draining, tasks=tasks, running=running, gpus=gpus, since=since)
    return replace(whole, units=gpus, joined=there)


def seen(work=0, instances=(), *, in_flight=0, delayed=0, desired=0, **parts):
    """A look at one service with so many jobs waiting, and a fleet that was asked for what it has.

    `short_since` and the other notes may be given like the parts of a look.
    """
    parts.setdefault("overdue", parts.get("noticed", frozenset()))
    noted = {name: parts.pop(name) for name in NOTED if name in parts}
    instances = tuple(instances)
    on_demand = sum(not i.spot for i in instances)
    return Seen(
        **{
            "at": NOON,
            "services": (Service(name="worker", visible=work, in_flight=in_flight, delayed=delayed, desired=desired),),
            "requested": sum(i.units for i in instances if i.spot),
            "fulfilled": float(sum(i.units for i in instances if i.spot)),
            "notes": Notes(**noted),
            "on_demand_requested": on_demand,
            "on_demand_present": on_demand,
            "instances": instances,
            **parts,
        }
    )


def od(name, took=timedelta(minutes=3), **parts):
    """An On-Demand instance that took longer to join than a notice lasts."""
    return instance(name, spot=False, took=took, **parts)


def waiting(**jobs):
    """Services with so many jobs waiting, by name."""
    return tuple(Service(name=name, visible=jobs.get(name, 0), in_flight=0, delayed=0, desired=0) for name in PLACED)


def placed(**parts):
    """A policy with one service of each placement; `**parts` as for a policy."""
    loads = {n: Load(jobs_per_task=1, max_tasks=50, units_per_task=1, placement=where) for n, where in PLACED.items()}
    return policy(**{"loads": loads, **parts})


def part(decision, name):
    """A part of the decision, or one of its notes."""
    return getattr(decision.notes if name in NOTED else decision, name)


def metrics(line):
    """What CloudWatch reads from a line of the log: {(stack, name): value}, by the rules of the embedded metric format.

    CloudWatch user guide, "Specification: Embedded metric format": one object and nothing else, a target at the root for
    every name, a number or up to 100 of them, dimensions as text, units as CloudWatch spells them.
    """
    root = json.loads(line)
    meta = root["_aws"]
    assert meta.keys() == {"Timestamp", "CloudWatchMetrics"} and type(meta["Timestamp"]) is int
    [directive] = meta["CloudWatchMetrics"]
    assert directive.keys() == {"Namespace", "Dimensions", "Metrics"}
    assert (directive["Namespace"], directive["Dimensions"]) == ("Spindrift", [["Stack"]])
    assert isinstance(root["Stack"], str) and 0 < len(directive["Metrics"]) <= 100
    found = {}
    for metric in directive["Metrics"]:
        assert metric.keys() == {"Name", "Unit"} and metric["Unit"] in ("Count", "Milliseconds")
        value = root[metric["Name"]]
        values = value if isinstance(value, list) else [value]
        assert 0 < len(values) <= 100 and all(type(each) in (int, float) for each in values)
        found[root["Stack"], metric["Name"]] = value
    return found


def applied(look: Seen, decision: Decision) -> Seen:
    """What the next look sees if everything was applied and nothing else happened."""
    gone = {*decision.terminate_spot, *decision.terminate_on_demand, *decision.replace_on_demand}

    def after(i):
        if i.id in decision.warn:
            i = replace(i, warned=look.at)
        if i.id in decision.drain + decision.relieve:
            return replace(i, surplus=True, joined=replace(i.joined, draining=True))
        if i.id in decision.evacuate:
            return replace(i, joined=replace(i.joined, draining=True))
        if i.id in decision.reactivate:
            return replace(i, surplus=False, joined=replace(i.joined, draining=False))
        return i

    return replace(
        look,
        services=tuple(replace(s, desired=decision.services[s.name]) for s in look.services),
        requested=decision.spot_target,
        notes=decision.notes,
        on_demand_requested=decision.on_demand_desired - len(decision.terminate_on_demand),
        on_demand_present=look.on_demand_present - len(decision.terminate_on_demand) - len(decision.replace_on_demand),
        instances=tuple(after(i) for i in look.instances if i.id not in gone),
    )


class Town:
    """A cluster that lives from pass to pass, a minute each, with a market that has room for `spot_room` units.

    Spot joins three minutes after its launch. Every instance that may have a task has one while there is work for it;
    a job takes `job_minutes`, and on an instance that drains it is the last. Of an instance whose GPU is broken
    (`is_spoiled`) its first task tells.
    """

    def __init__(self, chosen, *, job_minutes=1, on_demand_boots=3):
        self.policy, self.look, self.spot_room = chosen, seen(), 99
        self.launches, self.falls = 0, []
        self.is_spoiled = lambda instance: False
        self._boots = {True: timedelta(minutes=3), False: timedelta(minutes=on_demand_boots)}
        self._job, self._done, self._ends, self._number = timedelta(minutes=job_minutes), {}, {}, 0

    def run(self, *, minutes, backlog):
        for _ in range(minutes):
            at = self.look.at + timedelta(minutes=1)
            left = tuple(i for i in self.look.instances if i.id not in self._ends or at < self._ends[i.id])
            self.look = replace(
                self.look,
                at=at,
                warned=frozenset(),
                services=(replace(self.look.services[0], visible=backlog),),
                noticed=self.look.noticed & {i.id for i in left},
                instances=tuple(self._joined(i, at) for i in left),
            )
            self._work()
            self._set_aside()
            self._pass()

    def take(self, most):
        """EC2 takes so many Spot instances: they are under notice for two minutes.

        The fleet replaces them before anybody hears of it.
        """
        free = [i.id for i in self.look.instances if i.spot and i.id not in self.look.noticed]
        self._ends |= dict.fromkeys(free[:most], self.look.at + timedelta(minutes=2))
        self.look = replace(self.look, noticed=self.look.noticed | {*free[:most]})
        self._launch()
        self._pass()

    def warn(self, most):
        """EC2 recommends to replace so many instances: the next pass hears of it."""
        ids = [i.id for i in self.look.instances if i.spot][:most]
        self.look = replace(
            self.look,
            instances=tuple(replace(i, warned=self.look.at) if i.id in ids else i for i in self.look.instances),
        )

    def count(self, *, spot, draining=True):
        return sum(i.spot is spot and (draining or not (i.joined and i.joined.draining)) for i in self.look.instances)

    def healthy(self):
        return sum(bool(i.joined) and not i.joined.draining for i in self.look.instances)

    def _pass(self):
        decision = decide(self.look, self.policy)
        if decision.services["worker"] < self.look.services[0].desired:
            self.falls.append(self.look)
        self.look = applied(self.look, decision)
        self._launch()

    def _joined(self, i, at):
        if i.joined or at - i.launched < self._boots[i.spot]:
            return i
        return replace(i, joined=Joined(arn=f"arn/{i.id}", draining=False, tasks=0, running=0, gpus=1, since=at))

    def _work(self):
        """Tasks where there is room for them, and their ends."""
        at, room = self.look.at, self.look.services[0].desired
        instances = []
        for i in self.look.instances:
            if i.joined and i.joined.draining and at >= self._done.get(i.id, at):
                i = replace(i, joined=replace(i.joined, tasks=0, running=0))
            elif i.joined and not i.joined.draining:
                tasks = int(room > 0)
                room -= tasks
                if tasks and at >= self._done.get(i.id, at):
                    self._done[i.id] = at + self._job
                i = replace(i, joined=replace(i.joined, tasks=tasks, running=tasks))
            instances.append(i)
        self.look = replace(self.look, instances=tuple(instances))

    def _set_aside(self):
        """What the Lambda hears of broken GPUs, and does at once."""
        spoiled = {i.id for i in self.look.instances if i.joined and i.joined.running and self.is_spoiled(i)}
        self.look = replace(
            self.look,
            broken=frozenset(f"arn/{name}" for name in spoiled),
            instances=tuple(
                replace(i, joined=replace(i.joined, draining=True, tasks=0, running=0)) if i.id in spoiled else i
                for i in self.look.instances
            ),
        )

    def _launch(self):
        """What the fleet and the group do until the next pass."""
        spot = sum(i.spot and i.id not in self.look.noticed for i in self.look.instances)
        wanted = min(self.look.requested, self.spot_room) - spot
        kinds = [True] * wanted + [False] * (self.look.on_demand_requested - self.look.on_demand_present)
        new = []
        for kind in kinds:
            self._number += 1
            self.launches += 1
            new.append(Instance(id=f"i-{self._number:04}", spot=kind, units=1, launched=self.look.at))
        instances = (*self.look.instances, *new)
        self.look = replace(
            self.look,
            instances=instances,
            fulfilled=float(sum(i.spot and i.id not in self.look.noticed for i in instances)),
            on_demand_present=sum(not i.spot for i in instances),
        )


class Weighed(Town):
    """A town whose market brings types of several weights, as it likes, and whose ECS places tasks likewise."""

    def __init__(self, chosen, types, chance):
        super().__init__(chosen)
        self._types, self._chance = types, chance

    def at_work(self):
        """Units that have a task."""
        return sum(i.worth * i.joined.tasks for i in self.look.instances if i.joined and not i.joined.draining)

    def _joined(self, i, at):
        if i.joined or at - i.launched < self._boots[i.spot]:
            return i
        gpus = int(i.units / i.worth)
        return replace(i, joined=Joined(arn=f"arn/{i.id}", draining=False, tasks=0, running=0, gpus=gpus, since=at))

    def _work(self):
        """Tasks stay where they are; more go anywhere, and of too many any end. What drains ends its tasks."""
        counts = {i.id: 0 if i.joined.draining else i.joined.tasks for i in self.look.instances if i.joined}
        room = {i.id: i.joined.gpus for i in self.look.instances if i.joined and not i.joined.draining}
        more = self.look.services[0].desired - sum(counts.values())
        for _ in range(abs(more)):
            places = [i for i in sorted(room) if counts[i] < room[i]] if more > 0 else [i for i in counts if counts[i]]
            if places:
                counts[self._chance.choice(sorted(places))] += 1 if more > 0 else -1
        self.look = replace(
            self.look,
            instances=tuple(
                replace(i, joined=replace(i.joined, tasks=counts[i.id], running=counts[i.id])) if i.joined else i
                for i in self.look.instances
            ),
        )

    def _launch(self):
        have = sum(i.units for i in self.look.instances)
        new = []
        while have < self.look.requested:
            units, gpus = self._chance.choice(self._types)
            self._number += 1
            new.append(
                Instance(
                    id=f"i-{self._number:04}",
                    spot=True,
                    units=units,
                    worth=Fraction(units, gpus),
                    launched=self.look.at,
                )
            )
            have += units
        self.look = replace(self.look, instances=(*self.look.instances, *new), fulfilled=float(have))
