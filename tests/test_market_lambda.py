"""Which Spot pools the fleet may use, and what is known of each."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from market_make import ENVIRONMENT, World, settings
from moto import mock_aws
from stacks_make import EVERYTHING, GIVEN_VPC, TABLES, stack

from gpu_worker.cost import usd_per_hour
from localcloud import catalog
from localcloud.requirements import satisfying
from market import prices
from market.cloud import Aws, CouldNotApply, CouldNotLook
from market.settings import BadSettings, Settings
from market.worth import Look, Pool, State, average, avoided_until, fewest_open, judge
from templates import machines
from templates.instance_types import GPU_NAMES, INSTANCE_TYPES
from templates.market import types
from templates.settings import Settings as Chosen

NOON = datetime(2026, 8, 1, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
POOLS = [Pool(kind, zone) for kind in ("g4dn.xlarge", "g5.xlarge", "g6.xlarge") for zone in ("a", "b", "c")]


# The judgement, pure.


def look(pool=POOLS[0], **parts):
    return Look(**{"pool": pool, "spot_usd": 0.2, "on_demand_usd": 0.5, **parts})


def alone(one, now=NOON):
    """The verdict on a pool beside others that are well."""
    others = [look(pool) for pool in POOLS if pool != one.pool]
    return judge([one, *others], now)[one.pool]


@pytest.mark.parametrize(
    "case, changes, expected",
    [
        ("a price that held all the hour", [(-90, 0.2)], 0.2),
        ("half the hour each", [(-90, 0.2), (-30, 0.4)], 0.3),
        ("a peak of six minutes", [(-90, 0.2), (-12, 1.2), (-6, 0.2)], 0.3),
        ("pages come in no order", [(-12, 1.2), (-90, 0.2), (-6, 0.2)], 0.3),
        ("told twice is once", [(-90, 0.2), (-30, 0.4), (-30, 0.4)], 0.3),
        ("older changes do not count", [(-300, 9.0), (-90, 0.2)], 0.2),
        ("what is to come does not count", [(-90, 0.2), (-30, 0.4), (30, 9.0)], 0.3),
        ("a pool that opened half an hour ago", [(-30, 0.4)], 0.4),
        ("no price", [], None),
        ("no price yet", [(5, 0.4)], None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_price_counts_for_as_long_as_it_held(case, changes, expected):
    found = average([(NOON + minute * MINUTE, price) for minute, price in changes], NOON - HOUR, NOON)

    assert found == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(-120, 0), st.floats(0.01, 10)), min_size=1, max_size=12))
def test_an_average_is_between_the_cheapest_and_the_dearest(changes):
    told = [(NOON + minute * MINUTE, price) for minute, price in changes]

    found = average(told, NOON - HOUR, NOON)

    if found is not None:
        assert min(p for _, p in told) - 1e-9 <= found <= max(p for _, p in told) + 1e-9


@pytest.mark.parametrize(
    "case, parts, state",
    [
        ("cheap", {}, State.OPEN),
        ("at On-Demand's price", {"spot_usd": 0.5}, State.DEAR),
        ("above it", {"spot_usd": 0.6}, State.DEAR),
        ("nearly as dear, and it was well", {"spot_usd": 0.47}, State.OPEN),
        ("nearly as dear, and it was dear", {"spot_usd": 0.47, "state": State.DEAR}, State.DEAR),
        ("cheap again", {"spot_usd": 0.44, "state": State.DEAR}, State.OPEN),
        ("no Spot price", {"spot_usd": None}, State.OPEN),
        ("no Spot price any more", {"spot_usd": None, "state": State.DEAR}, State.OPEN),
        ("no On-Demand price", {"on_demand_usd": None}, State.OPEN),
        ("an On-Demand price of nothing is none", {"on_demand_usd": 0.0}, State.OPEN),
        ("taken just now", {"taken": (NOON,)}, State.AVOIDED),
        ("taken 14 minutes ago", {"taken": (NOON - 14 * MINUTE,)}, State.AVOIDED),
        ("taken a quarter of an hour ago", {"taken": (NOON - 15 * MINUTE,)}, State.OPEN),
        ("taken, and no price", {"taken": (NOON,), "spot_usd": None}, State.AVOIDED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_pool_is_judged(case, parts, state):
    assert alone(look(**parts)).state is state


def test_a_penalty_doubles_with_each_time_in_a_day_and_has_an_end():
    each_hour = [NOON + n * HOUR for n in range(8)]

    penalties = [avoided_until(each_hour[: n + 1]) - each_hour[n] for n in range(8)]

    assert [penalty / MINUTE for penalty in penalties] == [15, 30, 60, 120, 240, 240, 240, 240]


def test_a_mass_interruption_is_one():
    assert avoided_until([NOON + n * MINUTE for n in range(9)]) == NOON + 8 * MINUTE + 15 * MINUTE


def test_what_goes_on_for_an_hour_is_more_than_one():
    each_eight_minutes = [NOON + n * 8 * MINUTE for n in range(8)]

    assert avoided_until(each_eight_minutes) == NOON + 56 * MINUTE + 120 * MINUTE


def test_a_long_penalty_is_served_to_its_end():
    """Though what made it long is forgotten when the next interruption comes."""
    yesterday = [NOON - 24 * HOUR + n * 15 * MINUTE for n in range(4)]

    long = avoided_until([*yesterday, NOON - 10 * MINUTE])

    assert long == NOON - 10 * MINUTE + 4 * HOUR
    assert avoided_until([*yesterday, NOON - 10 * MINUTE, NOON + 40 * MINUTE]) == long


def test_yesterdays_interruptions_are_forgotten():
    assert avoided_until([NOON - 30 * HOUR, NOON - 25 * HOUR, NOON]) == NOON + 15 * MINUTE


moments = st.lists(st.integers(0, 3000).map(lambda minute: NOON - minute * MINUTE), max_size=20)


@given(moments, st.randoms(use_true_random=False))
def test_the_order_in_which_they_are_told_does_not_matter(taken, dice):
    mixed = [*taken]
    dice.shuffle(mixed)

    assert avoided_until(mixed) == avoided_until(taken)


@given(moments, st.integers(0, 3000))
def test_another_interruption_never_shortens_the_penalty(taken, minute):
    less = avoided_until(taken)

    more = avoided_until([*taken, NOON - minute * MINUTE])

    assert less is None or more >= less


shares = st.one_of(st.none(), st.sampled_from([0.3, 0.89, 0.9, 0.95, 0.98, 0.99, 1.0, 1.2]))
ages = st.lists(st.integers(0, 300), max_size=4)


@st.composite
def markets(draw):
    """Pools about the borders: dear or nearly, taken lately or some time ago, in any state."""
    chosen = draw(st.lists(st.sampled_from(POOLS), unique=True, min_size=1))
    looks = []
    for pool in chosen:
        share = draw(shares)
        looks.append(
            Look(
                pool=pool,
                spot_usd=None if share is None else share * 0.5,
                on_demand_usd=draw(st.sampled_from([0.5, 0.5, 0.5, None])),
                score=draw(st.sampled_from([None, 1, 9])),
                taken=tuple(NOON - age * MINUTE for age in draw(ages)),
                state=draw(st.sampled_from([*State])),
            )
        )
    return looks


def opened(verdicts):
    return {pool for pool, verdict in verdicts.items() if verdict.state is State.OPEN}


@given(markets())
def test_half_of_the_pools_and_two_stay_open_however_bad_they_are(looks):
    verdicts = judge(looks, NOON)

    assert verdicts.keys() == {one.pool for one in looks}
    assert len(opened(verdicts)) >= fewest_open(len(looks))
    assert fewest_open(len(looks)) >= min(2, len(looks)) and 2 * fewest_open(len(looks)) >= len(looks)


@given(markets())
def test_judging_twice_changes_nothing(looks):
    first = judge(looks, NOON)

    again = judge([replace(one, state=first[one.pool].state) for one in looks], NOON)

    assert {pool: verdict.state for pool, verdict in again.items()} == {p: v.state for p, v in first.items()}


@given(markets())
def test_the_order_in_which_pools_are_seen_does_not_matter(looks):
    assert judge(looks[::-1], NOON) == judge(looks, NOON)


@given(markets())
def test_every_pool_comes_back(looks):
    """Four hours after the last interruption, once its price is known to be low or not known at all."""
    calm = [replace(one, spot_usd=one.spot_usd and 0.2) for one in looks]

    assert opened(judge(calm, NOON + 4 * HOUR)) == {one.pool for one in looks}


@given(markets())
def test_a_price_that_is_not_known_shuts_no_pool(looks):
    verdicts = judge(looks, NOON)

    assert all(verdicts[one.pool].state is not State.DEAR for one in looks if one.share is None)


@given(markets())
def test_no_more_bad_pools_stay_than_must_and_none_that_is_worse(looks):
    verdicts = judge(looks, NOON)
    kept = {one.pool: one for one in looks if "stays" in verdicts[one.pool].why}
    shut = [one.pool for one in looks if verdicts[one.pool].state is State.AVOIDED]

    assert not kept or len(opened(verdicts)) == fewest_open(len(looks))
    assert not (shut and any(alone(one).state is State.DEAR for one in kept.values()))


def test_the_least_bad_stay():
    """One soon to be over before one that lasts, saving none is the worst, and the placement score decides last."""
    a, b, c, d = POOLS[:4]
    soon, later = (NOON - 14 * MINUTE,), (NOON - 2 * HOUR, NOON)
    looks = [look(a, taken=later), look(b, spot_usd=0.5), look(c, taken=soon, score=1), look(d, taken=soon, score=9)]

    verdicts = judge(looks, NOON)

    assert opened(verdicts) == {c, d}
    assert verdicts[d].why.endswith("stays, for 2 of 4 pools must")
    assert opened(judge(looks[:3], NOON)) == {a, c}
    even = [replace(one, taken=soon, spot_usd=0.2) for one in looks]
    assert opened(judge([replace(even[0], score=5), *even[1:]], NOON)) == {a, d}


@pytest.mark.parametrize(
    "parts, why",
    [
        ({}, "saves 60% of On-Demand"),
        ({"spot_usd": 0.51}, "Spot costs 102% of On-Demand"),
        ({"spot_usd": None}, "its Spot price is not known, which is no reason to leave it out"),
        ({"spot_usd": 0.0}, "its Spot price is not known, which is no reason to leave it out"),
        ({"on_demand_usd": None}, "its On-Demand price is not known, which is no reason to leave it out"),
        ({"taken": (NOON,)}, "EC2 took it once in a day, last at 12:00: avoided until 12:15 UTC"),
        (
            {"taken": (NOON - 3 * HOUR, NOON - 20 * MINUTE)},
            "EC2 took it 2 times in a day, last at 11:40: avoided until 12:10 UTC",
        ),
    ],
)
def test_a_verdict_says_why_in_a_sentence(parts, why):
    assert alone(look(**parts)).why == why


# Prices.


@pytest.mark.parametrize(
    "kind, region, usd",
    [
        ("g4dn.xlarge", "us-east-1", 0.526),
        ("g4dn.12xlarge", "eu-west-3", 4.574),
        ("g4dn.2xlarge", "us-gov-west-1", 0.948),
        ("g5.48xlarge", "il-central-1", 19.09145),
        ("g6.xlarge", "ap-southeast-5", 1.0138),
        ("g6e.8xlarge", "ap-northeast-2", 5.56762),
        ("gr6.8xlarge", "eu-central-2", 3.44089),
        ("p3.16xlarge", "ap-northeast-1", 33.552),
        ("p4d.24xlarge", "eu-central-1", 27.43298),
        ("p5.4xlarge", "sa-east-1", 11.5584),
        ("p5en.48xlarge", "eu-north-1", 67.72672),
    ],
)
def test_the_table_has_what_the_price_list_said(kind, region, usd):
    """Public prices of other sizes and regions than those that the table's multiples were made from."""
    found = prices.tabled(kind, region)

    assert found.usd == pytest.approx(usd, rel=0.002)
    assert found.source == f"the table of {prices.table_date()}"


def test_the_table_knows_every_type_that_is_sold_by_the_hour():
    assert [name for name in INSTANCE_TYPES if prices.tabled(name, "us-east-1") is None] == ["p5e.48xlarge"]
    assert prices.tabled("g5.xlarge", "mars-north-1") is None


def test_every_region_that_can_has_its_price_list_in_one_that_exists():
    session = boto3.Session()
    for partition in session.get_available_partitions():
        lists = session.get_available_regions("pricing", partition_name=partition)
        for region in session.get_available_regions("ec2", partition_name=partition):
            if partition in ("aws", "aws-cn", "aws-us-gov"):
                assert (prices.endpoint(region) in lists) or (prices.endpoint(region) is None and not lists)


def product(amount="0.526", unit="Hrs", currency="USD", **attributes):
    dimension = {"unit": unit, "pricePerUnit": {currency: amount}}
    return json.dumps(
        {
            "product": {"attributes": attributes},
            "terms": {"OnDemand": {"T": {"priceDimensions": {"R": dimension}}}, "Reserved": {"X": {}}},
        }
    )


@pytest.mark.parametrize(
    "case, products, usd",
    [
        ("one", [product()], 0.526),
        ("nothing", [], None),
        ("a reservation costs nothing", [product("0.0000000000"), product()], 0.526),
        ("a Capacity Block", [product("0.1", marketoption="CapacityBlock"), product(marketoption="OnDemand")], 0.526),
        ("by the second is another thing", [product("0.0001", unit="Second")], None),
        ("no On-Demand term", ['{"product": {"attributes": {}}, "terms": {}}'], None),
        ("in China", [product("4.1", currency="CNY")], 4.1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_price_list_is_read(case, products, usd):
    assert prices.told(products) == usd


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"product": {"attributes": {}}, "terms": {"OnDemand": {"T": 1}}}'])
def test_what_is_no_price_list_is_refused(text):
    with pytest.raises(prices.Unreadable):
        prices.told([text])


# The whole Lambda.


@pytest.fixture
def world(tmp_path):
    with mock_aws():
        yield World(tmp_path)


ALL = {f"{kind}/us-east-1{zone}" for kind in json.loads(ENVIRONMENT["TYPES"]) for zone in "ab"}
ONE = "g5.xlarge/us-east-1a"


def test_the_table_tells_of_every_pool(world):
    world.run()

    rows = world.rows()
    assert rows.keys() == ALL
    for pool, row in rows.items():
        assert 0 < row["spot_usd"] < row["on_demand_usd"]
        assert (row["on_demand_from"], row["state"]) == ("the price list", "open")
        assert row["seen_at"] == int(world.now.timestamp()) - 10
        assert 1 <= row["score"] <= 10
        assert re.fullmatch(r"saves \d+% of On-Demand", row["why"])
        assert float(row["on_demand_usd"]) == catalog.on_demand_usd(pool.split("/")[0])
    assert world.offered() == ALL


def test_what_is_bought_on_demand_alone_has_its_price_and_is_no_pool(tmp_path, capsys):
    with mock_aws():
        world = World(tmp_path, ON_DEMAND_TYPES="g6.2xlarge")
        world.table.put_item(Item={"pool": "g6.2xlarge/us-east-1a", "state": "open", "spot_usd": 1, "taken": [7]})
        for _ in range(3):
            world.run(minutes=5)

        rows = world.rows()
        assert world.calls["GetProducts"] == 5  # one for each type
        assert world.offered() == ALL
    others = {pool: rows[pool] for pool in rows.keys() - ALL}
    assert others.keys() == {"g6.2xlarge/us-east-1a", "g6.2xlarge/us-east-1b"}
    for row in others.values():
        assert float(row.pop("on_demand_usd")) == catalog.on_demand_usd("g6.2xlarge")
        assert row.keys() - {"taken"} == {"pool", "on_demand_from", "on_demand_at", "seen_at"}
        assert usd_per_hour({**row, "on_demand_usd": 1.5}, "on-demand") == 1.5 and usd_per_hour(row, "spot") is None
    assert others["g6.2xlarge/us-east-1a"]["taken"] == [7]
    assert "8 of 8 pools are worth having" in capsys.readouterr().out


def test_a_price_is_the_average_of_the_past_hour(world):
    world.price(ONE, 0.4)
    world.ec2.world.advance(1800)
    world.price(ONE, 0.6)

    world.run(minutes=30)

    assert float(world.rows()[ONE]["spot_usd"]) == pytest.approx(0.5, abs=0.001)


def test_prices_come_on_as_many_pages_as_there_are(world):
    """EC2 gives a thousand at a time."""
    stall = world.ec2.market._stalls[world.ec2.market.pools()[0]]
    pool, start = str(world.ec2.market.pools()[0]), world.now - timedelta(hours=1)
    stall.history[:] = [(start + n * timedelta(seconds=1), 0.3) for n in range(2500)]
    stall.scripted = True

    world.run()

    assert world.calls["DescribeSpotPriceHistory"] == 3
    assert float(world.rows()[pool]["spot_usd"]) == pytest.approx(0.3)


def test_a_pool_as_dear_as_on_demand_leaves_and_comes_back(world):
    world.price(ONE, 1.006)

    world.run(minutes=61)
    assert world.offered() == ALL - {ONE}
    assert (world.rows()[ONE]["state"], world.rows()[ONE]["why"]) == ("dear", "Spot costs 100% of On-Demand")

    world.price(ONE, 0.3)
    world.run(minutes=61)
    assert world.offered() == ALL
    assert world.rows()[ONE]["state"] == "open"


def test_a_pool_that_ec2_took_an_instance_from_leaves_and_comes_back(world):
    world.run()
    world.take(ONE, world.now)

    world.run(minutes=5)
    assert world.offered() == ALL - {ONE}
    assert world.rows()[ONE]["until"] > world.now.timestamp()

    world.run(minutes=10)
    assert world.offered() == ALL
    assert "until" not in world.rows()[ONE]


def test_instances_of_a_pool_that_leaves_run_on_and_the_target_stays(world):
    before = {one.id for one in world.ec2.instances.all()}
    kinds = {f"{one.pool.type}/{one.pool.zone}" for one in world.ec2.instances.all()}
    world.take(sorted(kinds)[0], world.now)

    world.run()

    assert sorted(kinds)[0] not in world.offered()
    described = world.ec2.described(world.fleet)["SpotFleetRequestConfig"]
    assert (described["TargetCapacity"], described["FulfilledCapacity"]) == (4, 4.0)
    assert {one.id for one in world.ec2.instances.all()} == before
    assert {one.state for one in world.ec2.instances.all()} == {"running"}


def test_a_target_that_the_capacity_lambda_sets_meanwhile_stays(world):
    """The change is on its way for seconds, and the target is not in it."""
    world.take(ONE, world.now)
    world.ec2.retarget(world.fleet, 6)

    world.run()  # the fleet still works on the target
    assert world.offered() == ALL
    assert world.rows()[ONE]["state"] == "avoided"

    world.run(minutes=5)
    assert world.offered() == ALL - {ONE}
    assert world.ec2.described(world.fleet)["SpotFleetRequestConfig"]["TargetCapacity"] == 6


def test_a_target_that_is_set_between_look_and_change_stays(world):
    """So no target is given: the one that was seen would be an old one."""
    world.take(ONE, world.now)
    world.after["DescribeSpotFleetRequests"] = lambda: (
        world.ec2.retarget(world.fleet, 6),
        world.ec2.world.advance(10),
    )

    world.run()

    assert world.offered() == ALL - {ONE}
    assert world.ec2.described(world.fleet)["SpotFleetRequestConfig"]["TargetCapacity"] == 6


def test_replacements_do_not_start_in_a_pool_that_left(world):
    world.take(ONE, world.now)
    world.run()

    world.ec2.retarget(world.fleet, 12)
    world.ec2.world.advance(60)

    started = [one for one in world.ec2.instances.all() if one.launched > world.now - timedelta(seconds=61)]
    assert len(started) == 8
    assert ONE not in {f"{one.pool.type}/{one.pool.zone}" for one in started}


def test_nothing_is_changed_while_nothing_changes(world):
    for _ in range(3):
        world.run(minutes=5)
    assert not world.calls["ModifySpotFleetRequest"]

    world.take(ONE, world.now)
    for _ in range(2):
        world.run(minutes=5)
    assert world.calls["ModifySpotFleetRequest"] == 1


def test_the_launch_template_stays_in_the_version_that_the_fleet_has(tmp_path):
    with mock_aws():
        world = World(tmp_path)
        updated = dict(world.ec2.described(world.fleet)["SpotFleetRequestConfig"]["LaunchTemplateConfigs"][0])
        updated["LaunchTemplateSpecification"] = {"LaunchTemplateId": "lt-1", "Version": "7"}
        world.ec2.ask("ModifySpotFleetRequest", SpotFleetRequestId=world.fleet, LaunchTemplateConfigs=[updated])
        world.ec2.world.advance(10)
        world.take(ONE, world.now)

        world.run()

        (config,) = world.ec2.described(world.fleet)["SpotFleetRequestConfig"]["LaunchTemplateConfigs"]
    assert config["LaunchTemplateSpecification"] == {"LaunchTemplateId": "lt-1", "Version": "7"}
    assert len(config["Overrides"]) == len(ALL) - 1


def test_an_update_of_the_stack_that_brings_all_pools_back_is_seen_to(world):
    (whole,) = world.ec2.described(world.fleet)["SpotFleetRequestConfig"]["LaunchTemplateConfigs"]
    world.take(ONE, world.now)
    world.run()
    world.ec2.ask("ModifySpotFleetRequest", SpotFleetRequestId=world.fleet, LaunchTemplateConfigs=[whole])
    world.ec2.world.advance(10)
    assert world.offered() == ALL

    world.run()

    assert world.offered() == ALL - {ONE}


def test_half_of_the_pools_stay_in_the_fleet_when_all_are_taken(world):
    for minute, pool in enumerate(sorted(ALL)):
        world.take(pool, world.now - minute * MINUTE)

    world.run()

    assert world.offered() == set(sorted(ALL)[4:])  # those taken first


def test_what_the_capacity_lambda_wrote_stays(world):
    taken = (world.now - HOUR, world.now)
    world.take(ONE, *taken)

    world.run()

    assert world.rows()[ONE]["taken"] == [int(moment.timestamp()) for moment in taken]
    assert world.rows()[ONE]["taken_ids"] == ["i-0", "i-1"]


def test_on_demand_prices_are_asked_for_four_times_a_day(world):
    for _ in range(13):
        world.run(minutes=30)
    assert world.calls["GetProducts"] == 2 * 4

    world.wake()
    world.run()
    assert world.calls["GetProducts"] == 2 * 4


def test_without_the_price_list_the_table_serves_and_says_so(world, capsys):
    world.refuse["GetProducts"] = "AccessDeniedException"

    world.run()

    assert world.calls["GetProducts"] == 1  # who is refused once is refused again
    assert float(world.rows()[ONE]["on_demand_usd"]) == 1.006
    assert world.rows()[ONE]["on_demand_from"] == f"the table of {prices.table_date()}"
    (unknown,) = json.loads(capsys.readouterr().out)["unknown"]
    assert "AccessDeniedException" in unknown and str(prices.table_date()) in unknown


def test_placement_scores_are_one_question_asked_four_times_a_day(world):
    for _ in range(13):
        world.run(minutes=30)

    assert world.calls["GetSpotPlacementScores"] == 2
    assert len(world.ec2.ec2._questions) == 1


def test_scores_that_ec2_does_not_give_are_as_they_were_and_not_asked_for_at_once(world, capsys):
    world.run()
    world.refuse["GetSpotPlacementScores"] = "MaxConfigLimitExceeded"
    known = world.rows()[ONE]["score"]

    world.run(minutes=361)
    world.run(minutes=5)

    assert world.rows()[ONE]["score"] == known
    assert world.calls["GetSpotPlacementScores"] == 2
    assert "MaxConfigLimitExceeded" in capsys.readouterr().out


def test_scores_are_not_asked_for_fewer_than_three_types(tmp_path):
    """They would always be low."""
    with mock_aws():
        world = World(tmp_path, TYPES='{"g5.xlarge": 1, "g6.xlarge": 1}')
        world.run()

    assert not world.calls["GetSpotPlacementScores"]


def test_a_fleet_that_chooses_by_attributes_is_only_observed(tmp_path, capsys):
    with mock_aws():
        world = World(tmp_path, steered=False)
        world.take(ONE, world.now)
        world.run()
        rows = world.rows()

    assert rows.keys() == ALL
    assert rows[ONE]["state"] == "avoided"
    assert not world.calls.keys() & {"DescribeSpotFleetRequests", "ModifySpotFleetRequest"}


@pytest.mark.parametrize(
    "operation, error",
    [
        ("DescribeSubnets", CouldNotLook),
        ("DescribeSpotPriceHistory", CouldNotLook),
        ("DescribeSpotFleetRequests", CouldNotApply),
        ("ModifySpotFleetRequest", CouldNotApply),
    ],
)
def test_what_fails_is_told_raised_and_changes_nothing(world, capsys, operation, error):
    world.take(ONE, world.now)
    world.refuse[operation] = "UnauthorizedOperation"

    with pytest.raises(error):
        world.run()

    line = json.loads(capsys.readouterr().out)
    assert line["event"] == "market-failed" and "UnauthorizedOperation" in line["why"]
    assert world.offered() == ALL


def test_what_is_written_is_one_line_that_says_what_changed(world, capsys):
    world.take(ONE, world.now)
    world.run()
    world.run(minutes=15)

    left, back = map(json.loads, capsys.readouterr().out.splitlines())
    assert left["why"] == "7 of 8 pools are worth having; the fleet may launch in 7 pools now"
    assert list(left["shut"]) == [ONE] and left["back"] == []
    assert back["why"] == "8 of 8 pools are worth having; the fleet may launch in 8 pools now"
    assert back["back"] == [ONE] and back["shut"] == {}


def test_bad_settings_are_reported_together():
    with pytest.raises(BadSettings) as error:
        Settings.read({"TYPES": '{"g5.xlarge": "many"}', "SUBNETS": ",,", "MAX_UNITS": "0", "AWS_REGION": "eu-west-1"})

    assert str(error.value) == (
        'POOLS_TABLE is missing; TYPES is not units by instance type: \'{"g5.xlarge": "many"}\'; '
        "SUBNETS names none; MAX_UNITS is not a number from 1: '0'"
    )
    with pytest.raises(BadSettings, match="TYPES has none"):
        settings(TYPES="{}")


# The template.


def function(table):
    return stack(table)["Resources"]["MarketFunction"]["Properties"]["Environment"]["Variables"]


def statements(table):
    (policy,) = stack(table)["Resources"]["MarketRole"]["Properties"]["Policies"]
    return policy["PolicyDocument"]["Statement"]


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"spot": {"allocation_strategy": "capacityOptimizedPrioritized"}},
        {"compute": {"instance_types": ["g5.12xlarge", "g6.12xlarge"]}, "network": {"zones": 6}},
        {"network": GIVEN_VPC},
    ],
    ids=["defaults", "prioritized", "weights", "a given VPC"],
)
def test_with_all_pools_open_the_fleet_has_what_its_template_says(table):
    """Otherwise the first look would change the fleet, or a pool would come back as another."""
    found = stack(table)
    (config,) = found["Resources"]["SpotFleet"]["Properties"]["SpotFleetRequestConfigData"]["LaunchTemplateConfigs"]
    said = [one["Fn::If"][1] if "Fn::If" in one else one for one in config["Overrides"]]
    variables = function(table)
    places = [one["Fn::If"][1] if "Fn::If" in one else one for one in variables["SUBNETS"]["Fn::Join"][1]]
    subnets = [json.dumps(one).replace(",", ";") for one in places]
    known = Settings.read(
        {**variables, "AWS_REGION": "us-east-1", "POOLS_TABLE": "t", "SUBNETS": ",".join(subnets)}
        | {"SPOT_FLEET_ID": "sfr-1"}
    )
    aws = Aws(boto3.Session(region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"), known)
    aws._zones = {subnet: (f"zone-{n}", f"id-{n}") for n, subnet in enumerate(subnets)}

    offered = aws._overrides({Pool(kind, zone) for kind in known.types for zone, _ in aws._zones.values()})

    back = [{**one, "SubnetId": json.loads(one["SubnetId"].replace(";", ","))} for one in offered]
    assert sorted(back, key=json.dumps) == sorted(said, key=json.dumps)


def test_it_is_told_of_types_that_are_bought_on_demand_alone():
    both = {"compute": {"instance_types": ["g5.xlarge", "g6.xlarge"]}}

    assert "ON_DEMAND_TYPES" not in function({**both, "on_demand": {"instance_types": ["g5.xlarge"]}})
    told = function({**both, "on_demand": {"instance_types": ["g4dn.xlarge", "g5.xlarge", "g4dn.2xlarge"]}})
    assert told["ON_DEMAND_TYPES"] == "g4dn.xlarge,g4dn.2xlarge"


@pytest.mark.parametrize("name", ["everything", "groups"])
def test_only_a_fleet_that_names_its_types_is_steered(name):
    actions = {action for statement in statements(TABLES[name]) for action in statement["Action"]}

    assert "SPOT_FLEET_ID" not in function(TABLES[name])
    assert not [action for action in actions if re.search("ec2:(Modify|Run|Create)|iam:", action)]
    assert "SPOT_FLEET_ID" in function({})


def test_what_it_may_launch_is_the_fleets_own_template():
    (run,) = (one for one in statements({}) if "ec2:RunInstances" in one["Action"])

    assert "launch-template/${LaunchTemplate}" in json.dumps(run["Condition"]["ArnEquals"]["ec2:LaunchTemplate"])


def test_it_runs_every_five_minutes_and_only_its_rule_may_ask():
    found = stack({})["Resources"]
    rule, permission = found["EveryFiveMinutes"]["Properties"], found["MarketPermission"]["Properties"]

    assert rule["ScheduleExpression"] == "rate(5 minutes)"
    assert [one["Arn"] for one in rule["Targets"]] == [{"Fn::GetAtt": ["MarketFunction", "Arn"]}]
    assert permission["SourceArn"] == {"Fn::GetAtt": ["EveryFiveMinutes", "Arn"]}


def test_the_table_goes_with_the_stack_and_is_sealed_as_the_jobs_are():
    found = stack({})["Resources"]

    assert "DeletionPolicy" not in found["PoolsTable"]
    assert found["PoolsTable"]["Properties"]["SSESpecification"] == found["JobsTable"]["Properties"]["SSESpecification"]


def test_its_environment_fits_into_lambdas_four_kilobytes():
    table = {"compute": {"instance_types": sorted(INSTANCE_TYPES)}, "network": {"zones": 6}}

    assert len(json.dumps(function(table))) + 6 * 24 < 4096


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        EVERYTHING["compute"]["attributes"],
        {"gpu_names": ["v100", "a100", "h100"], "min_vcpus": 8},
        {"min_memory_mib": 65_536, "max_vcpus": 32, "exclude": ["g5.*", "gr6.4xlarge"]},
    ],
)
def test_with_attributes_the_types_that_fit_are_watched(attributes):
    chosen = Chosen.read({**EVERYTHING, "worker": {"cpu": 2048}, "compute": {"attributes": attributes}})

    would_be_bought = satisfying(machines.requirements(chosen.compute.attributes))

    # p3.* is not described any more by EC2's own list.
    assert set(types(chosen)) >= set(would_be_bought) & INSTANCE_TYPES.keys()
    assert set(types(chosen)) - set(would_be_bought) <= {name for name in INSTANCE_TYPES if name not in catalog.names()}


def test_gpus_have_ec2s_names():
    for name in INSTANCE_TYPES.keys() & set(catalog.names()):
        (gpu,) = catalog.describe(name)["GpuInfo"]["Gpus"]
        assert gpu["Name"].lower() == GPU_NAMES[name.partition(".")[0]]
