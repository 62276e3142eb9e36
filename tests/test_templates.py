import ast
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from hypothesis import given, settings
from hypothesis import strategies as st

from templates import policies, userdata
from templates.instance_types import INSTANCE_TYPES
from templates.settings import MOST_QUEUES, STACK_TAG, Queue, Settings
from templates.stacks import STACKS, rendered
from tests.stacks_make import EVERYTHING, GIVEN_VPC, HASH, IMAGE, TABLES, assets

ROOT = Path(__file__).parents[1]
ASSETS = assets()
GROUPS = TABLES["groups"]
TWO_QUEUES = {"queues": [{"name": "urgent", "prefix": "urgent/", "lease_seconds": 77}, {"name": "big-ones"}]}
DIRECT = {
    "uploads": {"ingest": "direct"},
    "queues": [{"name": "urgent", "prefix": "urgent/"}, {"name": "big-ones", "prefix": "big/"}],
}


def text(**table):
    return written(json.dumps(table))


@cache
def written(table):
    return rendered(STACKS["cluster"](Settings.read(json.loads(table)), ASSETS))


def template(**table):
    return json.loads(text(**table))


def resource(title, **table):
    return template(**table)["Resources"][title]["Properties"]


def of_type(kind, **table):
    return {t: r["Properties"] for t, r in template(**table)["Resources"].items() if r["Type"] == kind}


def overrides(**table):
    """Those of all zones, wherever there are so many."""
    (config,) = resource("SpotFleet", **table)["SpotFleetRequestConfigData"]["LaunchTemplateConfigs"]
    return [override["Fn::If"][1] if "Fn::If" in override else override for override in config["Overrides"]]


def statements(role, **table):
    return [s for p in resource(role, **table)["Policies"] for s in p["PolicyDocument"]["Statement"]]


def allowed(role, action, **table):
    (found,) = (s for s in statements(role, **table) if action in s["Action"])
    return found


def actions(role, **table):
    return {action for statement in statements(role, **table) for action in statement["Action"]}


def container(title, **table):
    (found,) = resource(title, **table)["ContainerDefinitions"]
    return {**found, "Environment": {pair["Name"]: pair["Value"] for pair in found["Environment"]}}


@pytest.mark.parametrize(
    "name, table",
    [
        ("cluster", {}), ("cluster-everything", EVERYTHING), ("cluster-groups", {"profile": "groups"}),
        ("image", IMAGE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_every_stack_renders_as_agreed(name, table, golden):
    stack, _, _ = name.partition("-")
    golden(f"{name}.json", rendered(STACKS[stack](Settings.read(table), ASSETS)))


@pytest.mark.parametrize(
    "case, table",
    [
        ("groups of a list", {"profile": "groups", **TWO_QUEUES}),
        ("Spot only, in one zone", {
            "tags": {"team": "imaging"}, "spot": {"allocation_strategy": "capacityOptimizedPrioritized"},
            "on_demand": {"urgency": "spot-only", "max_units": 0}, "network": {"zones": 1}, **DIRECT,
        }),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_cfn_lint_has_nothing_to_say(case, table, tmp_path):
    """Of what the judges are not shown (test_judges.py)."""
    path = tmp_path / "cluster.json"
    path.write_text(text(**table))

    lint = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "-e", "-x", "E3012:strict=true",
         "-r", "us-east-1", "eu-west-1", "us-west-1", "us-gov-west-1", "cn-north-1", "-t", path],
        capture_output=True, text=True,
    )  # fmt: skip

    assert (lint.returncode, lint.stdout) == (0, "")


def test_a_new_process_renders_the_same_bytes():
    program = "import tests.test_templates as t; import sys; sys.stdout.write(t.text())"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip

    assert said == {text()}


# The fleet


@given(
    names=st.lists(st.sampled_from(sorted(INSTANCE_TYPES)), min_size=1, max_size=8, unique=True),
    zones=st.integers(1, 6),
)
@settings(max_examples=25, deadline=None)
def test_every_type_in_every_subnet_is_a_pool_with_its_gpus_for_weight(names, zones):
    found = overrides(compute={"instance_types": names}, network={"zones": zones})

    pools = [(o["InstanceType"], o["SubnetId"]["Ref"]) for o in found]
    assert sorted(pools) == sorted((name, f"Subnet{n + 1}") for name in names for n in range(zones))
    assert all(o["WeightedCapacity"] == INSTANCE_TYPES[o["InstanceType"]].gpus for o in found)


def test_a_given_vpc_is_used_and_none_is_made():
    found = template(network=GIVEN_VPC)["Resources"]

    assert {o["SubnetId"] for o in overrides(network=GIVEN_VPC)} == set(GIVEN_VPC["subnet_ids"])
    assert found["WorkerSecurityGroup"]["Properties"]["VpcId"] == "vpc-12345678"
    assert not [r for r in found.values() if r["Type"] in ("AWS::EC2::VPC", "AWS::EC2::Subnet")]


def test_the_fleet_takes_nothing_away_by_itself():
    fleet = resource("SpotFleet")["SpotFleetRequestConfigData"]

    assert fleet["Type"] == "maintain"
    assert fleet["ExcessCapacityTerminationPolicy"] == "noTermination"
    assert fleet["TargetCapacity"] == 0  # nothing is bought before there is work


def test_both_launch_a_numbered_version_of_one_template():
    """A Spot Fleet refuses $Latest; a number also says which user data an instance had."""
    (spot,) = resource("SpotFleet")["SpotFleetRequestConfigData"]["LaunchTemplateConfigs"]
    group = resource("OnDemandGroup")["MixedInstancesPolicy"]["LaunchTemplate"]

    for choice in (spot["LaunchTemplateSpecification"], group["LaunchTemplateSpecification"]):
        assert choice["LaunchTemplateId"] == {"Ref": "LaunchTemplate"}
        assert choice["Version"] == {"Fn::GetAtt": ["LaunchTemplate", "LatestVersionNumber"]}


def test_the_fleets_role_is_one_that_spot_fleet_can_assume():
    role = resource("SpotFleetRole")

    assert resource("SpotFleet")["SpotFleetRequestConfigData"]["IamFleetRole"] == {
        "Fn::GetAtt": ["SpotFleetRole", "Arn"]
    }
    assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == {"Service": "spotfleet.amazonaws.com"}
    assert "AmazonEC2SpotFleetTaggingRole" in json.dumps(role["ManagedPolicyArns"])


def test_the_group_buys_only_on_demand_and_whole_instances():
    group = resource("OnDemandGroup", on_demand={"instance_types": ["g5.12xlarge"], "max_units": 11})

    assert group["MixedInstancesPolicy"]["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 100
    assert (group["MinSize"], group["MaxSize"]) == ("0", "2")


def test_containers_cannot_reach_the_instances_credentials():
    launch = resource("LaunchTemplate")["LaunchTemplateData"]

    assert launch["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    assert resource("DefaultTask")["NetworkMode"] == "bridge"


def test_instances_wait_for_their_way_out():
    ready = template()["Resources"]["SpotFleet"]["DependsOn"]

    assert "RouteOut" in ready and "Subnet1Routes" in ready


# Numbers that the capacity Lambda owns


def test_an_update_of_the_stack_resets_neither_service_nor_group():
    assert "DesiredCount" not in resource("DefaultService")
    assert "DesiredCapacity" not in resource("OnDemandGroup")


def test_a_new_service_of_groups_wants_nothing():
    """Application Auto Scaling can only be told of a service that is there, and that is waited for (decision 0013)."""
    assert resource("DefaultService", profile="groups")["DesiredCount"] == 0
    assert not actions("CapacityRole", profile="groups") & {"ecs:UpdateService", "ec2:TerminateInstances"}


def test_a_new_service_finds_the_lambda_that_sets_it_to_none():
    """Without, CloudFormation waits hours for the one task that a new service wants (decision 0010)."""
    ready = set(template()["Resources"]["DefaultService"]["DependsOn"])

    assert {"CapacitySource", "EveryMinute", "NoticesPolicy"} <= ready
    assert "DefaultService" not in json.dumps(resource("CapacityFunction"))


def test_a_task_on_a_draining_instance_does_not_wait_for_its_replacement():
    service = resource("DefaultService")["DeploymentConfiguration"]

    assert service["MinimumHealthyPercent"] == 0
    assert service["MaximumPercent"] > 100


# The worker


def test_the_worker_has_a_gpu_the_notice_file_and_time_to_stop():
    worker = container("DefaultTask")

    assert worker["ResourceRequirements"] == [{"Type": "GPU", "Value": "1"}]
    assert {"SourceVolume": "host", "ContainerPath": "/run/spindrift", "ReadOnly": True} in worker["MountPoints"]
    assert {"Name": "host", "Host": {"SourcePath": "/run/spindrift"}} in resource("DefaultTask")["Volumes"]
    assert worker["StopTimeout"] == 110
    assert worker["ReadonlyRootFilesystem"] is True


def test_a_worker_is_told_how_many_jobs_it_may_do_together():
    assert "SPINDRIFT_BATCH" not in container("DefaultTask")["Environment"]
    assert container("DefaultTask", worker={"batch": 16})["Environment"]["SPINDRIFT_BATCH"] == "16"


def test_a_job_is_never_lost_to_the_number_of_its_interruptions():
    """SQS counts every receive, a release too; the worker counts failures."""
    assert resource("DefaultJobs")["RedrivePolicy"]["maxReceiveCount"] == 1000
    assert resource("DefaultJobs", queues=[{"lease_seconds": 77}])["VisibilityTimeout"] == 77


def test_every_queue_has_workers_of_its_own():
    for title, name, lease in (("Urgent", "urgent", 77), ("BigOnes", "big-ones", 60)):
        environment = container(f"{title}Task", **TWO_QUEUES)["Environment"]
        service = resource(f"{title}Service", **TWO_QUEUES)

        assert environment["SPINDRIFT_QUEUE"] == name
        assert environment["SPINDRIFT_QUEUE_URL"] == {"Ref": f"{title}Jobs"}
        assert environment["SPINDRIFT_LEASE_SECONDS"] == str(lease)
        assert resource(f"{title}Jobs", **TWO_QUEUES)["VisibilityTimeout"] == lease
        assert service["TaskDefinition"] == {"Ref": f"{title}Task"}
        assert service["ServiceName"] == {"Fn::Sub": f"${{AWS::StackName}}-{name}"}


@pytest.mark.parametrize(
    "placement, constraints",
    [
        ("any", None),
        ("spot", [{"Type": "memberOf", "Expression": "attribute:lifecycle == spot"}]),
        ("on-demand", [{"Type": "memberOf", "Expression": "attribute:lifecycle == on-demand"}]),
    ],
)
def test_workers_run_where_their_queue_wants_them(placement, constraints):
    """The attribute is what user data gives the ECS agent: what the instance's metadata says of its life cycle."""
    service = resource("DefaultService", queues=[{"placement": placement, "max_tasks": 4}])

    assert service.get("PlacementConstraints") == constraints
    assert 'ECS_INSTANCE_ATTRIBUTES={"lifecycle":"$lifecycle"}' in userdata.SCRIPT
    assert "lifecycle=$(metadata instance-life-cycle)" in userdata.SCRIPT


def test_an_upload_is_deleted_after_success_only_when_asked_for():
    asked = {"uploads": {"delete_after_success": True}}
    deletion = allowed("WorkerRole", "s3:DeleteObjectVersion", **asked)

    assert container("DefaultTask", **asked)["Environment"]["SPINDRIFT_DELETE_UPLOADS"] == "1"
    assert deletion["Action"] == ["s3:DeleteObjectVersion"]
    assert deletion["Resource"] == [{"Fn::Sub": "${UploadsBucket.Arn}/*"}]
    assert "SPINDRIFT_DELETE_UPLOADS" not in container("DefaultTask")["Environment"]
    assert "s3:DeleteObjectVersion" not in actions("WorkerRole")


def test_tasks_share_files_through_the_access_point_alone_and_encrypted():
    asked = {"worker": {"shared_files": True}}
    (volume,) = (v for v in resource("DefaultTask", **asked)["Volumes"] if v["Name"] == "shared")
    mount = allowed("WorkerRole", "elasticfilesystem:ClientMount", **asked)

    assert volume["EFSVolumeConfiguration"] == {
        "FilesystemId": {"Ref": "SharedFiles"},
        "TransitEncryption": "ENABLED",
        "AuthorizationConfig": {"AccessPointId": {"Ref": "SharedFilesAccess"}, "IAM": "ENABLED"},
    }
    shared = {"SourceVolume": "shared", "ContainerPath": "/shared", "ReadOnly": False}
    assert shared in container("DefaultTask", **asked)["MountPoints"]
    assert container("DefaultTask", **asked)["Environment"]["SPINDRIFT_SHARED_DIR"] == "/shared"
    assert mount["Resource"] == [{"Fn::GetAtt": ["SharedFiles", "Arn"]}]
    assert mount["Condition"]["ArnEquals"] == {
        "elasticfilesystem:AccessPointArn": {"Fn::GetAtt": ["SharedFilesAccess", "Arn"]}
    }
    found = template(**asked)["Resources"]
    # The access point, which the task definition refers to, waits for those of zones that a region may lack.
    waits = [*found["DefaultService"]["DependsOn"], *re.findall(r"\w+", json.dumps(found["SharedFilesAccess"]))]
    assert {title for title in found if found[title]["Type"] == "AWS::EFS::MountTarget"} <= set(waits)


def test_without_shared_files_there_is_nothing_of_them():
    assert not re.search("efs|elasticfilesystem|/shared", text(), re.IGNORECASE)


@pytest.mark.parametrize(
    "worker, directory, memory",
    [
        ({}, "/tmp", None),
        ({"scratch": "memory", "memory_mib": 8000}, "/dev/shm", 4000),
        ({"scratch": "shared", "shared_files": True}, "/shared/.scratch", None),
    ],
    ids=["disk", "memory", "shared"],
)
def test_jobs_in_hand_lie_where_it_was_asked(worker, directory, memory):
    made = container("DefaultTask", worker=worker)

    assert made["Environment"]["SPINDRIFT_SCRATCH_DIR"] == directory
    assert made["LinuxParameters"].get("SharedMemorySize") == memory


# What is kept


@pytest.mark.parametrize(
    "title",
    [
        "UploadsBucket",
        "ResultsBucket",
        "UploadEvents",
        "UploadEventsDead",
        "JobsTable",
        "DefaultJobs",
        "DeadLetter",
        "Key",
    ],
)
def test_what_holds_work_outlives_the_stack(title):
    found = template()["Resources"][title]

    assert (found["DeletionPolicy"], found["UpdateReplacePolicy"]) == ("Retain", "Retain")


def test_a_notice_whose_lambda_died_is_heard_again_while_it_matters():
    timeout, hidden = resource("CapacityFunction")["Timeout"], resource("Notices")["VisibilityTimeout"]

    assert timeout <= hidden <= 60


@pytest.mark.parametrize(
    "table, announced",
    [
        ({}, [("", "UploadEvents")]),
        ({"queues": [{"prefix": "in/"}]}, [("in/", "UploadEvents")]),
        # The ingest Lambda chooses by the longest prefix; S3 takes no two that overlap.
        (TWO_QUEUES, [("", "UploadEvents")]),
        (DIRECT, [("urgent/", "UrgentJobs"), ("big/", "BigOnesJobs")]),
        ({"uploads": {"ingest": "direct"}}, [("", "DefaultJobs")]),
    ],
)
def test_s3_announces_uploads_to_queues_that_let_it_in_first(table, announced):
    """S3 sends a test event when it is told to notify, and refuses if that fails."""
    bucket = template(**table)["Resources"]["UploadsBucket"]

    def prefix(announcement):
        rules = announcement.get("Filter", {"S3Key": {"Rules": [{"Value": ""}]}})["S3Key"]["Rules"]
        return rules[0]["Value"]

    found = bucket["Properties"]["NotificationConfiguration"]["QueueConfigurations"]
    assert [(prefix(each), each["Queue"]["Fn::GetAtt"][0]) for each in found] == announced
    assert {each["Event"] for each in found} == {"s3:ObjectCreated:*"}
    assert bucket["DependsOn"] == [f"{queue}Policy" for _, queue in announced]
    for title in bucket["DependsOn"]:
        policy = resource(title, **table)
        (sends,) = policy["PolicyDocument"]["Statement"]
        assert policy["Queues"] == [{"Ref": title.removesuffix("Policy")}]
        assert sends["Resource"] == {"Fn::GetAtt": [title.removesuffix("Policy"), "Arn"]}
        assert (sends["Principal"], sends["Action"]) == ({"Service": "s3.amazonaws.com"}, "sqs:SendMessage")
        assert sends["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}


def test_without_the_ingest_lambda_the_worker_makes_the_record():
    titles = template(**DIRECT)["Resources"].keys()

    assert not [title for title in titles if title.startswith(("Ingest", "UploadEvents"))]
    assert "UploadEventsQueueUrl" not in template(**DIRECT)["Outputs"]
    assert allowed("WorkerRole", "dynamodb:PutItem", **DIRECT)["Resource"] == [{"Fn::GetAtt": ["JobsTable", "Arn"]}]


def test_the_names_of_buckets_are_cloudformations():
    """A chosen name can only change by another bucket, and a stack can only be made once."""
    for table in ({}, EVERYTHING):
        for properties in (
            *of_type("AWS::S3::Bucket", **table).values(),
            *of_type("AWS::SQS::Queue", **table).values(),
        ):
            assert not {"BucketName", "QueueName"} & properties.keys()


def test_every_service_that_writes_to_an_encrypted_queue_or_topic_may_use_its_key():
    """A missing one is silent: EventBridge and SNS drop what they cannot encrypt."""
    writers = {
        service: statement
        for statement in resource("Key", **EVERYTHING)["KeyPolicy"]["Statement"]
        for service in statement["Principal"].get("Service", [])
    }
    senders = {
        statement["Principal"]["Service"]
        for kind in ("AWS::SQS::QueuePolicy", "AWS::SNS::TopicPolicy")
        for policy in of_type(kind, **EVERYTHING).values()
        for statement in policy["PolicyDocument"]["Statement"]
        if "Service" in statement["Principal"] and statement["Effect"] == "Allow"
    }

    assert senders == {
        "s3.amazonaws.com", "sns.amazonaws.com", "events.amazonaws.com", "cloudwatch.amazonaws.com",
    }  # fmt: skip
    assert senders == set(writers)
    assert all(each["Action"] == ["kms:Decrypt", "kms:GenerateDataKey"] for each in writers.values())
    for service in ("s3.amazonaws.com", "sns.amazonaws.com"):
        assert writers[service]["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}


def test_without_a_key_of_ones_own_aws_encrypts_with_its_own():
    table = {**EVERYTHING, "security": {"customer_key": False}}
    queues = of_type("AWS::SQS::Queue", **table)

    assert "kms" not in text(**table).lower()
    assert queues and all(queue["SqsManagedSseEnabled"] is True for queue in queues.values())
    for bucket in of_type("AWS::S3::Bucket", **table).values():
        (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        assert rule == {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    assert "SSESpecification" not in resource("JobsTable", **table)


def test_everything_that_speaks_reaches_the_notices_queue():
    rules = of_type("AWS::Events::Rule")
    del rules["EveryFiveMinutes"]  # the market Lambda's own
    told = json.dumps(rules)

    for kind in (
        "EC2 Spot Instance Interruption Warning", "EC2 Instance Rebalance Recommendation",
        "EC2 Instance State-change Notification", "EC2 Spot Fleet Instance Change", "EC2 Spot Fleet Error",
        "ECS Container Instance State Change", "rate(1 minute)",
    ):  # fmt: skip
        assert kind in told
    queue = {"Fn::GetAtt": ["Notices", "Arn"]}
    assert all([target["Arn"] for target in rule["Targets"]] == [queue] for rule in rules.values())
    (_, events) = resource("NoticesPolicy")["PolicyDocument"]["Statement"]
    assert {arn["Fn::GetAtt"][0] for arn in events["Condition"]["ArnEquals"]["aws:SourceArn"]} == set(rules)
    assert resource("NoticesSubscription")["RawMessageDelivery"] is True


@pytest.mark.parametrize("bucket", ["Uploads", "Results"])
def test_buckets_are_private_versioned_encrypted_and_speak_only_tls(bucket):
    properties = resource(f"{bucket}Bucket")
    (refuse,) = resource(f"{bucket}BucketPolicy")["PolicyDocument"]["Statement"]

    assert set(properties["PublicAccessBlockConfiguration"].values()) == {True}
    assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
    assert "aws:kms" in json.dumps(properties["BucketEncryption"])
    assert (refuse["Effect"], refuse["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})


# Permissions


LOOKS = (
    r"\w+:Describe|ecr:GetAuthorizationToken|ecs:DiscoverPollEndpoint|ssmmessages:(Create|Open)(Control|Data)Channel"
    r"|ec2:GetSpotPlacementScores|pricing:GetProducts"
)


@pytest.mark.parametrize("table", [EVERYTHING, GROUPS], ids=["fleet", "groups"])
def test_what_cannot_be_limited_changes_nothing(table):
    """Resource "*" is for actions that IAM cannot limit, and none of them changes anything; no action is a pattern."""
    for role, properties in of_type("AWS::IAM::Role", **table).items():
        for statement in (s for p in properties.get("Policies", []) for s in p["PolicyDocument"]["Statement"]):
            assert "*" not in "".join(statement["Action"])
            if statement["Resource"] == "*":
                assert all(re.match(LOOKS, action) for action in statement["Action"]), (role, statement["Action"])


def test_what_is_allowed_everywhere_says_why_beside_it():
    lines = Path(policies.__file__).read_text().splitlines()
    starts = [
        node.lineno - 1
        for node in ast.walk(ast.parse("\n".join(lines)))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", None) == "allow"
        and ast.unparse(node.args[1]) == repr("*")
    ]

    assert len(starts) >= 4
    for start in starts:
        assert lines[start - 1].strip().startswith("# "), f"policies.py:{start + 1} has no reason above it"


def test_only_this_stacks_instances_can_be_terminated():
    statement = allowed("CapacityRole", "ec2:TerminateInstances")

    assert statement["Condition"] == {"StringEquals": {f"ec2:ResourceTag/{STACK_TAG}": {"Ref": "AWS::StackName"}}}


def test_the_lambda_cannot_retag_an_instance_into_the_stack():
    tagging = [s for s in statements("CapacityRole") if "ec2:CreateTags" in s["Action"]]

    assert tagging
    for statement in tagging:
        assert STACK_TAG not in statement["Condition"]["ForAllValues:StringEquals"]["aws:TagKeys"]
        # Otherwise DeleteTags without a tag, which removes them all, would be allowed: ForAllValues is true of none.
        assert statement["Condition"]["Null"] == {"aws:TagKeys": "false"}


@pytest.mark.parametrize("role", ["InstanceRole", "WorkerRole", "ExecutionRole", "IngestRole"])
def test_only_the_capacity_lambda_buys_and_ends_machines(role):
    assert not re.search(r"ec2:|autoscaling:|iam:|ecs:UpdateService", json.dumps(resource(role).get("Policies")))


def test_the_instance_may_say_one_thing_and_fetch_one_file():
    assert allowed("InstanceRole", "sns:Publish")["Resource"] == [{"Ref": "NoticesTopic"}]
    (asset,) = allowed("InstanceRole", "s3:GetObject")["Resource"]
    assert asset["Fn::Sub"].endswith(f"${{AssetsBucket}}/{ASSETS.agent.key}")


@pytest.mark.parametrize("table", [EVERYTHING, GROUPS], ids=["fleet", "groups"])
def test_everything_that_can_be_tagged_says_whose_it_is(table):
    """Whether a type can be tagged is CloudFormation's to say, in its schema."""
    for title, found in template(**table)["Resources"].items():
        properties = found["Properties"]
        if found["Type"] == "AWS::EC2::SpotFleet":
            properties = {"TagSpecifications": properties["SpotFleetRequestConfigData"]["TagSpecifications"]}
        tagged = STACK_TAG in json.dumps([properties[name] for name in properties if "Tag" in name])
        assert tagged or not taggable(found["Type"]), title
    launched = resource("LaunchTemplate", **table)["LaunchTemplateData"]["TagSpecifications"]
    assert {spec["ResourceType"] for spec in launched} == {"instance", "volume"}


def taggable(kind):
    if kind in ("AWS::EC2::SpotFleet", "AWS::EC2::LaunchTemplate"):
        return True  # with TagSpecifications of their own
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema
    return schema.get("tagging", {}).get("taggable", schema.get("taggable", "Tags" in schema["properties"]))


# What the Lambdas are told


def environment(function, **table):
    variables = resource(function, **table)["Environment"]["Variables"]
    return {name: _resolved(value) for name, value in variables.items()}


def test_the_lambdas_read_the_settings_that_the_template_writes():
    from capacity.settings import Settings as Capacity
    from ingest.settings import Settings as Ingest

    capacity = Capacity.read(environment("CapacityFunction"))
    ingest = Ingest.read(environment("IngestFunction", **TWO_QUEUES))

    assert capacity.queues == {"<AWS::StackName>-default": "<DefaultJobs>"}
    assert capacity.units_by_type["g5.xlarge"] == 1
    assert [(route.prefix, route.queue, route.queue_url) for route in ingest.routes] == [
        ("urgent/", "urgent", "<UrgentJobs>"),
        ("", "big-ones", "<BigOnesJobs>"),
    ]


def test_the_capacity_lambda_knows_where_each_service_may_run():
    services = json.loads(environment("CapacityFunction", **EVERYTHING)["SERVICES"])

    assert [(each["name"], each["queue_url"], each["placement"], each["max_tasks"]) for each in services] == [
        ("<AWS::StackName>-default", "<DefaultJobs>", "any", 8),
        ("<AWS::StackName>-urgent", "<UrgentJobs>", "on-demand", 2),
        ("<AWS::StackName>-big-ones", "<BigOnesJobs>", "spot", 8),
    ]
    scaled = allowed("CapacityRole", "ecs:UpdateService", **EVERYTHING)["Resource"]
    assert [arn["Fn::Sub"].rpartition("/")[2] for arn in scaled] == [
        "${AWS::StackName}-default", "${AWS::StackName}-urgent", "${AWS::StackName}-big-ones",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "role, action, queues",
    [
        ("IngestRole", "sqs:SendMessage", {"UrgentJobs", "BigOnesJobs", "Notices"}),
        ("IngestRole", "sqs:GetQueueAttributes", {"UrgentJobs", "BigOnesJobs", "UploadEvents"}),
        ("CapacityRole", "sqs:GetQueueAttributes", {"UrgentJobs", "BigOnesJobs", "Notices"}),
        ("CapacityRole", "sqs:ReceiveMessage", {"Notices"}),
        ("WorkerRole", "sqs:ReceiveMessage", {"UrgentJobs", "BigOnesJobs"}),
        ("WorkerRole", "sqs:SendMessage", {"UrgentJobs", "BigOnesJobs", "DeadLetter"}),
    ],
)
def test_each_actor_reaches_its_queues_and_no_other(role, action, queues):
    found = [statement["Resource"] for statement in statements(role, **TWO_QUEUES) if action in statement["Action"]]

    assert {arn["Fn::GetAtt"][0] for resources in found for arn in resources} == queues


def test_as_many_queues_as_the_settings_allow_fit_into_a_lambdas_environment():
    """4 KB, names and values together (Lambda Developer Guide, "Quotas"); SQS names have 80 characters at most."""
    names = [f"{n}".join(("q", "x" * 29)) for n in range(MOST_QUEUES)]
    table = {"queues": [{"name": name, "prefix": name[:2] + "/" * 98, "placement": "spot"} for name in names]}

    for function in ("CapacityFunction", "IngestFunction"):
        told = environment(function, **table)
        for name in names:
            told = {
                key: value.replace("<AWS::StackName>", "s" * 40).replace(
                    f"<{Queue(name=name).title}Jobs>",
                    "https://sqs.ap-southeast-1.amazonaws.com/123456789012/" + "n" * 80,
                )
                for key, value in told.items()
            }
        assert "<" not in told.get("SERVICES", "") + told.get("ROUTES", "")
        assert sum(len(key) + len(value) for key, value in told.items()) <= 4096, function


def _resolved(value):
    if not isinstance(value, dict):
        return value
    if "Ref" in value:
        return f"<{value['Ref']}>"
    body, names = value["Fn::Sub"] if isinstance(value["Fn::Sub"], list) else (value["Fn::Sub"], {})
    return re.sub(r"\$\{([\w:]+)\}", lambda m: _resolved(names[m[1]]) if m[1] in names else f"<{m[1]}>", body)


# Outputs


@pytest.mark.parametrize("profile", ["fleet", "groups"])
def test_every_output_is_exported_under_the_stacks_name_and_described(profile):
    found = template(profile=profile)

    for name, output in found["Outputs"].items():
        assert output["Export"] == {"Name": {"Fn::Sub": f"${{AWS::StackName}}-{name}"}}
        assert output["Description"]
    assert all(parameter["Description"] for parameter in found["Parameters"].values())
    assert {
        "UploadsBucket", "ResultsBucket", "JobsTable", "JobsQueueUrl", "DeadLetterQueueUrl", "NoticesTopicArn",
        "ClusterName", "SpotFleetId" if profile == "fleet" else "SpotGroupName", "OnDemandGroupName", "DashboardUrl",
    } <= set(found["Outputs"])  # fmt: skip


def test_the_first_queue_is_found_without_knowing_its_name():
    outputs = template(**TWO_QUEUES)["Outputs"]

    assert outputs["JobsQueueUrl"]["Value"] == {"Ref": "UrgentJobs"}
    assert outputs["WorkerServiceName"]["Value"] == {"Fn::GetAtt": ["UrgentService", "Name"]}
    assert outputs["BigOnesJobsQueueUrl"]["Value"] == {"Ref": "BigOnesJobs"}
    assert outputs["BigOnesWorkerServiceName"]["Value"] == {"Fn::GetAtt": ["BigOnesService", "Name"]}


@pytest.mark.parametrize(
    "partition, domain",
    [
        ("aws", "console.aws.amazon.com"),
        ("aws-cn", "console.amazonaws.cn"),
        ("aws-us-gov", "console.amazonaws-us-gov.com"),
    ],
)
def test_the_dashboard_is_in_the_partitions_own_console(partition, domain):
    url, names = template()["Outputs"]["DashboardUrl"]["Value"]["Fn::Sub"]

    assert url.startswith("https://${Console}/cloudwatch/home?region=${AWS::Region}#dashboards/dashboard/${")
    (name, which, key) = names["Console"]["Fn::FindInMap"]
    assert which == {"Ref": "AWS::Partition"}
    assert template()["Mappings"][name][partition][key] == domain


def test_nothing_is_written_for_one_partition_only():
    for table in (EVERYTHING, GROUPS):
        # The path of a service-linked role is the same everywhere.
        written = text(**table).replace("aws-service-role/autoscaling.amazonaws.com/", "")
        assert not re.search(r"arn:aws:|\.amazonaws\.com/|ec2\.amazonaws\.com", written)


# User data


def script():
    return userdata.script({
        "Cluster": "spindrift-Cluster-1", "StopTimeout": "110", "AssetsBucket": "assets", "AgentKey": ASSETS.agent.key,
        "AgentSha256": HASH, "NoticesTopic": "arn:aws:sns:eu-west-1:1:notices", "AWS::Region": "eu-west-1",
        "AWS::URLSuffix": "amazonaws.com",
    })  # fmt: skip


def test_user_data_fits():
    assert len(base64.b64encode(script().encode())) < userdata.MOST_BYTES


def test_user_data_is_bash():
    check = subprocess.run(["bash", "-n"], input=script(), capture_output=True, text=True)

    assert (check.returncode, check.stderr) == (0, "")


def boot(tmp_path, lifecycle, content, told_hash):
    """Run the script as an instance would, under a folder, with a curl and a systemctl that only say what they heard."""
    root, tools = tmp_path / "root", tmp_path / "tools"
    tools.mkdir()
    (root / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "agent").write_bytes(content)
    (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/systemctl\n')
    (tools / "curl").write_text(f"""#!/bin/bash
echo "$*" >> {tmp_path}/curl
out=
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
case $1 in
  */api/token) echo TOKEN ;;
  */instance-life-cycle) echo {lifecycle} ;;
  */security-credentials/) echo the-role ;;
  */security-credentials/the-role) printf '{{\\n "AccessKeyId" : "AKIA1",\\n "SecretAccessKey" : "s/+=",\\n "Token" : "tok/=="\\n}}' ;;
  *) cp {tmp_path}/agent "$out" ;;
esac
""")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    body = re.sub(r"/(etc|opt|run|var)/", rf"{root}/\1/", script()).replace(HASH, told_hash)
    done = subprocess.run(["bash"], input=body, env={"PATH": f"{tools}:/usr/bin:/bin"}, capture_output=True, text=True)
    return done, root


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_an_instance_joins_and_starts_the_agent(tmp_path):
    done, root = boot(tmp_path, "spot", b"agent", sha256(b"agent"))

    assert done.returncode == 0, done.stderr
    config = (root / "etc/ecs/ecs.config").read_text()
    assert "ECS_CLUSTER=spindrift-Cluster-1\n" in config
    assert 'ECS_INSTANCE_ATTRIBUTES={"lifecycle":"spot"}\n' in config
    assert "ECS_ENABLE_SPOT_INSTANCE_DRAINING=true\n" in config
    assert (root / "opt/spindrift/agent.pyz").read_bytes() == b"agent"
    assert "arn:aws:sns:eu-west-1:1:notices" in (root / "etc/spindrift/agent.env").read_text()
    assert (tmp_path / "systemctl").read_text() == "daemon-reload\nenable --now spindrift-agent.service\n"
    fetched = (tmp_path / "curl").read_text().splitlines()[-1]
    assert "--user AKIA1:s/+= -H x-amz-security-token: tok/==" in fetched
    assert fetched.endswith(f"https://s3.eu-west-1.amazonaws.com/assets/{ASSETS.agent.key}")


def test_only_a_groups_instance_waits_for_its_lifecycle_state(tmp_path):
    """Metadata of a fleet's instance has none, and the ECS agent would ask for two hours (decision 0011)."""
    for lifecycle, expected in (("spot", False), ("on-demand", True)):
        (tmp_path / lifecycle).mkdir()
        _, root = boot(tmp_path / lifecycle, lifecycle, b"agent", sha256(b"agent"))
        assert ("ECS_WARM_POOLS_CHECK=true" in (root / "etc/ecs/ecs.config").read_text()) is expected


def test_an_agent_that_was_tampered_with_is_not_started_and_the_host_still_joins(tmp_path):
    done, root = boot(tmp_path, "spot", b"another", sha256(b"agent"))

    assert done.returncode == 1
    assert "is not the agent that this stack was built with" in done.stderr
    assert (root / "etc/ecs/ecs.config").exists()
    assert not (root / "opt/spindrift/agent.pyz").exists()
    assert not (tmp_path / "systemctl").exists()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_the_unit(tmp_path):
    unit = tmp_path / "spindrift-agent.service"
    unit.write_text(userdata.UNIT)

    said = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True).stderr
    assert "Unknown" not in said and "Failed to parse" not in said


def test_a_restart_keeps_the_folder_that_workers_have_mounted():
    assert "RuntimeDirectory=spindrift\n" in userdata.UNIT
    assert "RuntimeDirectoryPreserve=yes\n" in userdata.UNIT
