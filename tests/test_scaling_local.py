"""Scaling policies of groups and services in the local cloud, groups of Spot instances, and the alarms that steer them."""

import pytest
from alarms_make import TOPIC, Watched
from hypothesis import given
from hypothesis import strategies as st

from localcloud import stepscaling
from localcloud.market import ON_DEMAND, Pool
from localcloud.stepscaling import EXACT, PERCENT, Ill, adjusted, step
from localcloud.wire import Fault

SERVICE = "service/jobs/workers"
OUT = [
    {"MetricIntervalLowerBound": 0, "MetricIntervalUpperBound": 10, "ScalingAdjustment": 0},
    {"MetricIntervalLowerBound": 10, "MetricIntervalUpperBound": 20, "ScalingAdjustment": 10},
    {"MetricIntervalLowerBound": 20, "ScalingAdjustment": 30},
]
IN = [
    {"MetricIntervalLowerBound": -10, "MetricIntervalUpperBound": 0, "ScalingAdjustment": 0},
    {"MetricIntervalLowerBound": -20, "MetricIntervalUpperBound": -10, "ScalingAdjustment": -10},
    {"MetricIntervalUpperBound": -20, "ScalingAdjustment": -30},
]
"""The example of the Auto Scaling user guide, around a threshold of 50."""


@pytest.fixture
def cloud(tmp_path):
    return Watched(tmp_path)


# Steps, by the guide's example


@pytest.mark.parametrize(("metric", "percent"), [(50, 0), (59, 0), (60, 10), (69.9, 10), (70, 30), (500, 30)])
def test_steps_out_begin_at_their_lower_bound(metric, percent):
    assert step(OUT, metric - 50) == percent


@pytest.mark.parametrize(("metric", "percent"), [(50, 0), (41, 0), (40, -10), (30.1, -10), (30, -30), (0, -30)])
def test_steps_in_begin_at_their_upper_bound(metric, percent):
    assert step(IN, metric - 50) == percent


def test_a_metric_beyond_the_steps_is_for_none():
    assert step(OUT, -1) is None
    assert step(IN, 1) is None


@pytest.mark.parametrize(
    ("capacity", "percent", "becomes"), [(10, 10, 11), (11, 30, 14), (14, -10, 13), (13, -30, 10), (10, 127, 22)]
)
def test_percents_are_rounded_towards_nothing(capacity, percent, becomes):
    assert adjusted(capacity, PERCENT, percent) == becomes


@pytest.mark.parametrize(("capacity", "percent", "becomes"), [(1, 67, 2), (1, -58, 0), (4, 10, 5), (0, 50, 0)])
def test_a_change_of_less_than_one_is_one(capacity, percent, becomes):
    assert adjusted(capacity, PERCENT, percent) == becomes


def test_the_least_change_of_the_guide():
    assert adjusted(4, PERCENT, 25, least=2) == 6
    assert adjusted(10, PERCENT, -10, least=3) == 7
    assert adjusted(7, EXACT, 5) == 5


@given(st.integers(0, 1000), st.integers(-100, 300))
def test_a_percentage_never_changes_direction_or_falls_below_nothing(capacity, percent):
    change = adjusted(capacity, PERCENT, percent) - capacity
    assert change * percent >= 0
    assert capacity + change >= 0


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [{"ScalingAdjustment": 1}],
        [OUT[0]],
        [OUT[0], OUT[2]],
        [*OUT, {"MetricIntervalLowerBound": 5, "ScalingAdjustment": 2}],
        [{"MetricIntervalLowerBound": 9, "MetricIntervalUpperBound": 3, "ScalingAdjustment": 1}],
        [
            {"MetricIntervalLowerBound": one, "MetricIntervalUpperBound": one + 1, "ScalingAdjustment": 1}
            for one in range(21)
        ],
    ],
    ids=["none", "no bounds", "no open end", "gap", "overlap", "upside down", "too many"],
)
def test_steps_that_aws_refuses_are_refused(steps):
    with pytest.raises(Ill):
        stepscaling.check("ChangeInCapacity", steps)


# A group of Spot instances


def spot_group(cloud, name="spot", weights=None, strategy="price-capacity-optimized", overrides=None, **distribution):
    types = weights or {"g5.xlarge": None, "g4dn.xlarge": None}
    named = [
        {"InstanceType": kind, **({"WeightedCapacity": str(units)} if units else {})} for kind, units in types.items()
    ]
    cloud.ask(
        "CreateAutoScalingGroup",
        AutoScalingGroupName=name,
        MinSize=0,
        MaxSize=10,
        VPCZoneIdentifier="subnet-a,subnet-b",
        MixedInstancesPolicy={
            "LaunchTemplate": {
                "LaunchTemplateSpecification": {"LaunchTemplateId": "lt-1", "Version": "1"},
                "Overrides": overrides or named,
            },
            "InstancesDistribution": {
                "OnDemandPercentageAboveBaseCapacity": 0,
                "SpotAllocationStrategy": strategy,
                **distribution,
            },
        },
        CapacityRebalance=False,
    )


def group(cloud, name="spot"):
    return cloud.ask("DescribeAutoScalingGroups", AutoScalingGroupNames=[name])["AutoScalingGroups"][0]


def want(cloud, units, name="spot", seconds=60):
    cloud.ask("SetDesiredCapacity", AutoScalingGroupName=name, DesiredCapacity=units)
    cloud.world.advance(seconds)
    return group(cloud, name)["Instances"]


def units(cloud, name="spot"):
    return sum(int(one.get("WeightedCapacity", 1)) for one in group(cloud, name)["Instances"])


def lives(cloud, name="spot"):
    return list(cloud.instances.of(name))


def test_a_spot_group_launches_spot_instances_over_its_zones(cloud):
    spot_group(cloud)
    members = want(cloud, 4)
    assert {one["LifecycleState"] for one in members} == {"InService"}
    assert [one.lifecycle for one in lives(cloud)] == ["spot"] * 4
    assert sorted(one["AvailabilityZone"] for one in members) == ["us-east-1a"] * 2 + ["us-east-1b"] * 2
    assert all(one.tags["aws:autoscaling:groupName"] == "spot" for one in lives(cloud))


def test_a_group_is_at_its_desired_units_or_above_them(cloud):
    spot_group(cloud, weights={"g4dn.12xlarge": 4})
    assert len(want(cloud, 5)) == 2
    assert units(cloud) == 8
    want(cloud, 5)
    assert units(cloud) == 8
    want(cloud, 4)
    assert units(cloud) == 4
    want(cloud, 0)
    assert group(cloud)["Instances"] == []


def test_one_that_the_market_takes_is_replaced_when_it_is_gone(cloud):
    spot_group(cloud)
    want(cloud, 2)
    victim = lives(cloud)[0]
    cloud.instances.warn(victim, "market", cloud.world.now())
    cloud.world.advance(100)
    assert len(lives(cloud)) == 2
    assert victim in lives(cloud)
    cloud.world.advance(90)
    assert victim not in lives(cloud)
    assert len(lives(cloud)) == 2


def test_without_room_in_one_zone_it_takes_another_and_tries_again(cloud):
    spot_group(cloud, weights={"g5.xlarge": 1})
    want(cloud, 1)
    for zone, room in (("a", 0), ("b", 1)):
        cloud.control._carry_out(cloud.fate.capacity, {"pool": f"g5.xlarge/us-east-1{zone}", "instances": room})
    cloud.world.advance(200)
    want(cloud, 3)
    assert len(lives(cloud)) == 1
    failed = cloud.ask("DescribeScalingActivities", AutoScalingGroupName="spot")["Activities"]
    assert any(one["StatusCode"] == "Failed" and "no spot capacity" in one["StatusMessage"] for one in failed)
    cloud.fate.capacity("g5.xlarge/us-east-1a", 5)
    cloud.world.advance(60)
    assert len(lives(cloud)) == 3


def test_lowest_price_spreads_over_as_many_pools_as_it_is_told(cloud):
    kinds = {"g5.xlarge": None, "g4dn.xlarge": None, "g5.2xlarge": None, "g4dn.2xlarge": None}
    spot_group(cloud, weights=kinds, strategy="lowest-price", SpotInstancePools=2)
    want(cloud, 8)
    for zone in ("us-east-1a", "us-east-1b"):
        here = [one.pool.type for one in lives(cloud) if one.pool.zone == zone]
        cheapest = sorted(kinds, key=lambda kind, zone=zone: cloud.market.price(Pool(kind, zone)))[:2]
        assert {kind: here.count(kind) for kind in here} == dict.fromkeys(cheapest, 2)


def test_the_dearest_pool_is_not_the_first_choice_of_price_and_capacity(cloud):
    spot_group(cloud, weights={"p4d.24xlarge": 1, "g4dn.xlarge": 1})
    want(cloud, 4)
    assert {one.pool.type for one in lives(cloud)} == {"g4dn.xlarge"}


def test_prioritized_takes_the_first_that_there_is_room_for(cloud):
    spot_group(cloud, weights={"p4d.24xlarge": 1, "g4dn.xlarge": 1}, strategy="capacity-optimized-prioritized")
    want(cloud, 2)
    assert {one.pool.type for one in lives(cloud)} == {"p4d.24xlarge"}


def test_a_group_may_leave_the_types_to_attributes(cloud):
    wanted = {
        "VCpuCount": {"Min": 4, "Max": 8},
        "MemoryMiB": {"Min": 1},
        "AcceleratorCount": {"Min": 1, "Max": 1},
        "AcceleratorNames": ["t4"],
        "MaxSpotPriceAsPercentageOfOptimalOnDemandPrice": 999999,
    }
    overrides = [{"InstanceRequirements": wanted}]
    spot_group(cloud, overrides=overrides, OnDemandAllocationStrategy="lowest-price")
    want(cloud, 3)
    assert {one.pool.type for one in lives(cloud)} <= {"g4dn.xlarge", "g4dn.2xlarge"}


@pytest.mark.parametrize(
    "changes",
    [
        {"OnDemandPercentageAboveBaseCapacity": 50},
        {"OnDemandBaseCapacity": 1},
        {"SpotMaxPrice": "1"},
        {"strategy": "cheapest"},
        {"SpotInstancePools": 3},
        {"weights": {"g5.xlarge": 1, "g4dn.xlarge": None}},
        {"overrides": [{"InstanceRequirements": {"VCpuCount": {"Min": 1}, "MemoryMiB": {"Min": 1}}}]},
    ],
)
def test_what_is_refused_of_a_mixed_policy(cloud, changes):
    with pytest.raises(Fault):
        spot_group(cloud, **changes)


# Policies of a group


def policy(cloud, name="grow", **changes):
    whole = {
        "AutoScalingGroupName": "spot",
        "PolicyName": name,
        "PolicyType": "StepScaling",
        "AdjustmentType": "ChangeInCapacity",
        "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 2}],
        "EstimatedInstanceWarmup": 0,
        **changes,
    }
    settings = {key: value for key, value in whole.items() if value is not None}
    return cloud.ask("PutScalingPolicy", **settings)["PolicyARN"]


def shrink(cloud, percent=-100, **changes):
    none = dict.fromkeys(("StepAdjustments", "EstimatedInstanceWarmup"))
    simple = {"PolicyType": "SimpleScaling", "AdjustmentType": PERCENT, "ScalingAdjustment": percent}
    return policy(cloud, "shrink", **none, **simple, **changes)


def execute(cloud, arn, metric=1.0, **more):
    cloud.ask("ExecutePolicy", PolicyName=arn, MetricValue=metric, BreachThreshold=0.0, **more)


def desired(cloud):
    return group(cloud)["DesiredCapacity"]


def test_a_step_policy_adds_what_the_metric_asks_for(cloud):
    spot_group(cloud)
    steps = [
        {"MetricIntervalLowerBound": 0, "MetricIntervalUpperBound": 3, "ScalingAdjustment": 1},
        {"MetricIntervalLowerBound": 3, "ScalingAdjustment": 4},
    ]
    execute(cloud, policy(cloud, StepAdjustments=steps), metric=3)
    assert desired(cloud) == 4


def test_what_is_on_its_way_is_not_added_again(cloud):
    spot_group(cloud)
    arn = policy(cloud)
    execute(cloud, arn)
    execute(cloud, arn)
    assert desired(cloud) == 2
    cloud.world.advance(60)
    execute(cloud, arn)
    assert desired(cloud) == 4


def test_what_is_in_service_counts_when_its_warm_up_is_over(cloud):
    spot_group(cloud)
    arn = policy(cloud, EstimatedInstanceWarmup=300)
    execute(cloud, arn)
    cloud.world.advance(200)
    execute(cloud, arn)
    assert desired(cloud) == 2
    cloud.world.advance(200)
    execute(cloud, arn)
    assert desired(cloud) == 4


def test_a_policy_keeps_to_the_groups_bounds(cloud):
    spot_group(cloud)
    execute(
        cloud,
        policy(cloud, AdjustmentType=EXACT, StepAdjustments=[{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 99}]),
    )
    assert desired(cloud) == 10


def test_a_step_in_waits_for_instances_on_their_way(cloud):
    spot_group(cloud)
    arn = policy(cloud, StepAdjustments=[{"MetricIntervalUpperBound": 0, "ScalingAdjustment": -1}])
    cloud.ask("SetDesiredCapacity", AutoScalingGroupName="spot", DesiredCapacity=3)
    cloud.world.advance(6)
    execute(cloud, arn, metric=-1)
    assert desired(cloud) == 3
    cloud.world.advance(60)
    execute(cloud, arn, metric=-1)
    assert desired(cloud) == 2


def test_a_hundred_per_cent_less_is_nothing(cloud):
    spot_group(cloud)
    want(cloud, 3)
    cloud.ask("ExecutePolicy", PolicyName="shrink", AutoScalingGroupName="spot") if shrink(cloud, Cooldown=0) else None
    cloud.world.advance(60)
    assert group(cloud)["Instances"] == []


def test_a_simple_policy_honours_its_cooldown_when_asked_to(cloud):
    spot_group(cloud)
    want(cloud, 8)
    arn = shrink(cloud, percent=-50, Cooldown=600)
    cloud.ask("ExecutePolicy", PolicyName=arn, HonorCooldown=True)
    cloud.world.advance(300)
    with pytest.raises(Fault, match="in progress") as refusal:
        cloud.ask("ExecutePolicy", PolicyName=arn, HonorCooldown=True)
    assert refusal.value.code == "ScalingActivityInProgress"
    cloud.world.advance(400)
    cloud.ask("ExecutePolicy", PolicyName=arn, HonorCooldown=True)
    assert desired(cloud) == 2


def test_an_alarm_executes_a_policy_every_minute_while_it_lasts(cloud):
    spot_group(cloud)
    arn = policy(cloud)
    cloud.alarm(AlarmActions=[arn], TreatMissingData="notBreaching")
    for _minute in range(6):
        cloud.measure(9)
        cloud.minutes(1)
    # Two more each minute, once those before are in service.
    assert desired(cloud) >= 6
    cloud.minutes(5)
    left = desired(cloud)
    cloud.minutes(5)
    assert desired(cloud) == left
    assert cloud.ask("DescribePolicies")["ScalingPolicies"][0]["Alarms"][0]["AlarmName"] == "load"


def test_a_simple_policy_of_an_alarm_waits_for_its_cooldown(cloud):
    spot_group(cloud)
    arn = shrink(cloud, percent=-50, Cooldown=3600)
    want(cloud, 8)
    cloud.alarm(AlarmActions=[arn], TreatMissingData="breaching")
    cloud.minutes(20)
    assert desired(cloud) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PolicyType": "TargetTrackingScaling"}, "TargetTrackingScaling"),
        ({"ScalingAdjustment": 1}, "ScalingAdjustment cannot be specified"),
        ({"MinAdjustmentMagnitude": 1}, "PercentChangeInCapacity only"),
        ({"StepAdjustments": None}, "step adjustments are required"),
        ({"AdjustmentType": "Double"}, "no adjustment type"),
        ({"AutoScalingGroupName": "nobody"}, "not found"),
    ],
)
def test_what_is_refused_of_a_policy(cloud, changes, said):
    spot_group(cloud)
    with pytest.raises(Fault, match=said):
        policy(cloud, **changes)


@pytest.mark.parametrize("params", [{}, {"MetricValue": 1.0}, {"MetricValue": -1.0, "BreachThreshold": 0.0}])
def test_a_step_policy_wants_a_metric_that_there_is_a_step_for(cloud, params):
    spot_group(cloud)
    arn = policy(cloud)
    with pytest.raises(Fault) as refusal:
        cloud.ask("ExecutePolicy", PolicyName=arn, **params)
    assert refusal.value.code == "ValidationError"


def test_a_policy_is_executed_by_who_may_resize_its_group(cloud):
    spot_group(cloud)
    arn = policy(cloud)
    call = type("Call", (), {"operation": "ExecutePolicy", "params": {"PolicyName": arn}})
    [need] = cloud.autoscaling.permissions(call)
    assert need.action == "autoscaling:ExecutePolicy"
    assert need.resource == group(cloud)["AutoScalingGroupARN"]


# Services


def target(cloud, least=0, most=6, **more):
    cloud.ask_aas("RegisterScalableTarget", ResourceId=SERVICE, MinCapacity=least, MaxCapacity=most, **more)


def service_policy(cloud, name="to-work", steps=None, kind="StepScaling", **changes):
    exact = [
        {"MetricIntervalLowerBound": 0, "MetricIntervalUpperBound": 3, "ScalingAdjustment": 1},
        {"MetricIntervalLowerBound": 3, "ScalingAdjustment": 4},
    ]
    settings = {"AdjustmentType": EXACT, "MetricAggregationType": "Maximum", "Cooldown": 60}
    settings |= {"StepAdjustments": steps or exact, **changes}
    configuration = {f"{kind}PolicyConfiguration": changes if kind != "StepScaling" else settings}
    return cloud.ask_aas("PutScalingPolicy", PolicyName=name, PolicyType=kind, ResourceId=SERVICE, **configuration)[
        "PolicyARN"
    ]


def activities(cloud):
    return cloud.ask_aas("DescribeScalingActivities")["ScalingActivities"]


def test_a_target_needs_a_service(cloud):
    with pytest.raises(Fault, match="ECS service doesn't exist"):
        target(cloud)


def test_a_service_is_brought_within_new_bounds(cloud):
    cloud.service(desired=0)
    target(cloud, least=2)
    assert cloud.tasks == 2
    assert activities(cloud)[0]["Cause"] == "minimum capacity was set to 2"
    target(cloud, least=0, most=1)
    assert cloud.tasks == 1
    assert [one["StatusCode"] for one in activities(cloud)] == ["InProgress", "Overridden"]


def test_an_alarm_sets_the_tasks_that_its_step_says(cloud):
    cloud.service()
    target(cloud)
    cloud.alarm(AlarmActions=[service_policy(cloud)], Threshold=0, TreatMissingData="notBreaching")
    cloud.measure(2)
    cloud.until(lambda: cloud.tasks == 1)
    cloud.measure(7)
    cloud.until(lambda: cloud.tasks == 4)
    assert activities(cloud)[0]["Cause"] == "monitor alarm load in state ALARM triggered policy to-work"


def test_nothing_is_scaled_in_before_the_cooldown_is_over(cloud):
    cloud.service()
    target(cloud)
    cloud.alarm(AlarmActions=[service_policy(cloud, Cooldown=600)], Threshold=0, TreatMissingData="notBreaching")
    cloud.measure(7)
    cloud.until(lambda: cloud.tasks == 4)
    for _minute in range(8):
        cloud.measure(1)
        cloud.minutes(1)
        assert cloud.tasks == 4
    for _minute in range(4):
        cloud.measure(1)
        cloud.minutes(1)
    assert cloud.tasks == 1


def test_what_was_added_in_a_cooldown_is_not_added_again(cloud):
    cloud.service()
    target(cloud, most=20)
    steps = [
        {"MetricIntervalLowerBound": 0, "MetricIntervalUpperBound": 5, "ScalingAdjustment": 2},
        {"MetricIntervalLowerBound": 5, "ScalingAdjustment": 3},
    ]
    arn = service_policy(cloud, steps=steps, AdjustmentType="ChangeInCapacity", Cooldown=600)
    cloud.alarm(AlarmActions=[arn], Threshold=0, TreatMissingData="notBreaching")
    for value, tasks in ((1, 2), (1, 2), (9, 3), (9, 3)):
        cloud.measure(value)
        cloud.minutes(1.2)
        assert cloud.tasks <= tasks
    assert cloud.tasks == 3


def test_an_alarm_at_its_threshold_empties_a_service(cloud):
    cloud.service(desired=3)
    target(cloud)
    none = [{"MetricIntervalUpperBound": 0, "ScalingAdjustment": 0}]
    arn = service_policy(cloud, steps=none)
    cloud.alarm(AlarmActions=[arn], Threshold=0, ComparisonOperator="LessThanOrEqualToThreshold")
    cloud.minutes(3)
    assert cloud.tasks == 3
    finish_deployment(cloud)
    cloud.measure(0)
    cloud.until(lambda: cloud.tasks == 0)


def finish_deployment(cloud):
    """As if the tasks had been placed once."""
    (service,) = cloud.ecs.state.services.values()
    service["deployments"][0]["rolloutState"] = "COMPLETED"


def test_nothing_is_scaled_in_while_a_deployment_is_on(cloud):
    cloud.service(desired=3)
    target(cloud)
    arn = service_policy(cloud, steps=[{"MetricIntervalUpperBound": 0, "ScalingAdjustment": 0}])
    cloud.alarm(AlarmActions=[arn], Threshold=0, ComparisonOperator="LessThanOrEqualToThreshold")
    for _minute in range(5):
        cloud.measure(0)
        cloud.minutes(1)
    assert cloud.tasks == 3


def tracked(cloud, **changes):
    metric = {"Namespace": "Spindrift", "MetricName": "Load", "Statistic": "Average"}
    cooldowns = {"ScaleOutCooldown": 300, "ScaleInCooldown": 60}
    return service_policy(
        cloud,
        "track",
        kind="TargetTrackingScaling",
        TargetValue=10.0,
        CustomizedMetricSpecification=metric,
        **cooldowns,
        **changes,
    )


def test_target_tracking_makes_its_alarms_and_takes_them_with_it(cloud):
    cloud.service(desired=2)
    target(cloud)
    tracked(cloud)
    names = [one["AlarmName"] for one in cloud.ask("DescribeAlarms")["MetricAlarms"]]
    assert [name.rsplit("-", 5)[0] for name in names] == [
        f"TargetTracking-{SERVICE}-Alarm{end}" for end in ("High", "Low")
    ]
    cloud.ask_aas("DeleteScalingPolicy", PolicyName="track", ResourceId=SERVICE)
    assert cloud.ask("DescribeAlarms")["MetricAlarms"] == []


def test_target_tracking_holds_the_metric_at_its_target(cloud):
    cloud.service(desired=2)
    finish_deployment(cloud)
    target(cloud, least=1, most=8)
    tracked(cloud)
    for _minute in range(5):
        cloud.measure(30 / cloud.tasks)
        cloud.minutes(1)
    assert cloud.tasks == 3
    finish_deployment(cloud)
    for _minute in range(12):
        cloud.measure(3)
        cloud.minutes(1)
    assert cloud.tasks == 3
    for _minute in range(6):
        cloud.measure(3)
        cloud.minutes(1)
    assert cloud.tasks == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ScalableDimension": "ec2:spot-fleet-request:TargetCapacity"}, "scales ecs:service:DesiredCount only"),
        ({"ResourceId": "jobs/workers"}, "Unsupported"),
        ({"MinCapacity": 7}, "cannot be less"),
    ],
)
def test_what_is_refused_of_a_target(cloud, changes, said):
    cloud.service()
    asked = {"ResourceId": SERVICE, "MinCapacity": 0, "MaxCapacity": 6, **changes}
    with pytest.raises(Fault, match=said):
        cloud.ask_aas("RegisterScalableTarget", **asked)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PredefinedMetricSpecification": {"PredefinedMetricType": "ECSServiceAverageCPUUtilization"}}, "Predefined"),
        ({}, "measures nothing of ECS"),
    ],
)
def test_what_is_refused_of_target_tracking(cloud, changes, said):
    cloud.service()
    target(cloud)
    with pytest.raises(Fault, match=said):
        service_policy(cloud, "track", kind="TargetTrackingScaling", TargetValue=10.0, **changes)


def test_a_policy_goes_with_its_target(cloud):
    cloud.service()
    target(cloud)
    tracked(cloud)
    service_policy(cloud)
    cloud.ask_aas("DeregisterScalableTarget", ResourceId=SERVICE)
    assert cloud.ask_aas("DescribeScalingPolicies")["ScalingPolicies"] == []
    assert cloud.ask_aas("DescribeScalableTargets")["ScalableTargets"] == []
    assert cloud.ask("DescribeAlarms")["MetricAlarms"] == []


def test_an_action_of_nobody_is_in_the_diary_and_harms_none(cloud):
    gone = "arn:aws:autoscaling:us-east-1:123456789012:scalingPolicy:1:autoScalingGroupName/g:policyName/p"
    cloud.alarm(AlarmActions=[gone, TOPIC], TreatMissingData="breaching")
    cloud.minutes(3)
    assert len(cloud.told) == 1
    assert cloud.world.diary("alarm action")[0]["trouble"] == "no such policy"


# Metrics of groups


def test_a_groups_metrics_are_told_when_they_are_switched_on(cloud):
    spot_group(cloud, weights={"g4dn.12xlarge": 4})
    want(cloud, 4, seconds=400)
    assert cloud.ask("ListMetrics", Namespace="AWS/AutoScaling")["Metrics"] == []
    cloud.ask("EnableMetricsCollection", AutoScalingGroupName="spot", Granularity="1Minute")
    cloud.minutes(5)
    found = {one["MetricName"] for one in cloud.ask("ListMetrics", Namespace="AWS/AutoScaling")["Metrics"]}
    assert len(found) == 20
    cloud.alarm(
        "many",
        Namespace="AWS/AutoScaling",
        MetricName="GroupInServiceCapacity",
        Dimensions=[{"Name": "AutoScalingGroupName", "Value": "spot"}],
        Threshold=3,
    )
    cloud.minutes(4)
    assert cloud.state("many") == "ALARM"


def test_on_demand_groups_are_as_they_were(cloud):
    cloud.group(desired=2)
    cloud.world.advance(60)
    assert [one.lifecycle for one in cloud.instances.of("top-up")] == [ON_DEMAND] * 2
    assert all("WeightedCapacity" not in one for one in cloud.in_group())
