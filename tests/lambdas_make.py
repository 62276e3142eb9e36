"""Valid things for tests of the Lambdas; a test names only what it is about."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from capacity.policy import Decision, Instance, Joined, Load, Policy, Seen, Service

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
LONG_AGO = NOON - timedelta(hours=1)
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


def instance(name, *, tasks=0, draining=False, gpus=None, joined=True, **parts):
    """A Spot instance of one unit that joined long ago and idles."""
    whole = Instance(**{"id": name, "spot": True, "units": 1, "launched": LONG_AGO, **parts})
    if not joined:
        return whole
    gpus = whole.units if gpus is None else gpus
    there = Joined(arn=f"arn/{name}", draining=draining, tasks=tasks, units=gpus, since=whole.launched)
    return replace(whole, units=gpus, joined=there)


def seen(work=0, instances=(), *, in_flight=0, delayed=0, desired=0, **parts):
    """A look at one service with so many jobs waiting, and a fleet that was asked for what it has."""
    instances = tuple(instances)
    on_demand = sum(not i.spot for i in instances)
    return Seen(
        **{
            "at": NOON,
            "services": (Service(name="worker", visible=work, in_flight=in_flight, delayed=delayed, desired=desired),),
            "requested": sum(i.units for i in instances if i.spot),
            "fulfilled": float(sum(i.units for i in instances if i.spot)),
            "short_since": None,
            "on_demand_requested": on_demand,
            "on_demand_present": on_demand,
            "instances": instances,
            **parts,
        }
    )


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
        if i.id in decision.drain:
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
        short_since=decision.short_since,
        on_demand_requested=decision.on_demand_desired - len(decision.terminate_on_demand),
        on_demand_present=look.on_demand_present - len(decision.terminate_on_demand) - len(decision.replace_on_demand),
        instances=tuple(after(i) for i in look.instances if i.id not in gone),
    )
