"""Whole stacks by the stock command line: every option on, and the defaults; deployed, used, changed, deleted.

What is left of a stack is told by AWS's own listings, not by CloudFormation.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from localcloud.laptop import PROJECT, Laptop, laptop
from localcloud.uploads import PHOTOS
from tests.cloud import eventually

pytestmark = [pytest.mark.story, pytest.mark.timeout(240)]
SPEED = 20
EVERYTHING = (PROJECT / "tests" / "everything.toml").read_text("utf-8")
DEFAULTS = (PROJECT / "spindrift.toml").read_text("utf-8")
LISTINGS: dict[str, Callable[[Laptop], Any]] = {
    "instances": lambda cloud: [
        one["InstanceId"]
        for reservation in client(cloud, "ec2").describe_instances()["Reservations"]
        for one in reservation["Instances"]
        if one["State"]["Name"] != "terminated"
    ],
    "fleets": lambda cloud: [
        one["SpotFleetRequestId"]
        for one in client(cloud, "ec2").describe_spot_fleet_requests()["SpotFleetRequestConfigs"]
        if one["SpotFleetRequestState"] != "cancelled"
    ],
    "groups": lambda cloud: _names(cloud, "autoscaling", "describe_auto_scaling_groups", "AutoScalingGroupName"),
    "launch templates": lambda cloud: _names(cloud, "ec2", "describe_launch_templates", "LaunchTemplateId"),
    "vpcs": lambda cloud: _names(cloud, "ec2", "describe_vpcs", "VpcId"),
    "subnets": lambda cloud: _names(cloud, "ec2", "describe_subnets", "SubnetId"),
    "security groups": lambda cloud: _names(cloud, "ec2", "describe_security_groups", "GroupId"),
    "route tables": lambda cloud: _names(cloud, "ec2", "describe_route_tables", "RouteTableId"),
    "gateways": lambda cloud: _names(cloud, "ec2", "describe_internet_gateways", "InternetGatewayId"),
    "endpoints": lambda cloud: _names(cloud, "ec2", "describe_vpc_endpoints", "VpcEndpointId"),
    "interfaces": lambda cloud: _names(cloud, "ec2", "describe_network_interfaces", "NetworkInterfaceId"),
    "clusters": lambda cloud: client(cloud, "ecs").list_clusters()["clusterArns"],
    "task definitions": lambda cloud: client(cloud, "ecs").list_task_definitions()["taskDefinitionArns"],
    "functions": lambda cloud: _names(cloud, "lambda", "list_functions", "FunctionName"),
    "event sources": lambda cloud: _names(cloud, "lambda", "list_event_source_mappings", "UUID"),
    "rules": lambda cloud: _names(cloud, "events", "list_rules", "Name"),
    "log groups": lambda cloud: _names(cloud, "logs", "describe_log_groups", "logGroupName"),
    "alarms": lambda cloud: [one["AlarmName"] for one in client(cloud, "cloudwatch").describe_alarms()["MetricAlarms"]],
    "dashboards": lambda cloud: _names(cloud, "cloudwatch", "list_dashboards", "DashboardName"),
    "budgets": lambda cloud: [
        one["BudgetName"]
        for one in client(cloud, "budgets").describe_budgets(AccountId="123456789012").get("Budgets", [])
    ],
    "topics": lambda cloud: _names(cloud, "sns", "list_topics", "TopicArn"),
    "subscriptions": lambda cloud: _names(cloud, "sns", "list_subscriptions", "SubscriptionArn"),
    "queues": lambda cloud: client(cloud, "sqs").list_queues().get("QueueUrls", []),
    "buckets": lambda cloud: [one["Name"] for one in client(cloud, "s3").list_buckets()["Buckets"]],
    "tables": lambda cloud: client(cloud, "dynamodb").list_tables()["TableNames"],
    "keys": lambda cloud: _names(cloud, "kms", "list_keys", "KeyId"),
    "roles": lambda cloud: _names(cloud, "iam", "list_roles", "RoleName"),
    "profiles": lambda cloud: _names(cloud, "iam", "list_instance_profiles", "InstanceProfileName"),
    "file systems": lambda cloud: _names(cloud, "efs", "describe_file_systems", "FileSystemId"),
    "access points": lambda cloud: _names(cloud, "efs", "describe_access_points", "AccessPointId"),
}


@cache
def client(cloud: Laptop, service: str) -> Any:
    return cloud.client(service)


def _names(cloud: Laptop, service: str, operation: str, key: str) -> list[str]:
    """The first list in the answer of a listing, by one of its members."""
    answer = getattr(client(cloud, service), operation)()
    items = next(value for value in answer.values() if isinstance(value, list))
    return [item[key] for item in items]


def what_there_is(cloud: Laptop) -> dict[str, set[str]]:
    return {kind: set(look(cloud)) for kind, look in LISTINGS.items()}


def build(folder: Path, settings: str) -> Path:
    """What `python build.py` makes of settings."""
    folder.mkdir()
    (folder / "settings.toml").write_text(settings, "utf-8")
    command = [sys.executable, "build.py", "--settings", folder / "settings.toml", "--out", folder / "build"]
    subprocess.run([*command, "render"], cwd=PROJECT, check=True, capture_output=True)
    return folder / "build"


def changed(settings: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in settings
        settings = settings.replace(old, new)
    return settings


def left(cloud: Laptop, before: dict[str, set[str]]) -> set[str]:
    """Ids, or the names in them, of what was not there before."""
    now = what_there_is(cloud)
    return {one.rsplit("/", 1)[-1] for kind, found in now.items() for one in found - before[kind]}


def upload(cloud: Laptop, outputs: dict[str, str], *keys: str) -> None:
    photo = (PHOTOS / "life.jpg").read_bytes()
    for key in keys:
        client(cloud, "s3").put_object(Bucket=outputs["UploadsBucket"], Key=key, Body=photo)


def jobs(cloud: Laptop, outputs: dict[str, str]) -> dict[str, dict[str, str]]:
    """By key of the upload: its record."""
    items = client(cloud, "dynamodb").scan(TableName=outputs["JobsTable"], ConsistentRead=True)["Items"]
    records = [{name: str(next(iter(value.values()))) for name, value in item.items()} for item in items]
    return {record["key"]: record for record in records}


def until_done(cloud: Laptop, outputs: dict[str, str], *keys: str) -> dict[str, dict[str, str]]:
    def done() -> dict[str, dict[str, str]]:
        records = jobs(cloud, outputs)
        return records if all(records.get(key, {}).get("state") == "SUCCEEDED" for key in keys) else {}

    return dict(eventually(done, within=90, what=f"jobs for {', '.join(keys)}"))


def resources(cloud: Laptop, stack: str) -> dict[str, str]:
    """By title: the physical id."""
    pages = client(cloud, "cloudformation").get_paginator("list_stack_resources").paginate(StackName=stack)
    made = [one for page in pages for one in page["StackResourceSummaries"]]
    return {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in made}


def delete(cloud: Laptop, stack: str, built: Path) -> set[str]:
    """Delete it by the stock command line. Ids, or the names in them, of what its template keeps."""
    template = json.loads((built / "cluster.json").read_text())["Resources"]
    kept = {title for title, one in template.items() if one.get("DeletionPolicy") == "Retain"}
    ids = {physical.rsplit("/", 1)[-1] for title, physical in resources(cloud, stack).items() if title in kept}
    cloud.aws("cloudformation", "delete-stack", "--stack-name", stack)

    def settled() -> str | None:
        try:
            told = client(cloud, "cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
        except ClientError:
            return "DELETE_COMPLETE"
        return None if told["StackStatus"].endswith("IN_PROGRESS") else str(told)

    assert eventually(settled, within=90, what=f"{stack} is deleted") == "DELETE_COMPLETE"
    return ids


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Laptop]:
    with laptop(tmp_path / "cloud", speed=SPEED, seed=5) as cloud:
        cloud.aws("s3", "mb", "s3://spindrift-assets")
        yield cloud


def test_every_option_at_once_is_deployed_works_and_leaves_only_what_is_kept(cloud: Laptop, tmp_path: Path) -> None:
    before = what_there_is(cloud)
    outputs = cloud.deploy(build(tmp_path / "first", EVERYTHING), "all")
    upload(cloud, outputs, "in/1.jpg", "urgent/1.jpg", "big/1.jpg")
    done = until_done(cloud, outputs, "in/1.jpg", "urgent/1.jpg", "big/1.jpg")
    assert done["urgent/1.jpg"]["lifecycle"] == "on-demand"
    assert done["big/1.jpg"]["lifecycle"] == "spot"
    assert (cloud.state / "files" / resources(cloud, "all")["SharedFiles"] / "spindrift").is_dir()

    # Another root volume is another version of the launch template, and so another fleet: in the midst of work.
    keys = [f"big/{number}.jpg" for number in range(2, 10)]
    upload(cloud, outputs, *keys)
    settings = changed(EVERYTHING, ("max_units = 8", "max_units = 8\nroot_volume_gib = 80"))
    settings = changed(settings, ("session_manager = true", ""), ("scaling = true", ""))
    second = build(tmp_path / "second", settings)
    again = cloud.deploy(second, "all")
    assert {name for name, value in again.items() if outputs[name] != value} == {"SpotFleetId"}
    assert LISTINGS["fleets"](cloud) == [again["SpotFleetId"]]
    assert not {"SsmEndpoint", "SsmmessagesEndpoint", "ScalingNews"} & resources(cloud, "all").keys()
    until_done(cloud, again, *keys)
    decisions = [json.loads(line) for line in (cloud.state / "iam.jsonl").read_text().splitlines()]
    assert [line for line in decisions if not line["allowed"]] == []

    # Without one of its endpoints an instance in a private subnet, a warm one here, starts and never joins.
    eventually(lambda: not _running(cloud), within=60, what="nothing runs")
    client(cloud, "ec2").delete_vpc_endpoints(VpcEndpointIds=[resources(cloud, "all")["EcsAgentEndpoint"]])
    upload(cloud, outputs, "urgent/2.jpg")
    eventually(lambda: _unheard(cloud), within=60, what="an instance finds no way to ECS")
    assert cloud.remote.do("diary", what="instance started")
    assert jobs(cloud, outputs).keys() == {*done, *keys}

    kept = delete(cloud, "all", second)
    assert left(cloud, before) == kept


def _running(cloud: Laptop) -> list[str]:
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    found = client(cloud, "ec2").describe_instances(Filters=states)["Reservations"]
    return [one["InstanceId"] for reservation in found for one in reservation["Instances"]]


def _unheard(cloud: Laptop) -> bool:
    return any(line["why"] == "no way to ecs-agent" for line in cloud.remote.do("diary", what="ecs agent refused"))


def test_the_defaults_are_deployed_changed_and_leave_only_what_is_kept(cloud: Laptop, tmp_path: Path) -> None:
    before = what_there_is(cloud)
    outputs = cloud.deploy(build(tmp_path / "first", DEFAULTS), "plain")
    second = build(tmp_path / "second", changed(DEFAULTS, ("retention_days = 30", "retention_days = 14")))
    assert cloud.deploy(second, "plain") == outputs, "nothing that anybody refers to was replaced"
    upload(cloud, outputs, "1.jpg")
    until_done(cloud, outputs, "1.jpg")

    kept = delete(cloud, "plain", second)
    assert left(cloud, before) == kept
