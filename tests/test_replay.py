"""The replay: small markets whose outcome a person can count, laws for the others, and what the command refuses."""

import xml.etree.ElementTree as ET
from datetime import timedelta
from itertools import combinations, pairwise
from statistics import correlation, fmean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_make import HOUR, delays, lived, market, policy

from capacity.nouns import Urgency
from replay import shipped
from replay.bounds import bound, bound_never_short
from replay.comparisons import COMPARISONS, Follow
from replay.files import Arrival
from replay.generated import STEP as GENERATED_STEP
from replay.generated import ZONES, generated
from replay.market import Market, Price
from replay.plots import capacity
from replay.shipped import Shipped
from replay.work import Endless, Jobs
from replay.world import Diary, World


def test_what_is_under_notice_serves_and_is_billed_until_its_notice_ends():
    bill = lived(market(2, 0), "spot-fleet")

    assert bill.short == 600 - 120
    assert bill.cost == pytest.approx(2 * (600 + 120) / HOUR)
    assert bill.interruptions == 2


def test_on_demand_bought_at_the_notice_comes_too_late_by_what_its_launch_takes_longer():
    assert lived(market(2, 0), "reactive").short == 180 - 120
    assert lived(market(2, 0), "reactive", on_demand=100.0).short == 0


def test_on_demand_stays_until_the_spot_that_replaces_it_is_ready():
    bill = lived(market(0, 2, 2), "reactive")

    assert bill.short == 0
    assert bill.on_demand_seconds == 2 * (600 + 180)


def test_a_zone_takes_back_the_youngest():
    bill = lived(market(1, 2, 1), "spot-fleet")

    # The older one lives on to the end, for 1800 s; what is taken back in its first hour is free.
    assert bill.cost_free_hour == pytest.approx(1800 / HOUR)
    assert bill.cost == pytest.approx((1800 + 600 + 120) / HOUR)


def test_a_fleet_is_spread_evenly_with_the_cheapest_zone_first():
    seen = Diary()
    prices = [Price([(0.0, 3.0)]), Price([(0.0, 1.0)]), Price([(0.0, 2.0)])]

    lived(market((9, 9, 9), prices=prices), "spot-fleet", units=5, diary=seen)

    assert seen.moments[0][2] == (1, 2, 2, 0)


def test_what_one_zone_takes_the_others_give():
    bill = lived(market((2, 2), (0, 2)), "spot-fleet", units=2)

    assert (bill.interruptions, bill.launches) == (1, 3)


@pytest.mark.parametrize("lived_for, billed", [(30.0, 60.0), (400.0, 400.0)])
def test_an_instance_is_billed_per_second_and_for_a_minute_at_least(lived_for, billed):
    bill = lived(market(1, 0, step=lived_for), "spot-fleet", units=1, notice=0.0)

    assert bill.cost == pytest.approx(billed / HOUR)


def test_the_first_hour_is_free_only_for_what_ec2_takes_within_it():
    early = lived(market(1, 0, step=3000.0), "spot-fleet", units=1)
    late = lived(market(1, 0, step=3500.0), "spot-fleet", units=1)

    assert (early.cost_free_hour, late.cost_free_hour) == (0, late.cost)


def test_spot_is_paid_at_the_price_of_its_zone_at_that_time():
    price = Price([(0.0, 1.0), (600.0, 2.0), (900.0, 4.0)])

    bill = lived(market(1, 1, prices=[price]), "spot-fleet", units=1)

    assert bill.cost == pytest.approx((600 * 1 + 300 * 2 + 300 * 4) / HOUR)


def test_source_004_looks_away_for_ten_minutes_after_a_change():
    trace = market(2, 1, 0, 0, 0, step=300.0)

    assert lived(trace, "source-004").short > lived(trace, "reactive").short
    assert lived(trace, "source-004").launches == lived(trace, "reactive").launches


@pytest.mark.parametrize(
    "name, spot, on_demand",
    [
        ("on-demand", (0, 0), 4),
        ("spot-one-zone", (4, 0), 0),
        ("spot-even", (2, 2), 0),
        ("spot-fleet", (2, 2), 0),
        ("reactive", (2, 2), 0),
        ("source-004", (2, 2), 0),
        ("spothedge-1", (3, 2), 0),
        ("spothedge-2", (3, 3), 0),
        ("spothedge-4", (4, 4), 0),
        ("fixed-25", (2, 1), 1),
        ("fixed-50", (1, 1), 2),
    ],
)
def test_a_calm_market_shows_what_each_rule_is(name, spot, on_demand):
    seen = Diary()

    lived(market((9, 9), (9, 9)), name, units=4, diary=seen)

    assert seen.moments[-1][2] == (*spot, on_demand)


@pytest.mark.parametrize(
    "name, units, on_demand", [("spothedge-1", 4, 0), ("spothedge-2", 4, 1), ("fixed-25", 3, 1), ("fixed-50", 3, 2)]
)
def test_on_demand_is_what_extra_spot_lacks_and_a_share_is_rounded_up(name, units, on_demand):
    seen = Diary()

    lived(market(5, 5), name, units=units, diary=seen)

    assert seen.moments[-1][2][-1] == on_demand


def test_an_even_spread_does_not_move_to_another_zone():
    assert lived(market((9, 0)), "spot-even", units=4).missing_seconds == 2 * 600


markets = st.builds(
    lambda rows, step: market(*rows, step=step),
    st.lists(st.tuples(*[st.integers(0, 3)] * 2), min_size=2, max_size=8),
    st.sampled_from([60.0, 600.0]),
)


@given(trace=markets, name=st.sampled_from(sorted(COMPARISONS)))
def test_nobody_holds_what_is_not_there(trace, name):
    class Watched(Follow):
        def act(self, world):
            again = super().act(world)
            counts = next(row for at, row in reversed(trace.available) if at <= world.now)
            assert all(held <= room for held, room in zip(world.held, counts, strict=True))
            assert sum(world.held) == sum(not machine.noticed for machine in world.spot)
            return again

    lived(trace, Watched(COMPARISONS[name]), units=4)


@settings(deadline=None)
@given(trace=markets, delay=st.sampled_from([60.0, 180.0, 300.0]), spot=st.sampled_from([30.0, 180.0]))
def test_who_is_never_short_pays_at_least_what_the_planner_pays(trace, delay, spot):
    lowest = bound(trace, 3, delays(on_demand=delay, spot=spot)).cost
    planned = bound_never_short(trace, 3, delays(on_demand=delay, spot=spot)).cost

    assert lowest <= planned + 1e-9 or spot < 120
    for name in COMPARISONS:
        bill = lived(trace, name, units=3, on_demand=delay, spot=spot)
        assert bill.short or bill.cost >= planned - 1e-9, name


def test_the_planner_launches_ahead_of_the_loss_and_lets_go_when_spot_is_ready():
    plan = bound_never_short(market(2, 0, 2), 2, delays())

    # Taken back at 600 and gone at 720, launched again at 1200 and ready at 1380.
    assert plan.on_demand_seconds == pytest.approx(2 * (1380 - 720 + 180))
    assert plan.cost == pytest.approx(2 * (3 * 840 + (600 + 120) + 600) / HOUR)


def test_the_planner_launches_nothing_where_there_is_no_room():
    plan = bound_never_short(market(1, 0, 0, *[1] * 9, step=60.0), 1, delays(spot=30.0))

    # Taken back at 60 and gone at 180; launched again at 180 and ready at 210.
    assert plan.on_demand_seconds == pytest.approx(210 - 180 + 180)


def test_the_planner_does_not_change_for_spot_that_does_not_stay():
    brief = market(0, 0, 1, 0, 0, step=200.0)

    assert bound_never_short(brief, 1, delays()).on_demand_seconds == 1000


def test_a_bound_without_launches_takes_the_cheapest_at_each_moment():
    prices = [Price([(0.0, 1.0)]), Price([(0.0, 2.0), (600.0, 0.5)]), Price([(0.0, 9.0)])]

    plan = bound(market((1, 1, 1), (1, 1, 1), prices=prices), 3, delays())

    assert plan.cost == pytest.approx((600 * (1 + 2 + 3) + 600 * (1 + 0.5 + 3)) / HOUR)
    assert plan.on_demand_seconds == 1200


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("on_demand", [100.0, 180.0])
def test_the_passes_that_the_replay_leaves_out_would_have_changed_nothing(seed, on_demand):
    made = generated(seed, 3, 4)
    trace = Market(zones=made.zones, available=made.rows, prices=[Price([(0.0, 1.0)])] * 6, on_demand=3.0, end=made.end)

    some = lived(trace, Shipped(policy(8)), units=8, on_demand=on_demand)
    every = lived(trace, Shipped(policy(8), every_minute=True), units=8, on_demand=on_demand)

    assert some == every
    assert some.interruptions > 20


def test_the_shipped_policy_begins_whole_and_makes_up_for_a_loss_at_once():
    bill = lived(market(2, 0), Shipped(policy()))

    assert bill.short == 180 - 120
    assert lived(market(0, 0), Shipped(policy(urgency=Urgency.DEADLINE))).short == 0


def test_the_shipped_policy_works_off_a_load_and_goes_back_to_nothing():
    seen = Diary()
    work = Jobs([Arrival(at=100.0, jobs=40, seconds=30.0)], units=2, jobs_per_unit=5)

    bill = lived(market(*[2] * 12), Shipped(policy(jobs_per_unit=5)), work=work, diary=seen)

    assert work.waits(7200.0).jobs == len(work.waits(7200.0).finished) == 40
    assert seen.moments[-1][2] == (0, 0)
    assert bill.launches <= 4


def waited(trace, load, urgency, hours, units=16):
    """What it cost, and the share of jobs that took no more than so many hours."""
    work = Jobs(load, units=units, jobs_per_unit=20)
    chosen = policy(units=units, jobs_per_unit=20, urgency=urgency, max_wait=timedelta(hours=hours))
    bill = lived(trace, Shipped(chosen), work=work)
    return bill.cost, work.waits(trace.end).within(hours * HOUR)


def steadily(trace, jobs, seconds):
    """So many jobs every ten minutes."""
    return [Arrival(at=at * 600.0, jobs=jobs, seconds=seconds) for at in range(int(trace.end / 600))]


@pytest.mark.parametrize("gap, hours", [(9, 2), (9, 4), (18, 4)])
def test_a_deadline_is_met_for_much_less_than_everything_at_once(gap, hours):
    trace = market(*([16] * gap + [0] * gap) * (96 // gap))
    load = steadily(trace, 64, 60.0)
    now, _ = waited(trace, load, Urgency.NOW, hours)
    cost, in_time = waited(trace, load, Urgency.DEADLINE, hours)

    assert in_time >= 0.99
    assert cost <= 0.85 * now


@pytest.mark.parametrize("seed", [1, 2])
def test_a_deadline_is_met_on_a_market_as_they_are(seed):
    there = generated(seed, 2, 8)
    trace = Market(
        zones=there.zones, available=there.rows, prices=[Price([(0.0, 1.0)])] * 6, on_demand=3.0, end=there.end
    )
    load = steadily(trace, 60, 60.0)
    now, _ = waited(trace, load, Urgency.NOW, 3)
    cost, in_time = waited(trace, load, Urgency.DEADLINE, 3)

    assert in_time >= 0.99
    assert cost < now


def test_a_deadline_is_met_though_there_is_never_any_spot():
    trace = market(*[0] * 72)
    load = [Arrival(at=at * HOUR, jobs=240, seconds=60.0) for at in range(10)]

    _, in_time = waited(trace, load, Urgency.DEADLINE, 2)

    assert in_time >= 0.99


def test_the_policy_sees_who_ends_its_job_before_it_leaves(monkeypatch):
    looks = []
    decide = shipped.decide
    monkeypatch.setattr(shipped, "decide", lambda seen, policy: looks.append(seen) or decide(seen, policy))

    lived(market(0, 2, 2, 2), Shipped(policy()), work=Endless(2, 70.0))

    assert {i.joined.since - i.launched for i in looks[0].instances} == {timedelta(seconds=180)}
    leaving = [i for seen in looks for i in seen.instances if not i.spot and i.joined.draining]
    assert {(i.surplus, i.joined.tasks) for i in leaving} >= {(True, 1), (True, 0)}
    assert all(
        not i.joined.draining or i.id in seen.noticed for seen in looks for i in seen.instances if i.spot and i.joined
    )
    assert [i.spot for i in looks[-1].instances] == [True, True]


@pytest.mark.parametrize("every_minute", [False, True])
def test_on_demand_that_does_not_join_is_replaced_until_it_is_doubted(every_minute):
    bill = lived(market(2, 0, 0, 0), Shipped(policy(), every_minute=every_minute), on_demand=1900.0)

    # Two bought at 600, given up and bought again at 1200, given up at 1800; one is tried a quarter of an hour after.
    assert bill.launches == 2 + 2 * 2 + 1


class Drains(Follow):
    """Drains everything at a moment, and takes it back at another."""

    def __init__(self, at, back=None):
        super().__init__(COMPARISONS["spot-fleet"])
        self.moments = {at: World.drain, back: World.reactivate}

    def act(self, world):
        super().act(world)
        if change := self.moments.pop(world.now, None):
            for machine in world.spot:
                change(world, machine)
        return min((at for at in self.moments if at), default=float("inf"))


def test_what_is_drained_serves_until_its_job_is_done():
    seen = Diary()

    lived(market(1, 1, 1), Drains(500.0), work=Endless(1, 70.0), diary=seen)

    # Jobs begin at 0, 70, 140, …: the one at hand is done at 560.
    assert [(at, units) for at, _, units in seen.moments if at >= 500] == [(500, (1, 0)), (560, (0, 0))]


def test_what_is_taken_back_goes_on_serving():
    bill = lived(market(1, 1, 1), Drains(500.0, 520.0), work=Endless(1, 70.0))

    assert bill.short == 0


def jobs(*arrivals, units=1, jobs_per_unit=1):
    arrived = [Arrival(at=at, jobs=count, seconds=seconds) for at, count, seconds in arrivals]
    return Jobs(arrived, units=units, jobs_per_unit=jobs_per_unit)


def test_a_job_that_does_not_end_within_the_notice_is_given_back_at_once_and_done_again():
    work = jobs((0.0, 1, 600.0))

    lived(market((1, 0), (0, 1), (0, 1), (0, 1)), "spot-fleet", work=work)

    # Ready at 180, taken back at 600; ready in the other zone at 780.
    assert work.waits(2400.0).finished == [780 + 600]


@pytest.mark.parametrize("seconds, done", [(420 + 99, 600 + 99), (420 + 101, 780 + 420 + 101)])
def test_a_job_that_ends_twenty_seconds_before_its_instance_is_finished(seconds, done):
    work = jobs((0.0, 1, seconds))

    lived(market((1, 0), (0, 1), (0, 1), (0, 1)), "spot-fleet", work=work)

    assert work.waits(2400.0).finished == [done]


def test_a_job_given_back_is_the_next_to_be_done():
    work = jobs((0.0, 1, 600.0), (10.0, 1, 600.0))

    lived(market((1, 0), (0, 1), (0, 1), (0, 1)), "spot-fleet", work=work)

    assert work.waits(2400.0).finished == [780 + 600, 780 + 1200 - 10]


def test_a_fleet_that_shrinks_lets_jobs_end():
    work = jobs((0.0, 4, 100.0), units=3, jobs_per_unit=2)

    bill = lived(market(9, 9), "spot-fleet", work=work)

    assert work.waits(1200.0).finished == [280, 280, 380, 380]
    assert bill.launches == 2


def test_the_need_follows_the_jobs_up_to_the_units_allowed():
    seen = Diary()

    lived(market(9, 9), "spot-fleet", work=jobs((100.0, 5, 60.0), units=3), diary=seen)

    needs = [need for _, need, _ in seen.moments]
    assert (needs[0], max(needs), needs[-1]) == (0, 3, 0)


def test_jobs_are_in_time_by_their_end_and_those_too_young_to_tell_are_left_out():
    work = jobs((0.0, 1, 100.0), (1100.0, 1, 400.0))
    lived(market(1, 1), "spot-fleet", work=work)

    waits = work.waits(1200.0)

    assert waits.finished == [280.0]
    assert waits.unfinished == [100.0]
    assert (waits.within(300), waits.within(200), waits.within(50)) == (1, 0, 0)


def test_without_work_nothing_runs():
    assert lived(market(9, 9), Shipped(policy()), work=jobs()).cost == 0


def rows_of(made):
    """Every row, also those that are as the one before."""
    ends = [at for at, _ in made.rows[1:]] + [made.end]
    return [
        row for (at, row), end in zip(made.rows, ends, strict=True) for _ in range(round((end - at) / GENERATED_STEP))
    ]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_generated_market_has_the_statistics_that_it_states(seed):
    rows = rows_of(generated(seed, 45, 16))
    columns = list(zip(*rows, strict=True))
    shares = [(name[:-2], share) for region in ZONES.values() for name, share in region.items()]
    same, other = [], []
    for (one, a), (two, b) in combinations(zip([region for region, _ in shares], columns, strict=True), 2):
        (same if one == two else other).append(correlation(a, b))
    drops = [before - now for column in columns for before, now in pairwise(column) if now < before]
    lives = [
        len(run) * GENERATED_STEP / HOUR
        for column in columns
        for run in "".join("x" if n else " " for n in column).split()
    ]

    for (_, share), column in zip(shares, columns, strict=True):
        assert fmean(column) / 16 == pytest.approx(share, abs=0.15)
    assert 0.35 < fmean(same) < 0.7
    assert -0.05 < fmean(other) < 0.25
    assert 7 < fmean(drops) < 12
    assert 0.3 < median(lives) < 1.4


def test_the_same_seed_is_the_same_market_and_another_is_another():
    assert generated(1, 2, 8) == generated(1, 2, 8)
    assert generated(1, 2, 8) != generated(2, 2, 8)


def test_zones_picked_from_a_generated_market_are_as_they_were_in_the_whole():
    whole, some = generated(1, 2, 8), generated(1, 2, 8, ["west-a", "east-b"])

    assert [(row[4], row[1]) for row in rows_of(whole)] == rows_of(some)


def test_a_plot_is_well_formed_whatever_a_zone_is_called():
    seen = Diary()
    trace = market((2, 1), (0, 1), (2, 0))
    lived(trace, "reactive", diary=seen)

    drawing = ET.fromstring(capacity(seen, ["a<b", '"c"&'], trace.end))

    assert {title.text for title in drawing.iter("title")} >= {"a<b", '"c"&', "On-Demand", "units needed"}
    assert len([bar for bar in drawing.iter("rect") if bar.get("class") == "notice"]) == 2
    assert any(bar.get("class") == "short" for bar in drawing.iter("rect"))
    heights = {text.text: float(text.get("y")) for text in drawing.iter("text")}
    (need,) = [path.get("d") for path in drawing.iter("path") if path.get("class") == "need"]
    assert heights["2"] < heights["0"]
    assert float(need[1:].split("V")[0].split(",")[1]) == pytest.approx(heights["2"] - 4, abs=0.2)
