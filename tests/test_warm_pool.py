"""Auto Scaling's warm pool, lifecycle hook, news and metrics, with the clock in the test's hand."""

import pytest
from ec2_make import Cloud
from hypothesis import given, settings
from hypothesis import strategies as st

from localcloud import scalingresources
from localcloud.bill import bill
from localcloud.market import ON_DEMAND, Pool
from localcloud.scalingresources import GroupResource, WarmPoolResource
from localcloud.wire import Fault

HOOK = {
    "LifecycleHookName": "first-boot",
    "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING",
    "HeartbeatTimeout": 180,
    "DefaultResult": "CONTINUE",
}
TOPIC = "arn:aws:sns:us-east-1:123456789012:operators"


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def group(cloud, warm: int = 2, hook: bool = True, **changes) -> None:
    cloud.ask(
        "CreateAutoScalingGroup",
        AutoScalingGroupName="top-up",
        MinSize=0,
        MaxSize=8,
        VPCZoneIdentifier="subnet-a,subnet-b",
        LaunchTemplate={"LaunchTemplateId": "lt-1", "Version": "1"},
        **({"LifecycleHookSpecificationList": [HOOK]} if hook else {}),
        **changes,
    )
    if warm:
        size = {"MinSize": warm, "MaxGroupPreparedCapacity": warm}
        cloud.ask("PutWarmPool", AutoScalingGroupName="top-up", PoolState="Stopped", **size)


def pool(cloud) -> dict[str, str]:
    """By instance of the warm pool: its state."""
    members = cloud.ask("DescribeWarmPool", AutoScalingGroupName="top-up")["Instances"]
    return {one["InstanceId"]: one["LifecycleState"] for one in members}


def service(cloud) -> dict[str, str]:
    return {one["InstanceId"]: one["LifecycleState"] for one in cloud.in_group()}


def want(cloud, number: int) -> None:
    cloud.ask("SetDesiredCapacity", AutoScalingGroupName="top-up", DesiredCapacity=number)


def filled(cloud) -> set[str]:
    group(cloud)
    cloud.world.advance(300)
    assert set(pool(cloud).values()) == {"Warmed:Stopped"}
    return set(pool(cloud))


def test_a_pool_is_filled_with_instances_that_ran_and_were_stopped(cloud):
    group(cloud)

    cloud.world.advance(30)
    assert set(pool(cloud).values()) == {"Warmed:Pending:Wait"}
    assert {one.target_state for one in cloud.instances.all()} == {"Warmed:Stopped"}
    cloud.world.advance(300)

    assert list(pool(cloud).values()) == ["Warmed:Stopped"] * 2
    assert service(cloud) == {}
    assert {one.state for one in cloud.instances.all()} == {"stopped"}
    assert sorted(cloud.inside.booted) == sorted(cloud.inside.halted) == sorted(pool(cloud))


def test_without_a_hook_an_instance_is_stopped_as_soon_as_it_runs(cloud):
    """Nobody waits for user data: what it had not done by then is never done."""
    group(cloud, hook=False)

    cloud.world.advance(30)

    assert sorted(cloud.inside.halted) == sorted(pool(cloud))


def test_a_group_that_grows_takes_a_warm_one_first_and_the_pool_is_filled_again(cloud):
    warm = filled(cloud)

    want(cloud, 1)
    cloud.world.advance(25)

    (taken,) = service(cloud)
    assert taken in warm
    assert cloud.instances.get(taken).target_state == "InService"
    cloud.world.advance(300)
    assert service(cloud) == {taken: "InService"}
    assert list(pool(cloud).values()) == ["Warmed:Stopped"] * 2
    (first, *_) = cloud.ask("DescribeScalingActivities", AutoScalingGroupName="top-up")["Activities"]
    assert "into warm pool" in first["Description"]


def test_when_no_warm_one_is_ready_new_ones_are_launched(cloud):
    group(cloud)
    cloud.world.advance(20)

    want(cloud, 1)
    cloud.world.advance(20)

    assert set(service(cloud)).isdisjoint(pool(cloud))
    assert len(service(cloud)) == 1


def test_a_warm_one_is_no_help_where_there_is_no_room(cloud):
    """A stopped instance has no place: another may have it by the time it is wanted."""
    filled(cloud)
    zones = ("us-east-1a", "us-east-1b")
    for zone in zones:
        cloud.market.set_capacity(Pool("g4dn.xlarge", zone), 0, ON_DEMAND)

    want(cloud, 1)
    cloud.world.advance(60)

    assert service(cloud) == {}
    statuses = {one["StatusCode"] for one in cloud.ask("DescribeScalingActivities")["Activities"][:2]}
    assert statuses == {"Failed"}


def test_the_pool_is_of_the_size_that_aws_would_keep(cloud):
    """MaxGroupPreparedCapacity counts what runs, MaxSize takes its place when it is left out, MinSize is the least."""
    group(cloud, warm=0)
    sizes = []
    for params in ({"MaxGroupPreparedCapacity": 3}, {"MinSize": 2, "MaxGroupPreparedCapacity": 3}, {}):
        cloud.ask("PutWarmPool", AutoScalingGroupName="top-up", **params)
        want(cloud, 2)
        cloud.world.advance(900)
        sizes.append(len(pool(cloud)))
    assert sizes == [1, 2, 6]


def test_a_pool_takes_no_group_with_a_mixed_instances_policy(cloud):
    cloud.group()
    with pytest.raises(Fault, match="mixed instances policy"):
        cloud.ask("PutWarmPool", AutoScalingGroupName="top-up", MinSize=1)


def test_a_stopped_instance_costs_nothing(cloud):
    filled(cloud)
    ran = bill(cloud.world.diary(), cloud.world.now())
    cloud.world.advance(3600)

    later = bill(cloud.world.diary(), cloud.world.now())

    assert 0 < ran.spent == later.spent
    want(cloud, 1)
    cloud.world.advance(3600)
    assert bill(cloud.world.diary(), cloud.world.now()).spent > ran.spent + 0.4


def test_a_pool_goes_with_its_instances(cloud):
    warm = filled(cloud)

    cloud.ask("DeleteWarmPool", AutoScalingGroupName="top-up", ForceDelete=True)
    cloud.world.advance(60)

    assert "WarmPoolConfiguration" not in cloud.ask("DescribeWarmPool", AutoScalingGroupName="top-up")
    assert {cloud.instances.get(one).state for one in warm} == {"terminated"}


def test_a_group_that_is_deleted_takes_its_pool_along(cloud):
    filled(cloud)
    with pytest.raises(Fault):
        cloud.ask("DeleteAutoScalingGroup", AutoScalingGroupName="top-up")

    cloud.ask("DeleteAutoScalingGroup", AutoScalingGroupName="top-up", ForceDelete=True)
    cloud.world.advance(60)

    assert {one.state for one in cloud.instances.all()} == {"terminated"}


@pytest.mark.parametrize("result, state", [("CONTINUE", "InService"), ("ABANDON", "Terminating")])
def test_a_hook_that_is_completed_waits_no_longer(cloud, result, state):
    group(cloud, warm=0)
    want(cloud, 1)
    cloud.world.advance(30)
    (held,) = service(cloud)
    assert service(cloud) == {held: "Pending:Wait"}

    action = {"LifecycleHookName": "first-boot", "LifecycleActionResult": result, "InstanceId": held}
    cloud.ask("CompleteLifecycleAction", AutoScalingGroupName="top-up", **action)
    cloud.world.advance(1)

    assert service(cloud)[held] == state


def test_news_are_told_to_who_asked_for_them(cloud):
    group(cloud, warm=0, hook=False)
    kinds = ["autoscaling:EC2_INSTANCE_LAUNCH", "autoscaling:EC2_INSTANCE_TERMINATE"]
    where = {"AutoScalingGroupName": "top-up", "TopicARN": TOPIC}
    cloud.ask("PutNotificationConfiguration", NotificationTypes=kinds, **where)
    want(cloud, 1)
    cloud.world.advance(30)
    want(cloud, 0)
    cloud.world.advance(60)
    cloud.ask("DeleteNotificationConfiguration", **where)
    want(cloud, 1)
    cloud.world.advance(30)

    assert [one["Event"] for one in cloud.news] == ["autoscaling:TEST_NOTIFICATION", *kinds]
    assert cloud.news[1]["EC2InstanceId"] == cloud.news[2]["EC2InstanceId"]
    assert cloud.news[1]["AutoScalingGroupName"] == "top-up"


def test_a_launch_that_fails_is_news(cloud):
    group(cloud, warm=0, hook=False)
    cloud.ask(
        "PutNotificationConfiguration",
        AutoScalingGroupName="top-up",
        TopicARN=TOPIC,
        NotificationTypes=["autoscaling:EC2_INSTANCE_LAUNCH_ERROR"],
    )
    cloud.instances.quota[ON_DEMAND] = 0

    want(cloud, 1)
    cloud.world.advance(10)

    assert "quota" in cloud.news[-1]["StatusMessage"]


def test_metrics_are_switched_on_and_off(cloud):
    group(cloud, warm=0)
    cloud.ask("EnableMetricsCollection", AutoScalingGroupName="top-up", Granularity="1Minute")
    (shown,) = cloud.ask("DescribeAutoScalingGroups")["AutoScalingGroups"]
    assert {"Metric": "WarmPoolWarmedCapacity", "Granularity": "1Minute"} in shown["EnabledMetrics"]

    cloud.ask("DisableMetricsCollection", AutoScalingGroupName="top-up")

    (shown,) = cloud.ask("DescribeAutoScalingGroups")["AutoScalingGroups"]
    assert shown["EnabledMetrics"] == []


PROPERTIES = {
    "MinSize": "0",
    "MaxSize": "4",
    "VPCZoneIdentifier": ["subnet-a"],
    "LaunchTemplate": {"LaunchTemplateId": "lt-1", "Version": "1"},
    "LifecycleHookSpecificationList": [{**HOOK, "HeartbeatTimeout": "180"}],
    "MetricsCollection": [{"Granularity": "1Minute"}],
    "NotificationConfigurations": [{"TopicARN": [TOPIC], "NotificationTypes": ["autoscaling:EC2_INSTANCE_LAUNCH"]}],
}


def test_a_stack_furnishes_a_group_changes_it_and_takes_everything_away(cloud, monkeypatch):
    monkeypatch.setattr(scalingresources.time, "sleep", lambda _: cloud.world.advance(1))
    groups, pools = GroupResource(cloud.autoscaling), WarmPoolResource(cloud.autoscaling)
    name, _ = groups.create("OnDemandGroup", PROPERTIES, "one")
    sized = {"AutoScalingGroupName": name, "MinSize": "1", "MaxGroupPreparedCapacity": "1", "PoolState": "Stopped"}
    assert pools.create("WarmPool", sized, "one")[0] == name
    cloud.world.advance(300)
    (shown,) = cloud.ask("DescribeAutoScalingGroups")["AutoScalingGroups"]
    assert (shown["WarmPoolSize"], bool(shown["EnabledMetrics"])) == (1, True)
    assert len(cloud.ask("DescribeNotificationConfigurations")["NotificationConfigurations"]) == 1

    plain = {key: PROPERTIES[key] for key in ("MinSize", "MaxSize", "VPCZoneIdentifier", "LaunchTemplate")}
    groups.update(name, PROPERTIES, plain, "one")
    pools.delete(name, sized)

    (shown,) = cloud.ask("DescribeAutoScalingGroups")["AutoScalingGroups"]
    assert (shown["EnabledMetrics"], "WarmPoolSize" in shown) == ([], False)
    assert cloud.ask("DescribeNotificationConfigurations")["NotificationConfigurations"] == []
    assert cloud.ask("DescribeLifecycleHooks", AutoScalingGroupName=name)["LifecycleHooks"] == []
    groups.delete(name, plain)
    assert {one.state for one in cloud.instances.all()} == {"terminated"}


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 200)), min_size=1, max_size=6))
def test_whatever_is_wanted_when_it_gets_there_and_no_instance_is_in_two_places(tmp_path_factory, steps):
    cloud = Cloud(tmp_path_factory.mktemp("warm"))
    group(cloud)
    for number, seconds in steps:
        want(cloud, number)
        cloud.world.advance(seconds)
        assert set(service(cloud)).isdisjoint(pool(cloud))
    cloud.world.advance(600)

    assert len(service(cloud)) == steps[-1][0]
    assert list(pool(cloud).values()) == ["Warmed:Stopped"] * 2
    taken = sum(cloud.market.taken(each, ON_DEMAND) for each in cloud.market.pools())
    assert taken == sum(one.living for one in cloud.instances.all())
