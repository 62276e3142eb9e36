"""Valid things for tests of the profile `groups`; a test names only what it is about."""

from dataclasses import replace

from lambdas_make import NOON

from capacity.groups import GroupPolicy, Kind, SeenGroups
from capacity.nouns import Load, Notes, Placement, Service

PLACED = {"worker": Placement.ANY, "patient": Placement.SPOT, "steady": Placement.ON_DEMAND}


def policy(**parts):
    """One service of each placement, a task for each job."""
    loads = {n: Load(jobs_per_task=1, max_tasks=50, units_per_task=1, placement=where) for n, where in PLACED.items()}
    return GroupPolicy(
        **{"loads": loads, "on_demand_units": 1, "max_units": 20, "max_on_demand_units": 10, **parts},
    )


def services(work=0, **others):
    """So many jobs that wait, by service; without a name it is the one for any instance."""
    jobs = {"worker": work, **others}
    return tuple(Service(name=n, visible=jobs.get(n, 0), in_flight=0, delayed=0, desired=0) for n in PLACED)


def seen(work=0, instances=(), *, short_since=None, bad=(), **parts):
    """A look at groups that have what they were asked for."""
    instances = tuple(instances)
    spot, on_demand = sum(i.units for i in instances if i.spot), sum(not i.spot for i in instances)
    parts.setdefault("overdue", parts.get("noticed", frozenset()))
    return SeenGroups(
        **{
            "at": NOON,
            "services": services(work),
            "requested": spot,
            "fulfilled": float(spot),
            "on_demand_requested": on_demand,
            "on_demand_present": on_demand,
            "on_demand_in_service": on_demand,
            "instances": instances,
            "notes": Notes(short_since=short_since, bad=bad),
            **parts,
        }
    )


def applied(look, decision):
    """What the next look sees if everything was applied, and no instance has come or gone of itself."""

    def after(i):
        return replace(i, joined=replace(i.joined, draining=True)) if i.id in decision.evacuate else i

    asked = {Kind.SPOT: look.requested, Kind.ON_DEMAND: look.on_demand_requested}
    if Kind.SPOT in decision.grow:
        asked[Kind.SPOT] = max(asked[Kind.SPOT], int(look.fulfilled) + decision.grow[Kind.SPOT])
    if Kind.ON_DEMAND in decision.grow:
        asked[Kind.ON_DEMAND] = max(asked[Kind.ON_DEMAND], look.on_demand_in_service + 1)
    gone = [i for i in look.instances if i.id in decision.give_up]
    asked[Kind.SPOT] -= sum(i.units for i in gone if i.spot)
    asked[Kind.ON_DEMAND] -= sum(not i.spot for i in gone)
    asked |= dict.fromkeys(decision.shrink, 0)
    return replace(
        look,
        requested=asked[Kind.SPOT],
        on_demand_requested=asked[Kind.ON_DEMAND],
        notes=decision.notes,
        idle_since=decision.idle_since,
        instances=tuple(after(i) for i in look.instances if i.id not in decision.replace + decision.give_up),
    )
