"""The capacity Lambda of profile `groups` on moto: what it sees, what it calls, and what it leaves alone.

moto executes no step scaling policy and knows of no scaling activity: here executed policies are written down, and
activities are told. What Auto Scaling makes of a policy, the local cloud shows (test_groups_local.py).
"""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from botocore.exceptions import ClientError
from lambdas_make import batch, metrics, notice, sample
from moto import mock_aws
from moto.ecs.models import ecs_backends
from moto_account import ACCOUNT, IMAGE, REGION, SESSION, Account, let_spot_requests_be_filtered

from capacity import groupcloud
from capacity.account import STACK_TAG, CouldNotApply, CouldNotLook
from capacity.groups import Kind, decide
from capacity.handler import run, wired
from capacity.settings import BadSettings, GroupSettings

PICTURE, STEADY = "worker", "steady"
ENVIRONMENT = {
    "PROFILE": "groups",
    "STACK": "demo",
    "CLUSTER": "spindrift",
    "SERVICES": "",
    "SPOT_GROUP": "spot",
    "ON_DEMAND_GROUP": "on-demand",
    "SPOT_GROW_POLICY": "spot-grow",
    "SPOT_SHRINK_POLICY": "spot-shrink",
    "ON_DEMAND_GROW_POLICY": "od-grow",
    "ON_DEMAND_SHRINK_POLICY": "od-shrink",
    "GRACE_SECONDS": "300",
    "POOLS_TABLE": "pools",
    "UNITS_BY_TYPE": '{"g5.xlarge": 1, "g5.12xlarge": 4}',
    "ON_DEMAND_UNITS": "1",
    "MAX_UNITS": "16",
    "MAX_ON_DEMAND_UNITS": "8",
    "URGENCY": "now",
    "PATIENCE_SECONDS": "300",
    "CALM_SECONDS": "600",
}  # fmt: skip


def test_missing_settings_are_all_named():
    with pytest.raises(BadSettings) as error:
        GroupSettings.read({})

    assert all(f"{name} is missing" in str(error.value) for name in ENVIRONMENT if name != "PROFILE")


@pytest.mark.parametrize("told", [{}, {"PROFILE": ""}, {"PROFILE": "herd"}])
def test_a_profile_that_nobody_knows_is_named(told):
    with pytest.raises(BadSettings, match="PROFILE is not one of fleet, groups"):
        wired(told, SESSION)


class World(Account):
    """Two groups as the template makes them, and the Lambda wired to them as it wires itself."""

    def __init__(self, monkeypatch):
        super().__init__()
        for name in ("spot", "on-demand"):
            self.make_group(name, most=16)
        self.queues = {name: self.sqs.create_queue(QueueName=name)["QueueUrl"] for name in (PICTURE, STEADY)}
        self.now = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=2)
        self.calls, self.executed, self.activities = SESSION.calls, [], {"spot": [], "on-demand": []}
        self.refuse = ""
        placed = {PICTURE: "any", STEADY: "on-demand"}
        limits = {"jobs_per_task": 1, "max_tasks": 16, "units_per_task": 1, "max_wait_seconds": None}
        services = [{"name": n, "queue_url": self.queues[n], "placement": placed[n], **limits} for n in placed]
        self.cloud, self.settings, self.decide = wired({**ENVIRONMENT, "SERVICES": json.dumps(services)}, SESSION)
        self.calls.clear()
        monkeypatch.setattr(self.cloud._autoscaling, "execute_policy", self._execute)
        monkeypatch.setattr(self.cloud._autoscaling, "describe_scaling_activities", self._activities)

    def _execute(self, **asked):
        if self.refuse:
            raise ClientError({"Error": {"Code": self.refuse, "Message": "no"}}, "ExecutePolicy")
        self.executed.append((asked.pop("PolicyName"), asked))

    def _activities(self, *, AutoScalingGroupName, MaxRecords):  # noqa: N803 - as AWS spells them
        return {"Activities": self.activities[AutoScalingGroupName][:MaxRecords]}

    def tried(self, group, status, minutes_ago, what="Launching a new EC2 instance"):
        """What the group did, the latest first."""
        at = self.now - timedelta(minutes=minutes_ago)
        self.activities[group].append({"StartTime": at, "StatusCode": status, "Description": what})

    def spot(self, count, kind="g5.xlarge"):
        """Spot instances of the group, not joined."""
        told = self.ec2.request_spot_instances(
            InstanceCount=count, LaunchSpecification={"ImageId": IMAGE, "InstanceType": kind}
        )["SpotInstanceRequests"]
        ids = [one["InstanceId"] for one in told]
        self.ec2.create_tags(Resources=ids, Tags=[{"Key": STACK_TAG, "Value": "demo"}])
        self.autoscaling.attach_instances(AutoScalingGroupName="spot", InstanceIds=ids)
        return ids

    def on_demand(self, count):
        """On-Demand instances of the group, not joined."""
        self.autoscaling.set_desired_capacity(AutoScalingGroupName="on-demand", DesiredCapacity=count)
        return [one["InstanceId"] for one in self.group("on-demand")["Instances"]]

    def group(self, name):
        [group] = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
        return group

    def tags(self):
        """The notes on the Spot group."""
        told = {tag["Key"]: (tag["Value"], tag["PropagateAtLaunch"]) for tag in self.group("spot")["Tags"]}
        return {key.partition(":")[2]: value for key, value in told.items() if key != STACK_TAG}

    def members(self):
        return {one["InstanceId"] for name in ("spot", "on-demand") for one in self.group(name)["Instances"]}

    def work(self, jobs, queue=PICTURE):
        for n in range(jobs):
            self.sqs.send_message(QueueUrl=self.queues[queue], MessageBody=str(n))

    def price(self, spot_usd, pool="g5.xlarge/eu-west-1a"):
        told = {"spot_usd": Decimal(str(spot_usd)), "on_demand_usd": Decimal(1), "seen_at": int(self.now.timestamp())}
        self.pools.put_item(Item={"pool": pool, **told})

    def hear(self, *bodies, later=timedelta()):
        """Run one batch; returns what was executed in it."""
        self.executed.clear()
        said = batch(*(bodies or [sample("eventbridge-schedule")]))
        run(self.cloud, self.settings, said, clock=lambda: self.now + later, decide=self.decide)
        return list(self.executed)


@pytest.fixture
def world(monkeypatch):
    let_spot_requests_be_filtered(monkeypatch)
    with mock_aws():
        yield World(monkeypatch)


def grown(policy, missing):
    return (policy, {"MetricValue": missing, "BreachThreshold": 0})


# The look


def test_everything_is_seen_where_it_belongs(world):
    world.work(2)
    world.work(1, STEADY)
    ready, large = world.spot(1), world.spot(1, "g5.12xlarge")
    [bought] = world.on_demand(1)
    world.join(ready, tasks=1)

    seen = world.cloud.look(world.now)

    assert {service.name: service.backlog for service in seen.services} == {PICTURE: 2, STEADY: 1}
    assert (seen.requested, seen.fulfilled) == (2, 5)
    assert (seen.on_demand_requested, seen.on_demand_present, seen.on_demand_in_service) == (1, 1, 1)
    assert {i.id: (i.spot, i.units) for i in seen.instances} == {
        ready[0]: (True, 1),
        large[0]: (True, 4),
        bought: (False, 1),
    }
    assert (seen.noticed, seen.idle_since, seen.spot_share, seen.failing) == (frozenset(), None, None, {})


@pytest.mark.parametrize(
    "missing, says",
    [
        (lambda w: w.sqs.delete_queue(QueueUrl=w.queues[STEADY]), "NonExistentQueue"),
        (lambda w: w.autoscaling.delete_auto_scaling_group(AutoScalingGroupName="spot"), "group spot is not there"),
        (lambda w: setattr(w.cloud._autoscaling, "describe_scaling_activities", throttled), "Throttling"),
    ],
    ids=["queue", "group", "activities"],
)
def test_could_not_look_is_never_nothing_there(world, capsys, missing, says):
    world.work(1)
    missing(world)

    with pytest.raises(CouldNotLook, match=says):
        world.hear()
    assert world.executed == []
    assert says in json.loads(capsys.readouterr().out)["why"]


def throttled(**_):
    raise ClientError({"Error": {"Code": "Throttling", "Message": "Rate exceeded"}}, "DescribeScalingActivities")


def test_no_pass_waits_for_prices(world, capsys):
    world.work(1)
    world.pools.delete()

    assert world.hear() == [grown("spot-grow", 1)]
    assert "Spot's price is not known" in json.loads(capsys.readouterr().out)["why"]


@pytest.mark.parametrize("instances, calls", [(1, 8), (90, 8), (130, 9)])
def test_a_look_without_work_costs_a_constant_and_one_call_more_per_hundred(world, instances, calls):
    world.autoscaling.update_auto_scaling_group(AutoScalingGroupName="spot", MaxSize=200)
    world.join(world.spot(instances))
    world.calls.clear()

    world.cloud.look(world.now)

    # One each for groups, instances, Spot requests (two hundred at a time), container instances (two), and queues (two).
    assert sum(world.calls.values()) == calls - 1


# Growing


def test_the_first_upload_has_spot_grow_by_all_of_it(world):
    world.work(3)

    assert world.hear(sample("wake")) == [grown("spot-grow", 3)]


def test_each_queue_has_the_machines_it_may_have(world):
    world.work(3)
    world.work(2, STEADY)

    assert world.hear() == [grown("spot-grow", 3), grown("od-grow", 2)]


def test_the_group_that_is_worth_it_grows(world):
    world.work(3)
    world.price(0.99)
    assert world.hear() == [grown("od-grow", 3)]

    world.price(0.4, "g5.xlarge/eu-west-1b")
    assert world.hear() == [grown("spot-grow", 3)]


def test_spot_that_brings_nothing_is_made_up_for_after_patience(world):
    world.work(3)
    assert world.hear() == [grown("spot-grow", 3)]
    assert world.tags() == {"short-since": (world.now.isoformat(), False)}

    assert world.hear(later=timedelta(minutes=4)) == [grown("spot-grow", 3)]
    assert world.hear(later=timedelta(minutes=5)) == [grown("spot-grow", 3), grown("od-grow", 3)]


def test_spot_that_failed_to_launch_just_before_is_not_waited_for(world):
    world.work(3)
    world.tried("spot", "InProgress", 0)
    world.tried("spot", "Failed", 1)
    world.tried("spot", "Successful", 2, "Terminating EC2 instance: i-1")
    world.tried("spot", "Cancelled", 6)
    world.tried("spot", "Successful", 7)

    assert world.hear() == [grown("spot-grow", 3), grown("od-grow", 3)]


def test_the_shortage_is_forgotten_when_spot_is_whole(world):
    world.work(1)
    world.hear()
    world.spot(1)

    world.hear()

    assert world.tags() == {}


@pytest.mark.parametrize("code", ["ScalingActivityInProgress", "ResourceContention"])
def test_a_group_that_is_busy_is_asked_later(world, capsys, code):
    world.work(1)
    world.refuse = code

    world.hear()

    [why] = json.loads(capsys.readouterr().out)["put_off"]
    assert why.startswith("spot-grow is executed later")


def test_a_policy_that_is_not_there_is_an_error(world):
    world.work(1)
    world.refuse = "ValidationError"

    with pytest.raises(CouldNotApply):
        world.hear()


# Leaving


def test_everything_leaves_when_there_has_been_no_work_for_the_grace(world):
    world.join([*world.spot(2), *world.on_demand(1)])

    assert world.hear() == []
    assert world.tags() == {"idle-since": (world.now.isoformat(), False)}
    assert world.hear(later=timedelta(seconds=299)) == []
    assert world.hear(later=timedelta(seconds=300)) == [("spot-shrink", {}), ("od-shrink", {})]


def test_the_alarm_of_a_new_stack_that_nothing_is_to_be_done_does_nothing(world):
    assert world.hear(sample("alarm-no-jobs"), sample("alarm-no-jobs")) == []
    assert world.tags() == {}


def test_work_that_comes_after_the_look_keeps_everybody(world):
    world.spot(1)
    world.hear()
    look = world.cloud.look(world.now + timedelta(minutes=6))
    decision = decide(look, world.settings.policy)
    assert decision.shrink == (Kind.SPOT,)

    world.work(1, STEADY)

    assert world.cloud.apply(look, decision) == ["every instance stays: there is work by now"]
    assert world.executed == []


def test_what_joined_without_a_gpu_is_replaced(world):
    [broken, good] = world.spot(2)
    world.join([broken], gpus=0)
    world.join([good])
    world.work(2)

    world.hear()

    assert broken not in world.members() and good in world.members()
    assert world.group("spot")["DesiredCapacity"] == 2


def test_after_three_of_no_use_the_group_becomes_smaller_by_each(world):
    spoiled = world.spot(4)
    world.join(spoiled, gpus=0)
    world.work(4)

    world.hear()

    assert world.group("spot")["DesiredCapacity"] == 0 and not world.members() & {*spoiled}
    assert world.tags().keys() == {"bad", "short-since"}
    world.hear()
    assert not [policy for policy, _ in world.executed if "spot" in policy]


def test_who_has_work_by_now_is_not_replaced(world):
    [broken] = world.spot(1)
    world.join([broken], gpus=0)
    world.work(1)
    look = world.cloud.look(world.now)
    decision = decide(look, world.settings.policy)
    ecs_backends[ACCOUNT][REGION].container_instances["spindrift"].popitem()
    world.join([broken], tasks=1)

    assert world.cloud.apply(look, decision) == [f"{broken} stays: it has work by now"]
    assert broken in world.members()


@pytest.mark.parametrize(
    "code, says",
    [
        ("ValidationError", "Instance Id not found - No managed instance found for instance ID: i-1"),
        ("ScalingActivityInProgress", "i-1 is terminating"),
    ],
)
def test_one_that_its_group_has_ended_already_is_no_failure(world, monkeypatch, code, says):
    def gone(**_):
        raise ClientError({"Error": {"Code": code, "Message": says}}, "TerminateInstanceInAutoScalingGroup")

    monkeypatch.setattr(world.cloud._autoscaling, "terminate_instance_in_auto_scaling_group", gone)
    world.join(world.spot(1), gpus=0)
    world.work(1)

    assert world.hear() == []


# Interruptions


def test_an_interruption_drains_at_once_and_lowers_nothing(world, capsys):
    doomed, other = world.spot(2)
    world.join([doomed, other])
    world.work(2)

    assert world.hear(notice(doomed)) == []

    assert world.status() == {doomed: "DRAINING", other: "ACTIVE"}
    assert world.group("spot")["DesiredCapacity"] == 2
    [drained, told] = capsys.readouterr().out.splitlines()
    assert json.loads(drained)["event"] == "drained"
    measured = {name: value for (_, name), value in metrics(told).items()}
    assert (measured["NeededUnits"], measured["RequestedSpotUnits"], measured["NoticedUnits"]) == (2, 2, 1)
    assert (measured["JoinedSpotUnits"], measured["Notices"], measured["PassErrors"]) == (1, 1, 0)


def test_a_notice_nobody_brought_is_found_in_the_truth_and_told_of_the_pool(world):
    [doomed] = world.spot(1)
    world.join([doomed])
    world.mark(doomed)
    world.work(1)

    world.hear()

    assert world.status() == {doomed: "DRAINING"}
    [row] = world.pools.scan()["Items"]
    assert row["taken_ids"] == [doomed]


def test_a_recommendation_to_replace_an_instance_is_let_be(world):
    [warned] = world.spot(1)
    world.join([warned])
    world.work(1)

    said = sample("eventbridge-rebalance-recommendation").replace("i-0123456789abcdef0", warned)

    assert world.hear(said) == []
    assert (world.status(), world.tags()) == ({warned: "ACTIVE"}, {})


def test_the_two_clouds_have_one_way_to_drain():
    assert "drain" not in vars(groupcloud.Aws)
