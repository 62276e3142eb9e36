"""What `build.py down` takes away, what it keeps and names, and what it takes for proof."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import boto3
import pytest
from click.testing import CliRunner
from moto import mock_aws

import build
from localcloud.laptop import PROJECT, laptop
from localcloud.uploads import PHOTOS
from ops import down, kept
from ops.account import Account
from ops.remains import Remains, Resource
from tests.cloud import Laptop, eventually, running_cloud

SPEED = 10
AWS = PROJECT / ".venv-aws" / "bin"


def template(description: str = "Spindrift: a small one", job_seconds: int = 60) -> str:
    """One of each kind that stays, and of each that must be proved gone but needs no machines."""
    tags = {"Tags": [{"Key": "spindrift:stack", "Value": {"Ref": "AWS::StackName"}}]}
    key = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*"}],
    }
    kept = {"DeletionPolicy": "Retain", "UpdateReplacePolicy": "Retain"}
    table = {
        "AttributeDefinitions": [{"AttributeName": "job_id", "AttributeType": "S"}],
        "KeySchema": [{"AttributeName": "job_id", "KeyType": "HASH"}],
        "BillingMode": "PAY_PER_REQUEST",
    }
    versioned = {"VersioningConfiguration": {"Status": "Enabled"}}
    vpc = {"VpcId": {"Ref": "Vpc"}}
    needs = [{"Type": kind, "Value": "1024"} for kind in ("VCPU", "MEMORY")]
    job = {
        "JobDefinitionName": {"Fn::Sub": "${AWS::StackName}-default"},
        "Type": "container",
        "PlatformCapabilities": ["EC2"],
        "ContainerProperties": {"Image": "a/worker", "ResourceRequirements": needs},
        "Timeout": {"AttemptDurationSeconds": job_seconds},
        "ResourceRetentionPolicy": {"SkipDeregisterOnUpdate": True},
        "Tags": {"spindrift:stack": {"Ref": "AWS::StackName"}},
    }
    resources = {
        "DefaultJobs": {"Type": "AWS::SQS::Queue", **kept, "Properties": tags},
        "DeadLetter": {"Type": "AWS::SQS::Queue", **kept, "Properties": tags},
        "Notices": {"Type": "AWS::SQS::Queue", "Properties": tags},
        "UploadsBucket": {"Type": "AWS::S3::Bucket", **kept, "Properties": {**versioned, **tags}},
        "JobsTable": {"Type": "AWS::DynamoDB::Table", **kept, "Properties": {**table, **tags}},
        "Key": {"Type": "AWS::KMS::Key", **kept, "Properties": {"KeyPolicy": key, **tags}},
        "WorkerLogs": {"Type": "AWS::Logs::LogGroup", "Properties": {"RetentionInDays": 7, **tags}},
        "DefaultJob": {"Type": "AWS::Batch::JobDefinition", "Properties": job},
        "Vpc": {"Type": "AWS::EC2::VPC", "Properties": {"CidrBlock": "10.7.0.0/16", **tags}},
        "WorkerSecurityGroup": {"Type": "AWS::EC2::SecurityGroup", "Properties": {"GroupDescription": "its", **vpc}},
    }
    return json.dumps({"Description": description, "Resources": resources})


@pytest.fixture(scope="module")
def cloud() -> Iterator[Laptop]:
    with running_cloud(speed=20) as running:
        yield running


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch):
    """Nothing is eventual here but what the local cloud makes so."""
    monkeypatch.setattr(down, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(down, "PATIENCE_SECONDS", 2)
    monkeypatch.setattr(down, "PAUSE_SECONDS", 0.1)


def deploy(cloud: Laptop, name: str, description: str = "Spindrift: a small one") -> dict[str, str]:
    """A small stack, and the physical ids of its resources by title."""
    cloudformation = cloud.client("cloudformation")
    cloudformation.create_stack(StackName=name, TemplateBody=template(description))
    cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
    return resources(cloud, name)


def resources(cloud: Laptop, name: str) -> dict[str, str]:
    found = cloud.client("cloudformation").list_stack_resources(StackName=name)["StackResourceSummaries"]
    return {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in found}


def take_down(cloud: Laptop, *arguments: str, yes: bool = True, **environment: str) -> tuple[int, str]:
    """The command's exit status and what it printed."""
    result = CliRunner(env={**cloud.environment, "AWS_CONFIG_FILE": "/dev/null", **environment}).invoke(
        build.cli, ["down", "--stack", *arguments, *(["--yes"] if yes else [])]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def status(cloud: Laptop, name: str) -> str:
    stacks = cloud.client("cloudformation").describe_stacks()["Stacks"]
    return next((one["StackStatus"] for one in stacks if one["StackName"] == name), "gone")


def queues(cloud: Laptop, name: str) -> list[str]:
    urls = cloud.client("sqs").list_queues().get("QueueUrls", [])
    return sorted(url for url in urls if f"/{name}-" in url)


def test_a_stack_that_is_not_there_or_not_ours_is_the_operators_mistake(cloud):
    deploy(cloud, "ours")
    deploy(cloud, "theirs", "Somebody's database")

    missing, told = take_down(cloud, "our")
    foreign, refused = take_down(cloud, "theirs")

    assert (missing, foreign, status(cloud, "theirs")) == (2, 2, "CREATE_COMPLETE")
    assert "there is no stack our in us-east-1; there are ours" in told
    assert "theirs is not a stack of Spindrift" in refused


def test_nothing_happens_unless_it_is_meant(cloud):
    deploy(cloud, "meant")
    command = [sys.executable, "build.py", "down", "--stack", "meant"]

    code, said = take_down(cloud, "meant", yes=False)
    ours, theirs = pty.openpty()
    os.write(ours, b"mean\n")
    mistyped = subprocess.run(
        command, cwd=PROJECT, env=cloud.environment, stdin=theirs, capture_output=True, text=True, timeout=60
    )

    assert (code, mistyped.returncode, status(cloud, "meant")) == (2, 2, "CREATE_COMPLETE")
    assert "add --yes" in said
    assert "nothing was done" in mistyped.stderr


def test_what_holds_work_or_history_stays_and_is_named_with_what_removes_it(cloud):
    made = deploy(cloud, "named")
    neighbour = deploy(cloud, "named-next")
    cloud.client("sqs").send_message(QueueUrl=made["DeadLetter"], MessageBody="a job that failed")
    cloud.client("s3").put_object(Bucket=made["UploadsBucket"], Key="a", Body=b"1")
    cloud.client("s3").delete_object(Bucket=made["UploadsBucket"], Key="a")

    code, said = take_down(cloud, "named")

    assert (code, status(cloud, "named")) == (0, "gone")
    assert queues(cloud, "named-next") == sorted(neighbour[title] for title in ("DefaultJobs", "DeadLetter", "Notices"))
    assert set(queues(cloud, "named")) - set(queues(cloud, "named-next")) == {made["DeadLetter"]}
    dead_letter = made["DeadLetter"].rpartition("/")[2]
    assert f"kept: queue {dead_letter} (1 messages waiting, 0 in flight)" in said
    assert "proved: of named there is no instance" in said

    commands = re.findall(r"^ {6}((?:aws|\.venv).*)$", said, re.MULTILINE)
    assert len(commands) == 4, said
    for command in commands:
        if command.startswith(
            "aws sqs"
        ):  # in version 1 of the command line this service alone heeds no AWS_ENDPOINT_URL
            command += f" --endpoint-url {cloud.endpoint}"
        environment = {**cloud.environment, "PATH": f"{AWS}:{os.environ['PATH']}"}
        done = subprocess.run(command, shell=True, cwd=PROJECT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)
    code, said = take_down(cloud, "named")
    assert (code, "kept" in said) == (0, False)


def test_data_goes_when_it_is_asked_for_and_the_key_can_be_taken_back(cloud):
    made = deploy(cloud, "emptied")
    s3, bucket = cloud.client("s3"), made["UploadsBucket"]
    for body in (b"1", b"2"):
        s3.put_object(Bucket=bucket, Key="twice", Body=body)
    s3.delete_object(Bucket=bucket, Key="twice")
    s3.create_multipart_upload(Bucket=bucket, Key="begun")
    cloud.client("sqs").send_message(QueueUrl=made["DefaultJobs"], MessageBody="a job")

    code, said = take_down(cloud, "emptied", "--delete-data")

    assert code == 0, said
    assert "jobs: DefaultJobs: 1 messages waiting" in said
    assert "kept:" not in said
    assert bucket not in {one["Name"] for one in s3.list_buckets()["Buckets"]}
    assert made["JobsTable"] not in cloud.client("dynamodb").list_tables()["TableNames"]
    assert queues(cloud, "emptied") == []
    key = cloud.client("kms").describe_key(KeyId=made["Key"])["KeyMetadata"]
    assert key["KeyState"] == "PendingDeletion"
    assert 29 < (key["DeletionDate"].timestamp() - time.time()) / 86_400 <= 30
    assert f"aws kms cancel-key-deletion --key-id {made['Key']}" in said


def test_data_that_an_earlier_stack_of_that_name_left_is_not_deleted_with_this_ones(cloud):
    earlier = deploy(cloud, "again")
    take_down(cloud, "again")
    later = deploy(cloud, "again")

    code, said = take_down(cloud, "again", "--delete-data")

    there = {one["Name"] for one in cloud.client("s3").list_buckets()["Buckets"]}
    assert code == 0
    assert there & {earlier["UploadsBucket"], later["UploadsBucket"]} == {earlier["UploadsBucket"]}
    assert f"kept: bucket {earlier['UploadsBucket']}" in said


def test_what_cloudformation_cannot_delete_is_told_and_the_command_can_be_run_again(cloud):
    made = deploy(cloud, "stuck")
    ec2 = cloud.client("ec2")
    foreign = ec2.create_security_group(GroupName="foreign", Description="by hand", VpcId=made["Vpc"])["GroupId"]

    stuck, said = take_down(cloud, "stuck")
    ec2.delete_security_group(GroupId=foreign)
    freed, proved = take_down(cloud, "stuck")

    assert (stuck, freed) == (1, 0)
    assert re.search(rf"could not be deleted: Vpc \(AWS::EC2::VPC {made['Vpc']}\): .*dependenc", said)
    assert "--retain-resources Vpc" in said
    assert "proved" not in said
    assert "proved" in proved


@mock_aws
def test_network_interfaces_are_found_in_our_vpc_and_by_our_security_groups(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    ec2 = boto3.client("ec2")

    def interface() -> tuple[str, str, str]:
        """A network interface in a VPC of its own: VPC, security group, interface."""
        vpc = ec2.create_vpc(CidrBlock="10.8.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.8.0.0/24")["Subnet"]["SubnetId"]
        group = ec2.create_security_group(GroupName="its", Description="its", VpcId=vpc)["GroupId"]
        made = ec2.create_network_interface(SubnetId=subnet, Groups=[group])["NetworkInterface"]
        return vpc, group, made["NetworkInterfaceId"]

    (ours, _, inside), (_, given, beside), _ = interface(), interface(), interface()
    resources = [Resource("Vpc", "AWS::EC2::VPC", ours), Resource("Group", "AWS::EC2::SecurityGroup", given)]

    look = Remains(Account(), "any", resources).look(keeping=[], removed=[])

    assert {(thing.noun, thing.name) for thing in look.things} == {
        ("network interface", inside),
        ("network interface", beside),
    }
    assert look.unseen == {}


def revised(cloud: Laptop, name: str) -> None:
    """A small stack whose job definition is in its second revision."""
    deploy(cloud, name)
    cloudformation = cloud.client("cloudformation")
    cloudformation.update_stack(StackName=name, TemplateBody=template(job_seconds=120))
    cloudformation.get_waiter("stack_update_complete").wait(StackName=name, WaiterConfig={"Delay": 1})


def definitions(cloud: Laptop, name: str) -> set[str]:
    """Active ones of the stacks whose names begin so."""
    found = cloud.client("batch").describe_job_definitions(status="ACTIVE")["jobDefinitions"]
    names = {f"{one['jobDefinitionName']}:{one['revision']}" for one in found}
    return {one for one in names if one.startswith(name)}


def test_job_definitions_that_an_update_left_are_deregistered(cloud):
    revised(cloud, "revised")
    deploy(cloud, "revised-next")
    assert definitions(cloud, "revised") == {"revised-default:1", "revised-default:2", "revised-next-default:1"}

    code, said = take_down(cloud, "revised")

    assert (code, definitions(cloud, "revised")) == (0, {"revised-next-default:1"})
    told = set(re.findall(r"goes: (job definition .*)", said))
    assert told == {f"job definition revised-default:{number} (ACTIVE)" for number in (1, 2)}


def test_job_definitions_that_cloudformation_left_are_deregistered_after_it(cloud):
    revised(cloud, "forsaken")
    cloudformation = cloud.client("cloudformation")
    cloudformation.delete_stack(StackName="forsaken")
    cloudformation.get_waiter("stack_delete_complete").wait(StackName="forsaken", WaiterConfig={"Delay": 1})
    assert definitions(cloud, "forsaken") == {"forsaken-default:1"}

    code, said = take_down(cloud, "forsaken")

    assert (code, definitions(cloud, "forsaken")) == (0, set())
    assert re.findall(r"goes: (job definition .*)", said) == ["job definition forsaken-default:1 (ACTIVE)"]


@mock_aws
def test_job_definitions_are_found_by_the_name_that_the_stack_knows_and_by_the_tag(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    batch = boto3.client("batch")
    container = {"image": "a/worker", "vcpus": 1, "memory": 1024}
    for name, its in (("any-here", {}), ("any-gone", {"spindrift:stack": "any"}), ("other-here", {"team": "any"})):
        batch.register_job_definition(jobDefinitionName=name, type="container", containerProperties=container, tags=its)
    # As the physical id of a job definition may be: its name instead of the ARN of a revision.
    remains = Remains(Account(), "any", [Resource("Here", "AWS::Batch::JobDefinition", "any-here")])

    found = remains.look(keeping=[], removed=[]).things
    refused = remains.end(found)

    assert ({thing.name for thing in found}, refused) == ({"any-here:1", "any-gone:1"}, {})
    left = batch.describe_job_definitions(status="ACTIVE")["jobDefinitions"]
    assert {one["jobDefinitionName"] for one in left} == {"other-here"}


def test_a_log_group_that_came_back_is_deleted(cloud):
    made = deploy(cloud, "logged")
    logs = cloud.client("logs")
    take_down(cloud, "logged")
    for name in (made["WorkerLogs"], f"{made['WorkerLogs']}-of-somebody-else"):
        logs.create_log_group(logGroupName=name)

    code, said = take_down(cloud, "logged")

    left = {one["logGroupName"] for one in logs.describe_log_groups()["logGroups"]}
    assert (code, "proved" in said) == (0, True), said
    assert left & {made["WorkerLogs"], f"{made['WorkerLogs']}-of-somebody-else"} == {
        f"{made['WorkerLogs']}-of-somebody-else"
    }


@pytest.mark.parametrize(
    "action", ["ec2:DescribeNetworkInterfaces", "tag:GetResources", "sqs:GetQueueUrl", "batch:DescribeJobDefinitions"]
)
def test_what_could_not_be_looked_at_is_not_taken_for_nothing(cloud, action):
    name = action.partition(":")[0]
    deploy(cloud, f"hidden-{name}")

    code, said = take_down(cloud, f"hidden-{name}", **anybody_but(cloud, f"no-{name}", action))
    seen, _ = take_down(cloud, f"hidden-{name}")

    assert (code, seen) == (1, 0)
    assert "could not look for" in said
    assert "proved" not in said
    before_it_happens = said.partition(" are done with")[0]
    assert ("could not look for" in before_it_happens) == (name != "ec2")


def test_the_key_stays_as_long_as_something_that_it_reads(cloud):
    made = deploy(cloud, "locked")
    kms = cloud.client("kms")

    def state() -> str:
        return kms.describe_key(KeyId=made["Key"])["KeyMetadata"]["KeyState"]

    code, said = take_down(cloud, "locked", "--delete-data", **anybody_but(cloud, "no-s3", "s3:DeleteBucket"))
    assert (code, state()) == (1, "Enabled")
    assert f"left: bucket {made['UploadsBucket']}" in said

    code, said = take_down(cloud, "locked", "--delete-data")
    assert (code, state()) == (0, "PendingDeletion")


def test_a_queue_that_only_seemed_empty_is_kept(cloud, monkeypatch):
    made = deploy(cloud, "late")
    send = cloud.client("sqs").send_message
    monkeypatch.setattr(down.Down, "_settle", lambda _: send(QueueUrl=made["DefaultJobs"], MessageBody="a late one"))

    code, said = take_down(cloud, "late")

    assert (code, queues(cloud, "late")) == (0, [made["DefaultJobs"]])
    assert "(1 messages waiting, 0 in flight)" in said


def test_a_log_group_that_comes_back_after_the_first_look_is_deleted_too(cloud, monkeypatch):
    made = deploy(cloud, "afterthought")
    logs, look, looks = cloud.client("logs"), Remains.look, []

    def then_something_is_written(self, **arguments):
        seen = look(self, **arguments)
        looks.append(seen.clean)
        if len(looks) == 1:
            logs.create_log_group(logGroupName=made["WorkerLogs"])
        return seen

    monkeypatch.setattr(Remains, "look", then_something_is_written)
    code, _ = take_down(cloud, "afterthought")

    left = {one["logGroupName"] for one in logs.describe_log_groups()["logGroups"]}
    assert (code, made["WorkerLogs"] in left) == (0, False)
    assert looks == [True, False, True, True]


@pytest.mark.parametrize(
    "kind, ours, delete_data, fate",
    [
        (kept.BUCKET, True, False, "stays"),
        (kept.BUCKET, True, True, "goes with all that is in it"),
        (kept.BUCKET, False, True, "stays, for this stack did not make it"),
        (kept.QUEUE, True, False, "stays unless it is empty"),
        (kept.KEY, True, True, "goes in 30 days"),
        (kept.IMAGE, True, False, "stays"),
        (kept.IMAGE, True, True, "goes, and what launches from it launches no more"),
        (kept.POINTER, True, True, "goes, and a stack that has it as AmiId cannot be deployed again"),
    ],
)
def test_it_is_told_what_becomes_of_what_outlives_its_stack(kind, ours, delete_data, fate):
    assert down._fate(kind, ours, delete_data) == fate


def anybody_but(cloud: Laptop, user: str, denied: str) -> dict[str, str]:
    """The environment of a user who may do everything but one action."""
    iam = cloud.client("iam")
    iam.create_user(UserName=user)
    statements = [
        {"Effect": "Allow", "Action": "*", "Resource": "*"},
        {"Effect": "Deny", "Action": denied, "Resource": "*"},
    ]
    document = json.dumps({"Version": "2012-10-17", "Statement": statements})
    iam.put_user_policy(UserName=user, PolicyName="its", PolicyDocument=document)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


@pytest.mark.story
def test_down_in_the_middle_of_work_leaves_nothing_running(tmp_path, monkeypatch):
    rendered = [sys.executable, "build.py", "--settings", "tests/story.toml", "--out", str(tmp_path / "build")]
    subprocess.run(rendered, cwd=PROJECT, check=True, capture_output=True)
    with laptop(tmp_path / "cloud", speed=SPEED, seed=3) as cloud:
        outputs = cloud.deploy(tmp_path / "build", "work")
        ec2 = cloud.client("ec2")
        photo = (PHOTOS / "life.jpg").read_bytes()
        for number in range(24):
            cloud.client("s3").put_object(Bucket=outputs["UploadsBucket"], Key=f"{number}.jpg", Body=photo)
        eventually(lambda: in_flight(cloud, outputs["JobsQueueUrl"]), within=90, what="a job that is worked on")
        stray = stray_fleet(ec2, outputs["SpotFleetId"], "work")
        delete = down.Down._delete

        def after_a_while(self):
            """On AWS the first resource may take a minute to go: time for two passes of the capacity Lambda."""
            monkeypatch.setattr(down.Down, "_delete", delete)  # what is left is deleted once more, without a cluster
            time.sleep(2 * 60 / SPEED)
            tasks = cloud.client("ecs").list_tasks(cluster=outputs["ClusterName"])["taskArns"]
            assert tasks == []  # not even those that were busy, and so protected
            return delete(self)

        monkeypatch.setattr(down.Down, "_delete", after_a_while)
        code, said = take_down(cloud, "work")

        assert code == 0, said
        assert "goes: instance i-" in said
        targets = [
            one for one in cloud.remote.do("diary", what="spot target") if one["subject"] == outputs["SpotFleetId"]
        ]
        assert (targets[-1]["target"], targets[-1]["caller"].endswith(":root")) == (0, True)  # nobody raised it again
        assert running(ec2, "work") == []
        fleets = ec2.describe_spot_fleet_requests()["SpotFleetRequestConfigs"]
        assert {one["SpotFleetRequestId"]: one["SpotFleetRequestState"] for one in fleets} == {
            outputs["SpotFleetId"]: "cancelled",
            stray: "cancelled",
        }
        assert cloud.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"] == []
        assert cloud.client("logs").describe_log_groups()["logGroups"] == []
        assert cloud.client("ec2").describe_network_interfaces()["NetworkInterfaces"] == []
        kept = {url.rpartition("/")[2] for url in queues(cloud, "work")}
        states = [one["state"]["S"] for one in cloud.client("dynamodb").scan(TableName=outputs["JobsTable"])["Items"]]
        if {"QUEUED", "RUNNING"} & set(states):
            assert outputs["JobsQueueUrl"].rpartition("/")[2] in kept  # nobody worked on to empty it
        assert all(f"kept: queue {name} (" in said for name in kept)
        assert f"kept: bucket {outputs['UploadsBucket']}" in said
        uploads = cloud.client("s3").list_objects_v2(Bucket=outputs["UploadsBucket"])
        assert uploads["KeyCount"] == 24
        assert cloud.remote.do("diary", what="fault") == []


def running(ec2, stack: str) -> list[str]:
    filters = [
        {"Name": "tag:spindrift:stack", "Values": [stack]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "shutting-down"]},
    ]
    reservations = ec2.describe_instances(Filters=filters)["Reservations"]
    return [instance["InstanceId"] for reservation in reservations for instance in reservation["Instances"]]


def in_flight(cloud: Laptop, queue: str) -> int:
    name = "ApproximateNumberOfMessagesNotVisible"
    return int(cloud.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=[name])["Attributes"][name])


def stray_fleet(ec2, like: str, stack: str) -> str:
    """A Spot Fleet outside the stack that has its tag, as one that an update could not remove."""
    (found,) = ec2.describe_spot_fleet_requests(SpotFleetRequestIds=[like])["SpotFleetRequestConfigs"]
    config = found["SpotFleetRequestConfig"]
    wanted = {key: config[key] for key in ("IamFleetRole", "LaunchTemplateConfigs", "AllocationStrategy", "Type")}
    tags = [{"ResourceType": "spot-fleet-request", "Tags": [{"Key": "spindrift:stack", "Value": stack}]}]
    made = ec2.request_spot_fleet(SpotFleetRequestConfig={**wanted, "TargetCapacity": 1, "TagSpecifications": tags})
    return made["SpotFleetRequestId"]
