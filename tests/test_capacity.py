"""The capacity Lambda on moto: it drains at once, looks at the truth, and calls only for what differs.

moto lacks GPUs on container instances, tags on a Spot Fleet that is there already, the filters of Spot requests used
here, and the filter of ListContainerInstances. The first three are put right below; the last shows that instances
nobody asked for are left alone.
"""

import json
from datetime import timedelta
from unittest.mock import patch

import pytest
from lambdas_make import NOON, batch, metrics, notice, policy, sample, seen
from lambdas_make import instance as an_instance
from moto import mock_aws
from moto.ec2.models.spot_requests import SpotFleetRequest
from moto.ecs.models import ecs_backends
from moto_account import ACCOUNT, IMAGE, REGION, SESSION, Account, let_spot_requests_be_filtered

from capacity.account import AT_RISK_TAG, BENCH_TAG, STACK_TAG, SURPLUS_TAG, CouldNotApply, CouldNotLook
from capacity.cloud import Aws
from capacity.handler import run
from capacity.metrics import MOST_VALUES, Metric, embedded, of_notices, of_pass
from capacity.notes import SHORT_SINCE
from capacity.notices import Kind, Notice
from capacity.nouns import Notes, Wave
from capacity.policy import decide
from capacity.settings import BadSettings, Settings

ENVIRONMENT = {
    "STACK": "demo",
    "CLUSTER": "spindrift",
    "SERVICES": "",
    "SPOT_FLEET_ID": "",
    "ON_DEMAND_GROUP": "on-demand",
    "POOLS_TABLE": "pools",
    "UNITS_BY_TYPE": '{"g5.xlarge": 1, "g5.12xlarge": 4}',
    "ON_DEMAND_UNITS": "1",
    "MAX_UNITS": "16",
    "MAX_ON_DEMAND_UNITS": "8",
    "URGENCY": "now",
    "PATIENCE_SECONDS": "300",
    "CALM_SECONDS": "600",
}


def test_bad_settings_are_reported_together():
    with pytest.raises(BadSettings) as error:
        Settings.read(
            {
                **ENVIRONMENT,
                "SERVICES": "[]",
                "MAX_UNITS": "many",
                "URGENCY": "soon",
                "UNITS_BY_TYPE": '{"g5.xlarge": 0}',
            }
            | {"CALM_SECONDS": "-1"}
        )

    assert str(error.value) == (
        "SERVICES is not a list of services: '[]'; SPOT_FLEET_ID is not a name: ''; "
        "UNITS_BY_TYPE is not units by instance type: '{\"g5.xlarge\": 0}'; MAX_UNITS is not a number from 0: 'many'; "
        "URGENCY is not one of now, deadline, spot-only: 'soon'; CALM_SECONDS is not a number from 0: '-1'"
    )


SERVICE = {
    "name": "w",
    "queue_url": "u",
    "jobs_per_task": 1,
    "max_tasks": 1,
    "units_per_task": 1,
    "max_wait_seconds": None,
}


@pytest.mark.parametrize("placement", [{}, {"placement": "anywhere"}, {"placement": None}])
def test_a_service_says_where_its_work_may_run(placement):
    with pytest.raises(BadSettings, match="SERVICES is not a list of services"):
        Settings.read(ENVIRONMENT | {"SERVICES": json.dumps([SERVICE | placement])})


@pytest.mark.parametrize(
    "told, named, other", [('{"g5.xlarge": 2}', 2, 1), ('{"*": 4}', 4, 4), ('{"g5.xlarge": 2, "*": 4}', 2, 4)]
)
def test_a_type_that_nobody_named_has_what_all_others_have(told, named, other):
    read = Settings.read(
        ENVIRONMENT
        | {"SERVICES": json.dumps([SERVICE | {"placement": "any"}]), "SPOT_FLEET_ID": "f", "UNITS_BY_TYPE": told}
    )

    assert (read.units("g5.xlarge"), read.units("g9.huge")) == (named, other)


def test_missing_settings_are_all_named():
    with pytest.raises(BadSettings) as error:
        Settings.read({})

    assert all(f"{name} is missing" in str(error.value) for name in ENVIRONMENT)


class World(Account):
    """A cluster as the template makes it, and the Lambda wired to it."""

    def __init__(self):
        super().__init__()
        self.cloudwatch = SESSION.client("cloudwatch")
        self.ecs.register_task_definition(
            family="worker", containerDefinitions=[{"name": "w", "image": "w", "memory": 1}]
        )
        self.services = []
        self.queue = self.serve("worker", "any")
        tag = [{"Key": STACK_TAG, "Value": "demo"}]
        launch = {
            "ImageId": IMAGE,
            "InstanceType": "g5.xlarge",
            "SubnetId": self.subnet,
            "WeightedCapacity": 1,
            "TagSpecifications": [{"ResourceType": "instance", "Tags": tag}],
        }
        with patch.object(SpotFleetRequest, "create_spot_requests"):  # moto would launch one for a target of 0
            self.fleet = self.ec2.request_spot_fleet(
                SpotFleetRequestConfig={
                    "IamFleetRole": "arn:aws:iam::123456789012:role/fleet",
                    "TargetCapacity": 0,
                    "AllocationStrategy": "diversified",
                    "LaunchSpecifications": [launch],
                }
            )["SpotFleetRequestId"]
        self.make_group("on-demand", most=8)
        self.calls = SESSION.calls
        self.calls.clear()
        self.wire()
        # moto launches at the time of the test; the clock of the Lambda is set a while after that.
        self.now = NOON.now(NOON.tzinfo).replace(microsecond=0) + timedelta(minutes=2)

    def serve(self, name, placement):
        """A queue and its service; the Lambda knows of it when it is wired again. Returns the queue's URL."""
        url = self.sqs.create_queue(QueueName=name)["QueueUrl"]
        self.ecs.create_service(cluster="spindrift", serviceName=name, taskDefinition="worker", desiredCount=0)
        limits = {"jobs_per_task": 1, "max_tasks": 16, "units_per_task": 1, "max_wait_seconds": 3600}
        self.services.append({"name": name, "queue_url": url, "placement": placement, **limits})
        return url

    def wire(self, **environment):
        """Start the Lambda anew, with this changed in its environment."""
        told = {"SERVICES": json.dumps(self.services), "SPOT_FLEET_ID": self.fleet, **environment}
        self.settings = Settings.read(ENVIRONMENT | told)
        self.cloud = Aws(SESSION, self.settings)

    def spot(self, count):
        """Spot instances of the fleet, not joined."""
        before = set(self.live())
        fulfilled = len([i for i in self.live().values() if i.get("InstanceLifecycle") == "spot"])
        self.ec2.modify_spot_fleet_request(SpotFleetRequestId=self.fleet, TargetCapacity=fulfilled + count)
        return [i for i in self.live() if i not in before]

    def on_demand(self, count):
        """On-Demand instances of the group, not joined."""
        before = set(self.live())
        self.autoscaling.set_desired_capacity(AutoScalingGroupName="on-demand", DesiredCapacity=count)
        return [i for i in self.live() if i not in before]

    def work(self, jobs, queue=None):
        for n in range(jobs):
            self.sqs.send_message(QueueUrl=queue or self.queue, MessageBody=str(n))

    def live(self):
        pages = self.ec2.get_paginator("describe_instances").paginate(
            Filters=[{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        )
        return {i["InstanceId"]: i for page in pages for r in page["Reservations"] for i in r["Instances"]}

    def joined(self, instance):
        """moto's own record of a container instance, to give it tasks or take it away."""
        return next(c for c in self.registry().values() if c.ec2_instance_id == instance)

    def tags(self, instance):
        [reservation] = self.ec2.describe_instances(InstanceIds=[instance])["Reservations"]
        return {tag["Key"]: tag["Value"] for tag in reservation["Instances"][0].get("Tags", [])}

    def pool(self, zone=None):
        """What the table of pools says of the pool in which the instances of this world are."""
        zone = zone or self.ec2.describe_subnets(SubnetIds=[self.subnet])["Subnets"][0]["AvailabilityZone"]
        return self.pools.get_item(Key={"pool": f"g5.xlarge/{zone}"}).get("Item", {})

    def measure(self, metric, *values):
        """What SQS told CloudWatch of the queue in each period of five minutes; the latest is not over."""
        begun = self.now - timedelta(seconds=self.now.timestamp() % 300)
        for n, value in enumerate(values):
            self.cloudwatch.put_metric_data(
                Namespace="AWS/SQS",
                MetricData=[
                    {
                        "MetricName": metric,
                        "Dimensions": [{"Name": "QueueName", "Value": "worker"}],
                        "Timestamp": begun - timedelta(minutes=5 * n),
                        "Value": value,
                    }
                ],
            )

    def registry(self):
        return ecs_backends[ACCOUNT][REGION].container_instances["spindrift"]

    def target(self):
        [fleet] = self.ec2.describe_spot_fleet_requests()["SpotFleetRequestConfigs"]
        return fleet["SpotFleetRequestConfig"]["TargetCapacity"]

    def desired(self):
        [group] = self.autoscaling.describe_auto_scaling_groups()["AutoScalingGroups"]
        return group["DesiredCapacity"]

    def tasks(self, name="worker"):
        [service] = self.ecs.describe_services(cluster="spindrift", services=[name])["services"]
        return service["desiredCount"]

    def hear(self, *bodies, later=timedelta()):
        """Run one batch; returns the messages that come again."""
        said = batch(*(bodies or [sample("eventbridge-schedule")]))
        reply = run(self.cloud, self.settings, said, clock=lambda: self.now + later)
        return [failure["itemIdentifier"] for failure in reply["batchItemFailures"]]


@pytest.fixture
def world(monkeypatch):
    def tag_set(self):
        return [{"Key": k, "Value": v} for k, v in self.ec2_backend.tags.get(self.id, {}).items()]

    let_spot_requests_be_filtered(monkeypatch)
    monkeypatch.setattr(SpotFleetRequest, "tag_set", property(tag_set))
    with mock_aws():
        yield World()


@pytest.fixture
def dry(monkeypatch):
    """Call it, and the market has no more Spot."""
    return lambda: monkeypatch.setattr(SpotFleetRequest, "create_spot_requests", lambda *_: None)


# The look.


def test_an_empty_cluster_is_seen_empty(world):
    seen = world.cloud.look(world.now)

    assert (seen.instances, seen.requested, seen.on_demand_requested, seen.noticed) == ((), 0, 0, frozenset())
    assert seen.notes == Notes()


def test_everything_is_seen_where_it_belongs(world):
    world.work(3)
    world.sqs.receive_message(QueueUrl=world.queue, VisibilityTimeout=60)
    [ready, booting], [bought] = world.spot(2), world.on_demand(1)
    world.join([ready], gpus=4)
    world.join([bought])
    world.joined(ready).running_tasks_count = 2
    world.joined(ready).pending_tasks_count = 1
    world.ecs.update_container_instances_state(
        cluster="spindrift",
        containerInstances=[world.joined(bought).container_instance_arn],
        status="DRAINING",
    )

    seen = world.cloud.look(world.now)

    [service] = seen.services
    assert (service.visible, service.in_flight, service.backlog) == (2, 1, 3)
    assert (seen.requested, seen.fulfilled) == (2, 2)
    assert (seen.on_demand_requested, seen.on_demand_present) == (1, 1)
    there = {i.id: i for i in seen.instances}
    assert there.keys() == {ready, booting, bought}
    assert (there[ready].spot, there[ready].units, there[ready].joined.tasks) == (True, 4, 3)
    assert (there[booting].units, there[booting].joined) == (1, None)
    assert (there[bought].spot, there[bought].joined.draining) == (False, True)


@pytest.mark.parametrize("code", ["marked-for-termination", "marked-for-stop", "instance-terminated-no-capacity"])
def test_a_running_instance_whose_request_is_ending_is_under_notice(world, code):
    [doomed, _other] = world.spot(2)
    world.mark(doomed, code)

    assert world.cloud.look(world.now).noticed == {doomed}


@pytest.mark.parametrize("seconds, overdue", [(14, False), (15, True)])
def test_a_notice_is_overdue_when_its_messenger_would_have_been_here(world, monkeypatch, seconds, overdue):
    [doomed] = world.spot(1)
    world.mark(doomed, "marked-for-termination")
    ask = world.cloud._ec2.get_paginator

    def paginator(name):
        return Since(ask(name), world.now - timedelta(seconds=seconds)) if "spot_instance" in name else ask(name)

    monkeypatch.setattr(world.cloud._ec2, "get_paginator", paginator)

    seen = world.cloud.look(world.now)

    assert (seen.noticed, seen.overdue) == ({doomed}, {doomed} if overdue else set())


class Since:
    """Spot requests whose status changed then: moto's never does."""

    def __init__(self, real, moment):
        self._real, self._moment = real, moment

    def paginate(self, **asked):
        for page in self._real.paginate(**asked):
            for request in page["SpotInstanceRequests"]:
                request["Status"]["UpdateTime"] = self._moment
            yield page


@pytest.mark.parametrize("told, units", [('{"*": 4}', 4), ('{"p5.48xlarge": 8}', 1)])
def test_an_instance_of_a_type_nobody_named_stops_nothing(world, told, units):
    [booting] = world.spot(1)
    world.wire(UNITS_BY_TYPE=told)
    world.work(1)

    assert [i.units for i in world.cloud.look(world.now).instances] == [units]
    world.hear()
    assert (world.target(), world.live().keys()) == (1, {booting})


@pytest.mark.parametrize("gpus, units, worth", [(4, 10, 2.5), (3, 8, 8 / 3), (1, 3, 3.0), (0, 0, 2.5)])
def test_a_weight_is_shared_by_the_gpus_that_the_type_has(world, gpus, units, worth):
    [ready, booting] = world.spot(2)
    world.join([ready], gpus=gpus)
    world.wire(UNITS_BY_TYPE='{"g5.xlarge": 10, "g4dn.xlarge": 1}', GPUS_BY_TYPE='{"g5.xlarge": 4, "g4dn.xlarge": 1}')

    there = {i.id: i for i in world.cloud.look(world.now).instances}

    assert (there[ready].units, float(there[ready].worth), there[ready].joined.gpus) == (units, worth, gpus)
    assert (there[booting].units, float(there[booting].worth)) == (10, 2.5)
    assert world.settings.policy.least == 1


def test_weights_and_gpus_of_different_types_are_refused():
    with pytest.raises(BadSettings, match="GPUS_BY_TYPE has other types than UNITS_BY_TYPE"):
        Settings.read(ENVIRONMENT | {"SPOT_FLEET_ID": "f", "UNITS_BY_TYPE": '{"a": 3}', "GPUS_BY_TYPE": '{"b": 1}'})


def test_ecs_is_asked_for_as_many_tasks_as_do_the_units(world, dry):
    """Five units are two tasks where a GPU is worth four, and three where the least is worth two and none is there."""
    told = {"UNITS_BY_TYPE": '{"g5.xlarge": 4, "g4dn.xlarge": 2}', "GPUS_BY_TYPE": '{"g5.xlarge": 1, "g4dn.xlarge": 1}'}
    instances = world.spot(2)
    world.join(instances)
    dry()
    world.wire(**told)
    world.work(5)
    world.hear()
    assert (world.target(), world.tasks()) == (5, 2)

    world.ec2.terminate_instances(InstanceIds=instances)
    world.hear()
    assert (world.target(), world.tasks()) == (5, 3)


def bench(world, minutes):
    """A Spot instance that idles, and is measured for so long."""
    [measured] = world.spot(1)
    world.join([measured])
    until = (world.now + timedelta(minutes=minutes)).isoformat()
    world.ec2.create_tags(Resources=[measured], Tags=[{"Key": BENCH_TAG, "Value": until}])
    return measured


def test_what_is_measured_is_neither_counted_nor_ended_before_its_time(world):
    measured = bench(world, minutes=10)
    for _ in range(3):
        world.hear()
    assert world.cloud.look(world.now).instances == ()
    assert (world.live().keys(), world.status()[measured]) == ({measured}, "ACTIVE")

    world.now += timedelta(minutes=10)
    assert [i.id for i in world.cloud.look(world.now).instances] == [measured]
    for _ in range(3):
        world.hear()
    assert not world.live()


def test_what_is_measured_drains_at_a_notice(world):
    measured = bench(world, minutes=10)

    world.hear(notice(measured))

    assert world.status()[measured] == "DRAINING"


@pytest.mark.parametrize("text", ["", "soon", "2024-05-01T12:00:00"])
def test_a_time_that_makes_no_sense_measures_nothing(world, text):
    measured = bench(world, minutes=10)
    world.ec2.create_tags(Resources=[measured], Tags=[{"Key": BENCH_TAG, "Value": text}])

    assert [i.id for i in world.cloud.look(world.now).instances] == [measured]


@pytest.mark.parametrize("most", [1, 200])
def test_notices_are_found_among_any_number_of_instances(world, monkeypatch, most):
    """Of more than a filter takes, EC2 is asked for every request of the account, and others' are passed over."""
    monkeypatch.setattr("capacity.account.MOST_FILTERED", most)
    [doomed, _] = world.spot(2)
    world.mark(doomed)
    [other] = world.ec2.request_spot_instances(
        SpotPrice="1", LaunchSpecification={"ImageId": IMAGE, "InstanceType": "g5.xlarge"}
    )["SpotInstanceRequests"]
    world.mark(
        world.ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[other["SpotInstanceRequestId"]])[
            "SpotInstanceRequests"
        ][0]["InstanceId"]
    )

    assert world.cloud.look(world.now).noticed == {doomed}


def test_instances_of_others_are_not_seen(world):
    world.ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)
    mine = [{"ResourceType": "instance", "Tags": [{"Key": STACK_TAG, "Value": "demo"}]}]
    world.ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1, TagSpecifications=mine)

    assert world.cloud.look(world.now).instances == ()


@pytest.mark.parametrize(
    "missing, says",
    [
        (lambda w: w.sqs.delete_queue(QueueUrl=w.queue), "NonExistentQueue"),
        (lambda w: w.ecs.delete_service(cluster="spindrift", service="worker", force=True), "worker is not there"),
        (lambda w: w.autoscaling.delete_auto_scaling_group(AutoScalingGroupName="on-demand"), "on-demand is not there"),
    ],
    ids=["queue", "service", "group"],
)
def test_could_not_look_is_never_nothing_there(world, capsys, missing, says):
    world.spot(2)
    missing(world)

    with pytest.raises(CouldNotLook, match=says):
        world.hear()
    assert world.target() == 2
    assert says in json.loads(capsys.readouterr().out)["why"]


# Draining.


def test_an_interruption_drains_at_once_and_is_made_up_for_in_the_same_pass(world):
    doomed, other = world.spot(2)
    arn, _ = world.join([doomed, other])
    world.work(2)

    assert world.hear(notice(doomed, containerInstanceArn=arn)) == []

    assert world.status() == {doomed: "DRAINING", other: "ACTIVE"}
    assert (world.target(), world.desired(), world.tasks()) == (3, 1, 2)


@pytest.mark.parametrize(
    "name", ["eventbridge-interruption-warning", "notice-source-004", "eventbridge-terminate-lifecycle"]
)
def test_a_messenger_that_does_not_know_our_container_instance_has_it_looked_up(world, name):
    doomed, other = world.spot(2)
    world.join([doomed, other])

    world.hear(sample(name).replace("i-0123456789abcdef0", doomed).replace("/spindrift/", "/another/"))

    assert world.status()[doomed] == "DRAINING"


def test_hearing_it_twice_from_everybody_changes_nothing_more(world, dry):
    doomed, other = world.spot(2)
    arn, _ = world.join([doomed, other])
    world.work(2)
    bodies = [
        notice(doomed, containerInstanceArn=arn),
        sample("eventbridge-interruption-warning").replace("i-0123456789abcdef0", doomed),
    ]

    dry()
    world.hear(*bodies, *bodies)
    world.hear(*bodies)

    assert world.status() == {doomed: "DRAINING", other: "ACTIVE"}
    assert (world.target(), world.desired()) == (3, 1)


def test_a_top_up_is_not_called_off_for_a_replacement_that_still_boots(world):
    doomed, other = world.spot(2)
    world.join([doomed, other])
    world.work(2)

    world.hear(notice(doomed))
    assert world.desired() == 1
    world.hear(notice(doomed))

    assert (world.target(), world.desired()) == (2, 1)


def test_what_is_at_risk_is_replaced_first_and_leaves_after(world):
    [warned] = world.spot(1)
    world.join([warned])
    world.joined(warned).running_tasks_count = 1
    world.work(1)

    world.hear(sample("eventbridge-rebalance-recommendation").replace("i-0123456789abcdef0", warned))
    assert world.tags(warned)[AT_RISK_TAG] == world.now.isoformat()
    assert (world.status(), world.target(), world.desired()) == ({warned: "ACTIVE"}, 2, 0)

    [new] = world.live().keys() - {warned}
    world.hear()
    assert (world.status(), world.target()) == ({warned: "ACTIVE"}, 1)

    world.join([new])
    world.hear()
    assert world.status() == {warned: "DRAINING", new: "ACTIVE"}
    assert world.live().keys() == {warned, new}


def test_a_recommendation_about_somebody_else_s_instance_tags_nothing(world):
    [stranger] = world.ec2.run_instances(ImageId=IMAGE, MinCount=1, MaxCount=1)["Instances"]
    said = sample("eventbridge-rebalance-recommendation").replace("i-0123456789abcdef0", stranger["InstanceId"])

    world.hear(said)

    assert world.tags(stranger["InstanceId"]) == {}


def test_after_a_full_batch_there_is_more_to_come_so_it_only_drains(world, capsys):
    instances = world.spot(10)
    arns = world.join(instances)
    world.calls.clear()

    world.hear(*(notice(i, containerInstanceArn=arn) for i, arn in zip(instances, arns, strict=True)))

    assert world.calls == {"UpdateContainerInstancesState": 1}
    assert set(world.status().values()) == {"DRAINING"}
    *_, line = capsys.readouterr().out.splitlines()
    assert metrics(line) == {("demo", "Notices"): 10}


def test_the_minute_looks_however_full_its_batch_is(world):
    world.work(3)

    world.hear(*["hello"] * 9, sample("eventbridge-schedule"))

    assert world.target() == 3


def test_instances_that_are_not_ours_or_gone_are_no_failure(world):
    [mine] = world.spot(1)
    [arn] = world.join([mine])
    world.work(1)
    stranger, gone = notice("i-0feed"), notice("i-0dead", containerInstanceArn=f"{arn}0")

    assert world.hear(stranger, gone) == []
    assert world.status() == {mine: "ACTIVE"}
    assert world.desired() == 0


def test_a_look_that_fails_does_not_hold_up_the_draining(world):
    [doomed] = world.spot(1)
    world.join([doomed])
    world.sqs.delete_queue(QueueUrl=world.queue)

    with pytest.raises(CouldNotLook):
        world.hear(notice(doomed))
    assert world.status() == {doomed: "DRAINING"}


def test_only_the_message_whose_instance_would_not_drain_comes_again(world, monkeypatch):
    instances = world.spot(2)
    arns = world.join(instances)
    refuse(world, monkeypatch, arns[1])

    assert world.hear(*(notice(i, containerInstanceArn=arn) for i, arn in zip(instances, arns, strict=True))) == ["m1"]
    assert world.status() == {instances[0]: "DRAINING", instances[1]: "ACTIVE"}


def test_one_that_leaves_by_itself_is_no_failure(world, monkeypatch):
    instances = world.spot(2)
    arns = world.join(instances)
    refuse(world, monkeypatch, arns[1])
    world.joined(instances[1]).status = "DEREGISTERING"

    assert world.hear(*(notice(i, containerInstanceArn=arn) for i, arn in zip(instances, arns, strict=True))) == []


def broken(arn):
    event = json.loads(sample("eventbridge-task-stopped"))
    event["detail"]["containerInstanceArn"] = arn
    return json.dumps(event)


def test_a_machine_with_a_broken_gpu_drains_and_another_is_launched(world):
    world.work(2)
    instances = world.spot(2)
    arns = world.join(instances)
    others = arns[1].replace("/spindrift/", "/another/")

    assert world.hear(broken(arns[0]), broken(others)) == []

    assert world.status()[instances[1]] == "ACTIVE"
    assert world.live().keys() & set(instances) == {instances[1]}, "it is idle, and of no more use"
    assert world.target() >= 2
    assert not world.pool().get("taken"), "nobody took it"


def test_a_machine_with_a_broken_gpu_that_would_not_drain_is_heard_of_again(world, monkeypatch):
    arns = world.join(world.spot(2))
    refuse(world, monkeypatch, arns[1])

    assert world.hear(broken(arns[0]), broken(arns[1])) == ["m1"]


def test_where_every_machine_is_broken_one_is_tried_each_quarter_of_an_hour(world, capsys):
    world.wire(URGENCY="spot-only")
    world.work(5)
    instances = world.spot(3)
    arns = world.join(instances)

    # A full batch: nothing but this tells of them.
    assert world.hear(*["hello"] * 7, *(broken(arn) for arn in arns)) == []

    assert (world.live(), world.target()) == ({}, 0)
    noted = world.cloud.look(world.now).notes.bad
    assert {one.id for one in noted} == set(instances)
    assert f"of no use ({', '.join(one.id for one in noted)})" in capsys.readouterr().out
    world.hear(later=timedelta(minutes=10))
    assert world.target() == 0
    world.hear(later=timedelta(minutes=15))
    assert (world.target(), len(world.live())) == (1, 1)


def refuse(world, monkeypatch, arn):
    """ECS refuses a whole call for one container instance that is neither ACTIVE nor DRAINING."""
    real = world.cloud._ecs.update_container_instances_state

    def update(**request):
        if arn in request["containerInstances"]:
            raise world.cloud._ecs.exceptions.InvalidParameterException(
                {"Error": {"Code": "InvalidParameterException"}}, ""
            )
        return real(**request)

    monkeypatch.setattr(world.cloud._ecs, "update_container_instances_state", update)


@pytest.mark.parametrize(
    "n, known, drains, lookups", [(1, True, 1, 0), (25, True, 3, 0), (25, False, 3, 1), (10, False, 1, 1)]
)
def test_n_notices_cost_a_tenth_of_n_calls_and_a_constant(world, n, known, drains, lookups):
    instances = world.spot(n)
    arns = world.join(instances)
    quiet = world.calls.copy()
    world.hear()
    pass_alone = world.calls - quiet
    world.calls.clear()

    world.cloud.drain(
        [
            Notice(kind=Kind.INTERRUPTION, instance=i, container_instance=arn if known else None)
            for i, arn in zip(instances, arns, strict=True)
        ]
    )

    assert world.calls["UpdateContainerInstancesState"] == drains
    assert world.calls["ListContainerInstances"] == world.calls["DescribeContainerInstances"] == lookups
    assert sum(world.calls.values()) == drains + 2 * lookups
    assert sum(pass_alone.values()) <= 20


@pytest.mark.parametrize("instances, calls", [(1, 8), (90, 8), (130, 9)])
def test_a_look_costs_a_constant_and_one_call_more_per_hundred(world, instances, calls):
    world.join(world.spot(instances))
    world.calls.clear()

    world.cloud.look(world.now)

    assert sum(world.calls.values()) == calls


# Applying.


def test_the_first_upload_asks_the_fleet_and_the_service(world):
    world.work(3)

    world.hear(sample("wake"))

    assert (world.target(), world.tasks(), world.desired()) == (3, 3, 0)


def test_each_queue_has_its_tasks_and_gets_the_machines_it_may_have(world):
    steady, patient = world.serve("steady", "on-demand"), world.serve("patient", "spot")
    world.wire()
    world.work(1)
    world.work(2, patient)
    world.work(3, steady)

    world.hear()

    assert [world.tasks(name) for name in ("worker", "patient", "steady")] == [1, 2, 3]
    assert (world.target(), world.desired()) == (3, 3)


def test_a_fleet_that_brings_nothing_is_made_up_for_after_patience(world, dry):
    dry()
    world.work(3)

    world.hear()
    world.hear(later=timedelta(minutes=4))
    assert (world.target(), world.desired()) == (3, 0)

    world.hear(later=timedelta(minutes=6))
    assert (world.target(), world.desired()) == (3, 3)


def test_the_shortage_is_forgotten_when_spot_is_whole(world):
    world.cloud._remember(Notes(), Notes(short_since=world.now - timedelta(minutes=4)))
    assert world.cloud.look(world.now).notes.short_since == world.now - timedelta(minutes=4)

    world.hear()

    assert world.cloud.look(world.now).notes == Notes()


def test_what_passes_note_comes_back_from_the_tags(world):
    before = Notes(short_since=world.now, waves=(Wave(world.now, 0.5),))
    after = Notes(ample_since=world.now, waves=(Wave(world.now, 0.75), Wave(world.now + timedelta(minutes=9), 1.0)))

    world.cloud._remember(Notes(), before)
    assert world.cloud.look(world.now).notes == before

    world.cloud._remember(before, after)
    assert world.cloud.look(world.now).notes == after


def test_a_tag_written_by_hand_stops_nothing(world):
    world.ec2.create_tags(Resources=[world.fleet], Tags=[{"Key": SHORT_SINCE, "Value": "yesterday"}])

    assert world.cloud.look(world.now).notes == Notes()


def test_without_work_everything_idle_drains_first_and_ends_after(world):
    spot, bought = world.spot(3), world.on_demand(2)
    world.join([*spot[:2], *bought])
    world.joined(spot[0]).running_tasks_count = 1

    world.hear()
    assert world.status() == {spot[0]: "ACTIVE", spot[1]: "DRAINING"} | dict.fromkeys(bought, "DRAINING")
    assert world.live().keys() == {spot[0], spot[1], *bought}
    assert world.target() == 0

    world.hear()
    assert world.live().keys() == {spot[0]}
    assert world.desired() == 0


def test_what_was_drained_as_surplus_comes_back_when_work_does(world):
    [instance] = world.spot(1)
    world.join([instance])
    world.hear()
    assert world.status() == {instance: "DRAINING"}

    world.work(1)
    world.hear()

    assert world.status() == {instance: "ACTIVE"}
    assert not [tag for tag in world.live()[instance]["Tags"] if tag["Key"] == SURPLUS_TAG]


def test_what_somebody_else_drained_stays_drained(world):
    [instance] = world.spot(1)
    [arn] = world.join([instance])
    world.joined(instance).running_tasks_count = 1
    world.ecs.update_container_instances_state(cluster="spindrift", containerInstances=[arn], status="DRAINING")
    world.work(1)

    world.hear()

    assert world.status() == {instance: "DRAINING"}


def test_who_got_work_after_the_look_neither_drains_nor_ends(world):
    idle, resting, booting = world.spot(3)
    world.join([idle, resting])
    world.joined(resting).status = "DRAINING"
    seen = world.cloud.look(world.now)
    decision = decide(seen, world.settings.policy)
    assert (decision.drain, set(decision.terminate_spot)) == ((idle,), {resting, booting})

    world.join([booting])
    for instance in (idle, resting):
        world.joined(instance).running_tasks_count = 1
    put_off = world.cloud.apply(seen, decision)

    assert world.status() == {idle: "ACTIVE", resting: "DRAINING", booting: "ACTIVE"}
    assert world.live().keys() == {idle, resting, booting}
    assert sorted(put_off) == sorted(f"{i} stays: it has work by now" for i in (idle, resting, booting))


def test_a_broken_on_demand_instance_is_replaced_where_it_is_needed(world):
    [broken] = world.on_demand(1)
    [taken] = world.spot(1)
    world.join([taken])
    world.mark(taken, "marked-for-termination")
    world.work(1)

    world.hear(later=timedelta(minutes=10))

    assert world.desired() == 1
    assert broken not in world.live()


def test_a_notice_nobody_brought_is_found_in_the_truth(world):
    [doomed] = world.spot(1)
    world.join([doomed])
    world.joined(doomed).running_tasks_count = 1
    world.mark(doomed, "instance-terminated-no-capacity")
    world.work(1)

    world.hear()

    assert world.status() == {doomed: "DRAINING"}
    assert world.desired() == 1


def test_a_second_pass_calls_nothing_that_changes_anything(world):
    world.join(world.spot(2))
    world.work(2)
    world.hear()
    world.calls.clear()

    world.hear()

    assert {name for name in world.calls if not name.startswith(("Describe", "List", "Get"))} == set()


def test_a_fleet_still_being_modified_is_asked_later(world, monkeypatch, capsys):
    def busy(**_):
        raise world.cloud._ec2.exceptions.ClientError(
            {"Error": {"Code": "FleetNotInModifiableState"}}, "ModifySpotFleetRequest"
        )

    monkeypatch.setattr(world.cloud._ec2, "modify_spot_fleet_request", busy)
    world.work(1)

    world.hear()

    assert world.tasks() == 1
    assert "still works on its last change" in json.loads(capsys.readouterr().out)["put_off"][0]


def test_what_cannot_be_applied_is_told_and_tried_again(world, monkeypatch, capsys):
    def denied(**_):
        raise world.cloud._ec2.exceptions.ClientError(
            {"Error": {"Code": "UnauthorizedOperation"}}, "ModifySpotFleetRequest"
        )

    monkeypatch.setattr(world.cloud._ec2, "modify_spot_fleet_request", denied)
    world.work(1)

    with pytest.raises(CouldNotApply, match="UnauthorizedOperation"):
        world.hear()
    assert json.loads(capsys.readouterr().out)["event"] == "capacity-failed"


def test_a_pass_cut_short_before_the_fleet_was_asked_does_not_take_the_rest_for_lost(world, monkeypatch):
    def crash(**_):
        raise SystemExit

    world.work(3)
    with monkeypatch.context() as patch:
        patch.setattr(world.cloud._ec2, "modify_spot_fleet_request", crash)
        with pytest.raises(SystemExit):
            world.hear()

    world.hear()

    assert (world.target(), world.desired()) == (3, 0)


def test_messages_that_mean_nothing_cost_no_look(world, capsys):
    assert world.hear("hello", '{"detail-type": "AWS Health Event"}') == []

    assert not world.calls
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["ignored", "ignored"]


def test_the_log_tells_every_number_and_why_on_one_line(world, capsys):
    [doomed] = world.spot(1)
    world.join([doomed])
    world.work(2)

    world.hear(notice(doomed), "hello")

    ignored, drained, line = (json.loads(text) for text in capsys.readouterr().out.splitlines())
    assert (ignored["event"], drained["event"], drained["instances"]) == ("ignored", "drained", [doomed])
    assert line["event"] == "capacity"
    assert line["why"] == "2 units needed, Spot lost 1: On-Demand makes up for it at once"
    assert (line["needed_units"], line["healthy_units"], line["noticed_units"]) == (2, 0, 1)
    assert (line["spot_target"], line["on_demand_desired"], line["backlog"]) == (3, 1, {"worker": 2})


def test_busy_on_demand_is_drained_and_stays_until_its_job_is_done(world):
    [ready], [bought] = world.spot(1), world.on_demand(1)
    world.join([ready, bought])
    world.joined(bought).running_tasks_count = 1
    world.work(1)

    world.hear(later=timedelta(hours=1))
    world.hear(later=timedelta(hours=1))
    assert world.status() == {ready: "ACTIVE", bought: "DRAINING"}
    assert SURPLUS_TAG in world.tags(bought)
    assert world.live().keys() == {ready, bought}

    world.joined(bought).running_tasks_count = 0
    world.hear(later=timedelta(hours=1))
    assert (world.live().keys(), world.desired()) == ({ready}, 0)


# What the market is told.


def test_what_ec2_takes_is_noted_of_its_pool_once_beside_what_the_market_knows(world):
    doomed, other = world.spot(2)
    world.join([doomed, other])
    world.work(2)
    world.pools.put_item(
        Item={"pool": next(iter(pools_of(world))), "state": "open", "taken": [5], "taken_ids": ["i-5"]}
    )
    world.mark(doomed, "marked-for-termination")

    world.hear(notice(doomed))
    world.hear(later=timedelta(minutes=1))

    assert world.pool() == {
        "pool": next(iter(pools_of(world))),
        "state": "open",
        "taken": [5, int(world.now.timestamp())],
        "taken_ids": ["i-5", doomed],
    }


def test_what_we_gave_up_ourselves_was_not_taken(world):
    idle, busy = world.spot(2)
    world.join([idle, busy])
    world.joined(busy).running_tasks_count = 1
    world.work(1)
    world.hear(later=timedelta(minutes=5))
    assert world.status()[idle] == "DRAINING"

    world.mark(idle, "marked-for-termination")
    world.hear(notice(idle))

    assert world.pool() == {}


def test_a_table_that_cannot_be_reached_is_put_off(world, capsys):
    [doomed] = world.spot(1)
    world.join([doomed])
    world.work(1)
    world.pools.delete()

    world.hear(notice(doomed))

    *_, line = capsys.readouterr().out.splitlines()
    assert "what was taken is noted later" in json.loads(line)["put_off"][0]
    assert world.target() == 2


def pools_of(world):
    return {i.pool for i in world.cloud.look(world.now).instances}


# How long jobs take.


def test_how_long_jobs_take_is_asked_where_the_policy_minds_it(world):
    world.now += timedelta(seconds=390 - world.now.timestamp() % 300)
    world.wire(URGENCY="deadline")
    world.work(1)
    world.measure("NumberOfMessagesSent", 7, 0, 5)
    world.measure("NumberOfMessagesDeleted", 99, 12, 9, 999)
    world.measure("ApproximateNumberOfMessagesNotVisible", 99, 2, 5, 999)

    [service] = world.cloud.look(world.now).services

    # The latest period is not over, and the twenty latest jobs are enough.
    assert service.job_seconds == (2 + 5) * 300 / (12 + 9)
    assert [arrival.jobs for arrival in service.arrivals] == [7, 5]
    [latest, earlier] = [arrival.age for arrival in service.arrivals]
    assert timedelta(0) <= latest < timedelta(minutes=5) and earlier == latest + timedelta(minutes=10)


@pytest.mark.parametrize("urgency, jobs, done", [("now", 1, 20), ("deadline", 0, 20), ("deadline", 1, 19)])
def test_how_long_jobs_take_is_not_known_when_nobody_asks_or_too_little_was_done(world, urgency, jobs, done):
    world.wire(URGENCY=urgency)
    world.work(jobs)
    world.measure("NumberOfMessagesDeleted", 0, done)
    world.measure("ApproximateNumberOfMessagesNotVisible", 0, 2)
    world.calls.clear()

    [service] = world.cloud.look(world.now).services

    assert (service.job_seconds, service.arrivals) == (None, ())
    assert world.calls["GetMetricData"] == (urgency == "deadline" and jobs)


# What is measured.


def test_a_pass_measures_what_is_needed_what_it_asked_for_and_what_had_joined():
    look = seen(
        5,
        [
            an_instance("i-1", units=2),
            an_instance("i-2", joined=False),
            an_instance("i-3", draining=True),
            an_instance("i-4", units=4),
            an_instance("i-5", spot=False),
        ],
        noticed=frozenset({"i-4"}),
        requested=8,
    )

    assert of_pass(look, decide(look, policy())) == {
        Metric.NEEDED_UNITS: 5,
        Metric.REQUESTED_SPOT_UNITS: 9,
        Metric.REQUESTED_ON_DEMAND_UNITS: 3,
        Metric.JOINED_SPOT_UNITS: 2,
        Metric.JOINED_ON_DEMAND_UNITS: 1,
        Metric.NOTICED_UNITS: 4,
        Metric.TOP_UP_UNITS: 3,
        Metric.ERRORS: 0,
    }


def told(name, *, milliseconds=None, kind=Kind.INTERRUPTION):
    since = None if milliseconds is None else NOON - timedelta(milliseconds=milliseconds)
    return Notice(kind=kind, instance=name, since=since)


@pytest.mark.parametrize(
    "case, heard, expected",
    [
        ("nothing", [], {}),
        ("not ours, or not drained yet", [told("i-9", milliseconds=5)], {}),
        (
            "somebody ends it on purpose",
            [told("i-1", milliseconds=5, kind=Kind.LIFECYCLE), told("i-2", kind=Kind.REBALANCE)],
            {},
        ),
        ("from a messenger without a time", [told("i-1")], {"Notices": 1}),
        (
            "two instances",
            [told("i-2", milliseconds=1700), told("i-1", milliseconds=40)],
            {"Notices": 2, "NoticeToDrainingMilliseconds": [40, 1700]},
        ),
        (
            "two messengers, and one without a time",
            [told("i-1", milliseconds=40), told("i-1", milliseconds=90), told("i-1")],
            {"Notices": 1, "NoticeToDrainingMilliseconds": [90]},
        ),
        ("clocks differ", [told("i-1", milliseconds=-30)], {"Notices": 1, "NoticeToDrainingMilliseconds": [0]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_notice_is_measured_once_it_is_drained(case, heard, expected):
    assert of_notices(heard, {"i-1", "i-2"}, NOON) == expected


def test_of_very_many_notices_the_slowest_are_told():
    heard = [told(f"i-{n}", milliseconds=n) for n in range(250)]

    measured = of_notices(heard, {notice.instance for notice in heard}, NOON)

    assert measured["Notices"] == 250
    assert measured["NoticeToDrainingMilliseconds"] == [*range(250 - MOST_VALUES, 250)]


def test_the_format_is_what_cloudwatch_reads():
    whole = {**dict.fromkeys(Metric, 1), Metric.NOTICE_TO_DRAINING: [7]}
    line = json.dumps(embedded("demo", whole, NOON))

    assert metrics(line) == {("demo", str(name)): value for name, value in whole.items()}
    assert json.loads(line)["_aws"]["Timestamp"] == NOON.timestamp() * 1000
    units = {m["Name"]: m["Unit"] for m in json.loads(line)["_aws"]["CloudWatchMetrics"][0]["Metrics"]}
    assert {name for name, unit in units.items() if unit == "Milliseconds"} == {"NoticeToDrainingMilliseconds"}


def test_the_line_that_tells_of_a_pass_is_its_measurement(world, capsys):
    doomed, other = world.spot(2)
    world.join([doomed, other])
    world.work(2)
    since = world.now - timedelta(seconds=1.25)

    world.hear(notice(doomed, observedAt=since.isoformat()))

    *_, line = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "capacity"
    assert metrics(line) == {
        ("demo", name): value
        for name, value in {
            "NeededUnits": 2,
            "RequestedSpotUnits": 3,
            "RequestedOnDemandUnits": 1,
            "JoinedSpotUnits": 1,
            "JoinedOnDemandUnits": 0,
            "NoticedUnits": 1,
            "TopUpUnits": 1,
            "PassErrors": 0,
            "Notices": 1,
            "NoticeToDrainingMilliseconds": [1250],
        }.items()
    }


def test_a_quiet_pass_measures_no_notice(world, capsys):
    world.hear()

    assert "Notices" not in {name for _, name in metrics(capsys.readouterr().out)}


def test_a_pass_that_fails_is_measured_with_what_it_drained(world, capsys):
    [doomed] = world.spot(1)
    world.join([doomed])
    world.sqs.delete_queue(QueueUrl=world.queue)

    with pytest.raises(CouldNotLook):
        world.hear(notice(doomed))

    *_, line = capsys.readouterr().out.splitlines()
    assert metrics(line) == {("demo", "PassErrors"): 1, ("demo", "Notices"): 1}


def test_draining_is_measured_when_it_is_done(world, capsys, monkeypatch):
    [doomed] = world.spot(1)
    world.join([doomed])
    heard = notice(doomed, observedAt=world.now.isoformat())
    for name, takes in (("drain", timedelta(seconds=2)), ("look", timedelta(minutes=1))):
        monkeypatch.setattr(world.cloud, name, taking(world, takes, getattr(world.cloud, name)))

    world.hear(heard)

    *_, line = capsys.readouterr().out.splitlines()
    assert metrics(line)["demo", "NoticeToDrainingMilliseconds"] == [2000]


def taking(world, time, act):
    """The same act, for which the clock goes on by so much."""

    def slowly(*given):
        world.now += time
        return act(*given)

    return slowly
