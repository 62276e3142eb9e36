"""What the templates buy: attributes, the warm pool, and the profile `groups`."""

import gzip
import json
from fnmatch import fnmatch
from math import ceil
from pathlib import Path

import moto
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.health import BROKEN
from templates import machines
from templates.assets import Asset, Assets
from templates.instance_types import INSTANCE_TYPES
from templates.settings import Attributes, Settings
from templates.stacks import STACKS, rendered

ASSETS = Assets(**{name: Asset(name, "0") for name in ("ingest", "capacity", "market", "agent")})
ATTRIBUTES = {
    "compute": {"attributes": {}},
    "spot": {"allocation_strategy": "priceCapacityOptimized"},
}
WARM = {"on_demand": {"instance_types": ["g4dn.xlarge"], "warm_units": 2, "max_units": 4}}
GROUPS = {"profile": "groups"}
TWO_QUEUES = {"queues": [{"name": "urgent", "prefix": "urgent/"}, {"name": "big-ones", "max_tasks": 3}]}
NEWS = {"notify": {"email": "gpu-team@example.com", "scaling": True}}


def resources(**table):
    return json.loads(rendered(STACKS["cluster"](Settings.read(table), ASSETS)))["Resources"]


def properties(title, **table):
    return resources(**table)[title]["Properties"]


def overrides(**table):
    (config,) = properties("SpotFleet", **table)["SpotFleetRequestConfigData"]["LaunchTemplateConfigs"]
    return config["Overrides"]


def present(item):
    """What stands in a list where the region has it."""
    return item["Fn::If"][1] if "Fn::If" in item else item


def groups_of(**table):
    return {
        title: found
        for title, found in resources(**table).items()
        if found["Type"] == "AWS::AutoScaling::AutoScalingGroup"
    }


def environment(**table):
    return properties("CapacityFunction", **table)["Environment"]["Variables"]


def statements(role, **table):
    return [s for policy in properties(role, **table)["Policies"] for s in policy["PolicyDocument"]["Statement"]]


# The fleet


def test_a_pool_is_left_out_where_the_region_lacks_its_zone():
    found = resources(network={"zones": 6})
    subnets = {title: r for title, r in found.items() if r["Type"] == "AWS::EC2::Subnet"}
    conditional = {title for title, subnet in subnets.items() if "Condition" in subnet}
    pools = overrides(network={"zones": 6})

    assert conditional
    for pool in pools:
        title = present(pool)["SubnetId"]["Ref"]
        assert ("Fn::If" in pool) == (title in conditional)
        if title in conditional:
            assert pool["Fn::If"][0] == subnets[title]["Condition"]
            assert pool["Fn::If"][2] == {"Ref": "AWS::NoValue"}
    for group in groups_of(network={"zones": 6}).values():
        assert {present(s)["Ref"] for s in group["Properties"]["VPCZoneIdentifier"]} == set(subnets)


def test_priorities_follow_the_order_of_the_types():
    table = {"spot": {"allocation_strategy": "capacityOptimizedPrioritized"}}

    ranks = {(present(pool)["InstanceType"], present(pool)["Priority"]) for pool in overrides(**table)}
    assert ranks == {(name, place) for place, name in enumerate(Settings().compute.instance_types)}
    assert not any("Priority" in present(pool) for pool in overrides())


# By attributes


def chosen_by(required):
    """The types that EC2 would choose among, by moto's copy of DescribeInstanceTypes."""
    path = Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz"
    makers = {"Intel": "intel", "AMD": "amd", "AWS": "amazon-web-services"}

    def within(value, wanted):
        return wanted["Min"] <= value <= wanted.get("Max", value)

    def fits(name, kind):
        gpus = kind.get("GpuInfo", {"Gpus": []})["Gpus"]
        names = [gpu["Name"].lower() for gpu in gpus]
        return (
            gpus != []
            # A part of a GPU is told as 0. What InstanceRequirements take it for is told nowhere, so here it may be one.
            and within(sum(gpu["Count"] for gpu in gpus) or 1, required["AcceleratorCount"])
            and {gpu["Manufacturer"].lower() for gpu in gpus} <= set(required["AcceleratorManufacturers"])
            and set(names) <= set(required.get("AcceleratorNames", names))
            and makers.get(kind["ProcessorInfo"].get("Manufacturer", "Intel")) in required["CpuManufacturers"]
            and within(kind["VCpuInfo"]["DefaultVCpus"], required["VCpuCount"])
            and within(kind["MemoryInfo"]["SizeInMiB"], required["MemoryMiB"])
            and (required["BareMetal"] == "included" or not kind["BareMetal"])
            and not any(fnmatch(name, pattern) for pattern in required["ExcludedInstanceTypes"])
        )

    return {name for name, kind in json.loads(gzip.open(path).read()).items() if fits(name, kind)}


def required_by(**attributes):
    (pool,) = overrides(network={"zones": 1}, compute={"attributes": attributes}, spot=ATTRIBUTES["spot"])
    return present(pool)["InstanceRequirements"]


def test_attributes_choose_one_whole_gpu_on_x86_that_the_image_can_drive():
    found = chosen_by(machines.requirements(Attributes()))

    assert {"g4dn.xlarge", "g5.xlarge", "g6.xlarge", "p5.4xlarge"} <= found
    assert all(INSTANCE_TYPES[name].gpus == 1 for name in found if name in INSTANCE_TYPES)
    assert not [
        name for name in found if name.startswith(("g6f", "gr6f", "g5g", "g4ad", "g7.")) or name.endswith("metal")
    ]


def test_attributes_choose_no_more_than_was_asked_for():
    found = chosen_by(required_by(gpu_names=["t4", "l4"], max_vcpus=8, max_memory_mib=32_768, exclude=["g4dn.x*"]))

    assert found == {"g4dn.2xlarge", "g6.xlarge", "g6.2xlarge"}


def test_with_attributes_every_subnet_is_one_override_with_neither_weight_nor_priority():
    """EC2 refuses those beside InstanceRequirements."""
    pools = [present(pool) for pool in overrides(**ATTRIBUTES)]

    assert len({pool["SubnetId"]["Ref"] for pool in pools}) == len(pools) == 3
    assert all(set(pool) == {"SubnetId", "InstanceRequirements"} for pool in pools)


def test_dear_pools_are_not_dropped_in_silence():
    required = required_by()

    assert required["MaxSpotPriceAsPercentageOfOptimalOnDemandPrice"] == 999_999
    assert "SpotMaxPricePercentageOverLowestPrice" not in required  # EC2 takes one of the two


def test_the_lambda_knows_the_units_of_types_that_nobody_named():
    units = json.loads(environment(**ATTRIBUTES, on_demand={"instance_types": ["g5.12xlarge"]})["UNITS_BY_TYPE"])

    assert units == {"*": 1, "g5.12xlarge": 4}
    assert "*" not in json.loads(environment()["UNITS_BY_TYPE"])


def test_weights_are_what_the_fleet_counts_and_what_the_lambda_is_told():
    weights = {"g4dn.xlarge": 10, "g5.12xlarge": 95}
    settings = {"compute": {"instance_types": [*weights], "weights": weights, "max_units": 400},
                "on_demand": {"instance_types": ["g4dn.xlarge"], "max_units": 40}}  # fmt: skip
    [launch] = properties("SpotFleet", **settings)["SpotFleetRequestConfigData"]["LaunchTemplateConfigs"]

    pools = [one["Fn::If"][1] if "Fn::If" in one else one for one in launch["Overrides"]]
    assert {(pool["InstanceType"], pool["WeightedCapacity"]) for pool in pools} == {*weights.items()}
    told = environment(**settings)
    assert (json.loads(told["UNITS_BY_TYPE"]), json.loads(told["GPUS_BY_TYPE"])) == (
        weights, {"g4dn.xlarge": 1, "g5.12xlarge": 4},
    )  # fmt: skip
    assert (told["ON_DEMAND_UNITS"], properties("OnDemandGroup", **settings)["MaxSize"]) == ("10", "4")
    # The market Lambda writes the fleet's pools anew.
    market = properties("MarketFunction", **settings)["Environment"]["Variables"]
    assert json.loads(market["TYPES"]) == weights
    assert "GPUS_BY_TYPE" not in environment()


def test_the_exit_code_of_a_broken_gpu_is_the_one_that_the_rule_hears():
    [heard] = resources()["BrokenMachines"]["Properties"]["EventPattern"]["detail"]["containers"]["exitCode"]

    assert heard == BROKEN


# The On-Demand group


def test_a_warm_instance_starts_as_every_other_does():
    data = properties("LaunchTemplate", **WARM)["LaunchTemplateData"]

    assert properties("WarmLaunchTemplate", **WARM)["LaunchTemplateData"] == {**data, "InstanceType": "g4dn.xlarge"}
    assert "InstanceType" not in data
    group = properties("OnDemandGroup", **WARM)
    assert "MixedInstancesPolicy" not in group
    assert group["LaunchTemplate"]["LaunchTemplateId"] == {"Ref": "WarmLaunchTemplate"}


def test_the_warm_pool_has_one_size_whatever_runs():
    pool = properties("WarmPool", **WARM)

    assert pool["MinSize"] == pool["MaxGroupPreparedCapacity"] == 2
    assert int(properties("OnDemandGroup", **WARM)["MaxSize"]) == 4
    assert pool["PoolState"] == "Stopped"
    assert "InstanceReusePolicy" not in pool


def test_the_warm_pool_is_counted_in_instances():
    table = {"on_demand": {"instance_types": ["g5.12xlarge"], "max_units": 8, "warm_units": 5}}

    assert properties("WarmPool", **table)["MinSize"] == 2


def test_a_warm_instance_is_not_stopped_before_its_first_boot_is_over():
    (hook,) = properties("OnDemandGroup", **WARM)["LifecycleHookSpecificationList"]

    assert hook["LifecycleTransition"] == "autoscaling:EC2_INSTANCE_LAUNCHING"
    assert hook["DefaultResult"] == "CONTINUE"  # nobody answers, and ABANDON would end it
    assert 60 <= hook["HeartbeatTimeout"] <= 600


def test_without_a_warm_pool_there_is_nothing_of_it():
    found = resources()

    assert not {"WarmPool", "WarmLaunchTemplate"} & found.keys()
    assert "LifecycleHookSpecificationList" not in found["OnDemandGroup"]["Properties"]


@pytest.mark.parametrize(
    "table", [{}, WARM, GROUPS, {**GROUPS, **WARM}], ids=["fleet", "fleet, warm", "groups", "groups, warm"]
)
def test_every_group_starts_empty_is_watched_and_is_resized_by_nobody_here(table):
    found = groups_of(**table)

    assert found
    for group in found.values():
        assert group["Properties"]["MinSize"] == "0"
        assert "DesiredCapacity" not in group["Properties"]
        assert "UpdatePolicy" not in group
        assert group["Properties"]["MetricsCollection"] == [{"Granularity": "1Minute"}]


@pytest.mark.parametrize("profile", ["fleet", "groups"])
def test_groups_tell_of_their_instances_only_when_asked(profile):
    for group in groups_of(profile=profile, **NEWS).values():
        (news,) = group["Properties"]["NotificationConfigurations"]
        assert news["TopicARN"] == [{"Ref": "OperatorsTopic"}]
        assert {kind.partition(":")[2] for kind in news["NotificationTypes"]} == {
            "EC2_INSTANCE_LAUNCH", "EC2_INSTANCE_LAUNCH_ERROR", "EC2_INSTANCE_TERMINATE", "EC2_INSTANCE_TERMINATE_ERROR",
        }  # fmt: skip
    for group in groups_of(profile=profile).values():
        assert "NotificationConfigurations" not in group["Properties"]


def test_sessions_are_possible_only_when_asked_for():
    assert "ssmmessages:OpenDataChannel" in json.dumps(statements("InstanceRole", security={"session_manager": True}))
    assert "ssm" not in json.dumps(statements("InstanceRole"))


# Two groups


def test_the_spot_group_buys_spot_by_weight_up_to_the_limit():
    table = {"compute": {"instance_types": ["g4dn.xlarge", "g5.12xlarge"], "max_units": 9}}
    group = properties("SpotGroup", **GROUPS, **table)
    mix = group["MixedInstancesPolicy"]

    assert mix["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 0
    assert [(o["InstanceType"], o["WeightedCapacity"]) for o in mix["LaunchTemplate"]["Overrides"]] == [
        ("g4dn.xlarge", "1"),
        ("g5.12xlarge", "4"),
    ]
    assert group["MaxSize"] == "9"
    assert group["CapacityRebalance"] is False
    assert "SpotFleet" not in resources(**GROUPS)


@pytest.mark.parametrize(
    "strategy, words",
    [
        ("diversified", {"SpotAllocationStrategy": "lowest-price", "SpotInstancePools": 5}),
        ("lowestPrice", {"SpotAllocationStrategy": "lowest-price", "SpotInstancePools": 1}),
        ("capacityOptimized", {"SpotAllocationStrategy": "capacity-optimized"}),
        ("capacityOptimizedPrioritized", {"SpotAllocationStrategy": "capacity-optimized-prioritized"}),
        ("priceCapacityOptimized", {"SpotAllocationStrategy": "price-capacity-optimized"}),
    ],
)
def test_a_strategy_means_the_same_to_a_group(strategy, words):
    mix = properties("SpotGroup", **GROUPS, spot={"allocation_strategy": strategy})["MixedInstancesPolicy"]

    assert mix["InstancesDistribution"] == {"OnDemandPercentageAboveBaseCapacity": 0, **words}


def test_a_group_by_attributes_has_no_weights_and_no_order():
    mix = properties("SpotGroup", **GROUPS, **ATTRIBUTES)["MixedInstancesPolicy"]
    (override,) = mix["LaunchTemplate"]["Overrides"]

    assert set(override) == {"InstanceRequirements"}
    assert override["InstanceRequirements"] == required_by()
    assert mix["InstancesDistribution"]["OnDemandAllocationStrategy"] == "lowest-price"


def adjusted(steps, value):
    """What a step policy does at so much above its threshold: lower bounds belong to a step, upper ones do not."""
    (found,) = (
        step["ScalingAdjustment"]
        for step in steps
        if step["MetricIntervalLowerBound"] <= value < step.get("MetricIntervalUpperBound", value + 1)
    )
    return found


@given(most=st.integers(1, 300), missing=st.integers(1, 10_000))
@settings(max_examples=40, deadline=None)
def test_spot_grows_by_all_that_is_missing(most, missing):
    table = {"compute": {"max_units": most}, "queues": [{"max_tasks": 1}]}
    policy = properties("SpotGroupGrow", **GROUPS, **table)

    assert (policy["PolicyType"], policy["AdjustmentType"]) == ("StepScaling", "ChangeInCapacity")
    assert len(policy["StepAdjustments"]) <= 20
    needed, bought = min(missing, most), adjusted(policy["StepAdjustments"], missing)
    assert needed <= bought <= (needed if most <= 20 else needed + ceil(most / 20))


def test_on_demand_grows_by_one_instance_and_waits_for_it():
    policy = properties("OnDemandGroupGrow", **GROUPS, on_demand={"patience_seconds": 120})

    assert {adjusted(policy["StepAdjustments"], missing) for missing in (1, 7, 500)} == {1}
    assert policy["EstimatedInstanceWarmup"] == 120
    assert properties("SpotGroupGrow", **GROUPS)["EstimatedInstanceWarmup"] == 0


@pytest.mark.parametrize("group", ["SpotGroup", "OnDemandGroup"])
def test_a_group_empties_at_once_and_whole(group):
    policy = properties(f"{group}Shrink", **GROUPS)

    assert policy["AutoScalingGroupName"] == {"Ref": group}
    assert (policy["AdjustmentType"], policy["ScalingAdjustment"]) == ("PercentChangeInCapacity", -100)
    assert policy["PolicyType"] == "SimpleScaling"
    assert "NewInstancesProtectedFromScaleIn" not in properties(group, **GROUPS)  # it would hold this up


def test_the_lambda_may_execute_these_policies_and_resize_nothing_otherwise():
    told = environment(**GROUPS)
    named = {"SPOT": "SpotGroup", "ON_DEMAND": "OnDemandGroup"}

    assert told["PROFILE"] == "groups"
    for kind, group in named.items():
        assert told[f"{kind}_GROUP"] == {"Ref": group}
        assert told[f"{kind}_GROW_POLICY"] == {"Ref": f"{group}Grow"}
        assert told[f"{kind}_SHRINK_POLICY"] == {"Ref": f"{group}Shrink"}
    from capacity.groupcloud import IDLE_SINCE
    from capacity.notes import BAD, SHORT_SINCE

    said = statements("CapacityRole", **GROUPS)
    for action in ("ExecutePolicy", "TerminateInstanceInAutoScalingGroup"):
        (only,) = (statement for statement in said if f"autoscaling:{action}" in statement["Action"])
        assert [arn["Fn::Sub"].rpartition("/")[2] for arn in only["Resource"]] == ["${SpotGroup}", "${OnDemandGroup}"]
    (notes,) = (statement for statement in said if "autoscaling:CreateOrUpdateTags" in statement["Action"])
    assert set(notes["Condition"]["ForAllValues:StringEquals"]["aws:TagKeys"]) == {BAD, SHORT_SINCE, IDLE_SINCE}
    assert not [action for action in ("SetDesired", "TerminateInstances", "SpotFleet") if action in json.dumps(said)]


# The alarms of two groups


def value(alarm, **reported):
    """What an alarm watches; a metric that is not reported is missing."""
    (expression,) = (query["Expression"] for query in alarm["Metrics"] if "Expression" in query)
    names = {
        "IF": lambda test, yes, no: yes if test else no,
        "FILL": lambda metric, other: other if metric is None else metric,
    }
    return eval(expression, {"__builtins__": {}}, {**names, **reported})


@pytest.mark.parametrize(
    "waiting, in_flight, to_do, idle",
    [(0, 0, False, True), (0, None, False, True), (3, 0, True, False), (3, None, True, False), (0, 2, False, False), (3, 2, True, False)],
)  # fmt: skip
def test_alarms_tell_of_jobs_that_wait_and_of_none_at_all(waiting, in_flight, to_do, idle):
    jobs, none = (properties(f"Default{kind}Alarm", **GROUPS) for kind in ("JobsToDo", "NoJobs"))

    backlog = value(jobs, waiting=waiting, in_flight=in_flight)
    assert (backlog > 0) == to_do
    assert backlog == (waiting + (in_flight or 0) if to_do else 0)
    assert (value(none, waiting=waiting, in_flight=in_flight) <= 0) == idle
    assert (jobs["Threshold"], jobs["ComparisonOperator"]) == (0, "GreaterThanThreshold")
    assert (none["Threshold"], none["ComparisonOperator"]) == (0, "LessThanOrEqualToThreshold")


def test_a_queue_that_aws_no_longer_reports_is_idle():
    none = properties("DefaultNoJobsAlarm", **GROUPS)

    assert value(none, waiting=None, in_flight=None) == 0
    assert none["TreatMissingData"] == "breaching"
    assert properties("DefaultJobsToDoAlarm", **GROUPS)["TreatMissingData"] == "notBreaching"
    # FILL takes minutes that SQS has yet to tell of for idle ones: one of them is not enough.
    assert none["EvaluationPeriods"] == 5
    assert environment(**GROUPS)["GRACE_SECONDS"] == "300"


def test_every_queue_has_its_alarms_and_the_topic_hears_these_alone():
    found = resources(**GROUPS, **TWO_QUEUES)
    ours = {f"{queue}{kind}Alarm" for queue in ("Urgent", "BigOnes") for kind in ("JobsToDo", "NoJobs")}

    for title in ours:
        alarm = found[title]["Properties"]
        assert {"Ref": "NoticesTopic"} in alarm["AlarmActions"]
        queues = {
            d["Value"]["Fn::GetAtt"][0]
            for q in alarm["Metrics"]
            if "MetricStat" in q
            for d in q["MetricStat"]["Metric"]["Dimensions"]
        }
        assert queues == {title.removesuffix("Alarm").removesuffix("JobsToDo").removesuffix("NoJobs") + "Jobs"}
    policy = found["NoticesTopicPolicy"]["Properties"]
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert policy["Topics"] == [{"Ref": "NoticesTopic"}]
    assert statement["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    assert {arn["Fn::GetAtt"][0] for arn in statement["Condition"]["ArnEquals"]["aws:SourceArn"]} == ours


# The services of two groups


@given(each=st.integers(1, 500), most=st.integers(1, 200), backlog=st.integers(1, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_service_has_a_task_for_each_so_many_jobs(each, most, backlog):
    table = {"compute": {"max_units": 200}, "queues": [{"jobs_per_task": each, "max_tasks": most}]}
    policy = properties("DefaultScalingToWork", **GROUPS, **table)["StepScalingPolicyConfiguration"]
    needed, wanted = min(most, ceil(backlog / each)), adjusted(policy["StepAdjustments"], backlog)

    assert policy["AdjustmentType"] == "ExactCapacity"
    assert len(policy["StepAdjustments"]) <= 20
    assert needed <= wanted <= (needed if most <= 20 else min(most, needed + ceil(most / 20)))


def test_a_service_follows_its_own_queue_down_to_none():
    found = resources(**GROUPS, **TWO_QUEUES)
    target = found["BigOnesScaling"]
    none = found["BigOnesScalingToNone"]["Properties"]["StepScalingPolicyConfiguration"]

    assert target["DependsOn"] == "BigOnesService"  # Application Auto Scaling knows no service that is yet to come
    assert target["Properties"]["ResourceId"] == {"Fn::Sub": "service/${Cluster}/${AWS::StackName}-big-ones"}
    assert (target["Properties"]["MinCapacity"], target["Properties"]["MaxCapacity"]) == (0, 3)
    assert none["StepAdjustments"] == [{"MetricIntervalUpperBound": 0, "ScalingAdjustment": 0}]
    assert none["AdjustmentType"] == "ExactCapacity"
    assert {"Ref": "BigOnesScalingToNone"} in found["BigOnesNoJobsAlarm"]["Properties"]["AlarmActions"]
    assert {"Ref": "BigOnesScalingToWork"} in found["BigOnesJobsToDoAlarm"]["Properties"]["AlarmActions"]


def test_the_fleet_profile_has_nothing_of_the_groups():
    kinds = {found["Type"] for found in resources().values()}

    assert not {kind for kind in kinds if kind.startswith("AWS::ApplicationAutoScaling")}
    assert "AWS::AutoScaling::ScalingPolicy" not in kinds
    assert "NoticesTopicPolicy" not in resources()
