"""The policy of profile `groups`: cases, and laws that a machine tries to break."""

from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest
from groups_make import applied, policy, seen, services
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lambdas_make import LONG_AGO, NOON, instance, od

from capacity.groups import Kind, decide
from capacity.nouns import Bad, Notes, Urgency
from capacity.trial import is_doubted
from capacity.worth import DEAR, FRESH, RECENT, Launch, failing_since, spot_share

SPOT, ON_DEMAND = Kind.SPOT, Kind.ON_DEMAND
MINUTE = timedelta(minutes=1)
PATIENCE = policy().patience
GRACE = policy().grace
LATE = {"short_since": NOON - PATIENCE}
IDLE = {"idle_since": NOON - GRACE}


def spot(name="i-spot", **parts):
    return instance(name, **parts)


def booting(name="i-boots", age=MINUTE, **parts):
    return instance(name, joined=False, launched=NOON - age, **parts)


@pytest.mark.parametrize(
    "case, look, grows",
    [
        ("no work, nothing there", seen(), {}),
        ("the first work: Spot, all at once", seen(7), {SPOT: 7}),
        ("more work than Spot may do", seen(99), {SPOT: 20}),
        ("some is there: what is in service lacks", seen(5, [spot("i-1"), spot("i-2")]), {SPOT: 3}),
        ("some is on its way, which Auto Scaling counts itself", seen(5, requested=3), {SPOT: 5}),
        ("all is on its way", seen(5, requested=5), {}),
        ("more than enough is there", seen(1, [spot(units=4)]), {}),
        ("what is in service leaves: the next look tells", seen(2, [spot("i-1"), spot("i-2")], requested=0), {}),
        ("taken: the group replaces it by itself", seen(1, [spot()], noticed={"i-spot"}), {}),
        ("taken, and for longer than patience nobody came", seen(1, [spot()], noticed={"i-spot"}, **LATE), {ON_DEMAND: 1}),
        ("short, and patient", seen(2, requested=2, short_since=NOON - PATIENCE + MINUTE), {}),
        ("short for longer than patience", seen(2, requested=2, **LATE), {ON_DEMAND: 2}),
        ("short, but it boots", seen(1, [booting()], fulfilled=0.0, **LATE), {}),
        ("it boots for too long", seen(1, [booting(age=PATIENCE)], **LATE), {ON_DEMAND: 1}),
        ("On-Demand is there already", seen(1, [od("i-od")], requested=1, fulfilled=0.0, **LATE), {}),
        ("launches failed before: no need to wait again", seen(1, requested=1, failing={SPOT: LONG_AGO}), {ON_DEMAND: 1}),
        ("launches fail, not for long", seen(1, requested=1, failing={SPOT: NOON - MINUTE}), {}),
        ("Spot is as dear as On-Demand", seen(3, spot_share=DEAR), {ON_DEMAND: 3}),
        ("Spot is cheap", seen(3, spot_share=0.98), {SPOT: 3}),
        ("dear, and there", seen(3, [spot("i-1"), spot("i-2")], spot_share=1.0), {ON_DEMAND: 1}),
        ("dear, but On-Demand does not launch", seen(3, spot_share=1.0, failing={ON_DEMAND: LONG_AGO}), {SPOT: 3}),
        ("dear, and more than On-Demand may do", seen(14, spot_share=1.0), {SPOT: 4, ON_DEMAND: 10}),
        ("dear, and On-Demand has work of its own", seen(services=services(9, steady=5), spot_share=1.0), {SPOT: 4, ON_DEMAND: 10}),
        ("work for Spot alone, however dear", seen(services=services(patient=2), spot_share=1.0), {SPOT: 2}),
        ("work for Spot alone, however late", seen(services=services(patient=2), requested=2, **LATE), {}),
        ("work for On-Demand alone, at once", seen(services=services(steady=2)), {ON_DEMAND: 2}),
        ("work of both kinds", seen(services=services(3, steady=2)), {SPOT: 3, ON_DEMAND: 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_the_group_grows_that_is_worth_it(case, look, grows):
    assert decide(look, policy()).grow == grows


def test_who_wants_spot_only_gets_no_on_demand_for_it():
    chosen = policy(urgency=Urgency.SPOT_ONLY)

    assert decide(seen(2, requested=2, spot_share=1.0, **LATE), chosen).grow == {}
    assert decide(seen(2, spot_share=1.0), chosen).grow == {SPOT: 2}
    assert decide(seen(services=services(2, steady=1), **LATE), chosen).grow == {SPOT: 2, ON_DEMAND: 1}


def test_on_demand_instances_of_many_units_are_rounded_up():
    chosen = policy(on_demand_units=4, max_on_demand_units=9)

    decision = decide(seen(5, requested=5, **LATE), chosen)

    assert (decision.grow, decision.on_demand_target, decision.top_up_units) == ({ON_DEMAND: 2}, 8, 8)
    own = decide(seen(services=services(5, steady=4), requested=5, **LATE), replace(chosen, max_on_demand_units=12))
    assert (own.on_demand_target, own.top_up_units) == (12, 8)
    less = decide(seen(services=services(steady=4), requested=5), chosen)
    assert (less.on_demand_target, less.top_up_units) == (4, 0)


def test_spot_is_short_since_it_was_first_seen_so():
    young = {"short_since": NOON - MINUTE}

    assert decide(seen(2, [spot()]), policy()).notes.short_since == NOON
    assert decide(seen(2, [spot()], **young), policy()).notes.short_since == NOON - MINUTE
    assert decide(seen(1, [spot()], **young), policy()).notes.short_since is None


@pytest.mark.parametrize(
    "case, look, leave",
    [
        ("idle for the grace", seen(0, [spot(), od("i-od")], **IDLE), (SPOT, ON_DEMAND)),
        ("only one has some", seen(0, [spot()], **IDLE), (SPOT,)),
        ("a group that is still launching", seen(0, requested=2, **IDLE), (SPOT,)),
        ("not yet", seen(0, [spot()], idle_since=NOON - GRACE + MINUTE), ()),
        ("idle since just now", seen(0, [spot()]), ()),
        ("nothing there", seen(0, **IDLE), ()),
        ("a job in flight", seen(0, [spot()], services=(replace(services()[0], in_flight=1),), **IDLE), ()),
        ("a job that waits in a queue of its own", seen(0, [spot()], services=services(steady=1), **IDLE), ()),
        ("a job that comes back later", seen(0, [spot()], services=(replace(services()[0], delayed=1),), **IDLE), ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_all_leave_at_once_when_nothing_has_waited_or_been_in_flight_for_long(case, look, leave):
    decision = decide(look, policy())

    assert decision.shrink == leave
    if leave:
        assert (decision.spot_target, decision.on_demand_target) == (0, 0)


def test_grace_begins_anew_with_every_job():
    look = seen(0, [spot()], idle_since=NOON - GRACE + MINUTE)

    busy = decide(replace(look, services=services(1)), policy())
    idle = decide(look, policy())

    assert (busy.idle_since, idle.idle_since) == (None, look.idle_since)
    assert decide(seen(0, [spot()]), policy()).idle_since == NOON
    assert decide(seen(0), policy()).idle_since is None


@pytest.mark.parametrize(
    "case, there, ends",
    [
        ("it works", spot(), False),
        ("it joined without a GPU", spot(gpus=0), True),
        ("it boots", booting(), False),
        ("it has booted for long", booting(age=PATIENCE), False),
        ("it never joins", booting(age=policy().broken), True),
        ("On-Demand that never joins", booting(age=policy().broken, spot=False), True),
        ("somebody drained it, and it idles", spot(draining=True), True),
        ("somebody drained it, and it works", spot(draining=True, tasks=1), False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_of_no_use_is_replaced(case, there, ends):
    assert decide(seen(1, [there]), policy()).replace == ((there.id,) if ends else ())
    assert decide(seen(1, [there], noticed={there.id}), policy()).replace == ()
    assert decide(seen(0, [there]), policy()).replace == ()


def bad(*minutes, kind=SPOT):
    return tuple(Bad(f"i-bad-{m}", kind is SPOT, NOON - m * MINUTE) for m in sorted(minutes, reverse=True))


@pytest.mark.parametrize(
    "case, look, grows",
    [
        ("two in a row", seen(5, bad=bad(4, 5)), {SPOT: 5}),
        ("three in a row: none so soon", seen(5, bad=bad(4, 5, 6)), {}),
        ("a quarter of an hour later: one", seen(5, bad=bad(15, 16, 17)), {SPOT: 1}),
        ("it boots: no other", seen(5, [booting()], bad=bad(15, 16, 17)), {}),
        ("it works", seen(5, [spot(tasks=1, launched=NOON - 9 * MINUTE)], bad=bad(15, 16, 17)), {SPOT: 4}),
        ("of no use was On-Demand", seen(5, bad=bad(15, 16, 17, kind=ON_DEMAND)), {SPOT: 5}),
        ("and Spot is dear", seen(5, bad=bad(15, 16, 17, kind=ON_DEMAND), spot_share=1.0), {SPOT: 5}),
        ("On-Demand as well", seen(services=services(steady=3), bad=bad(15, 16, 17, kind=ON_DEMAND)), {ON_DEMAND: 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_after_three_machines_of_no_use_one_is_tried_at_a_time(case, look, grows):
    decision = decide(look, policy())

    assert decision.grow == grows
    if SPOT in grows:
        assert decision.spot_target == look.requested + grows[SPOT]


def test_what_is_of_no_use_once_more_is_given_up():
    there = [spot("i-1", gpus=0), od("i-2", gpus=0)]

    decision = decide(seen(5, there, bad=bad(15, 16)), policy())

    assert (decision.give_up, decision.replace) == (("i-1",), ("i-2",))
    assert [one.id for one in decision.notes.bad] == ["i-1", "i-bad-16", "i-bad-15", "i-2"]
    assert decision.reason.endswith(
        "1 of no use are replaced; the last 3 Spot machines were of no use (i-1, i-bad-16, i-bad-15): "
        "one is tried every 15 min"
    )
    assert decide(seen(0, there, bad=bad(15, 16)), policy()).give_up == ()


def test_under_notice_and_still_active_it_drains_once_the_messenger_is_overdue():
    look = seen(1, [spot()], noticed=frozenset({"i-spot"}))

    assert decide(look, policy()).evacuate == ("i-spot",)
    assert decide(replace(look, overdue=frozenset()), policy()).evacuate == ()
    assert decide(look, policy()).taken == ("i-spot",)
    assert decide(seen(1, [od("i-od")], noticed=frozenset({"i-od"})), policy()).taken == ()


@pytest.mark.parametrize(
    "look, says",
    [
        (seen(), "no work"),
        (seen(0, [spot()]), "no work since 12:00:00 UTC: every instance leaves when that has lasted for 0:05:00"),
        (seen(0, [spot()], **IDLE), "no work for 0:05:00: every instance leaves"),
        (seen(1, [spot()]), "1 units needed, Spot is whole"),
        (seen(2), "2 units needed, Spot has 2 more to bring, Spot's price is not known"),
        (seen(2, [spot()]), "2 units needed, Spot has 1 more to bring, Spot's price is not known"),
        (seen(2, spot_share=0.3), "2 units needed, Spot has 2 more to bring, Spot costs 30% of On-Demand"),
        (seen(2, spot_share=1.0), "2 units needed, Spot costs 100% of On-Demand: On-Demand is worth more"),
        (seen(2, **LATE), "2 units needed, Spot is short for longer than 0:05:00: On-Demand makes up for 2"),
        (
            seen(2, failing={SPOT: LONG_AGO}),
            "2 units needed, Spot does not launch for longer than 0:05:00: On-Demand makes up for 2",
        ),
        (
            seen(21, services=services(1, steady=11)),
            "11 units needed, 10 of them On-Demand alone, Spot has 1 more to bring, Spot's price is not known; "
            "11 units of work for On-Demand alone meet the limit of 10",
        ),
        (seen(1, [spot(gpus=0, units=0), spot("i-1")]), "1 units needed, Spot is whole; 1 of no use are replaced"),
    ],
)
def test_every_decision_says_why(look, says):
    assert decide(look, policy()).reason == says


# Laws

law = settings(deadline=None, database=None)
few = st.integers(0, 4)
machines = st.lists(
    st.builds(
        Bad, st.sampled_from("abcdef"), st.booleans(), st.sampled_from([4, 16, 200]).map(lambda m: NOON - m * MINUTE)
    ),
    max_size=6,
    unique_by=lambda bad: bad.id,
).map(tuple)
ages = st.sampled_from([timedelta(seconds=s) for s in (5, 60, 299, 300, 900, 3600)])
moments = st.none() | ages.map(lambda age: NOON - age)


work = st.just(0) | st.integers(0, 8)


@st.composite
def looks(draw, work=work):
    number = count()
    made = []
    for _ in range(draw(st.integers(0, 4))):
        made.append(
            instance(
                f"i-{next(number)}",
                spot=draw(st.booleans()),
                units=draw(st.sampled_from([1, 1, 2])),
                launched=NOON - draw(ages),
                joined=draw(st.booleans()),
                gpus=draw(st.sampled_from([None, None, 0])),
                tasks=draw(st.sampled_from([0, 0, 1])),
                draining=draw(st.booleans()),
            )
        )
    noticed = frozenset(i.id for i in made if draw(st.sampled_from([False, False, True])))
    return seen(
        0,
        made,
        services=services(draw(work), patient=draw(work), steady=draw(work)),
        requested=draw(few),
        fulfilled=float(draw(few)),
        on_demand_requested=draw(few),
        on_demand_in_service=draw(few),
        noticed=noticed,
        notes=Notes(short_since=draw(moments), bad=draw(machines)),
        idle_since=draw(moments),
        spot_share=draw(st.sampled_from([None, 0.3, DEAR, 1.0])),
        failing={kind: since for kind in Kind if (since := draw(moments))},
    )


policies = st.builds(
    policy,
    max_units=st.integers(0, 6),
    max_on_demand_units=st.integers(0, 5),
    on_demand_units=st.sampled_from([1, 2]),
    urgency=st.sampled_from(Urgency),
)


def asked(decision):
    return decision.spot_target + decision.on_demand_target


def any_doubted(decision):
    return any(is_doubted(decision.notes.bad, spot=spot) for spot in (True, False))


@law
@given(looks(), policies)
def test_groups_are_asked_for_no_more_than_their_limits(look, chosen):
    decision = decide(look, chosen)

    assert 0 <= decision.spot_target <= max(look.requested, chosen.max_units)
    assert decision.on_demand_target <= max(
        look.on_demand_requested * chosen.on_demand_units, chosen.max_on_demand_units
    )
    assert all(units > 0 for units in decision.grow.values())
    if SPOT in decision.grow:
        assert look.fulfilled + decision.grow[SPOT] == decision.spot_target > look.requested


@law
@given(looks(), policies)
def test_deciding_twice_changes_nothing(look, chosen):
    decision = decide(look, chosen)
    once = applied(look, decision)
    twice = applied(once, decide(once, chosen))

    # What a doubted group gives up makes it smaller; the pass after that may try one more.
    assume(not any_doubted(decision))
    # Since when it is idle is forgotten when all have been told to leave, be it put off, and not before.
    assert replace(twice, idle_since=once.idle_since) == once


@law
@given(looks(work=st.just(0)), policies)
def test_nothing_grows_and_nothing_is_replaced_without_work(look, chosen):
    decision = decide(look, chosen)

    assert (decision.grow, decision.replace) == ({}, ())


@law
@given(looks(), st.sampled_from(["visible", "in_flight", "delayed"]), policies)
def test_nothing_that_works_ends_while_a_job_is_anywhere(look, where, chosen):
    busy = replace(look, services=(replace(look.services[0], **{where: 1}), *look.services[1:]))

    decision = decide(busy, chosen)

    assert decision.shrink == () and asked(decision) >= look.requested
    assert not [i for i in look.instances if i.id in decision.replace and i.joined and i.joined.tasks]


@law
@given(looks(), policies)
def test_a_notice_never_lowers_capacity(look, chosen):
    calm = replace(look, noticed=frozenset(), overdue=frozenset())

    decision = decide(look, chosen)
    # A kind that is doubted is not asked for again as soon as it goes.
    assume(not any_doubted(decision))
    assert asked(decision) >= min(asked(decide(calm, chosen)), decision.needed_units)


@law
@given(looks(), st.integers(0, 5), policies)
def test_more_work_never_means_fewer_units_unless_they_are_enough(look, more, chosen):
    """What On-Demand has beyond its own work may do the rest, where Spot is dear."""
    worker = look.services[0]
    busier = replace(look, services=(replace(worker, visible=worker.visible + more), *look.services[1:]))

    before, after = decide(look, chosen), decide(busier, chosen)
    assert after.needed_units >= before.needed_units
    assert asked(after) >= min(asked(before), after.needed_units)


@law
@given(looks(), policies)
def test_on_demand_is_bought_for_its_own_work_or_where_spot_is_dear_or_late_and_never_when_nobody_wants_it(
    look, chosen
):
    own = min(look.services[2].backlog, chosen.max_on_demand_units // chosen.on_demand_units * chosen.on_demand_units)
    cheap = replace(look, spot_share=0.3, notes=Notes(), failing={})

    assert decide(cheap, chosen).top_up_units == 0
    assert decide(look, replace(chosen, urgency=Urgency.SPOT_ONLY)).top_up_units == 0
    assert (ON_DEMAND in decide(cheap, chosen).grow) <= (own > 0)


# What Spot is worth


def row(spot_usd, on_demand_usd=1.0, age=MINUTE, **parts):
    told = {"spot_usd": spot_usd, "on_demand_usd": on_demand_usd, "seen_at": int((NOON - age).timestamp()), **parts}
    return {name: value for name, value in told.items() if value is not None}


@pytest.mark.parametrize(
    "case, rows, share",
    [
        ("no table", [], None),
        ("a pool that only an interruption is known of", [{"pool": "g5.xlarge/us-east-1a", "taken": [1]}], None),
        ("one pool", [row(0.4, 0.8)], 0.5),
        ("the pool that saves most", [row(0.9), row(0.3), row(0.6)], 0.3),
        ("a price that is not known is not zero", [row(None), row(0.9)], 0.9),
        ("nor is On-Demand's", [row(0.1, None), row(0.9)], 0.9),
        ("a pool that is ours no more", [row(0.1, age=FRESH), row(0.9)], 0.9),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_spot_is_worth_what_its_best_pool_saves(case, rows, share):
    assert spot_share(rows, NOON) == share


@pytest.mark.parametrize(
    "case, launches, since",
    [
        ("none was tried", [], None),
        ("the last one worked", [(1, False), (2, True)], None),
        ("it fails since the last that worked", [(1, True), (3, True), (5, False), (7, True)], 3),
        ("it always failed", [(1, True), (3, True)], 3),
        ("that was long ago", [(RECENT / MINUTE, True)], None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_launches_fail_since_the_first_after_the_last_that_worked(case, launches, since):
    told = [Launch(NOON - minutes * MINUTE, failed) for minutes, failed in launches]

    assert failing_since(told, NOON) == (since and NOON - since * MINUTE)
