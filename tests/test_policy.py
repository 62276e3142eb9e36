"""The capacity policy: cases a person can read, and laws a machine tries to break."""

from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lambdas_make import LONG_AGO, NOON, applied, instance, policy, seen

from capacity.policy import Load, Placement, Service, Urgency, decide

PLACED = {"worker": Placement.ANY, "patient": Placement.SPOT, "steady": Placement.ON_DEMAND}
JUST_NOW = NOON - timedelta(seconds=10)
TOO_LONG = timedelta(minutes=6)


def od(name, **parts):
    return instance(name, spot=False, **parts)


def waiting(**jobs):
    """Services with so many jobs waiting, by name."""
    return tuple(Service(name=name, visible=jobs.get(name, 0), in_flight=0, delayed=0, desired=0) for name in PLACED)


def placed(**parts):
    """A policy with one service of each placement; `**parts` as for a policy."""
    loads = {n: Load(jobs_per_task=1, max_tasks=50, units_per_task=1, placement=where) for n, where in PLACED.items()}
    return policy(**{"loads": loads, **parts})


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
            {"spot_target": 2, "on_demand_desired": 1, "healthy_units": 1, "noticed_units": 1},
        ),
        (
            "gone without a notice: made up for at once",
            seen(2, [instance("i-1")], requested=2),
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
            "never joined: replaced, and made up for",
            seen(1, [instance("i-1", joined=False)]),
            {"on_demand_desired": 1, "terminate_spot": ("i-1",)},
        ),
        (
            "joined without a GPU: drained, and made up for",
            seen(1, [instance("i-1", gpus=0)], requested=1),
            {"on_demand_desired": 1, "drain": ("i-1",)},
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
            "Spot is back and calm: busy On-Demand goes on",
            seen(1, [instance("i-1"), od("i-2", tasks=1)]),
            {"on_demand_desired": 1, "drain": (), "terminate_on_demand": ()},
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
            seen(3, [instance("i-1")], requested=2),
            {"spot_target": 3, "on_demand_desired": 1},
        ),
        (
            "work fell before Spot was calm: On-Demand beyond the work leaves",
            seen(1, [instance("i-1", launched=JUST_NOW), od("i-2"), od("i-3", tasks=1)]),
            {"drain": ("i-2",)},
        ),
        (
            "what rests has lasted, too: On-Demand leaves",
            seen(
                1,
                [instance("i-1", launched=JUST_NOW, tasks=1), instance("i-2", draining=True, surplus=True), od("i-3")],
            ),
            {"drain": ("i-3",), "terminate_spot": ("i-2",)},
        ),
        (
            "needed again: the one that is enough comes back",
            seen(2, [instance(f"i-{units}", units=units, draining=True, surplus=True) for units in (1, 2)]),
            {"reactivate": ("i-2",), "terminate_spot": ("i-1",)},
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
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decide(case, look, expected):
    decision = decide(look, policy())

    assert {name: getattr(decision, name) for name in expected} == expected


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
            Service(name="large", visible=10, in_flight=0, delayed=1, desired=7),
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
            {"spot_target": 2, "on_demand_desired": 0, "noticed_units": 1},
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

    assert {name: getattr(decision, name) for name in expected} == expected


@pytest.mark.parametrize("urgency", Urgency)
def test_work_for_on_demand_alone_waits_for_no_urgency(urgency):
    assert decide(seen(services=waiting(steady=2)), placed(urgency=urgency)).on_demand_desired == 2


def test_on_demand_alone_and_a_top_up_share_an_instance():
    look = seen(services=waiting(worker=3, steady=1), requested=3, short_since=NOON - TOO_LONG)

    decision = decide(look, placed(on_demand_units=4))

    assert (decision.on_demand_desired, decision.on_demand_target, decision.top_up_units) == (1, 4, 0)


def test_a_top_up_is_whole_instances_within_its_limit():
    look = seen(9, [instance(f"i-{n}") for n in range(9)], noticed=frozenset(f"i-{n}" for n in range(5)))

    assert decide(look, policy(on_demand_units=4)).on_demand_desired == 2
    assert decide(look, policy(on_demand_units=4, max_on_demand_units=7)).on_demand_desired == 1


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
        (seen(1, requested=1), "1 units needed, Spot lost 1: On-Demand makes up for it at once"),
        (seen(25), "20 units needed, Spot has 20 more to bring; 25 units of work meet the limit of 20"),
        (seen(services=waiting(steady=2)), "2 units needed, 2 of them On-Demand alone, Spot is whole"),
        (
            seen(services=waiting(worker=1, steady=12)),
            "11 units needed, 10 of them On-Demand alone, Spot has 1 more to bring; "
            "12 units of work for On-Demand alone meet the limit of 10",
        ),
    ],
)
def test_the_reason_is_a_sentence(look, words):
    assert decide(look, placed()).reason == words


# The laws. Numbers are small, so that limits, ties and zeros are drawn often.

few = st.integers(0, 4)
work = st.just(0) | st.integers(0, 8)
names = st.sampled_from(sorted(PLACED))
law = settings(max_examples=300, deadline=None)
ages = st.sampled_from([timedelta(seconds=5), timedelta(minutes=1), timedelta(minutes=6), timedelta(hours=1)])


@st.composite
def instances(draw):
    number = count()
    made = []
    for _ in range(draw(st.integers(0, 5))):
        draining = draw(st.booleans())
        made.append(
            instance(
                f"i-{next(number)}",
                spot=draw(st.booleans()),
                units=draw(st.sampled_from([1, 1, 2, 4])),
                launched=NOON - draw(ages),
                joined=draw(st.booleans()),
                gpus=draw(st.sampled_from([None, None, None, 0])),
                tasks=draw(st.sampled_from([0, 0, 1])),
                draining=draining,
                surplus=draining and draw(st.booleans()),
            )
        )
    return made


@st.composite
def looks(draw, work=work):
    made = draw(instances())
    present = sum(not i.spot for i in made)
    return seen(
        0,
        made,
        services=tuple(replace(service, visible=draw(work), desired=draw(few)) for service in waiting()),
        requested=draw(st.integers(0, 8)),
        short_since=draw(st.none() | ages.map(lambda age: NOON - age)),
        on_demand_requested=present + draw(st.integers(-1, 2)) if present else draw(few),
        on_demand_present=present,
        noticed=frozenset(i.id for i in made if draw(st.sampled_from([False, False, True]))),
    )


@st.composite
def policies(draw):
    return policy(
        loads={
            name: Load(
                jobs_per_task=draw(st.integers(1, 2)),
                max_tasks=draw(st.integers(2, 9)),
                units_per_task=draw(st.integers(1, 2)),
                placement=placement,
            )
            for name, placement in PLACED.items()
        },
        on_demand_units=draw(st.sampled_from([1, 1, 2, 4])),
        max_units=draw(st.integers(0, 9)),
        max_on_demand_units=draw(st.integers(0, 9)),
        urgency=draw(st.sampled_from([Urgency.NOW, Urgency.NOW, Urgency.DEADLINE, Urgency.SPOT_ONLY])),
    )


def total_units(decision, chosen):
    return decision.spot_target + decision.on_demand_desired * chosen.on_demand_units


def busier(look, name, jobs, where="visible"):
    """The same look with more jobs in one queue."""
    return replace(
        look,
        services=tuple(
            replace(service, **{where: getattr(service, where) + jobs}) if service.name == name else service
            for service in look.services
        ),
    )


def idler(look, *empty):
    """The same look without jobs in these queues."""
    return replace(look, services=tuple(replace(s, visible=0) if s.name in empty else s for s in look.services))


def units_of_work(decision, chosen, name):
    return decision.services[name] * chosen.loads[name].units_per_task


def acts(decision):
    return (
        decision.evacuate
        + decision.drain
        + decision.reactivate
        + decision.terminate_spot
        + decision.terminate_on_demand
        + decision.replace_on_demand
    )


@law
@given(looks(), policies())
def test_targets_keep_within_the_limits(look, chosen):
    decision = decide(look, chosen)

    assert 0 <= decision.spot_target <= chosen.max_units
    assert all(0 <= decision.services[name] <= chosen.loads[name].max_tasks for name in PLACED)
    bought = max(0, decision.on_demand_desired - look.on_demand_requested)
    assert not bought or decision.on_demand_desired * chosen.on_demand_units <= chosen.max_on_demand_units


@law
@given(looks(), policies(), names, st.integers(1, 4), st.sampled_from(["visible", "in_flight", "delayed"]))
def test_more_work_never_means_fewer_units(look, chosen, name, more, where):
    less, greater = decide(look, chosen), decide(busier(look, name, more, where), chosen)

    assert total_units(less, chosen) <= total_units(greater, chosen)
    assert less.needed_units <= greater.needed_units
    assert less.spot_target <= greater.spot_target
    assert less.services[name] <= greater.services[name]


@law
@given(looks(), policies(), st.integers(1, 9))
def test_work_for_on_demand_alone_leaves_spot_as_it_is(look, chosen, more):
    less, greater = decide(look, chosen), decide(busier(look, "steady", more), chosen)

    for name in ("spot_target", "healthy_units", "short_since", "terminate_spot"):
        assert getattr(less, name) == getattr(greater, name)
    mine = units_of_work(greater, chosen, "steady")
    limit = chosen.max_on_demand_units // chosen.on_demand_units * chosen.on_demand_units
    assert greater.on_demand_target >= min(mine, limit)


@law
@given(looks(), policies(), st.integers(1, 9))
def test_work_for_spot_alone_never_raises_on_demand(look, chosen, more):
    less, greater = decide(look, chosen), decide(busier(look, "patient", more), chosen)

    assert greater.on_demand_desired <= less.on_demand_desired
    assert greater.top_up_units <= less.top_up_units
    assert decide(idler(look, "worker"), chosen).top_up_units == 0


@law
@given(looks(), policies())
def test_deciding_twice_asks_for_the_same(look, chosen):
    once = decide(look, chosen)
    twice = decide(applied(look, once), chosen)

    assert (twice.spot_target, twice.services, twice.short_since) == (once.spot_target, once.services, once.short_since)
    assert twice.on_demand_desired <= once.on_demand_desired
    assert not set(once.reactivate) & set(twice.drain)
    assert not set(once.drain) & set(twice.reactivate)


@law
@given(looks(), policies())
def test_it_comes_to_rest(look, chosen):
    for _ in range(4):
        look = applied(look, decide(look, chosen))
    last = decide(look, chosen)

    assert not acts(last)
    assert applied(look, last) == look


@law
@given(looks(), policies(), st.data())
def test_a_notice_never_lowers_capacity(look, chosen, data):
    calm = replace(look, noticed=frozenset())
    victims = data.draw(st.sets(st.sampled_from([i.id for i in look.instances if i.spot] or ["i-none"])))

    before, after = decide(calm, chosen), decide(replace(calm, noticed=frozenset(victims)), chosen)

    assert total_units(before, chosen) <= total_units(after, chosen)
    assert before.services == after.services


@law
@given(looks(), policies(), st.randoms())
def test_the_order_of_anything_does_not_matter(look, chosen, chance):
    shuffled = list(look.instances)
    chance.shuffle(shuffled)

    one, other = decide(look, chosen), decide(replace(look, instances=tuple(shuffled)), chosen)

    assert sorted(acts(one)) == sorted(acts(other))
    assert replace(one, evacuate=()) == replace(other, evacuate=())


@law
@given(looks(work=st.just(0)), policies())
def test_without_work_nothing_idles(look, chosen):
    assert decide(look, chosen).spot_target == 0
    later = replace(look, at=NOON + timedelta(minutes=1))
    for _ in range(3):
        later = applied(later, decide(later, chosen))

    assert not [i for i in later.instances if i.id not in look.noticed and not (i.joined and i.joined.tasks)]
    assert decide(later, chosen).on_demand_desired <= later.on_demand_present


@law
@given(looks(), policies())
def test_every_unit_of_work_counts_wherever_it_waits(look, chosen):
    moved = tuple(replace(s, visible=0, in_flight=s.visible, delayed=s.in_flight) for s in look.services)

    assert decide(replace(look, services=moved), chosen) == decide(look, chosen)


@law
@given(looks(), policies())
def test_no_more_is_bought_than_spot_is_short_of(look, chosen):
    decision = decide(look, chosen)
    shared = min(chosen.max_units, units_of_work(decision, chosen, "worker"))
    shortage = max(0, shared - decision.healthy_units) + units_of_work(decision, chosen, "steady")

    if decision.on_demand_desired > look.on_demand_requested:
        assert (decision.on_demand_desired - 1) * chosen.on_demand_units < shortage


@law
@given(looks(), policies())
def test_a_fleet_that_still_launches_buys_nothing(look, chosen):
    launching = replace(idler(look, "steady"), noticed=frozenset(), short_since=NOON - timedelta(minutes=1))

    assert decide(launching, chosen).on_demand_desired <= look.on_demand_requested


@law
@given(looks(), policies())
def test_scale_in_touches_nobody_who_works(look, chosen):
    decision = decide(look, chosen)
    busy = {i.id for i in look.instances if i.joined and i.joined.tasks}
    active = {i.id for i in look.instances if i.joined and not i.joined.draining}
    ended = {*decision.terminate_spot, *decision.terminate_on_demand, *decision.replace_on_demand}

    assert not busy & {*decision.drain, *ended}
    assert not active & ended
    assert not look.noticed & {*decision.drain, *decision.reactivate, *ended}


@law
@given(looks(), policies())
def test_a_group_is_never_asked_to_pick_a_victim(look, chosen):
    decision = decide(look, chosen)

    assert decision.on_demand_desired >= min(look.on_demand_requested, look.on_demand_present)
    assert decision.on_demand_desired - len(decision.terminate_on_demand) >= 0
