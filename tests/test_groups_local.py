"""Profile `groups` on the local cloud by the stock command line: deployed, steered by its alarms, changed, deleted.

The capacity Lambda is kept out: what is tried here is what CloudWatch and both Auto Scalings do.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from localcloud.laptop import PROJECT, Laptop, laptop
from tests.cloud import eventually

pytestmark = [pytest.mark.story, pytest.mark.timeout(240)]
SPEED = 60
STACK = "groups"
SETTINGS = PROJECT / "tests" / "groups.toml"


@dataclass
class Deployed:
    cloud: Laptop
    home: Path
    outputs: dict[str, str] = field(default_factory=dict)

    def deploy(self, settings: Path = SETTINGS) -> None:
        build = [sys.executable, "build.py", "--settings", str(settings), "--out", str(self.home / "build")]
        subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
        self.outputs = self.cloud.deploy(self.home / "build", STACK)

    def client(self, service: str) -> Any:
        return self.cloud.client(service)

    @property
    def tasks(self) -> int:
        named = {"cluster": self.outputs["ClusterName"], "services": [f"{STACK}-default"]}
        return int(self.client("ecs").describe_services(**named)["services"][0]["desiredCount"])

    def policy(self, title: str) -> str:
        """ARN of a group's scaling policy."""
        policies = self.client("autoscaling").describe_policies()["ScalingPolicies"]
        return str(next(one["PolicyARN"] for one in policies if f"-{title}-" in one["PolicyName"]))

    def group(self) -> dict[str, Any]:
        named = [self.outputs["SpotGroupName"]]
        groups = self.client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=named)
        return dict(groups["AutoScalingGroups"][0])

    def news(self) -> list[dict[str, Any]]:
        """What waits in the notices queue, taken out of it."""
        sqs = self.client("sqs")
        [url] = [one for one in sqs.list_queues()["QueueUrls"] if f"/{STACK}-Notices-" in one]
        received = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
        for message in received:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return [json.loads(message["Body"]) for message in received]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    home = tmp_path_factory.mktemp("groups")
    with laptop(home / "cloud", speed=SPEED, seed=5) as cloud:
        stack = Deployed(cloud, home)
        stack.deploy()
        functions = cloud.client("lambda")
        for mapping in functions.list_event_source_mappings()["EventSourceMappings"]:
            if "-Notices-" in mapping["EventSourceArn"]:
                functions.update_event_source_mapping(UUID=mapping["UUID"], Enabled=False)
        yield stack


def test_uploads_make_the_alarm_go_off_and_set_the_tasks(deployed: Deployed) -> None:
    uploaded = time.time()
    for number in range(5):
        deployed.client("s3").put_object(Bucket=deployed.outputs["UploadsBucket"], Key=f"{number}.jpg", Body=b"x")
    told: list[str] = []

    def heard() -> bool:
        told.extend(one["AlarmName"] for one in deployed.news() if one.get("NewStateValue") == "ALARM")
        return any("-DefaultJobsToDoAlarm-" in name for name in told)

    eventually(heard, within=60, what="the alarm in the notices queue")
    assert (time.time() - uploaded) * SPEED > 60
    eventually(lambda: deployed.tasks == 3, within=20, what="five jobs, two each")
    activities = deployed.client("application-autoscaling").describe_scaling_activities(ServiceNamespace="ecs")
    assert "DefaultJobsToDoAlarm" in activities["ScalingActivities"][0]["Cause"]


def test_after_the_work_nobody_is_left(deployed: Deployed) -> None:
    deployed.client("sqs").purge_queue(QueueUrl=deployed.outputs["JobsQueueUrl"])
    eventually(lambda: deployed.tasks == 0, within=60, what="no tasks")
    told: list[str] = []

    def heard() -> bool:
        told.extend(one["AlarmName"] for one in deployed.news() if one.get("NewStateValue") == "ALARM")
        return any("-DefaultNoJobsAlarm-" in name for name in told)

    eventually(heard, within=20, what="no jobs, in the notices queue")


def test_the_spot_group_grows_replaces_and_empties_by_its_policies(deployed: Deployed) -> None:
    scaling = deployed.client("autoscaling")
    # The Lambda may have heard of the first upload just before its ear was closed.
    scaling.set_desired_capacity(AutoScalingGroupName=deployed.outputs["SpotGroupName"], DesiredCapacity=0)
    eventually(lambda: not deployed.group()["Instances"], within=60, what="no instance to begin with")
    scaling.execute_policy(PolicyName=deployed.policy("SpotGroupGrow"), MetricValue=3, BreachThreshold=0)
    assert deployed.group()["DesiredCapacity"] == 3

    def serving() -> list[str]:
        return [one["InstanceId"] for one in deployed.group()["Instances"] if one["LifecycleState"] == "InService"]

    victim = eventually(lambda: len(serving()) == 3 and serving(), within=30, what="three in service")[0]
    described = deployed.client("ec2").describe_instances(InstanceIds=[victim])["Reservations"][0]["Instances"][0]
    assert described["InstanceLifecycle"] == "spot"
    deployed.cloud.remote.do("market/reclaim", instance=victim)
    eventually(lambda: len(serving()) == 3 and victim not in serving(), within=30, what="another in its place")
    scaling.execute_policy(PolicyName=deployed.policy("SpotGroupShrink"))
    eventually(lambda: not deployed.group()["Instances"], within=30, what="an empty group")


def test_an_update_changes_targets_and_policies_in_place(deployed: Deployed) -> None:
    before, group = deployed.policy("SpotGroupGrow"), deployed.group()["AutoScalingGroupARN"]
    text = (
        SETTINGS.read_text("utf-8").replace("max_tasks = 4", "max_tasks = 2").replace("max_units = 4", "max_units = 3")
    )
    changed = deployed.home / "changed.toml"
    changed.write_text(text, "utf-8")
    deployed.deploy(changed)
    targets = deployed.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="ecs")
    assert [one["MaxCapacity"] for one in targets["ScalableTargets"]] == [2]
    assert (deployed.policy("SpotGroupGrow"), deployed.group()["AutoScalingGroupARN"]) == (before, group)
    assert deployed.group()["MaxSize"] == 3


def test_a_deleted_stack_leaves_no_alarm_policy_or_target(deployed: Deployed) -> None:
    s3, bucket = deployed.client("s3"), deployed.outputs["UploadsBucket"]
    versions = s3.list_object_versions(Bucket=bucket).get("Versions", [])
    for one in versions:
        s3.delete_object(Bucket=bucket, Key=one["Key"], VersionId=one["VersionId"])
    deployed.cloud.aws("cloudformation", "delete-stack", "--stack-name", STACK)

    def status() -> str:
        stacks = deployed.client("cloudformation").list_stacks()["StackSummaries"]
        return str(next(one["StackStatus"] for one in stacks if one["StackName"] == STACK))

    eventually(lambda: status() == "DELETE_COMPLETE", within=120, what="the stack is gone")
    assert deployed.client("cloudwatch").describe_alarms()["MetricAlarms"] == []
    assert deployed.client("autoscaling").describe_policies()["ScalingPolicies"] == []
    targets = deployed.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="ecs")
    assert targets["ScalableTargets"] == []
