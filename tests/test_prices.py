"""The local cloud's Spot market and price list, as EC2 and the price list tell of them."""

import json
from datetime import timedelta

import pytest
from ec2_make import NOON, Cloud, config_of

from localcloud.market import Market, Pool
from localcloud.prices import NEW_QUESTIONS_A_DAY, PriceList
from localcloud.wire import Call, Fault

KINDS = ["g5.xlarge", "g4dn.xlarge", "g6.xlarge"]


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def history(cloud, **params):
    since = {"StartTime": NOON - timedelta(hours=1), "EndTime": cloud.world.now()}
    return cloud.ask("DescribeSpotPriceHistory", **{**since, **params})


def test_every_pool_that_ec2_offers_has_a_price(cloud):
    found = history(cloud, InstanceTypes=["g5.xlarge"], ProductDescriptions=["Linux/UNIX"])["SpotPriceHistory"]

    assert {one["AvailabilityZone"] for one in found} == {"us-east-1a", "us-east-1b", "us-east-1c"}
    assert {one["AvailabilityZoneId"] for one in found} == {"use1-az1", "use1-az2", "use1-az3"}
    assert min(one["Timestamp"] for one in found) <= NOON - timedelta(hours=1)  # what held at the start


def test_a_filter_names_zones(cloud):
    zones = [{"Name": "availability-zone", "Values": ["us-east-1a", "us-east-1c"]}]

    found = history(cloud, InstanceTypes=KINDS, Filters=zones)["SpotPriceHistory"]

    assert {one["AvailabilityZone"] for one in found} == {"us-east-1a", "us-east-1c"}


def test_pages_are_newest_first_and_the_last_has_an_empty_token(cloud):
    first = history(cloud, InstanceTypes=KINDS, MaxResults=5)
    second = history(cloud, InstanceTypes=KINDS, MaxResults=1000, NextToken=first["NextToken"])

    rows = [*first["SpotPriceHistory"], *second["SpotPriceHistory"]]
    assert len(first["SpotPriceHistory"]) == 5 and second["NextToken"] == ""
    assert [one["Timestamp"] for one in rows] == sorted((one["Timestamp"] for one in rows), reverse=True)
    assert rows == history(cloud, InstanceTypes=KINDS)["SpotPriceHistory"]


def test_windows_costs_something_else(cloud):
    assert history(cloud, InstanceTypes=KINDS, ProductDescriptions=["Windows"])["SpotPriceHistory"] == []


def scores(cloud, kinds=KINDS, target=4):
    answer = cloud.ask(
        "GetSpotPlacementScores",
        InstanceTypes=kinds,
        TargetCapacity=target,
        SingleAvailabilityZone=True,
        RegionNames=["us-east-1"],
    )
    return {one["AvailabilityZoneId"]: one["Score"] for one in answer["SpotPlacementScores"]}


def test_a_zone_without_places_scores_low(cloud):
    scores(cloud)
    for kind in KINDS:
        cloud.market.set_capacity(Pool(kind, "us-east-1b"), 0)

    found = scores(cloud)

    assert (found["use1-az1"], found["use1-az2"]) == (10, 1)
    assert scores(cloud, target=1000)["use1-az1"] < 5


def test_with_fewer_than_three_types_every_score_is_low(cloud):
    assert max(scores(cloud, KINDS[:2]).values()) <= 3


def test_new_questions_are_answered_so_often_a_day_and_old_ones_again(cloud):
    for target in range(1, NEW_QUESTIONS_A_DAY + 1):
        scores(cloud, target=target)

    with pytest.raises(Fault) as refused:
        scores(cloud, target=99)
    assert refused.value.code == "MaxConfigLimitExceeded"
    assert scores(cloud, target=1)
    cloud.world.clock += timedelta(hours=25)
    assert scores(cloud, target=99)


def products(**wanted):
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    params = {"ServiceCode": "AmazonEC2", "FormatVersion": "aws_v1", "Filters": filters}
    return PriceList().answer(Call("GetProducts", params, "arn"))["PriceList"]


def test_the_price_list_has_one_product_of_a_type_in_the_region():
    (text,) = products(instanceType="g5.xlarge", regionCode="us-east-1", operatingSystem="Linux")

    (term,) = json.loads(text)["terms"]["OnDemand"].values()
    (dimension,) = term["priceDimensions"].values()
    assert (dimension["unit"], float(dimension["pricePerUnit"]["USD"])) == ("Hrs", 1.006)
    assert products(instanceType="g5.xlarge", regionCode="eu-west-1") == []
    with pytest.raises(Fault, match="does not play the filter"):
        products(gpu="1")


# A fleet that is told to launch elsewhere.


def elsewhere(zones):
    return config_of(0, zones=zones)["LaunchTemplateConfigs"]


def modified(cloud, fleet, **params):
    cloud.ask("ModifySpotFleetRequest", SpotFleetRequestId=fleet, **params)
    cloud.world.advance(10)


def zones_of(cloud):
    return {one.pool.zone for one in cloud.instances.all()}


def test_a_fleet_launches_only_in_what_it_was_given_last(cloud):
    fleet = cloud.fleet(0)
    cloud.world.advance(10)
    modified(cloud, fleet, LaunchTemplateConfigs=elsewhere("b"))
    modified(cloud, fleet, TargetCapacity=4)
    cloud.world.advance(30)

    assert cloud.fulfilled(fleet) == 4
    assert zones_of(cloud) == {"us-east-1b"}


def test_instances_of_a_pool_that_left_run_on_and_count(cloud):
    fleet = cloud.fleet(6)
    cloud.world.advance(30)
    before = set(cloud.members(fleet))

    modified(cloud, fleet, LaunchTemplateConfigs=elsewhere("b"))
    cloud.world.advance(120)

    described = cloud.described(fleet)["SpotFleetRequestConfig"]
    assert set(cloud.members(fleet)) == before
    assert (described["TargetCapacity"], described["FulfilledCapacity"]) == (6, 6.0)
    assert not cloud.said("EC2 Spot Instance Interruption Warning")


def test_a_change_of_pools_shows_when_it_is_done_and_stands_in_the_way_meanwhile(cloud):
    fleet = cloud.fleet(0)
    cloud.world.advance(10)
    before = cloud.described(fleet)["SpotFleetRequestConfig"]["LaunchTemplateConfigs"]

    cloud.ask("ModifySpotFleetRequest", SpotFleetRequestId=fleet, LaunchTemplateConfigs=elsewhere("b"))

    assert cloud.described(fleet)["SpotFleetRequestState"] == "modifying"
    assert cloud.described(fleet)["SpotFleetRequestConfig"]["LaunchTemplateConfigs"] == before
    with pytest.raises(Fault) as refused:
        cloud.retarget(fleet, 4)
    assert refused.value.code == "FleetNotInModifiableState"
    cloud.world.advance(10)
    assert cloud.described(fleet)["SpotFleetRequestConfig"]["LaunchTemplateConfigs"] == elsewhere("b")


def test_who_changes_what_is_launched_must_be_allowed_to_launch_it(cloud):
    fleet = cloud.fleet(0)

    def needed(**params):
        call = Call("ModifySpotFleetRequest", {"SpotFleetRequestId": fleet, **params}, "arn")
        return {(need.action, need.resource.rsplit(":", 1)[-1]) for need in cloud.ec2.permissions(call)}

    assert needed(TargetCapacity=4) == {("ec2:ModifySpotFleetRequest", f"spot-fleet-request/{fleet}")}
    asked = needed(LaunchTemplateConfigs=elsewhere("b"))
    assert {
        ("ec2:ModifySpotFleetRequest", f"spot-fleet-request/{fleet}"),
        ("ec2:ModifySpotFleetRequest", "launch-template/lt-1"),
        ("ec2:ModifySpotFleetRequest", "subnet/subnet-b"),
        ("ec2:RunInstances", "launch-template/lt-1"),
        ("ec2:RunInstances", "instance/*"),
        ("ec2:CreateTags", "instance/*"),
    } <= asked
    assert ("ec2:RunInstances", "subnet/subnet-a") not in asked


# The weather.


def test_who_asks_for_prices_does_not_change_the_weather():
    quiet, asked = Market(7), Market(7)
    for market in (quiet, asked):
        market.storms_per_hour = 6
        for zone in "abc":
            market.open(Pool("g5.xlarge", f"us-east-1{zone}"), 1.006, NOON)
    for zone in "abc":
        asked.open(Pool("g6.xlarge", f"us-east-1{zone}"), 0.8, NOON)

    changes = [
        [
            change
            for minute in range(180)
            for change in market.tick(NOON + minute * timedelta(minutes=1))
            if change.pool.type == "g5.xlarge"
        ]
        for market in (quiet, asked)
    ]

    assert changes[0] == changes[1]
    assert [change for change in changes[0] if change.capacity is not None]


def test_a_scripted_price_stays_and_is_never_above_on_demand():
    market = Market()
    pool = Pool("g5.xlarge", "us-east-1a")
    market.open(pool, 1.006, NOON)
    market.set_price(pool, 1.006, NOON)

    for minute in range(600):
        market.tick(NOON + minute * timedelta(minutes=1))

    assert market.price(pool) == 1.006
    for usd in (0, -1, 1.007):
        with pytest.raises(ValueError, match=r"at most On-Demand's 1\.006"):
            market.set_price(pool, usd, NOON)
