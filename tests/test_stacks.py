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

from localcloud.image import REGISTRY
from localcloud.laptop import PROJECT, Laptop, laptop
from localcloud.proof import prove
from localcloud.uploads import PHOTOS, Upload, uploads
from tests.cloud import eventually
from tests.permissions import UNUSED_OPTIONS, answers, deployed_grants, permissions, unused, wrong

pytestmark = [pytest.mark.story, pytest.mark.timeout(240)]
SPEED = 20
EVERYTHING = (PROJECT / "tests" / "everything.toml").read_text("utf-8")
DEFAULTS = (PROJECT / "spindrift.toml").read_text("utf-8")
PLACES = ("in/", "urgent/", "big/")
IMAGE = "slow-pictures:local"
CHANGES = (
    ('command = ["/app/sharpen", "{input}", "{output}"]', 'processor = "slow_pictures:process"'),
    ("warm_units = 1", 'warm_units = 1\nurgency = "deadline"'),
    ('prefix = "in/"', 'prefix = "in/"\nmax_wait_seconds = 600'),
    ('prefix = "big/"', 'prefix = "big/"\nlease_seconds = 10'),
)
"""What options there are beside those of everything.toml, a processor that leaves notes in the shared files, and a
shorter wait for jobs whose worker is gone.
"""
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


def ended(cloud: Laptop, outputs: dict[str, str]) -> int:
    """How many jobs are done, well or not."""
    return sum(job["state"] in ("SUCCEEDED", "FAILED") for job in jobs(cloud, outputs).values())


def uploaded(cloud: Laptop, outputs: dict[str, str]) -> set[str]:
    """Keys of which some version is left."""
    pages = client(cloud, "s3").get_paginator("list_object_versions").paginate(Bucket=outputs["UploadsBucket"])
    return {one["Key"] for page in pages for kind in ("Versions", "DeleteMarkers") for one in page.get(kind, ())}


def warm_pool(cloud: Laptop, outputs: dict[str, str]) -> list[str]:
    """Instances that wait, stopped."""
    told = client(cloud, "autoscaling").describe_warm_pool(AutoScalingGroupName=outputs["OnDemandGroupName"])
    return [one["InstanceId"] for one in told["Instances"] if one["LifecycleState"] == "Warmed:Stopped"]


def jobs_waiting(cloud: Laptop, outputs: dict[str, str]) -> int:
    """Messages in the queues of jobs, in flight too."""
    asked = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "NotVisible")]
    urls = [value for name, value in outputs.items() if name.endswith("JobsQueueUrl")]
    told = [client(cloud, "sqs").get_queue_attributes(QueueUrl=url, AttributeNames=asked) for url in urls]
    return sum(int(one["Attributes"][name]) for one in told for name in asked)


def _template(built: Path) -> dict[str, Any]:
    return dict(json.loads((built / "cluster.json").read_text()))


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
    cloud.remote.do("image/add", name=IMAGE, folder=str(PROJECT / "tests/story_image"), base="gpu-worker:local")
    first = build(tmp_path / "first", changed(EVERYTHING, *CHANGES))
    outputs = cloud.deploy(first, "all", WorkerImage=f"{REGISTRY}/{IMAGE}")
    grants = deployed_grants(cloud, "all", _template(first))
    done = put_to_work(cloud, outputs)

    # Another root volume is another version of the launch template, and so another fleet: in the midst of work.
    keys = [f"big/{number}.jpg" for number in range(8)]
    upload(cloud, outputs, *keys)
    settings = changed(EVERYTHING, ("max_units = 8", "max_units = 8\nroot_volume_gib = 80"))
    settings = changed(settings, ("session_manager = true", ""), ("scaling = true", ""))
    second = build(tmp_path / "second", changed(settings, *CHANGES))
    again = cloud.deploy(second, "all", WorkerImage=f"{REGISTRY}/{IMAGE}")
    assert {name for name, value in again.items() if outputs[name] != value} == {"SpotFleetId"}
    assert LISTINGS["fleets"](cloud) == [again["SpotFleetId"]]
    assert not {"SsmEndpoint", "SsmmessagesEndpoint", "ScalingNews"} & resources(cloud, "all").keys()
    until_done(cloud, again, *keys)
    for grant, arns in deployed_grants(cloud, "all", _template(second)).items():
        grants.setdefault(grant, set()).update(arns)
    asked = answers(cloud, "all")
    usual = {(one.actor, action) for one in permissions({}) for action in one.actions}
    added = {
        grant: arns
        for grant, arns in grants.items()
        if (grant.actor, grant.action) not in usual and grant.actor != "SpotFleet"
    }
    found = wrong(grants, asked) + unused(added, asked, UNUSED_OPTIONS)
    assert not found, "\n".join(found)

    # Without one of its endpoints an instance in a private subnet, a warm one here, starts and never joins.
    eventually(lambda: not _running(cloud), within=60, what="nothing runs")
    client(cloud, "ec2").delete_vpc_endpoints(VpcEndpointIds=[resources(cloud, "all")["EcsAgentEndpoint"]])
    upload(cloud, outputs, "urgent/too late.jpg")
    eventually(lambda: _unheard(cloud), within=60, what="an instance finds no way to ECS")
    assert cloud.remote.do("diary", what="instance started")
    assert jobs(cloud, outputs).keys() == done | {*keys}

    kept = delete(cloud, "all", second)
    assert left(cloud, before) == kept


def put_to_work(cloud: Laptop, outputs: dict[str, str]) -> set[str]:
    """Each queue does its jobs on its own market, from zero and back to it. The keys of what was uploaded."""
    # S3's first word to each queue is a test event, which is worth a task.
    eventually(lambda: jobs_waiting(cloud, outputs) == 0 and not _running(cloud), within=90, what="nothing runs")
    [warm] = eventually(lambda: warm_pool(cloud, outputs), within=60, what="an instance waits stopped")
    files = [Upload(f"{place}{one.key}", one.body, one.hostile) for place in PLACES for one in uploads(10, seed=2)]
    for file in files:
        client(cloud, "s3").put_object(Bucket=outputs["UploadsBucket"], Key=file.key, Body=file.body)
    eventually(lambda: ended(cloud, outputs) == len(files), within=90, what="every job is done")
    eventually(lambda: not _running(cloud), within=60, what="nothing runs")

    proof = prove(files, outputs, cloud.client)
    assert (proof.lost, proof.double) == ((), ())
    good = {file.key for file in files if not file.hostile}
    assert uploaded(cloud, outputs) == {file.key for file in files if file.hostile}, "what succeeded is deleted"
    done = jobs(cloud, outputs)
    markets = {place: {job["lifecycle"] for key, job in done.items() if key.startswith(place)} for place in PLACES}
    assert (markets["urgent/"], markets["big/"]) == ({"on-demand"}, {"spot"})
    assert warm in {job["instance_id"] for job in done.values()}, "what waited stopped is started first"
    assert warm in {line["subject"] for line in cloud.remote.do("diary", what="instance started")}
    shared = cloud.state / "files" / resources(cloud, "all")["SharedFiles"] / "spindrift"
    assert {note.read_text("utf-8") for note in shared.iterdir()} == good
    return {*done}


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
