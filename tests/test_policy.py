"""The capacity policy: cases a person can read."""

from dataclasses import replace
from datetime import timedelta
from fractions import Fraction

import pytest
from lambdas_make import LONG_AGO, NOON, applied, instance, od, part, placed, policy, seen, waiting

from capacity.nouns import Arrival, Bad, Load, Notes, Service, Urgency, Wave
from capacity.policy import decide

JUST_NOW = NOON - timedelta(seconds=10)
TOO_LONG = timedelta(minutes=6)


@pytest.mark.parametrize(
    "case, look, expected",
    [
        ("nothing at all", seen(), {"spot_target": 0, "on_demand_desired": 0}),
        ("work from zero asks Spot, and only Spot", seen(3), {"spot_target": 3, "on_demand_desired": 0}),
        ("more work than the limit", seen(500), {"spot_target": 20}),
        ("work runs: keep it", seen(0, [instance("i-1", tasks=1)], in_flight=1), {"spot_target": 1, "drain": ()}),
        ("work is delayed: keep it", seen(0, [instance("i-1")], delayed=1), {"spot_target": 1, "drain": ()}),
        (
            "under notice: made up for at once",
            seen(2, [instance("i-1"), instance("i-2")], noticed=frozenset({"i-1"})),
            {"spot_target": 3, "on_demand_desired": 1, "healthy_units": 1, "noticed_units": 1, "taken": ("i-1",)},
        ),
        (
            "one of three under notice",
            seen(3, [instance("i-1"), instance("i-2"), instance("i-3")], noticed=frozenset({"i-3"})),
            {"on_demand_desired": 1, "healthy_units": 2, "noticed_units": 1},
        ),
        (
            "gone without a notice: made up for at once",
            seen(2, [instance("i-1")], requested=2, worked=2),
            {"on_demand_desired": 1, "short_since": NOON},
        ),
        (
            "asked a moment ago: the fleet still launches",
            seen(4, requested=4, short_since=JUST_NOW),
            {"on_demand_desired": 0, "short_since": JUST_NOW},
        ),
        (
            "asked, and nothing came within patience",
            seen(4, requested=4, short_since=NOON - TOO_LONG),
            {"on_demand_desired": 4},
        ),
        (
            "launching, and part of what was there is taken: that part at once",
            seen(4, [instance("i-1")], requested=4, short_since=JUST_NOW, noticed=frozenset({"i-1"})),
            {"on_demand_desired": 1},
        ),
        (
            "booting within patience counts",
            seen(1, [instance("i-1", joined=False, launched=JUST_NOW)]),
            {"on_demand_desired": 0, "short_since": None},
        ),
        (
            "late: made up for, and given more time",
            seen(1, [instance("i-1", joined=False, launched=NOON - TOO_LONG)]),
            {"on_demand_desired": 1, "terminate_spot": (), "spot_target": 1},
        ),
        (
            "late from the moment that patience is over",
            seen(1, [instance("i-1", joined=False, launched=NOON - timedelta(minutes=5))]),
            {"healthy_units": 0, "on_demand_desired": 1},
        ),
        (
            "late, and nothing is missing without it: ended",
            seen(1, [instance("i-1"), instance("i-2", joined=False, launched=NOON - TOO_LONG)]),
            {"on_demand_desired": 0, "terminate_spot": ("i-2",)},
        ),
        (
            "part of the fleet is late: that part at once",
            seen(
                3,
                [instance("i-1", joined=False, launched=NOON - TOO_LONG)],
                requested=3,
                short_since=JUST_NOW,
            ),
            {"on_demand_desired": 1},
        ),
        (
            "never joined: replaced, and made up for",
            seen(1, [instance("i-1", joined=False, launched=NOON - timedelta(minutes=10))]),
            {"on_demand_desired": 1, "terminate_spot": ("i-1",), "spot_target": 1},
        ),
        (
            "joined without a GPU: drained, and made up for",
            seen(1, [instance("i-1", gpus=0)], requested=1, worked=1),
            {"on_demand_desired": 1, "drain": ("i-1",)},
        ),
        ("without a GPU, and still a task: not yet", seen(1, [instance("i-1", gpus=0, tasks=1)]), {"drain": ()}),
        (
            "without a GPU, and drained: ended",
            seen(1, [instance("i-1", gpus=0, draining=True)]),
            {"terminate_spot": ("i-1",)},
        ),
        (
            "Spot that somebody else drained is no reason for On-Demand to leave",
            seen(1, [instance("i-1", draining=True, tasks=1), od("i-2", tasks=1)]),
            {"relieve": (), "on_demand_desired": 1},
        ),
        (
            "Spot has been calm for just long enough",
            seen(1, [instance("i-1", launched=NOON - timedelta(minutes=10)), od("i-2", tasks=1)]),
            {"relieve": ("i-2",)},
        ),
        (
            "what boots leaves first, and is not counted among those that work",
            seen(
                2, [instance("i-1"), od("i-2", tasks=1), od("i-3", tasks=1), od("i-4", joined=False, launched=JUST_NOW)]
            ),
            {"terminate_on_demand": ("i-4",), "relieve": ("i-3",)},
        ),
        (
            "a replacement boots a second later: what was bought stays",
            seen(
                2,
                [
                    instance("i-1"),
                    instance("i-2", joined=False, launched=JUST_NOW),
                    od("i-3", joined=False, launched=JUST_NOW),
                ],
                worked=2,
            ),
            {"on_demand_desired": 1, "terminate_on_demand": ()},
        ),
        (
            "a replacement boots sooner than the group launches: what was asked for stays",
            seen(2, [instance("i-1"), instance("i-2", joined=False, launched=JUST_NOW)], on_demand_requested=1),
            {"on_demand_desired": 1},
        ),
        (
            "its replacement has joined, but has not lasted: what boots stays, too",
            seen(1, [instance("i-1", launched=JUST_NOW), od("i-2", joined=False, launched=JUST_NOW)], worked=1),
            {"on_demand_desired": 1, "terminate_on_demand": ()},
        ),
        (
            "patience is just over",
            seen(1, requested=1, short_since=NOON - timedelta(minutes=5)),
            {"on_demand_desired": 1},
        ),
        (
            "the fleet's own scale-in sends notices, too: nothing is bought",
            seen(1, [instance("i-1"), instance("i-2"), instance("i-3")], noticed=frozenset({"i-2", "i-3"})),
            {"spot_target": 1, "on_demand_desired": 0},
        ),
        (
            "Spot is back but new: On-Demand stays",
            seen(1, [instance("i-1", launched=JUST_NOW), od("i-2")]),
            {"on_demand_desired": 1, "drain": ()},
        ),
        (
            "Spot is back and calm: idle On-Demand drains",
            seen(1, [instance("i-1"), od("i-2")]),
            {"on_demand_desired": 1, "drain": ("i-2",), "terminate_on_demand": ()},
        ),
        (
            "Spot is back and calm: drained On-Demand leaves",
            seen(1, [instance("i-1"), od("i-2", draining=True, surplus=True)]),
            {"on_demand_desired": 1, "terminate_on_demand": ("i-2",)},
        ),
        (
            "Spot is back and calm: busy On-Demand ends its job and takes no more",
            seen(1, [instance("i-1"), od("i-2", tasks=1)]),
            {"on_demand_desired": 1, "drain": (), "relieve": ("i-2",), "terminate_on_demand": ()},
        ),
        (
            "drained and still at its job: it stays",
            seen(1, [instance("i-1"), od("i-2", tasks=1, draining=True, surplus=True)]),
            {"on_demand_desired": 1, "relieve": (), "terminate_on_demand": ()},
        ),
        (
            "Spot is back in part: On-Demand stays for the rest, and the idle one leaves",
            seen(2, [instance("i-1"), od("i-2", tasks=1), od("i-3")]),
            {"on_demand_desired": 2, "drain": ("i-3",), "relieve": ()},
        ),
        (
            "On-Demand joins sooner than a notice lasts: it need not wait for calm",
            seen(1, [instance("i-1", launched=JUST_NOW), od("i-2", tasks=1, took=timedelta(minutes=2))]),
            {"relieve": ("i-2",)},
        ),
        (
            "On-Demand joins soon, and Spot has joined but pulls its image: On-Demand stays",
            seen(1, [instance("i-1", tasks=1, pulls=1), od("i-2", tasks=1, took=timedelta(minutes=2))]),
            {"relieve": (), "on_demand_desired": 1},
        ),
        (
            "On-Demand pulls its image, and Spot has lasted: it leaves all the same",
            seen(1, [instance("i-1", tasks=1), od("i-2", tasks=1, pulls=1)]),
            {"relieve": ("i-2",)},
        ),
        (
            "On-Demand joins soon, but Spot has not joined yet",
            seen(1, [instance("i-1", joined=False, launched=JUST_NOW), od("i-2", tasks=1, took=timedelta(minutes=1))]),
            {"relieve": (), "on_demand_desired": 1},
        ),
        (
            "On-Demand boots, and Spot has lasted: called off",
            seen(1, [instance("i-1"), od("i-2", joined=False, launched=JUST_NOW - timedelta(minutes=3))]),
            {"terminate_on_demand": ("i-2",), "on_demand_desired": 1},
        ),
        (
            "On-Demand not launched yet is called off",
            seen(0, on_demand_requested=3, on_demand_present=1),
            {"on_demand_desired": 1},
        ),
        (
            "an On-Demand instance that never joined is replaced while it is needed",
            seen(2, [od("i-1", joined=False), instance("i-2")], requested=2),
            {"replace_on_demand": ("i-1",), "terminate_on_demand": (), "on_demand_desired": 1},
        ),
        (
            "lost while more is needed: the loss at once, the rest from the fleet",
            seen(3, [instance("i-1")], requested=2, worked=2),
            {"spot_target": 3, "on_demand_desired": 1},
        ),
        (
            "work fell before Spot was calm: On-Demand beyond the work leaves",
            seen(1, [instance("i-1", launched=JUST_NOW), od("i-2"), od("i-3", tasks=1)]),
            {"drain": ("i-2",)},
        ),
        (
            "what rests and leaves does not stand for what is new: On-Demand stays",
            seen(
                1,
                [instance("i-1", launched=JUST_NOW, tasks=1), instance("i-2", draining=True, surplus=True), od("i-3")],
            ),
            {"drain": (), "terminate_spot": ("i-2",)},
        ),
        (
            "needed again: the one that is enough comes back",
            seen(2, [instance(f"i-{units}", units=units, draining=True, surplus=True) for units in (1, 2)]),
            {"reactivate": ("i-2",), "terminate_spot": ("i-1",)},
        ),
        (
            "the rest only boots: who has joined stays until it has joined, too",
            seen(2, [instance("i-1"), instance("i-2", units=2, joined=False, launched=JUST_NOW)]),
            {"drain": (), "terminate_spot": ()},
        ),
        (
            "surplus Spot that still boots ends first",
            seen(1, [instance("i-1"), instance("i-2", joined=False, launched=JUST_NOW)]),
            {"drain": (), "terminate_spot": ("i-2",)},
        ),
        (
            "somebody else drained one that is needed and still works: the fleet is asked for another",
            seen(2, [instance("i-1"), instance("i-2", draining=True, tasks=1)], worked=2),
            {"spot_target": 3, "on_demand_desired": 1},
        ),
        (
            "under notice, and the fleet no longer counts it: it is not asked for more",
            seen(2, [instance("i-1"), instance("i-2")], noticed=frozenset({"i-1"}), fulfilled=1.0),
            {"spot_target": 2},
        ),
        (
            "under notice, and replaced already: the target is what is to last",
            seen(
                2,
                [instance("i-1"), instance("i-2"), instance("i-3", joined=False, launched=JUST_NOW)],
                noticed=frozenset({"i-1"}),
                requested=3,
            ),
            {"spot_target": 2, "on_demand_desired": 0},
        ),
        (
            "the work has just become less: what is there lingers",
            seen(1, [instance("i-1"), instance("i-2")], desired=2),
            {"spot_target": 2, "drain": (), "services": {"worker": 2}, "ample_since": NOON, "needed_units": 1},
        ),
        (
            "the work became less a while ago: it leaves",
            seen(1, [instance("i-1"), instance("i-2")], desired=2, ample_since=NOON - timedelta(minutes=3)),
            {"spot_target": 1, "drain": ("i-2",), "services": {"worker": 1}, "ample_since": None},
        ),
        (
            "all work is done: nothing lingers",
            seen(0, [instance("i-1")], desired=2),
            {"spot_target": 0, "services": {"worker": 0}, "ample_since": None},
        ),
        (
            "the work is what it was: nothing lingers any more",
            seen(2, [instance("i-1"), instance("i-2")], desired=2, ample_since=NOON - timedelta(minutes=2)),
            {"ample_since": None},
        ),
        (
            "what lingers is no reason to buy",
            seen(1, [instance("i-1")], desired=2, requested=2),
            {"spot_target": 2, "on_demand_desired": 0, "short_since": None},
        ),
        (
            "at risk: its replacement comes first",
            seen(4, [instance(f"i-{n}", tasks=1) for n in range(4)], warned=frozenset({"i-1"})),
            {"spot_target": 5, "warn": ("i-1",), "relieve": (), "on_demand_desired": 0},
        ),
        (
            "at risk, and its replacement boots",
            seen(
                4,
                [instance("i-0", tasks=1, warned=JUST_NOW)]
                + [instance(f"i-{n}", tasks=1) for n in range(1, 4)]
                + [instance("i-4", joined=False, launched=JUST_NOW)],
                requested=5,
            ),
            {"spot_target": 4, "warn": (), "relieve": (), "drain": (), "terminate_spot": ()},
        ),
        (
            "at risk, and its replacement works: relieved",
            seen(
                4,
                [instance("i-0", tasks=1, warned=JUST_NOW)]
                + [instance(f"i-{n}", tasks=1) for n in range(1, 4)]
                + [instance("i-4", launched=JUST_NOW)],
            ),
            {"spot_target": 4, "relieve": ("i-0",), "drain": ()},
        ),
        (
            "at risk, and its replacement pulls its image",
            seen(
                4,
                [instance("i-0", tasks=1, warned=JUST_NOW)]
                + [instance(f"i-{n}", tasks=1) for n in range(1, 4)]
                + [instance("i-4", tasks=1, pulls=1)],
            ),
            {"spot_target": 4, "relieve": (), "drain": ()},
        ),
        (
            "at risk all at once: a quarter at a time",
            seen(8, [instance(f"i-{n}", tasks=1, warned=JUST_NOW) for n in range(8)]),
            {"spot_target": 10},
        ),
        (
            "one too many while one at risk is too large to go: who boots leaves before who works",
            seen(
                8,
                [instance("i-0", units=2, tasks=1, warned=JUST_NOW)]
                + [instance(f"i-{n}", tasks=1) for n in range(1, 7)]
                + [instance("i-7")]
                + [instance(f"i-{n}", joined=False, launched=JUST_NOW) for n in (8, 9)],
            ),
            {"relieve": (), "terminate_spot": ("i-9",), "drain": ()},
        ),
        (
            "at risk half an hour ago, and still there: forgotten",
            seen(1, [instance("i-1", tasks=1, warned=NOON - timedelta(minutes=30))]),
            {"spot_target": 1},
        ),
        (
            "at risk and idle: it leaves before newer ones",
            seen(1, [instance("i-1", warned=JUST_NOW), instance("i-2"), instance("i-3")]),
            {"drain": ("i-1",)},
        ),
        (
            "at risk and idle, and its replacement has joined",
            seen(1, [instance("i-1", warned=JUST_NOW), instance("i-2")]),
            {"drain": ("i-1",), "spot_target": 1},
        ),
        (
            "at risk and booting: had twice, too",
            seen(1, [instance("i-1", joined=False, launched=JUST_NOW, warned=JUST_NOW)]),
            {"spot_target": 2},
        ),
        (
            "told again of the same risk: written down once",
            seen(1, [instance("i-1", warned=JUST_NOW)], warned=frozenset({"i-1"})),
            {"warn": ()},
        ),
        (
            "told again when it was forgotten",
            seen(1, [instance("i-1", warned=LONG_AGO)], warned=frozenset({"i-1"})),
            {"warn": ("i-1",), "spot_target": 2},
        ),
        (
            "On-Demand is never at risk",
            seen(1, [od("i-1", tasks=1)], requested=1, warned=frozenset({"i-1"})),
            {"spot_target": 1, "warn": ()},
        ),
        (
            "surplus Spot: the newest idle one drains, the busy one stays",
            seen(
                2,
                [instance("i-1"), instance("i-2", launched=LONG_AGO + timedelta(1 / 24 / 2)), instance("i-3", tasks=1)],
            ),
            {"drain": ("i-2",), "terminate_spot": ()},
        ),
        (
            "new and without a task: ECS may still send one",
            seen(1, [instance("i-1", tasks=1), instance("i-2", launched=JUST_NOW)]),
            {"drain": ()},
        ),
        (
            "new and without a task or any work: it leaves at once",
            seen(0, [instance("i-1", launched=JUST_NOW)]),
            {"drain": ("i-1",)},
        ),
        (
            "needed again: no more come back than are needed",
            seen(2, [instance("i-1")] + [instance(f"i-{n}", draining=True, surplus=True) for n in (2, 3)]),
            {"reactivate": ("i-3",), "terminate_spot": ("i-2",)},
        ),
        (
            "new for just long enough, and without a task: it leaves",
            seen(1, [instance("i-1", tasks=1), instance("i-2", launched=NOON - timedelta(seconds=30))]),
            {"drain": ("i-2",)},
        ),
        (
            "needed again: what rests comes back",
            seen(1, [instance("i-1", draining=True, surplus=True)]),
            {"reactivate": ("i-1",), "terminate_spot": (), "on_demand_desired": 0},
        ),
        (
            "drained by somebody else: it does not come back",
            seen(1, [instance("i-1", draining=True, tasks=1)]),
            {"reactivate": (), "terminate_spot": ()},
        ),
        (
            "no work: instances that have not joined end at once",
            seen(0, [instance("i-1", joined=False, launched=JUST_NOW)]),
            {"terminate_spot": ("i-1",), "spot_target": 0},
        ),
        (
            "under notice and idle: EC2 will end it, and may charge nothing",
            seen(0, [instance("i-1", draining=True)], noticed=frozenset({"i-1"})),
            {"terminate_spot": (), "drain": (), "evacuate": ()},
        ),
        (
            "under notice and nobody told: it is drained, busy or not",
            seen(1, [instance("i-1", tasks=1)], noticed=frozenset({"i-1"})),
            {"evacuate": ("i-1",), "drain": ()},
        ),
        (
            "under notice, and the messenger may be on its way",
            seen(1, [instance("i-1", tasks=1)], noticed=frozenset({"i-1"}), overdue=frozenset()),
            {"evacuate": (), "on_demand_desired": 1},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decide(case, look, expected):
    decision = decide(look, policy())

    assert {name: part(decision, name) for name in expected} == expected


@pytest.mark.parametrize(
    "urgency, lost_now, short_for_long",
    [(Urgency.NOW, 1, 1), (Urgency.DEADLINE, 0, 1), (Urgency.SPOT_ONLY, 0, 0)],
)
def test_urgency_says_when_on_demand_makes_up(urgency, lost_now, short_for_long):
    chosen = policy(urgency=urgency)
    lost = seen(1, [instance("i-1")], noticed=frozenset({"i-1"}))
    short = seen(1, requested=1, short_since=NOON - TOO_LONG)

    assert decide(lost, chosen).on_demand_desired == lost_now
    assert decide(short, chosen).on_demand_desired == short_for_long


def test_tasks_follow_each_queue_and_units_follow_the_tasks():
    chosen = policy(
        loads={
            "urgent": Load(jobs_per_task=1, max_tasks=3, units_per_task=1),
            "large": Load(jobs_per_task=10, max_tasks=9, units_per_task=4),
        }
    )
    look = seen(
        services=(
            Service(name="urgent", visible=4, in_flight=1, delayed=0, desired=0),
            Service(name="large", visible=10, in_flight=0, delayed=1, desired=1),
        )
    )

    decision = decide(look, chosen)

    assert decision.services == {"urgent": 3, "large": 2}
    assert decision.spot_target == 3 + 2 * 4


@pytest.mark.parametrize(
    "case, work, look, expected",
    [
        (
            "for On-Demand alone: bought at once, and Spot is not asked",
            {"steady": 2},
            {},
            {"spot_target": 0, "on_demand_desired": 2, "needed_units": 2, "top_up_units": 0, "short_since": None},
        ),
        (
            "for Spot alone: waited for, however long it takes",
            {"patient": 2},
            {"requested": 2, "short_since": NOON - TOO_LONG},
            {"spot_target": 2, "on_demand_desired": 0, "needed_units": 2},
        ),
        (
            "for Spot alone, and it was interrupted: waited for",
            {"patient": 2},
            {"instances": [instance("i-1"), instance("i-2")], "noticed": frozenset({"i-1"})},
            {"spot_target": 3, "on_demand_desired": 0, "noticed_units": 1},
        ),
        (
            "each where it belongs, and only what either may do is made up for",
            {"worker": 3, "patient": 4, "steady": 1},
            {"requested": 7, "short_since": NOON - TOO_LONG},
            {"spot_target": 7, "on_demand_desired": 4, "needed_units": 8, "on_demand_target": 4, "top_up_units": 3},
        ),
        (
            "Spot that is there is for what either may do first",
            {"worker": 2, "patient": 4},
            {"instances": [instance("i-1"), instance("i-2")], "requested": 6, "short_since": NOON - TOO_LONG},
            {"spot_target": 6, "on_demand_desired": 0, "short_since": NOON - TOO_LONG},
        ),
        (
            "Spot is whole and calm, but there is work for On-Demand alone: its instance stays, the other leaves",
            {"worker": 1, "steady": 1},
            {"instances": [instance("i-1"), od("i-2"), od("i-3", tasks=1)]},
            {"drain": ("i-2",), "on_demand_desired": 2, "top_up_units": 0},
        ),
        (
            "its work is done and Spot is short: it stays for what either may do",
            {"worker": 1},
            {"instances": [od("i-1")], "requested": 1, "short_since": JUST_NOW},
            {"drain": (), "on_demand_desired": 1, "top_up_units": 1},
        ),
        (
            "its work is done and the rest is for Spot alone: it leaves",
            {"patient": 1},
            {"instances": [od("i-1")], "requested": 1, "short_since": JUST_NOW},
            {"drain": ("i-1",)},
        ),
        (
            "Spot is calm for what either may do, and the rest waits for Spot alone: it leaves",
            {"worker": 1, "patient": 5},
            {"instances": [instance("i-1"), od("i-2")], "requested": 6, "short_since": JUST_NOW},
            {"drain": ("i-2",), "top_up_units": 0},
        ),
        (
            "one for its own work and one for what either may do: both stay until Spot is there",
            {"worker": 1, "steady": 1},
            {"instances": [od("i-1"), od("i-2")], "requested": 1, "short_since": JUST_NOW},
            {"drain": (), "on_demand_desired": 2, "top_up_units": 1},
        ),
        (
            "more for On-Demand alone than the limit",
            {"steady": 30},
            {},
            {"spot_target": 0, "on_demand_desired": 10, "needed_units": 10},
        ),
        (
            "the limits of Spot and of On-Demand are two",
            {"worker": 30, "steady": 3},
            {},
            {"spot_target": 20, "on_demand_desired": 3, "needed_units": 23},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_work_runs_where_it_may(case, work, look, expected):
    decision = decide(seen(services=waiting(**work), **look), placed())

    assert {name: part(decision, name) for name in expected} == expected


HOUR = timedelta(hours=1)


def timed(jobs, *, came=(), job_seconds=60.0, instances=(), in_flight=0, delayed=0, **parts):
    """A look at one service with jobs that wait; `came` says how many of them came how long ago, the latest first."""
    service = replace(
        seen(jobs, in_flight=in_flight, delayed=delayed).services[0],
        arrivals=tuple(Arrival(age, n) for age, n in came),
        job_seconds=job_seconds,
    )
    return seen(0, instances, services=(service,), **{"short_since": JUST_NOW, **parts})


@pytest.mark.parametrize(
    "case, look, expected",
    [
        # An hour, less a minute of work, five until help is there and six to spare, is 48 minutes: ten of On-Demand do 480.
        ("no Spot at all, but it may come yet", timed(479), {"on_demand_desired": 0, "spot_target": 20}),
        ("the last moment for On-Demand", timed(480), {"on_demand_desired": 9}),
        ("a job that can wait no longer", timed(1, came=[(timedelta(minutes=48), 1)]), {"on_demand_desired": 1}),
        ("a job that can wait a little longer", timed(1, came=[(timedelta(minutes=47), 1)]), {"on_demand_desired": 0}),
        ("Spot does it in time", timed(1, came=[(timedelta(minutes=48), 1)], instances=[instance("i-1")]), {"on_demand_desired": 0}),
        ("what boots counts", timed(480, instances=[instance("i-1", joined=False, launched=JUST_NOW)]), {"on_demand_desired": 8}),
        ("as much as Spot is short of, and no more", timed(480, instances=[instance(f"i-{n}") for n in range(7)]), {"on_demand_desired": 2}),
        ("more than the limit", timed(999), {"on_demand_desired": 10}),
        ("nothing to do", timed(0), {"on_demand_desired": 0, "services": {"worker": 0}, "spot_target": 0}),
        # Half of five minutes for what is late.
        ("late already", timed(10, came=[(2 * HOUR, 10)]), {"on_demand_desired": 4}),
        ("late already, and delayed", timed(0, delayed=10, came=[(2 * HOUR, 10)]), {"on_demand_desired": 4}),
        ("within a quarter of 54 minutes", timed(94), {"services": {"worker": 10}}),
        ("no more tasks than jobs", timed(2, job_seconds=3000.0), {"services": {"worker": 2}}),
        (
            "half are old, and come first",
            timed(20, came=[(timedelta(0), 10), (timedelta(minutes=48), 10)]),
            {"on_demand_desired": 2},
        ),
        (
            "those that were done already are the oldest",
            timed(27, came=[(timedelta(minutes=27), 27), (2 * HOUR, 99)], instances=[instance("i-1")]),
            {"on_demand_desired": 0},
        ),
        ("what nobody told of is new, and comes last", timed(20, came=[(timedelta(minutes=48), 10)]), {"on_demand_desired": 2}),
        ("not known: not yet impatient", timed(10, job_seconds=None), {"on_demand_desired": 0}),
        ("not known: impatient", timed(10, job_seconds=None, short_since=NOON - TOO_LONG), {"on_demand_desired": 1}),
        ("not known, and nothing waits", timed(0, job_seconds=None, short_since=NOON - TOO_LONG), {"on_demand_desired": 0}),
        ("an interruption that makes nothing late", timed(9, instances=[instance("i-1"), instance("i-2")], noticed=frozenset({"i-1"})), {"on_demand_desired": 0}),
        (
            "in time, but not by far: what is there stays",
            timed(1, came=[(timedelta(minutes=42), 1)], instances=[od("i-2", tasks=1)]),
            {"on_demand_desired": 1, "relieve": ()},
        ),
        (
            "in time by far: it leaves",
            timed(1, came=[(timedelta(minutes=41), 1)], instances=[od("i-2", tasks=1)]),
            {"relieve": ("i-2",)},
        ),
        (
            "it stays until Spot has joined",
            timed(480, instances=[instance(f"i-{n}", joined=False, launched=JUST_NOW) for n in range(9)] + [od("i-9", tasks=1)]),
            {"relieve": (), "on_demand_desired": 1},
        ),
        (
            "Spot has just joined and is enough: it leaves",
            timed(1, came=[(timedelta(minutes=48), 1)], instances=[instance("i-1", launched=JUST_NOW), od("i-2", tasks=1)]),
            {"relieve": ("i-2",)},
        ),
        (
            "Spot is calm and enough: it leaves",
            timed(8, came=[(timedelta(minutes=48), 8)], instances=[instance(f"i-{n}") for n in range(2)] + [od("i-2", tasks=1)]),
            {"relieve": ("i-2",)},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_deadline(case, look, expected):
    loads = {"worker": Load(jobs_per_task=10, max_tasks=20, units_per_task=1, max_wait=HOUR)}
    decision = decide(look, policy(loads=loads, urgency=Urgency.DEADLINE, max_units=20))

    assert {name: part(decision, name) for name in expected} == expected


def test_a_deadline_may_want_more_tasks_than_the_jobs_do():
    loads = {"worker": Load(jobs_per_task=100, max_tasks=20, units_per_task=1, max_wait=HOUR)}
    chosen = policy(loads=loads, urgency=Urgency.DEADLINE)

    assert decide(timed(94), chosen).services == {"worker": 7}
    # Of what is in flight the half is done.
    assert decide(timed(90, in_flight=30), chosen).services == {"worker": 8}
    assert decide(timed(0, delayed=94), chosen).services == {"worker": 7}
    assert decide(timed(10, came=[(2 * HOUR, 10)]), chosen).services == {"worker": 4}


def test_deadlines_of_several_queues_add_up():
    load = Load(jobs_per_task=100, max_tasks=20, units_per_task=2, max_wait=HOUR)
    [service] = timed(5, came=[(2 * HOUR, 5)]).services
    look = seen(services=(service, replace(service, name="other")), short_since=JUST_NOW)

    chosen = policy(loads={"worker": load, "other": load}, urgency=Urgency.DEADLINE)
    assert decide(look, chosen).on_demand_desired == 2 * 2 * 2


@pytest.mark.parametrize(
    "case, jobs, load, limits, expected",
    [
        ("one unit, and it can wait", 47, {}, {"max_on_demand_units": 1}, 0),
        ("one unit, and it can wait no longer", 48, {}, {"max_on_demand_units": 1}, 1),
        ("three tasks of three units, for ten are no four", 144, {"units_per_task": 3}, {}, 9),
        ("five instances of two units", 479, {}, {"on_demand_units": 2}, 0),
        ("no more tasks than there may be", 96, {"max_tasks": 2}, {}, 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_how_long_on_demand_waits_is_what_its_limit_could_still_do(case, jobs, load, limits, expected):
    loads = {"worker": Load(**{"jobs_per_task": 100, "max_tasks": 20, "units_per_task": 1, "max_wait": HOUR, **load})}

    decision = decide(timed(jobs), policy(loads=loads, urgency=Urgency.DEADLINE, **limits))
    assert decision.on_demand_desired == expected


@pytest.mark.parametrize("jobs, expected", [(239, 0), (240, 10)])
def test_two_queues_share_the_limit_of_on_demand(jobs, expected):
    load = Load(jobs_per_task=100, max_tasks=20, units_per_task=1, max_wait=HOUR)
    [service] = timed(jobs).services
    look = seen(services=(service, replace(service, name="other")), short_since=JUST_NOW)

    chosen = policy(loads={"worker": load, "other": load}, urgency=Urgency.DEADLINE)
    assert decide(look, chosen).on_demand_desired == expected


def test_a_queue_without_a_deadline_is_not_known():
    look = timed(10, short_since=NOON - TOO_LONG)

    assert decide(look, policy(urgency=Urgency.DEADLINE)).on_demand_desired == 10


MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    "case, spot_took, on_demand_took, worked, expected",
    [
        ("On-Demand comes sooner: it stands in while the replacement boots", 3 * MINUTE, 2.5 * MINUTE, 2, 1),
        ("it comes no sooner to speak of", 3 * MINUTE, 2.6 * MINUTE, 2, 0),
        ("nobody knows how soon it comes: it is tried", 3 * MINUTE, None, 2, 1),
        ("Spot comes while the notice lasts", 2 * MINUTE, MINUTE, 2, 0),
        ("Spot comes just too late", 2.1 * MINUTE, MINUTE, 2, 1),
        ("what boots replaces nothing: the work has grown", 3 * MINUTE, MINUTE, 1, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_on_demand_stands_in_for_spot_that_boots(case, spot_took, on_demand_took, worked, expected):
    there = [instance("i-1", took=spot_took), instance("i-2", joined=False, launched=JUST_NOW)]
    look = seen(2, there, worked=worked, on_demand_took=on_demand_took)

    assert decide(look, policy()).on_demand_desired == expected


def test_the_last_to_join_tells_how_soon_instances_come():
    there = [od("i-1", took=3 * MINUTE), od("i-2", took=MINUTE, launched=LONG_AGO + 10 * MINUTE)]

    assert decide(seen(2, there, on_demand_took=2 * MINUTE), policy()).notes.on_demand_took == MINUTE
    assert decide(seen(2, on_demand_took=2 * MINUTE), policy()).notes.on_demand_took == 2 * MINUTE
    assert decide(seen(2, [instance("i-1", took=MINUTE)]), policy()).notes.on_demand_took is None


@pytest.mark.parametrize(
    "case, look, expected",
    [
        ("what works", seen(3, [instance("i-1"), od("i-2")]), 2),
        ("what works, as far as it is needed", seen(1, [instance("i-1"), instance("i-2")]), 1),
        ("what worked, while it is needed", seen(3, [instance("i-1")], worked=2), 2),
        ("what worked, when less is needed", seen(1, [instance("i-1")], worked=3), 1),
        ("under notice: it did until now", seen(2, [instance("i-1"), instance("i-2")], noticed=frozenset({"i-1"})), 2),
        ("what boots never worked", seen(2, [instance("i-1", joined=False, launched=JUST_NOW)]), 0),
        ("taken before it worked", seen(2, [instance("i-1", joined=False)], noticed=frozenset({"i-1"})), 0),
        ("Spot that leaves", seen(2, [instance("i-1", draining=True, tasks=1)]), 0),
        ("Spot that comes back", seen(2, [instance("i-1", draining=True, surplus=True)]), 1),
        ("On-Demand that leaves", seen(2, [od("i-1", draining=True, tasks=1)]), 0),
        ("On-Demand that rests", seen(2, [od("i-1", draining=True, surplus=True)]), 1),
        ("On-Demand that is taken", seen(2, [od("i-1")], noticed=frozenset({"i-1"})), 0),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_worked_is_remembered_while_it_is_needed(case, look, expected):
    assert decide(look, policy()).notes.worked == expected


def test_what_on_demand_alone_does_is_not_missed_of_spot():
    look = seen(services=waiting(worker=3, steady=1), instances=[od("i-1"), od("i-2")])

    assert decide(look, placed()).notes.worked == 1


def test_in_a_storm_on_demand_that_comes_within_a_notice_waits_for_the_loss():
    calm = [instance(f"i-{n}") for n in range(3)]
    look = seen(3, calm, waves=often(25, 5), on_demand_took=2 * MINUTE)

    assert decide(look, policy()).on_demand_desired == 0


def often(*minutes, share=1.0):
    """Waves so many minutes ago."""
    return tuple(Wave(NOON - timedelta(minutes=m), share) for m in minutes)


@pytest.mark.parametrize(
    "case, waves, expected",
    [
        ("one wave is no storm", often(5), 0),
        ("two that took everything", often(25, 5), 2),
        ("four that took half", often(29, 20, 10, 1, share=0.5), 2),
        ("three that took half", often(20, 10, 1, share=0.5), 0),
        ("too far apart", often(35, 5), 0),
        ("just half an hour after it is over", often(40, 30), 0),
        ("not half an hour yet", often(58, 29), 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_storm_trips_the_breaker_and_half_of_the_work_is_on_demand(case, waves, expected):
    calm = [instance(f"i-{n}") for n in range(3)]

    assert decide(seen(3, calm, waves=waves), policy()).on_demand_desired == expected


def test_in_a_storm_what_is_bought_stays():
    ready = [instance("i-0"), instance("i-1"), od("i-3", tasks=1), od("i-2", tasks=1)]
    look = seen(2, ready, waves=often(25, 5))

    assert decide(look, policy()).relieve == ()
    assert decide(look, policy(urgency=Urgency.SPOT_ONLY)).relieve == ("i-3", "i-2")


def test_a_wave_is_as_large_as_it_ever_showed():
    look = seen(4, [*(instance(f"i-{n}") for n in range(4)), od("i-4")], noticed=frozenset({"i-0"}))
    [first] = decide(look, policy()).notes.waves
    assert first == Wave(NOON, 0.25)

    later = replace(
        look, at=NOON + timedelta(minutes=2), noticed=frozenset({"i-1", "i-2"}), notes=Notes(waves=(first,))
    )
    assert decide(later, policy()).notes.waves == (Wave(NOON, 0.5),)

    after = replace(later, at=NOON + timedelta(minutes=3))
    assert decide(after, policy()).notes.waves == (first, Wave(after.at, 0.5))


def test_a_wave_is_told_by_the_hundredth():
    look = seen(3, [instance(f"i-{n}") for n in range(3)], noticed=frozenset({"i-0"}))

    assert decide(look, policy()).notes.waves == (Wave(NOON, 0.33),)


def test_waves_are_forgotten_in_time_and_number():
    hour_ago = replace(seen(), notes=Notes(waves=often(60, 59)))
    assert decide(hour_ago, policy()).notes.waves == often(59)

    many = often(*range(59, 4, -3))
    look = seen(1, [instance("i-1")], noticed=frozenset({"i-1"}), waves=many)
    assert decide(look, policy()).notes.waves == (*many[-14:], Wave(NOON, 1.0))


# What is of no use


def ago(minutes):
    return NOON - timedelta(minutes=minutes)


def bad(*minutes, spot=True):
    """Machines of no use that were launched so many minutes ago."""
    return tuple(Bad(f"i-bad-{minute}", spot, ago(minute)) for minute in sorted(minutes, reverse=True))


FRESH, DUE = bad(4, 4.1, 4.2), bad(15, 16, 17)


@pytest.mark.parametrize(
    "case, look, target",
    [
        ("two in a row: the others are asked for at once", seen(5, bad=bad(4, 5)), 5),
        ("three in a row: none so soon", seen(5, bad=FRESH), 0),
        ("a quarter of an hour after the last: one", seen(5, bad=DUE), 1),
        ("the last one counts", seen(5, bad=bad(14, 15, 16)), 0),
        ("it boots: no other", seen(5, [instance("i-1", joined=False, launched=ago(1))], bad=DUE), 1),
        ("it is late: no other", seen(5, [instance("i-1", joined=False, launched=ago(6))], bad=DUE), 1),
        ("it has just joined", seen(5, [instance("i-1", tasks=1, launched=ago(4))], bad=DUE), 1),
        ("it pulls its image", seen(5, [instance("i-1", tasks=1, pulls=1, launched=ago(9))], bad=DUE), 1),
        ("it has had no task: it proves nothing, and another is due", seen(5, [instance("i-1", launched=ago(9))], bad=DUE), 2),
        ("it works", seen(5, [instance("i-1", tasks=1, launched=ago(5))], bad=DUE), 5),
        ("it worked before", seen(5, [instance("i-1", tasks=1, launched=ago(16))], bad=bad(15, 15.1, 15.2)), 2),
        ("it was launched with them", seen(5, [instance("i-1", tasks=1, launched=ago(17))], bad=tuple(replace(one, launched=ago(17)) for one in DUE)), 5),
        ("those that work stay", seen(5, [instance("i-1", tasks=1), instance("i-2", tasks=1)], bad=FRESH), 2),
        ("what rests comes back", seen(1, [instance("i-1", draining=True, surplus=True)], bad=FRESH), 1),
        ("one under notice is not replaced", seen(5, [instance("i-1", tasks=1)], fulfilled=0.0, noticed=frozenset({"i-1"}), bad=FRESH), 0),
        ("On-Demand was of no use, and Spot is", seen(5, bad=bad(4, 5, 6, spot=False)), 5),
        ("after two hours nobody remembers", seen(5, bad=bad(118, 119, 120)), 5),
        ("after less they do", seen(5, bad=bad(117, 118, 119)), 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_after_three_machines_of_no_use_one_is_tried_at_a_time(case, look, target):
    assert decide(look, policy()).spot_target == target


@pytest.mark.parametrize(
    "case, there, known, remembered",
    [
        ("a worker says so", [instance("i-1", draining=True)], (), ["i-1"]),
        ("it joined without a GPU", [instance("i-2", gpus=0)], (), ["i-2"]),
        ("it never joined", [instance("i-3", joined=False)], (), ["i-3"]),
        ("somebody drained it", [instance("i-4", draining=True)], (), []),
        ("it is heard of again", [instance("i-1", draining=True)], (Bad("i-1", True, LONG_AGO),), ["i-1"]),
        ("the latest three are known", [instance("i-2", gpus=0)], bad(50, 40, 30, 20), ["i-bad-40", "i-bad-30", "i-bad-20"]),
        ("three of each kind", [od("i-2", gpus=0)], bad(50, 40, 30), ["i-bad-50", "i-bad-40", "i-bad-30", "i-2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_was_of_no_use_is_remembered(case, there, known, remembered):
    look = seen(1, there, bad=known, broken=frozenset({"arn/i-1"}))

    assert [one.id for one in decide(look, policy()).notes.bad] == remembered


def test_what_boots_slowly_is_given_its_time_although_others_were_of_no_use():
    late = [instance(f"i-{n}", joined=False, launched=ago(6)) for n in range(2)]
    decision = decide(seen(5, late, bad=bad(6, 6.1, 6.2)), policy())

    assert (decision.spot_target, decision.terminate_spot) == (2, ())


def test_one_under_notice_that_never_joined_was_taken_and_not_broken():
    look = seen(1, [instance("i-1", joined=False)], noticed=frozenset({"i-1"}))

    assert decide(look, policy()).notes.bad == ()


def test_on_demand_of_no_use_is_tried_one_at_a_time_too():
    short = {"short_since": NOON - TOO_LONG}
    there = [od(f"i-{n}", draining=True) for n in range(3)]
    heard = frozenset(f"arn/i-{n}" for n in range(3))

    first = decide(seen(5, there, broken=heard, **short), policy())
    assert (first.on_demand_desired, len(first.terminate_on_demand), first.replace_on_demand) == (3, 2, ("i-0",))
    assert applied(seen(5, there, broken=heard, **short), first).on_demand_requested == 1
    young = tuple(replace(one, spot=False) for one in FRESH)
    assert decide(seen(5, bad=young, **short), policy()).on_demand_desired == 0
    assert decide(seen(5, bad=bad(15, 16, 17, spot=False), **short), policy()).on_demand_desired == 1


@pytest.mark.parametrize("urgency", Urgency)
def test_work_for_on_demand_alone_waits_for_no_urgency(urgency):
    assert decide(seen(services=waiting(steady=2)), placed(urgency=urgency)).on_demand_desired == 2


def test_on_demand_alone_and_a_top_up_share_an_instance():
    look = seen(services=waiting(worker=3, steady=1), requested=3, short_since=NOON - TOO_LONG)

    decision = decide(look, placed(on_demand_units=4))

    assert (decision.on_demand_desired, decision.on_demand_target, decision.top_up_units) == (1, 4, 0)

    look = seen(services=waiting(worker=5, steady=1), requested=5, short_since=NOON - TOO_LONG)
    assert decide(look, placed(on_demand_units=4)).top_up_units == 4

    new = [instance(f"i-{n}", launched=JUST_NOW) for n in range(4)]
    look = seen(services=waiting(worker=4, steady=1), instances=[*new, od("i-4"), od("i-5")])
    assert decide(look, placed(on_demand_units=4)).reason == (
        "5 units needed, 1 of them On-Demand alone, Spot is whole but not calm yet: On-Demand stays"
    )


def test_a_top_up_is_whole_instances_within_its_limit():
    look = seen(9, [instance(f"i-{n}") for n in range(9)], noticed=frozenset(f"i-{n}" for n in range(5)))

    decision = decide(look, policy(on_demand_units=4))
    assert (decision.on_demand_desired, decision.on_demand_target, decision.top_up_units) == (2, 8, 8)
    assert decide(look, policy(on_demand_units=4, max_on_demand_units=7)).on_demand_desired == 1


def test_what_stays_is_whole_instances():
    four = policy(on_demand_units=4)
    new = [instance(f"i-{n}", launched=JUST_NOW) for n in range(4)]
    ready, booting = [od("i-4"), od("i-5")], [od(f"i-{n}", joined=False, launched=JUST_NOW) for n in (4, 5)]

    assert decide(seen(4, new + ready), four).drain == ("i-5",)
    assert decide(seen(4, booting, short_since=JUST_NOW), four).terminate_on_demand == ("i-5",)
    assert (
        decide(seen(4, new + ready), four).reason == "4 units needed, Spot is whole but not calm yet: On-Demand stays"
    )


def test_a_loss_seen_by_one_pass_only_stays_made_up_for():
    first = seen(2, [instance("i-1"), instance("i-2")], noticed=frozenset({"i-1"}))
    bought = applied(first, decide(first, policy()))
    gone = replace(bought, instances=bought.instances[1:], noticed=frozenset())

    assert decide(gone, policy()).on_demand_desired == 1


@pytest.mark.parametrize(
    "look, words",
    [
        (seen(), "no work"),
        (seen(2), "2 units needed, Spot has 2 more to bring"),
        (seen(1, requested=1, worked=1), "1 units needed, Spot lost 1: On-Demand makes up for it at once"),
        (seen(25), "20 units needed, Spot has 20 more to bring; 25 units of work meet the limit of 20"),
        (seen(services=waiting(steady=2)), "2 units needed, 2 of them On-Demand alone, Spot is whole"),
        (
            seen(services=waiting(worker=1, steady=12)),
            "11 units needed, 10 of them On-Demand alone, Spot has 1 more to bring; "
            "12 units of work for On-Demand alone meet the limit of 10",
        ),
        (seen(1, [instance("i-1")]), "1 units needed, Spot is whole"),
        (seen(3, [instance("i-1")], short_since=JUST_NOW), "3 units needed, Spot has 2 more to bring"),
        (seen(20), "20 units needed, Spot has 20 more to bring"),
        (
            seen(services=waiting(worker=11, patient=10)),
            "20 units needed, Spot has 20 more to bring; 21 units of work meet the limit of 20",
        ),
        (seen(services=waiting(steady=10)), "10 units needed, 10 of them On-Demand alone, Spot is whole"),
        (seen(1, [instance("i-1"), od("i-2")]), "1 units needed, Spot is whole and calm: On-Demand leaves"),
        (
            seen(2, [instance("i-1")], bad=(Bad("i-7", True, NOON), Bad("i-8", True, NOON), Bad("i-9", True, NOON))),
            "2 units needed, Spot has 1 more to bring; the last 3 Spot machines were of no use (i-7, i-8, i-9): "
            "one is tried every 15 min",
        ),
        (
            seen(1, [instance("i-1")], bad=tuple(Bad(f"i-{n}", False, NOON) for n in (7, 8, 9))),
            "1 units needed, Spot is whole; the last 3 On-Demand machines were of no use (i-7, i-8, i-9): "
            "one is tried every 15 min",
        ),
        (
            seen(1, [instance("i-1", launched=JUST_NOW), od("i-2")]),
            "1 units needed, Spot is whole but not calm yet: On-Demand stays",
        ),
        (
            seen(2, short_since=NOON - TOO_LONG),
            "2 units needed, Spot short of 2 for longer than 0:05:00: On-Demand makes up for it",
        ),
        (
            seen(1, [instance("i-1")], desired=3),
            "1 units needed, Spot is whole; 2 more linger, for the work has just become less",
        ),
        (
            seen(4, [instance(f"i-{n}") for n in range(4)], warned=frozenset({"i-1", "i-2"})),
            "4 units needed, Spot is whole; 1 are had twice, for instances at risk are to be replaced",
        ),
        (
            seen(3, [instance(f"i-{n}") for n in range(3)], waves=often(25, 5)),
            "3 units needed, EC2 takes Spot again and again: On-Demand does at least 2 until 12:25 UTC",
        ),
    ],
)
def test_the_reason_is_a_sentence(look, words):
    assert decide(look, placed()).reason == words


@pytest.mark.parametrize(
    "look, words",
    [
        (timed(1, came=[(HOUR, 1)]), "1 units needed, jobs would be late on Spot alone: On-Demand does 1"),
        (
            timed(10, job_seconds=None, short_since=NOON - TOO_LONG),
            "1 units needed, how long jobs take is not known, and Spot short of 1 for longer than 0:05:00: "
            "On-Demand makes up for it",
        ),
    ],
)
def test_the_reason_of_a_deadline(look, words):
    loads = {"worker": Load(jobs_per_task=10, max_tasks=20, units_per_task=1, max_wait=HOUR)}

    assert decide(look, policy(loads=loads, urgency=Urgency.DEADLINE)).reason == words


# Where types are weighed


def heavy(number, worth=10):
    """So many Spot instances of one GPU that is worth so much."""
    return [instance(f"i-{n}", units=worth, worth=Fraction(worth), tasks=1) for n in range(number)]


@pytest.mark.parametrize(
    "case, work, desired, expected, lingers",
    [
        ("the need is that of the tasks", 100, 10, 10, False),
        ("less of a GPU is needed", 91, 10, 10, False),
        ("a whole GPU less is needed", 90, 10, 10, True),
        ("asked for before the GPUs were there", 100, 14, 10, False),
        ("nothing is needed", 0, 10, 0, False),
    ],
)
def test_what_lingers_is_counted_in_whole_gpus(case, work, desired, expected, lingers):
    chosen = policy(
        loads={"worker": Load(jobs_per_task=1, max_tasks=200, units_per_task=1)}, max_units=200, least=Fraction(7)
    )

    decision = decide(seen(work, heavy(10), desired=desired), chosen)

    assert (decision.services["worker"], decision.notes.ample_since is not None) == (expected, lingers)


def test_what_leaves_gets_no_task_and_what_comes_back_does():
    chosen = policy(
        loads={"worker": Load(jobs_per_task=1, max_tasks=99, units_per_task=1)}, max_units=99, least=Fraction(7)
    )
    [stays, leaves] = heavy(2)
    leaves = replace(leaves, joined=replace(leaves.joined, draining=True))

    # Ten units are done where it stays, and ten more by two GPUs of the least type, which are to come.
    assert decide(seen(20, [stays, leaves]), chosen).services == {"worker": 3}
    assert decide(seen(20, [stays, replace(leaves, surplus=True)]), chosen).services == {"worker": 2}


def test_jobs_are_timed_by_tasks_and_needed_in_units():
    """A GPU worth ten does in a minute what a unit does in ten: half an hour of it is five hours of units."""
    load = Load(jobs_per_task=1000, max_tasks=99, units_per_task=1, max_wait=timedelta(hours=1))
    plain = policy(loads={"worker": load}, max_units=99, urgency=Urgency.DEADLINE)
    timed = [Service(name="worker", visible=60, in_flight=0, delayed=0, desired=1, job_seconds=60.0)]

    tasks = decide(seen(0, [instance("i", tasks=1)], services=tuple(timed)), plain).needed_units
    units = decide(seen(0, heavy(1), services=tuple(timed)), replace(plain, least=Fraction(10))).needed_units

    assert tasks == 5
    assert 10 * (tasks - 1) < units <= 10 * tasks


@pytest.mark.parametrize("worth", [1, 10])
def test_late_jobs_get_as_many_machines_whatever_a_machine_is_worth(worth):
    """Sixty jobs of a minute: twenty-four tasks do them in two minutes and a half, and one is there."""
    load = Load(jobs_per_task=1000, max_tasks=999, units_per_task=1, max_wait=HOUR)
    chosen = policy(
        loads={"worker": load},
        max_units=999,
        max_on_demand_units=999,
        on_demand_units=worth,
        urgency=Urgency.DEADLINE,
        least=Fraction(worth),
    )
    came = (Arrival(HOUR, 60),)
    late = Service(name="worker", visible=60, in_flight=0, delayed=0, desired=1, arrivals=came, job_seconds=60.0)

    assert decide(seen(0, heavy(1, worth), services=(late,)), chosen).on_demand_desired == 23


def test_tasks_of_two_units_linger_whole():
    load = Load(jobs_per_task=1, max_tasks=4, units_per_task=2)
    look = seen(1, [instance(f"i-{n}", tasks=1) for n in range(6)], desired=3)

    assert decide(look, policy(loads={"worker": load})).services == {"worker": 3}
