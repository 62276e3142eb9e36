"""The laws of the capacity policy, which a machine tries to break.

Numbers are small, so that limits, ties and zeros are drawn often.
"""

from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from itertools import count
from math import ceil

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lambdas_make import NOON, PLACED, Town, Weighed, applied, instance, od, part, policy, seen, waiting

from capacity.breaker import OFTEN, QUIET, TWICE, tripped_until, with_loss
from capacity.gpus import Gpu, tasks_worth
from capacity.moves import Standing, standing
from capacity.need import needed, tasks_for
from capacity.nouns import Arrival, Bad, Load, Notes, Urgency, Wave
from capacity.policy import decide
from capacity.trial import PAUSE, PROVEN

law = settings(deadline=None, database=None)
few = st.integers(0, 4)
work = st.just(0) | st.integers(0, 8)
names = st.sampled_from(sorted(PLACED))
ages = st.sampled_from([timedelta(seconds=m) for m in (5, 60, 240, 360, 900, 3600)])
moments = ages.map(lambda age: NOON - age)
moments_if_any = st.none() | moments
arrivals = st.lists(st.builds(Arrival, ages, few), max_size=3).map(
    lambda found: tuple(sorted(found, key=lambda arrival: arrival.age))
)
waves = st.lists(
    st.builds(Wave, moments, st.sampled_from([0.25, 1.0])), max_size=4, unique_by=lambda wave: wave.at
).map(lambda found: tuple(sorted(found, key=lambda wave: wave.at)))
job_seconds = st.none() | st.sampled_from([1.0, 600.0])
bad = st.lists(
    st.builds(Bad, st.sampled_from(["i-a", "i-b", "i-c", "i-d", "i-e", "i-f"]), st.booleans(), moments),
    max_size=6,
    unique_by=lambda bad: bad.id,
).map(tuple)
took_if_any = st.none() | st.sampled_from([timedelta(minutes=1), timedelta(minutes=3)])


@st.composite
def instances(draw):
    number = count()
    made = []
    for _ in range(draw(st.integers(0, 5))):
        draining, tasks = draw(st.booleans()), draw(st.sampled_from([0, 0, 1]))
        made.append(
            instance(
                f"i-{next(number)}",
                spot=draw(st.booleans()),
                units=draw(st.sampled_from([1, 1, 2, 4])),
                launched=NOON - draw(ages),
                joined=draw(st.booleans()),
                took=draw(st.sampled_from([timedelta(0), timedelta(minutes=3)])),
                gpus=draw(st.sampled_from([None, None, None, 0])),
                tasks=tasks,
                pulls=draw(st.integers(0, tasks)),
                draining=draining,
                surplus=draining and draw(st.booleans()),
                warned=draw(st.sampled_from([None, None, NOON - timedelta(minutes=1), NOON - timedelta(hours=1)])),
            )
        )
    return made


@st.composite
def looks(draw, work=work):
    made = draw(instances())
    present = sum(not i.spot for i in made)
    noticed = frozenset(i.id for i in made if draw(st.sampled_from([False, False, True])))
    # The fleet may or may not count what is under notice.
    counted = [i.units for i in made if i.spot and (draw(st.just(True)) or i.id not in noticed)]
    return seen(
        0,
        made,
        services=tuple(
            replace(
                service,
                visible=draw(work),
                desired=draw(few),
                arrivals=draw(arrivals),
                job_seconds=draw(job_seconds),
            )
            for service in waiting()
        ),
        requested=draw(st.integers(0, 8)),
        fulfilled=float(sum(counted)),
        short_since=draw(moments_if_any),
        ample_since=draw(moments_if_any),
        waves=draw(waves),
        worked=draw(few),
        bad=draw(bad),
        on_demand_took=draw(took_if_any),
        on_demand_requested=present + draw(st.integers(-1, 2)) if present else draw(few),
        on_demand_present=present,
        noticed=noticed,
        warned=frozenset(i.id for i in made if draw(st.sampled_from([False, False, False, True]))),
    )


@st.composite
def policies(draw, urgencies=(Urgency.NOW, Urgency.NOW, Urgency.DEADLINE, Urgency.SPOT_ONLY)):
    return policy(
        loads={
            name: Load(
                jobs_per_task=draw(st.integers(1, 2)),
                max_tasks=draw(st.integers(2, 9)),
                units_per_task=draw(st.integers(1, 2)),
                placement=placement,
                max_wait=draw(st.sampled_from([None, timedelta(minutes=10), timedelta(hours=2)])),
            )
            for name, placement in PLACED.items()
        },
        on_demand_units=draw(st.sampled_from([1, 1, 2, 4])),
        max_units=draw(st.integers(0, 9)),
        max_on_demand_units=draw(st.integers(0, 9)),
        urgency=draw(st.sampled_from(urgencies)),
    )


def total_units(decision, chosen):
    return decision.spot_target + decision.on_demand_desired * chosen.on_demand_units


def changed(look, name, **parts):
    """The same look with other numbers of one service."""
    return replace(look, services=tuple(replace(s, **parts) if s.name == name else s for s in look.services))


def of(look, name):
    return next(service for service in look.services if service.name == name)


def busier(look, name, jobs, where="visible"):
    """The same look with more jobs in one queue."""
    return changed(look, name, **{where: getattr(of(look, name), where) + jobs})


def idler(look, *empty):
    """The same look without jobs in these queues."""
    return replace(look, services=tuple(replace(s, visible=0) if s.name in empty else s for s in look.services))


def fresh(look):
    """The same look at services that had no tasks, so that nothing lingers."""
    return replace(look, services=tuple(replace(s, desired=0) for s in look.services))


def untimed(look):
    """The same look when nobody knows how long jobs take."""
    return replace(look, services=tuple(replace(s, job_seconds=None) for s in look.services))


def units_of_work(decision, chosen, name):
    return decision.services[name] * chosen.loads[name].units_per_task


def acts(decision):
    return (
        decision.evacuate
        + decision.drain
        + decision.relieve
        + decision.reactivate
        + decision.terminate_spot
        + decision.terminate_on_demand
        + decision.replace_on_demand
    )


def leaving(decision):
    return {*acts(decision)} - {*decision.reactivate, *decision.evacuate}


def is_doubted(decision, *, spot):
    """Whether three of this kind in a row were of no use."""
    return sum(bad.spot is spot for bad in decision.notes.bad) >= 3


def healthy(look):
    """Units that can work now: joined, with a GPU, and nobody wants them gone."""
    return sum(
        i.units
        for i in look.instances
        if i.joined and i.joined.gpus and not i.joined.draining and i.id not in look.noticed
    )


# How much


@law
@given(looks(), policies())
def test_targets_keep_within_the_limits(look, chosen):
    decision = decide(look, chosen)

    had_twice = sum(i.units for i in look.instances if i.spot)
    assert 0 <= decision.spot_target <= chosen.max_units + had_twice
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
        assert part(less, name) == part(greater, name)
    assume(not is_doubted(greater, spot=False))
    mine = units_of_work(decide(fresh(busier(look, "steady", more)), chosen), chosen, "steady")
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
@given(looks(), policies(urgencies=[Urgency.NOW, Urgency.SPOT_ONLY]))
def test_every_unit_of_work_counts_wherever_it_waits(look, chosen):
    moved = tuple(replace(s, visible=0, in_flight=s.visible, delayed=s.in_flight) for s in look.services)

    assert decide(replace(look, services=moved), chosen) == decide(look, chosen)


@law
@given(looks(work=st.just(0)), policies())
def test_without_work_nothing_idles(look, chosen):
    assert decide(look, chosen).spot_target == 0
    later = replace(look, at=NOON + timedelta(minutes=5))
    for _ in range(3):
        later = applied(later, decide(later, chosen))

    assert not [i for i in later.instances if i.id not in look.noticed and not (i.joined and i.joined.tasks)]
    assert decide(later, chosen).on_demand_desired <= later.on_demand_present


# On-Demand


@law
@given(looks(), policies())
def test_no_more_is_bought_than_spot_is_short_of(look, chosen):
    decision = decide(fresh(look), chosen)
    shared = min(chosen.max_units, units_of_work(decision, chosen, "worker"))
    shortage = max(0, shared - decision.healthy_units)
    if chosen.urgency is Urgency.NOW:
        # What boots may come too late for what worked.
        there = [i for i in look.instances if i.spot and i.joined and i.id not in look.noticed]
        joined = sum(i.units for i in there if not i.joined.draining)
        shortage = max(shortage, decision.notes.worked - joined)
        until = tripped_until(decision.notes.waves)
        if until and until > NOON:
            shortage = max(shortage, ceil(shared / 2))

    if decision.on_demand_desired > look.on_demand_requested:
        wanted = shortage + units_of_work(decision, chosen, "steady")
        assert (decision.on_demand_desired - 1) * chosen.on_demand_units < wanted


@law
@given(looks(), policies())
def test_a_fleet_that_still_launches_buys_nothing(look, chosen):
    young = tuple(i if i.joined else replace(i, launched=NOON - timedelta(minutes=1)) for i in look.instances)
    launching = untimed(idler(replace(look, instances=young), "steady"))
    launching = replace(launching, noticed=frozenset(), notes=Notes(short_since=NOON - timedelta(minutes=1)))

    assert decide(launching, chosen).on_demand_desired <= max(look.on_demand_requested, look.on_demand_present)


@law
@given(looks(), policies(urgencies=[Urgency.NOW]))
def test_what_an_interruption_took_is_made_up_for_at_once(look, chosen):
    whole = fresh(idler(look, "steady", "patient"))
    whole = replace(whole, notes=Notes(worked=decide(whole, chosen).needed_units))
    decision = decide(whole, chosen)
    assume(not is_doubted(decision, spot=False))

    most = chosen.max_on_demand_units // chosen.on_demand_units
    short = decision.needed_units - decision.healthy_units
    assert decision.on_demand_desired >= min(most, ceil(short / chosen.on_demand_units))


@law
@given(looks(), policies(urgencies=[Urgency.NOW]))
def test_a_top_up_stays_until_spot_has_lasted_in_its_place(look, chosen):
    chosen = replace(chosen, on_demand_units=1, max_on_demand_units=99)
    slow = [i if i.spot else od(i.id, tasks=1) if i.joined else replace(i, launched=NOON) for i in look.instances]
    look = fresh(idler(replace(look, instances=tuple(slow), noticed=frozenset()), "patient", "steady"))
    look = replace(look, notes=replace(look.notes, on_demand_took=None))
    decision = decide(look, chosen)

    lasted = [i for i in look.instances if i.spot and i.joined and NOON - i.launched >= chosen.calm]
    stayed = [i for i in look.instances if not i.spot and i.id not in leaving(decision)]
    bought = min(look.on_demand_requested, len(look.instances) - sum(i.spot for i in look.instances))
    assert len(stayed) >= min(bought, decision.needed_units - sum(i.units for i in lasted))


@law
@given(looks(), policies(urgencies=[Urgency.SPOT_ONLY]))
def test_spot_only_is_spot_only(look, chosen):
    assert decide(idler(look, "steady"), chosen).top_up_units == 0


@law
@given(looks(), policies(), st.data())
def test_a_notice_never_lowers_capacity(look, chosen, data):
    calm = replace(look, noticed=frozenset())
    victims = data.draw(st.sets(st.sampled_from([i.id for i in look.instances if i.spot] or ["i-none"])))

    before, after = decide(calm, chosen), decide(replace(calm, noticed=frozenset(victims)), chosen)

    # A kind that is doubted is not asked for again as soon as it goes.
    assume(not is_doubted(after, spot=True))
    assert total_units(before, chosen) <= total_units(after, chosen)
    assert before.services == after.services


@law
@given(looks(), policies())
def test_the_fleet_s_own_scale_in_buys_nothing(look, chosen):
    """Whatever part of what is not needed comes under notice."""
    quiet = fresh(idler(look, "steady"))
    quiet = replace(quiet, noticed=frozenset(), notes=Notes())
    plain = decide(quiet, chosen)
    given_up = frozenset(plain.drain + plain.terminate_spot) & {i.id for i in look.instances if i.joined}

    told = decide(replace(quiet, noticed=given_up), chosen)

    assert told.on_demand_desired <= max(plain.on_demand_desired, look.on_demand_requested)


@law
@given(looks(), policies())
def test_a_group_is_never_asked_to_pick_a_victim(look, chosen):
    decision = decide(look, chosen)

    assert decision.on_demand_desired >= min(look.on_demand_requested, look.on_demand_present)
    assert decision.on_demand_desired - len(decision.terminate_on_demand) >= 0


@law
@given(looks(), policies(urgencies=[Urgency.DEADLINE]), st.sampled_from([timedelta(minutes=5), timedelta(hours=3)]))
def test_older_jobs_never_mean_less_help(look, chosen, older):
    timed, jobs = changed(look, "worker", job_seconds=60.0), of(look, "worker").visible
    young, old = (changed(timed, "worker", arrivals=(Arrival(age, jobs),)) for age in (timedelta(minutes=1), older))
    before, after = decide(young, chosen), decide(old, chosen)

    assert total_units(before, chosen) <= total_units(after, chosen)
    assert before.on_demand_desired <= after.on_demand_desired


@settings(law, max_examples=max(200, law.max_examples))
@given(looks(), policies(urgencies=[Urgency.DEADLINE]))
def test_jobs_that_can_wait_for_spot_buy_nothing(look, chosen):
    quiet = changed(idler(look, "steady"), "worker", arrivals=(), job_seconds=60.0)
    loads = {name: replace(load, max_wait=timedelta(hours=2)) for name, load in chosen.loads.items()}

    assert decide(quiet, replace(chosen, loads=loads)).on_demand_desired <= look.on_demand_requested


@law
@given(looks(), policies(urgencies=[Urgency.DEADLINE]))
def test_jobs_that_are_late_already_get_all_the_help_there_is_work_for(look, chosen):
    came = (Arrival(timedelta(hours=9), of(look, "worker").visible),)
    late = fresh(changed(idler(look, "steady", "patient"), "worker", arrivals=came, job_seconds=1200.0))
    loads = {name: replace(load, max_wait=timedelta(hours=2)) for name, load in chosen.loads.items()}
    decision = decide(late, replace(chosen, loads=loads))
    assume(not is_doubted(decision, spot=False))

    short = decision.needed_units - decision.healthy_units
    most = chosen.max_on_demand_units // chosen.on_demand_units
    assert decision.on_demand_desired >= min(most, ceil(short / chosen.on_demand_units))


# Who leaves


@law
@given(looks(), policies())
def test_scale_in_touches_nobody_who_works(look, chosen):
    decision = decide(look, chosen)
    busy = {i.id for i in look.instances if i.joined and i.joined.tasks}
    active = {i.id for i in look.instances if i.joined and not i.joined.draining}
    ended = {*decision.terminate_spot, *decision.terminate_on_demand, *decision.replace_on_demand}

    assert not busy & {*decision.drain, *ended}
    assert {*decision.relieve} <= busy & active
    assert not active & ended
    assert not look.noticed & {*decision.drain, *decision.relieve, *decision.reactivate, *ended}


@law
@given(looks(), policies(urgencies=[Urgency.NOW]))
def test_who_leaves_is_never_missed(look, chosen):
    chosen = replace(chosen, on_demand_units=1, max_on_demand_units=99)
    alike = tuple(i if i.spot or not i.joined else replace(i, units=min(i.units, 1)) for i in look.instances)
    look = fresh(idler(replace(look, instances=alike, on_demand_requested=9), "patient", "steady"))
    decision = decide(look, chosen)

    assert healthy(applied(look, decision)) >= min(decision.needed_units, healthy(look))


@law
@given(looks(), policies())
def test_a_busy_spot_instance_leaves_only_when_it_is_at_risk(look, chosen):
    at_risk = {i.id for i in look.instances if i.id in look.warned or i.warned == NOON - timedelta(minutes=1)}
    spot = {i.id for i in look.instances if i.spot}

    assert {*decide(look, chosen).relieve} & spot <= at_risk


@law
@given(looks(), policies())
def test_what_boots_has_time_to_join_while_it_is_needed(look, chosen):
    decision = decide(look, chosen)
    booting = [i for i in look.instances if i.spot and not i.joined and i.launched > NOON - chosen.broken]

    ended = [i for i in booting if i.id in decision.terminate_spot]
    assert not ended or decision.healthy_units >= decide(fresh(look), chosen).spot_target - spare_of(look)


def spare_of(look):
    """What the fleet may be asked for beyond the work, at most."""
    return sum(i.units for i in look.instances if i.spot)


@law
@given(looks(), policies())
def test_deciding_twice_asks_for_the_same(look, chosen):
    once = decide(look, chosen)
    twice = decide(applied(look, once), chosen)

    for name in ("services", "short_since", "ample_since"):
        assert part(twice, name) == part(once, name)
    came_back_at_risk = [i for i in look.instances if i.id in once.reactivate and (i.warned or i.id in look.warned)]
    assert twice.spot_target <= once.spot_target or came_back_at_risk
    assert twice.on_demand_desired <= once.on_demand_desired
    assert not set(once.reactivate) & {*twice.drain, *twice.relieve}
    assert not {*once.drain, *once.relieve} & set(twice.reactivate)


@law
@given(looks(), policies())
def test_it_comes_to_rest(look, chosen):
    for _ in range(6):
        look = applied(look, decide(look, chosen))
    last = decide(look, chosen)

    assert not acts(last)
    assert applied(look, last) == look


@law
@given(looks(), policies(), st.randoms())
def test_the_order_of_anything_does_not_matter(look, chosen, chance):
    shuffled = list(look.instances)
    chance.shuffle(shuffled)

    one, other = decide(look, chosen), decide(replace(look, instances=tuple(shuffled)), chosen)

    assert sorted(acts(one)) == sorted(acts(other))
    listed = {"evacuate": (), "taken": (), "warn": ()}
    assert replace(one, **listed) == replace(other, **listed)


@law
@given(looks(), policies())
def test_a_decision_says_why(look, chosen):
    decision = decide(look, chosen)

    assert decision.reason.startswith(f"{decision.needed_units} units needed" if decision.needed_units else "no work")


# What is remembered


@law
@given(looks(), policies())
def test_what_is_taken_from_us_is_told_and_what_we_gave_up_is_not(look, chosen):
    expected = {i.id for i in look.instances if i.spot and i.id in look.noticed and not i.surplus}

    assert set(decide(look, chosen).taken) == expected


@law
@given(looks(), policies())
def test_a_recommendation_is_written_down_once(look, chosen):
    decision = decide(look, chosen)

    assert set(decision.warn) <= look.warned & {i.id for i in look.instances if i.spot}
    assert not decide(applied(look, decision), chosen).warn


@law
@given(waves, st.integers(0, 4), few)
def test_the_breaker_trips_when_spot_was_lost_twice_over(known, taken, left):
    now = with_loss(known, taken, left, NOON)

    lately = sum(wave.share for wave in now if wave.at > NOON - OFTEN)
    until = tripped_until(now)
    if lately >= TWICE:
        assert until is not None and until > NOON
    if until is not None:
        assert sum(wave.share for wave in now if wave.at > until - QUIET - OFTEN) >= TWICE
    assert tripped_until(with_loss((), taken, left, NOON)) is None
    assert with_loss(now, taken, left, NOON) == now


# What is of no use


def launches(look, decision):
    """What there is more of, if all is brought that was asked for, and what ends is gone: units of Spot, instances of
    On-Demand.
    """
    spot = (
        decision.spot_target - look.fulfilled + sum(i.units for i in look.instances if i.id in decision.terminate_spot)
    )
    return spot, decision.on_demand_desired - look.on_demand_present + len(decision.replace_on_demand)


def is_on_trial(instance, look, chosen):
    if instance.id in look.noticed or standing(instance, look.at, chosen) not in (Standing.USABLE, Standing.LATE):
        return False
    joined = instance.joined
    return joined is None or joined.running < joined.tasks == 1 or look.at - joined.since < PROVEN


@law
@given(looks(), policies())
def test_after_three_of_no_use_in_a_row_one_is_tried_each_quarter_of_an_hour(look, chosen):
    decision = decide(look, chosen)

    for spot, asked in zip((True, False), launches(look, decision), strict=True):
        if is_doubted(decision, spot=spot):
            on_trial = any(is_on_trial(i, look, chosen) for i in look.instances if i.spot is spot)
            due = all(NOON - bad.launched >= PAUSE for bad in decision.notes.bad if bad.spot is spot)
            assert asked <= (due and not on_trial)


@law
@given(looks(), policies())
def test_up_to_two_of_no_use_in_a_row_change_nothing(look, chosen):
    decision = decide(look, chosen)
    assume(not is_doubted(decision, spot=True) and not is_doubted(decision, spot=False))

    plain = decide(replace(look, notes=replace(look.notes, bad=())), chosen)
    assert replace(plain, notes=replace(plain.notes, bad=decision.notes.bad)) == decision


@law
@given(looks(), policies(), st.booleans())
def test_one_that_works_clears_its_kind_of_what_was_launched_before(look, chosen, spot):
    proof = instance("i-proof", spot=spot, tasks=1, launched=NOON - PROVEN)
    proven = replace(look, instances=(*look.instances, proof))

    kept = [bad for bad in decide(look, chosen).notes.bad if bad.spot is not spot or bad.launched > proof.launched]
    assert decide(proven, chosen).notes.bad == tuple(kept)


# Where types are weighed


worths = st.builds(Fraction, st.integers(1, 9), st.integers(1, 4))
gpus_there = st.lists(worths, max_size=6).map(sorted)


@law
@given(st.integers(0, 60), gpus_there, worths)
def test_any_so_many_gpus_do_the_work_and_fewer_might_not(units, there, least):
    tasks = tasks_worth(units, there, least)
    to_come = [least] * max(0, tasks - len(there))

    assert sum(sorted([*there, *to_come][:tasks] if to_come else there[:tasks])) >= units
    assert not tasks or sum(there[: tasks - 1]) + least * max(0, tasks - 1 - len(there)) < units
    assert tasks <= tasks_worth(units + 1, there, least)
    assert tasks_worth(units, [Fraction(1)] * len(there), Fraction(1)) == units


@law
@given(st.lists(st.integers(0, 25), min_size=1, max_size=3), gpus_there, worths)
def test_every_service_has_gpus_of_its_own_when_all_that_is_needed_is_there(units, there, least):
    """Else one service might keep the last GPU for ever, and another's jobs wait."""
    load = Load(jobs_per_task=1, max_tasks=99, units_per_task=1)
    wanted = {f"service-{n}": count for n, count in enumerate(units)}
    chosen = policy(loads=dict.fromkeys(wanted, load), max_units=99, least=least)
    gpus = [Gpu(worth, spot=True) for worth in there]
    need = needed(wanted, chosen, gpus).spot

    assert need >= sum(units)
    assert need == sum(units) or len([count for count in units if count]) > 1
    if need <= sum(there):
        assert sum(tasks_for(wanted, gpus, chosen).values()) <= len(there)


@settings(max_examples=60, deadline=None, database=None)
@given(
    st.lists(st.sampled_from([(1, 1), (3, 1), (10, 1), (8, 2), (5, 4)]), min_size=2, max_size=3, unique=True),
    st.integers(1, 40),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
)
def test_a_fleet_of_unequal_types_shrinks_to_what_is_needed_and_to_nothing(types, most, least, chance):
    town = Weighed(policy(max_units=99, least=min(Fraction(units, gpus) for units, gpus in types)), types, chance)
    for backlog in (most, least):
        town.run(minutes=25, backlog=backlog)
        whole = sum(i.units for i in town.look.instances)
        assert whole >= backlog
        assert town.at_work() >= backlog
        town.run(minutes=20, backlog=backlog)
        assert sum(i.units for i in town.look.instances) == whole, "it does not come to rest"
    assert not [i for i in town.look.instances if not i.joined.tasks and i.units <= whole - least], "idle and too much"
    there = sorted(i.worth for i in town.look.instances for _ in range(i.joined.gpus))
    assert town.look.services[0].desired == tasks_worth(least, there, town.policy.least)

    town.run(minutes=8, backlog=0)
    assert not town.look.instances


# Over time


@settings(max_examples=60, deadline=None, database=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_busy_on_demand_goes_back_to_spot_in_a_few_passes_and_nobody_is_missed(needed, bought, job_minutes, warm):
    town = Town(policy(calm=timedelta(minutes=5)), job_minutes=job_minutes, on_demand_boots=1 if warm else 3)
    town.spot_room = 0
    town.run(minutes=12, backlog=needed)
    assert town.count(spot=False) == min(needed, 10)
    town.spot_room = 99
    for _ in range(3 + 5 + job_minutes + 3):
        town.run(minutes=1, backlog=needed)
        assert town.healthy() >= needed

    assert (town.count(spot=False), town.look.on_demand_requested) == (0, 0)
    assert town.count(spot=True) == needed


@settings(max_examples=40, deadline=None, database=None)
@given(st.integers(1, 6), st.integers(0, 6), st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=5))
def test_where_on_demand_comes_within_a_notice_nobody_is_missed(needed, room, taken):
    town = Town(policy(), on_demand_boots=1)
    town.spot_room = room
    town.run(minutes=12, backlog=needed)
    for minutes, most in [*taken, (12, 0)]:
        town.take(most)
        for _ in range(minutes):
            town.run(minutes=1, backlog=needed)
            assert town.healthy() >= needed

    assert (town.count(spot=True), town.look.on_demand_requested) == (min(needed, room), needed - min(needed, room))


@settings(max_examples=40, deadline=None, database=None)
@given(st.lists(st.integers(-1, 1), min_size=120, max_size=120))
def test_a_backlog_about_a_threshold_does_not_flap(steps):
    launches = {}
    for linger in (timedelta(0), policy().linger):
        town, jobs = Town(policy(linger=linger)), 3
        for step in steps:
            jobs = max(1, jobs + step)
            town.run(minutes=1, backlog=jobs)
        launches[linger] = town.launches
        # At most once in so many minutes is something given up that is wanted again later.
        fell = [b.at - a.at for a, b in zip(town.falls, town.falls[1:], strict=False)]
        assert all(pause >= linger for pause in fell)
    assert launches[policy().linger] <= launches[timedelta(0)]


@settings(max_examples=40, deadline=None, database=None)
@given(st.integers(1, 10), st.integers(10, 90), st.integers(1, 6))
def test_what_spoils_every_machine_costs_one_of_each_kind_in_a_quarter_of_an_hour_until_it_is_mended(
    needed, minutes, job
):
    town = Town(policy(), job_minutes=job)
    town.is_spoiled = lambda _: True
    town.run(minutes=minutes, backlog=needed)

    # What is needed is tried whole until three have failed.
    assert town.launches <= 2 * (needed + 2 + minutes // 15)

    town.is_spoiled = lambda _: False
    town.run(minutes=30, backlog=needed)
    assert town.healthy() >= needed
    assert not [bad for bad in town.look.notes.bad if bad.spot]


@settings(max_examples=40, deadline=None, database=None)
@given(st.integers(1, 10), st.integers(1, 10))
def test_a_single_machine_of_no_use_is_replaced_at_once(needed, bad):
    town = Town(policy())
    town.is_spoiled = lambda i: i.id == f"i-{bad:04}"
    town.run(minutes=4, backlog=needed)

    assert town.launches == needed + (bad <= needed)


@settings(max_examples=40, deadline=None, database=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_what_is_at_risk_is_replaced_a_quarter_at_a_time(needed, at_risk):
    town = Town(policy(max_units=40))
    town.run(minutes=10, backlog=needed)
    town.warn(at_risk)
    most = town.count(spot=True)
    for _ in range(30):
        town.run(minutes=1, backlog=needed)
        most = max(most, town.count(spot=True, draining=False))
        assert town.healthy() >= needed

    assert most <= needed + ceil(needed / 4)
    assert town.count(spot=True) == needed
    assert not town.look.warned
