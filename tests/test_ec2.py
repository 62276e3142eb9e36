from collections import Counter
from datetime import timedelta

import pytest
from ec2_make import NOON, ROLE, Cloud, config_of

from localcloud import scalingresources
from localcloud.allocation import Offer, Quote, Running, choose, victims
from localcloud.control import Refused
from localcloud.formation import NotPlayed
from localcloud.launch import Blueprint, Subnet
from localcloud.launchtemplates import LaunchTemplateResource
from localcloud.market import Pool
from localcloud.scalingresources import GroupResource, SpotFleetResource
from localcloud.wire import Call, Fault


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


@pytest.fixture
def fleet(cloud):
    made = cloud.fleet(4)
    cloud.world.advance(30)
    return made


def zones(cloud, ids):
    return Counter(cloud.instances.get(one).pool.zone for one in ids)


def test_a_fleet_launches_its_target_within_seconds_and_says_so(cloud):
    fleet = cloud.fleet(4)
    assert cloud.described(fleet)["SpotFleetRequestState"] == "submitted"

    cloud.world.advance(12)

    assert cloud.fulfilled(fleet) == 4
    assert cloud.described(fleet)["ActivityStatus"] == "fulfilled"
    assert cloud.history(fleet)[:2] == ["submitted", "active"]
    cloud.world.advance(30)
    assert {one["State"]["Name"] for one in instances(cloud)} == {"running"}
    assert set(cloud.inside.booted) == set(cloud.members(fleet))


def instances(cloud, **filters):
    wanted = [{"Name": name.replace("_", "-"), "Values": [value]} for name, value in filters.items()]
    answer = cloud.ask("DescribeInstances", Filters=wanted)
    return [one for reservation in answer["Reservations"] for one in reservation["Instances"]]


def test_weights_count_and_may_overshoot(cloud):
    fleet = cloud.fleet(6, **config_of(6, types=[("g5.12xlarge", 4)]))

    cloud.world.advance(20)

    assert cloud.fulfilled(fleet) == 8
    assert len(cloud.members(fleet)) == 2


def test_diversified_spreads_over_every_pool(cloud):
    fleet = cloud.fleet(6)

    cloud.world.advance(20)

    assert zones(cloud, cloud.members(fleet)) == {"us-east-1a": 2, "us-east-1b": 2, "us-east-1c": 2}


def test_instances_wear_the_templates_tags_and_their_fleets(cloud, fleet):
    tags = {tag["Key"]: tag["Value"] for tag in instances(cloud)[0]["Tags"]}

    assert tags["spindrift:stack"] == "one"
    assert tags["aws:ec2spot:fleet-request-id"] == fleet
    assert len(instances(cloud, **{"tag:spindrift:stack": "one", "instance-state-name": "running"})) == 4


def test_a_change_shows_after_some_seconds_and_is_the_only_one_meanwhile(cloud, fleet):
    cloud.retarget(fleet, 6)

    assert cloud.described(fleet)["SpotFleetRequestState"] == "modifying"
    assert cloud.described(fleet)["SpotFleetRequestConfig"]["TargetCapacity"] == 4
    with pytest.raises(Fault) as refused:
        cloud.retarget(fleet, 7)
    assert refused.value.code == "FleetNotInModifiableState"
    cloud.world.advance(15)
    assert cloud.fulfilled(fleet) == 6


def test_without_termination_a_lower_target_takes_nobody_and_replaces_nobody(cloud, fleet):
    before = cloud.members(fleet)
    cloud.retarget(fleet, 2)
    cloud.world.advance(30)
    assert cloud.members(fleet) == before

    cloud.ask("TerminateInstances", InstanceIds=before[:2])
    cloud.world.advance(60)

    assert cloud.members(fleet) == before[2:]


def test_with_termination_a_lower_target_sends_its_victims_a_spot_notice(cloud, fleet):
    cloud.retarget(fleet, 1, policy="default")
    cloud.world.advance(10)

    warned = {one["instance-id"] for one in cloud.said("EC2 Spot Instance Interruption Warning")}
    assert len(warned) == 3
    assert {cloud.status_of(one) for one in warned} == {"marked-for-termination"}
    assert cloud.fulfilled(fleet) == 1
    assert len(instances(cloud, instance_state_name="running")) == 4
    cloud.world.advance(130)
    assert len(cloud.members(fleet)) == 1
    assert cloud.history(fleet).count("termination_notified") == 3


def test_a_terminated_instance_is_replaced(cloud, fleet):
    victim = cloud.members(fleet)[0]

    cloud.ask("TerminateInstances", InstanceIds=[victim])
    assert cloud.fulfilled(fleet) == 3
    cloud.world.advance(20)

    assert cloud.fulfilled(fleet) == 4
    assert victim not in cloud.members(fleet)
    assert cloud.status_of(victim) == "instance-terminated-by-user"
    assert "terminated" in cloud.history(fleet)


def test_a_reclaimed_instance_has_two_minutes_then_is_replaced(cloud, fleet):
    (victim,) = cloud.fate.reclaim(instance=cloud.members(fleet)[0])
    assert cloud.status_of(victim) == "marked-for-termination"
    assert cloud.instances.get(victim).notice == cloud.world.now() + timedelta(seconds=120)

    cloud.world.advance(6)
    assert cloud.said("EC2 Spot Instance Interruption Warning")[0] == {
        "instance-id": victim,
        "instance-action": "terminate",
    }
    cloud.world.advance(112)
    assert cloud.instances.get(victim).state == "running"
    cloud.world.advance(20)

    assert cloud.status_of(victim) == "instance-terminated-no-capacity"
    assert victim in cloud.inside.killed
    assert instances(cloud, instance_id=victim)[0]["StateReason"]["Code"] == "Server.SpotInstanceTermination"
    assert cloud.fulfilled(fleet) == 4


def test_without_notice_it_is_gone_at_once(cloud, fleet):
    (victim,) = cloud.fate.reclaim(instance=cloud.members(fleet)[0], notice=False)

    assert cloud.instances.get(victim).state == "shutting-down"
    cloud.world.advance(30)
    assert victim not in {one["instance-id"] for one in cloud.said("EC2 Spot Instance Interruption Warning")}
    assert [line["subject"] for line in cloud.world.diary("reclaimed without notice")] == [victim]


def test_a_whole_pool_can_be_taken(cloud, fleet):
    pool = cloud.instances.get(cloud.members(fleet)[0]).pool

    taken = cloud.fate.reclaim(pool=str(pool))

    assert {cloud.instances.get(one).pool for one in taken} == {pool}


def test_less_room_than_instances_takes_the_excess_and_no_more(cloud):
    fleet = cloud.fleet(3, **config_of(3, types=[("g5.xlarge", 1)], zones="a"))
    cloud.world.advance(30)

    cloud.fate.capacity("g5.xlarge/us-east-1a", 1)
    cloud.world.advance(10)

    assert sum(one.notice is not None for one in cloud.instances.all()) == 2
    cloud.world.advance(150)
    assert len(cloud.members(fleet)) == 1


def test_a_pool_without_room_is_left_alone_and_tried_again(cloud):
    fleet = cloud.fleet(2, **config_of(2, types=[("g5.xlarge", 1)], zones="a"))
    cloud.fate.capacity("g5.xlarge/us-east-1a", 1)
    cloud.world.advance(20)

    waiting = [{"Name": "status-code", "Values": ["capacity-not-available"]}]
    assert len(cloud.ask("DescribeSpotInstanceRequests", Filters=waiting)["SpotInstanceRequests"]) == 1
    assert cloud.fulfilled(fleet) == 1
    assert cloud.described(fleet)["ActivityStatus"] == "error"
    assert {"launchSpecTemporarilyBlacklisted", "allLaunchSpecsTemporarilyBlacklisted"} <= set(cloud.history(fleet))

    cloud.fate.capacity("g5.xlarge/us-east-1a", 5)
    cloud.world.advance(45)

    assert cloud.fulfilled(fleet) == 2
    assert not cloud.ask("DescribeSpotInstanceRequests", Filters=waiting)["SpotInstanceRequests"]


def test_where_one_pool_is_out_the_fleet_goes_to_another(cloud):
    fleet = cloud.fleet(4, **config_of(4, types=[("g5.xlarge", 1)], zones="ab"))
    cloud.fate.capacity("g5.xlarge/us-east-1a", 0)

    cloud.world.advance(20)

    assert zones(cloud, cloud.members(fleet)) == {"us-east-1b": 4}


def test_a_quota_stops_the_fleet_and_is_told(cloud):
    cloud.fate.quota(8)
    fleet = cloud.fleet(4)

    cloud.world.advance(30)

    assert cloud.fulfilled(fleet) == 2
    assert "spotInstanceCountLimitExceeded" in cloud.history(fleet)


@pytest.mark.parametrize("terminate, state, left", [(True, "cancelled", 0), (False, "cancelled_running", 4)])
def test_cancelling_ends_the_instances_or_leaves_them(cloud, fleet, terminate, state, left):
    cloud.ask("CancelSpotFleetRequests", SpotFleetRequestIds=[fleet], TerminateInstances=terminate)
    cloud.world.advance(60)

    assert cloud.described(fleet)["SpotFleetRequestState"] == state
    assert len(instances(cloud, instance_state_name="running")) == left


@pytest.mark.parametrize(
    "change, code",
    [
        ({"SpotPrice": "0.1"}, "NotPlayed"),
        ({"Type": "request"}, "NotPlayed"),
        ({"IamFleetRole": ROLE + "x"}, "InvalidSpotFleetRequestConfig"),
        (config_of(1, types=[("g9.huge", 1)]), "InvalidSpotFleetRequestConfig"),
        (config_of(1, types=[("g5.xlarge", 1), ("g5.xlarge", 2)]), "InvalidSpotFleetRequestConfig"),
    ],
)
def test_a_fleet_that_aws_or_the_local_cloud_cannot_have_is_refused(cloud, change, code):
    with pytest.raises(Fault) as refused:
        cloud.fleet(1, **change)

    assert refused.value.code == code


def test_a_storm_is_survived(cloud):
    fleet = cloud.fleet(12)
    cloud.world.advance(30)
    cloud.fate.weather(storms_per_hour=30)

    cloud.world.advance(1200)
    interrupted = len(cloud.world.diary("notice"))
    cloud.fate.weather(storms_per_hour=0)
    cloud.world.advance(3 * 3600)

    assert interrupted > 3
    assert cloud.fulfilled(fleet) == 12
    for pool in cloud.market.pools():
        assert cloud.market.taken(pool) == sum(one.pool == pool and one.living for one in cloud.instances.all())


def test_a_launch_is_in_the_diary_with_both_prices(cloud, fleet):
    for line in cloud.world.diary("instance launched"):
        assert line["fleet"] == fleet
        assert 0 < line["price"] < line["on_demand_price"]


def test_the_market_can_be_looked_at(cloud, fleet):
    shown = cloud.fate.show()["pools"]

    assert set(shown) == {f"{kind}/us-east-1{zone}" for kind in ("g5.xlarge", "g4dn.xlarge") for zone in "abc"}
    assert sum(pool["taken"] for pool in shown.values()) == 4
    assert shown["g5.xlarge/us-east-1a"]["price"] < shown["g5.xlarge/us-east-1a"]["on_demand_price"] == 1.006


def test_a_rebalance_recommendation_ends_nothing(cloud, fleet):
    cloud.fate.rebalance(cloud.members(fleet)[0])

    cloud.world.advance(300)

    assert cloud.said("EC2 Instance Rebalance Recommendation")[0] == {"instance-id": cloud.members(fleet)[0]}
    assert len(cloud.members(fleet)) == 4


def test_on_demand_is_never_reclaimed(cloud):
    cloud.group(1)
    cloud.world.advance(20)

    with pytest.raises(Refused):
        cloud.fate.reclaim(instance=cloud.in_group()[0]["InstanceId"])


def test_an_unknown_instance_fails_the_whole_call(cloud, fleet):
    known = cloud.members(fleet)[0]

    with pytest.raises(Fault) as refused:
        cloud.ask("TerminateInstances", InstanceIds=[known, "i-00000000000000000"])

    assert refused.value.code == "InvalidInstanceID.NotFound"
    assert cloud.instances.get(known).living


def test_instances_come_in_pages(cloud, fleet):
    first = cloud.ask("DescribeInstances", MaxResults=5, Filters=[])
    assert "NextToken" not in first
    cloud.retarget(fleet, 8)
    cloud.world.advance(30)

    first = cloud.ask("DescribeInstances", MaxResults=5)
    second = cloud.ask("DescribeInstances", MaxResults=5, NextToken=first["NextToken"])

    ids = [one["Instances"][0]["InstanceId"] for page in (first, second) for one in page["Reservations"]]
    assert len(set(ids)) == len(ids) == 8
    assert "NextToken" not in second


def test_terminating_needs_the_instances_own_tags(cloud, fleet):
    one = cloud.members(fleet)[0]

    (need,) = cloud.ec2.permissions(Call("TerminateInstances", {"InstanceIds": [one]}, "me"))

    assert need.resource == f"arn:aws:ec2:us-east-1:123456789012:instance/{one}"
    assert need.context["aws:ResourceTag/spindrift:stack"] == need.context["ec2:ResourceTag/spindrift:stack"] == "one"


def test_prices_of_the_last_hour(cloud, fleet):
    answer = cloud.ask(
        "DescribeSpotPriceHistory", InstanceTypes=["g5.xlarge"], StartTime=NOON - timedelta(hours=1), EndTime=NOON
    )

    assert {one["AvailabilityZone"] for one in answer["SpotPriceHistory"]} == {"us-east-1a", "us-east-1b", "us-east-1c"}
    assert all(0 < float(one["SpotPrice"]) < 1.006 for one in answer["SpotPriceHistory"])


def test_instance_types_have_their_gpus(cloud):
    (answer,) = cloud.ask("DescribeInstanceTypes", InstanceTypes=["g5.12xlarge"])["InstanceTypes"]

    assert answer["GpuInfo"]["Gpus"][0]["Count"] == 4


# Auto Scaling


def test_a_group_spreads_over_its_zones_and_propagates_its_tags(cloud):
    cloud.group(4)

    cloud.world.advance(30)

    assert Counter(one["AvailabilityZone"] for one in cloud.in_group()) == {"us-east-1a": 2, "us-east-1b": 2}
    assert {one["LifecycleState"] for one in cloud.in_group()} == {"InService"}
    assert {one["InstanceType"] for one in cloud.in_group()} == {"g5.xlarge"}
    assert all("InstanceLifecycle" not in one for one in instances(cloud, **{"tag:spindrift:stack": "one"}))


def test_a_group_takes_its_second_choice_then_fails_and_tries_again(cloud):
    for zone in "ab":
        cloud.fate.capacity(f"g5.xlarge/us-east-1{zone}", 0, market="on-demand")
        cloud.fate.capacity(f"g4dn.xlarge/us-east-1{zone}", 1, market="on-demand")
    cloud.group(3)
    cloud.world.advance(20)
    assert [one["InstanceType"] for one in cloud.in_group()] == ["g4dn.xlarge"] * 2
    assert cloud.ask("DescribeScalingActivities")["Activities"][0]["StatusCode"] == "Failed"

    cloud.fate.capacity("g5.xlarge/us-east-1a", 1, market="on-demand")
    cloud.world.advance(60)

    assert len(cloud.in_group()) == 3


def test_a_group_replaces_what_ends_and_shrinks_evenly(cloud):
    cloud.group(4)
    cloud.world.advance(30)
    lost = cloud.in_group()[0]["InstanceId"]
    cloud.ask("TerminateInstances", InstanceIds=[lost])
    cloud.world.advance(30)
    assert len(cloud.in_group()) == 4

    cloud.ask("SetDesiredCapacity", AutoScalingGroupName="top-up", DesiredCapacity=2)
    cloud.world.advance(30)

    assert Counter(one["AvailabilityZone"] for one in cloud.in_group()) == {"us-east-1a": 1, "us-east-1b": 1}


def test_a_group_shrinks_where_it_is_fullest_not_where_it_is_oldest(cloud):
    def only(zone):
        for kind in ("g5.xlarge", "g4dn.xlarge"):
            for one in "ab":
                cloud.fate.capacity(f"{kind}/us-east-1{one}", 9 if one == zone else 0, market="on-demand")

    only("b")
    cloud.group(1)
    cloud.world.advance(30)
    only("a")
    cloud.ask("SetDesiredCapacity", AutoScalingGroupName="top-up", DesiredCapacity=4)
    cloud.world.advance(30)

    cloud.ask("SetDesiredCapacity", AutoScalingGroupName="top-up", DesiredCapacity=2)
    cloud.world.advance(30)

    assert Counter(one["AvailabilityZone"] for one in cloud.in_group()) == {"us-east-1a": 1, "us-east-1b": 1}


def test_terminating_in_the_group_takes_that_instance_and_wants_one_less(cloud):
    cloud.group(2)
    cloud.world.advance(30)
    keep, go = (one["InstanceId"] for one in cloud.in_group())

    answer = cloud.ask("TerminateInstanceInAutoScalingGroup", InstanceId=go, ShouldDecrementDesiredCapacity=True)
    cloud.world.advance(60)

    assert go in answer["Activity"]["Description"]
    assert [one["InstanceId"] for one in cloud.in_group()] == [keep]


@pytest.mark.parametrize("desired", [9, -1])
def test_a_group_stays_within_its_bounds(cloud, desired):
    cloud.group(2)

    with pytest.raises(Fault) as refused:
        cloud.ask("SetDesiredCapacity", AutoScalingGroupName="top-up", DesiredCapacity=desired)

    assert refused.value.code == "ValidationError"


def test_an_update_without_a_number_keeps_it(cloud):
    cloud.group(2)

    cloud.ask("UpdateAutoScalingGroup", AutoScalingGroupName="top-up", MaxSize=5)

    (group,) = cloud.ask("DescribeAutoScalingGroups")["AutoScalingGroups"]
    assert (group["DesiredCapacity"], group["MaxSize"]) == (2, 5)


def test_a_group_with_instances_is_deleted_by_force_only(cloud):
    cloud.group(2)
    cloud.world.advance(30)
    with pytest.raises(Fault) as refused:
        cloud.ask("DeleteAutoScalingGroup", AutoScalingGroupName="top-up")
    assert refused.value.code == "ResourceInUse"

    cloud.ask("DeleteAutoScalingGroup", AutoScalingGroupName="top-up", ForceDelete=True)
    cloud.world.advance(60)

    assert not cloud.ask("DescribeAutoScalingGroups")["AutoScalingGroups"]
    assert not instances(cloud, instance_state_name="running")


# CloudFormation


@pytest.fixture
def stack(cloud, monkeypatch):
    """The two resource types; while they wait, time passes."""
    monkeypatch.setattr(scalingresources.time, "sleep", lambda _: cloud.world.advance(1))
    return SpotFleetResource(cloud.ec2), GroupResource(cloud.autoscaling)


def fleet_properties(**changes):
    config = {**config_of(2), "TargetCapacity": "2", "TerminateInstancesWithExpiration": "true", **changes}
    return {"SpotFleetRequestConfigData": config}


def test_a_stack_makes_a_fleet_changes_its_target_in_place_and_leaves_nothing(cloud, stack):
    fleets, _ = stack
    fleet, attributes = fleets.create("SpotFleet", fleet_properties(), "one")
    cloud.world.advance(30)
    assert attributes == {"Id": fleet}
    assert cloud.fulfilled(fleet) == 2

    assert fleets.update(fleet, fleet_properties(), fleet_properties(TargetCapacity=3), "one")[0] == fleet
    cloud.world.advance(30)
    assert cloud.fulfilled(fleet) == 3
    fleets.delete(fleet, fleet_properties())

    assert {one.state for one in cloud.instances.all()} == {"terminated"}


def test_anything_else_that_changes_in_a_fleet_replaces_it(cloud, stack):
    fleets, _ = stack
    fleet, _ = fleets.create("SpotFleet", fleet_properties(), "one")

    other, _ = fleets.update(fleet, fleet_properties(), fleet_properties(AllocationStrategy="lowestPrice"), "one")

    assert other != fleet


def test_a_stack_update_keeps_a_groups_number_and_its_end_takes_the_instances(cloud, stack):
    _, groups = stack
    properties = {
        "MinSize": "0",
        "MaxSize": "4",
        "VPCZoneIdentifier": ["subnet-a", "subnet-b"],
        "LaunchTemplate": {"LaunchTemplateId": "lt-1", "Version": "1"},
        "MixedInstancesPolicy": {
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {"LaunchTemplateId": "lt-1", "Version": "1"},
                "Overrides": [{"InstanceType": "g5.xlarge"}],
            }
        },
        "Tags": [{"Key": "spindrift:stack", "Value": "one", "PropagateAtLaunch": "true"}],
    }
    name, attributes = groups.create("OnDemandGroup", properties, "one")
    assert attributes["AutoScalingGroupARN"].endswith(name)
    cloud.ask("SetDesiredCapacity", AutoScalingGroupName=name, DesiredCapacity=3)
    cloud.world.advance(30)

    groups.update(name, properties, {**properties, "MaxSize": "6"}, "one")
    cloud.world.advance(30)

    assert len(cloud.in_group()) == 3
    groups.delete(name, properties)
    assert not [one for one in cloud.instances.all() if one.state != "terminated"]


@pytest.mark.parametrize("properties", [{"SpotFleetRequestConfigData": {"Tpye": "maintain"}}, {"Sopt": {}}])
def test_a_misspelt_property_fails_the_stack(stack, properties):
    with pytest.raises(NotPlayed):
        stack[0].create("SpotFleet", properties, "one")


@pytest.mark.parametrize(
    "data", [{"Placement": {}}, {"BlockDeviceMappings": [{"Ebs": {"KmsKeyId": "k"}}]}, {"MetadataOptions": {"X": 1}}]
)
def test_a_launch_template_with_what_would_get_lost_is_refused(data):
    with pytest.raises(NotPlayed):
        LaunchTemplateResource().create("LaunchTemplate", {"LaunchTemplateData": data}, "one")


# Allocation


def quote(zone: str, price: float = 1.0, free: int = 10, held: float = 0.0, weight: float = 1.0, priority: float = 0):
    pool = Pool("g5.xlarge", zone)
    offer = Offer(pool, Subnet(zone, zone, "vpc"), weight, priority, Blueprint(template_id="lt", version=1))
    return Quote(offer, price, free, held)


@pytest.mark.parametrize(
    "strategy, best",
    [
        ("lowestPrice", quote("x", price=0.9, free=1, held=9, weight=2)),
        ("diversified", quote("x", price=9, free=1, held=0)),
        ("capacityOptimized", quote("x", price=9, free=30, held=9)),
        ("capacityOptimizedPrioritized", quote("x", price=9, free=1, held=9, priority=-1)),
        ("priceCapacityOptimized", quote("x", price=0.9, free=6, held=9)),
    ],
)
def test_each_strategy_has_its_favourite(cloud, strategy, best):
    others = [quote("y", price=1.0, free=10, held=1), quote("z", price=0.8, free=2, held=1)]
    if strategy == "lowestPrice":
        others = others[:1]

    assert choose(strategy, [*others, best], cloud.world.dice) == best


def test_scale_in_never_falls_below_the_target(cloud):
    pool = Pool("g5.12xlarge", "a")
    running = [Running(str(n), pool, 4.0, 1.0, 5) for n in range(3)]

    assert len(victims("lowestPrice", running, 5, cloud.world.dice)) == 1
