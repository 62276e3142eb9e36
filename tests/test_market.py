from datetime import timedelta

import pytest
from ec2_make import NOON, pools
from hypothesis import given
from hypothesis import strategies as st

from localcloud.market import GENEROUS, ON_DEMAND, SPOT, Change, Market, Pool

A, B = Pool("g5.xlarge", "us-east-1a"), Pool("g5.xlarge", "us-east-1b")
MINUTE = timedelta(minutes=1)


def market(seed: int = 0, **weather: float) -> Market:
    made = Market(seed)
    for pool in (A, B):
        made.open(pool, 1.006, NOON)
    made.storms_per_hour = weather.get("storms_per_hour", 0.0)
    return made


def hours(made: Market, count: int) -> list[Change]:
    return [change for minute in range(count * 60) for change in made.tick(NOON + minute * MINUTE)]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), pools, st.sampled_from([SPOT, ON_DEMAND])),
        st.tuples(st.just("give back"), pools, st.sampled_from([SPOT, ON_DEMAND])),
        st.tuples(st.just("room"), pools, st.integers(0, 3)),
    ),
    max_size=40,
)


@given(steps)
def test_no_launch_ever_exceeds_the_room_of_its_pool(steps):
    made = Market()
    for what, pool, how in steps:
        made.open(pool, 1.0, NOON)
        if what == "room":
            made.set_capacity(pool, how)
            made.set_capacity(pool, how, ON_DEMAND)
        elif what == "take":
            before = made.taken(pool, how)
            taken = made.take(pool, how)
            assert taken == (before < made.capacity(pool, how))
            assert made.taken(pool, how) == before + taken
        elif made.taken(pool, how):
            made.give_back(pool, how)
        assert made.excess(pool) == max(0, made.taken(pool) - made.capacity(pool))


def test_nothing_is_given_back_that_was_not_taken():
    with pytest.raises(ValueError, match="no spot instance"):
        market().give_back(A)


@given(st.integers(0, 50))
def test_a_seed_is_repeatable_and_its_weather_does_not_depend_on_what_was_opened_first(seed):
    one, other = market(seed, storms_per_hour=6), Market(seed)
    for pool in (B, A):
        other.open(pool, 1.006, NOON)
    other.storms_per_hour = 6

    assert hours(one, 3) == hours(other, 3)


def test_fine_weather_takes_nothing():
    assert {change.capacity for change in hours(market(), 24)} == {None}


def test_a_storm_takes_several_pools_and_passes():
    changes = [change for change in hours(market(3, storms_per_hour=2), 12) if change.capacity is not None]

    assert min(change.capacity for change in changes) == 0
    assert changes[-1].capacity == GENEROUS[SPOT] or any(change.capacity == GENEROUS[SPOT] for change in changes)


@given(st.integers(0, 50))
def test_a_spot_price_is_positive_and_never_above_on_demand(seed):
    made = market(seed)

    prices = [change.price for change in hours(made, 24) if change.price is not None]

    assert prices
    assert all(0 < price <= 1.006 for price in prices)


def test_the_history_begins_with_the_price_that_held_at_the_start():
    made = market()
    hours(made, 2)

    (newest, _), *_, (oldest, _) = made.history(A, NOON - timedelta(minutes=30), NOON + timedelta(hours=2))

    assert newest > NOON
    assert oldest <= NOON - timedelta(minutes=30)


def test_a_scripted_capacity_lasts():
    made = market()
    made.set_capacity(A, 2)

    hours(made, 5)

    assert made.capacity(A) == 2


@pytest.mark.parametrize("name", ["g5.xlarge", "/us-east-1a", "g5.xlarge/"])
def test_a_pool_has_a_type_and_a_zone(name):
    with pytest.raises(ValueError, match="TYPE/ZONE"):
        Pool.named(name)
