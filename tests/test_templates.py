import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from templates import userdata
from templates.assets import Asset, Assets
from templates.instance_types import INSTANCE_TYPES
from templates.settings import STACK_TAG, Settings
from templates.stacks import STACKS, rendered

HASH = "0123456789abcdef" * 4
ASSETS = Assets(
    ingest=Asset(f"ingest-{HASH[:16]}.zip", HASH),
    capacity=Asset(f"capacity-{HASH[:16]}.zip", HASH),
    agent=Asset(f"agent-{HASH[:16]}.pyz", HASH),
)
GIVEN_VPC = {"vpc_id": "vpc-12345678", "subnet_ids": ["subnet-11111111", "subnet-22222222"]}


def text(**table):
    return rendered(STACKS["cluster"](Settings.read(table), ASSETS))


def template(**table):
    return json.loads(text(**table))


def resource(title, **table):
    return template(**table)["Resources"][title]["Properties"]


def of_type(kind, **table):
    return {t: r["Properties"] for t, r in template(**table)["Resources"].items() if r["Type"] == kind}


def overrides(**table):
    (config,) = resource("SpotFleet", **table)["SpotFleetRequestConfigData"]["LaunchTemplateConfigs"]
    return config["Overrides"]


def statements(role, **table):
    return [s for p in resource(role, **table)["Policies"] for s in p["PolicyDocument"]["Statement"]]


def allowed(role, action):
    (found,) = (s for s in statements(role) if action in s["Action"])
    return found


@pytest.mark.parametrize("stack", STACKS)
def test_every_stack_renders_as_agreed(stack, golden):
    golden(f"{stack}.json", rendered(STACKS[stack](Settings(), ASSETS)))


@pytest.mark.parametrize(
    "case, table",
    [
        ("defaults", {}),
        ("a given VPC", {"network": GIVEN_VPC}),
        ("everything chosen", {
            "uploads": {"prefix": "in/"}, "buckets": {"uploads": "my-uploads", "results": "my-results"},
            "tags": {"team": "imaging"}, "spot": {"allocation_strategy": "capacityOptimizedPrioritized"},
            "on_demand": {"urgency": "spot-only", "max_units": 0}, "network": {"zones": 1},
        }),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_cfn_lint_has_nothing_to_say(case, table, tmp_path):
    path = tmp_path / "cluster.json"
    path.write_text(text(**table))

    lint = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "-e", "-x", "E3012:strict=true",
         "-r", "us-east-1", "eu-west-1", "eu-central-1", "us-west-2", "-t", path],
        capture_output=True, text=True,
    )  # fmt: skip

    assert (lint.returncode, lint.stdout) == (0, "")


def test_a_new_process_renders_the_same_bytes():
    program = "import tests.test_templates as t; import sys; sys.stdout.write(t.text())"
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
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
    assert sorted(pools) == sorted((name, f"PublicSubnet{n + 1}") for name in names for n in range(zones))
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
    assert resource("WorkerTask")["NetworkMode"] == "bridge"


def test_instances_wait_for_their_way_out():
    ready = template()["Resources"]["SpotFleet"]["DependsOn"]

    assert "RouteOut" in ready and "PublicSubnet3Routes" in ready


# Numbers that the capacity Lambda owns


def test_an_update_of_the_stack_resets_neither_service_nor_group():
    assert "DesiredCount" not in resource("WorkerService")
    assert "DesiredCapacity" not in resource("OnDemandGroup")


def test_a_new_service_finds_the_lambda_that_sets_it_to_none():
    """Without, CloudFormation waits hours for the one task that a new service wants (decision 0010)."""
    ready = set(template()["Resources"]["WorkerService"]["DependsOn"])

    assert {"CapacitySource", "EveryMinute", "NoticesPolicy"} <= ready
    assert "WorkerService" not in json.dumps(resource("CapacityFunction"))


def test_a_task_on_a_draining_instance_does_not_wait_for_its_replacement():
    service = resource("WorkerService")["DeploymentConfiguration"]

    assert service["MinimumHealthyPercent"] == 0
    assert service["MaximumPercent"] > 100


# The worker


def test_the_worker_has_a_gpu_the_notice_file_and_time_to_stop():
    task = resource("WorkerTask")
    (container,) = task["ContainerDefinitions"]

    assert container["ResourceRequirements"] == [{"Type": "GPU", "Value": "1"}]
    assert {"SourceVolume": "host", "ContainerPath": "/run/spindrift", "ReadOnly": True} in container["MountPoints"]
    assert {"Name": "host", "Host": {"SourcePath": "/run/spindrift"}} in task["Volumes"]
    assert container["StopTimeout"] == 110
    assert container["ReadonlyRootFilesystem"] is True


def test_a_job_is_never_lost_to_the_number_of_its_interruptions():
    """SQS counts every receive, a release too; the worker counts failures."""
    assert resource("Jobs")["RedrivePolicy"]["maxReceiveCount"] == 1000
    assert resource("Jobs", queue={"lease_seconds": 77})["VisibilityTimeout"] == 77


# What is kept


@pytest.mark.parametrize("title", ["UploadsBucket", "ResultsBucket", "JobsTable", "Jobs", "DeadLetter", "Key"])
def test_what_holds_work_outlives_the_stack(title):
    found = template()["Resources"][title]

    assert (found["DeletionPolicy"], found["UpdateReplacePolicy"]) == ("Retain", "Retain")


def test_a_notice_whose_lambda_died_is_heard_again_while_it_matters():
    timeout, hidden = resource("CapacityFunction")["Timeout"], resource("Notices")["VisibilityTimeout"]

    assert timeout <= hidden <= 60


def test_the_queue_lets_s3_in_before_the_bucket_asks():
    """S3 sends a test event when it is told to notify, and refuses if that fails."""
    bucket = template()["Resources"]["UploadsBucket"]
    assert bucket["DependsOn"] == "UploadEventsPolicy"

    (sends,) = resource("UploadEventsPolicy", buckets={"uploads": "mine"})["PolicyDocument"]["Statement"]
    assert sends["Condition"]["ArnLike"] == {"aws:SourceArn": {"Fn::Sub": "arn:${AWS::Partition}:s3:::mine"}}
    assert sends["Condition"]["StringEquals"] == {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}


def test_every_service_that_writes_to_an_encrypted_queue_may_use_its_key():
    """A missing one is silent: EventBridge and SNS drop what they cannot encrypt."""
    writers = {
        service
        for statement in resource("Key")["KeyPolicy"]["Statement"]
        for service in statement["Principal"].get("Service", [])
    }
    senders = {
        statement["Principal"]["Service"]
        for policy in of_type("AWS::SQS::QueuePolicy").values()
        for statement in policy["PolicyDocument"]["Statement"]
    }

    assert senders == {"s3.amazonaws.com", "sns.amazonaws.com", "events.amazonaws.com"}
    assert senders | {"cloudwatch.amazonaws.com"} == writers


def test_everything_that_speaks_reaches_the_notices_queue():
    rules = of_type("AWS::Events::Rule")
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


def test_what_cannot_be_limited_is_only_looked_at():
    """Resource "*" is for actions that IAM cannot limit, and none of them changes anything."""
    for role in of_type("AWS::IAM::Role"):
        for statement in (s for p in resource(role).get("Policies", []) for s in p["PolicyDocument"]["Statement"]):
            assert not any(
                "*" in action.replace("GenerateDataKey*", "").replace("ReEncrypt*", "")
                for action in statement["Action"]
            )
            if statement["Resource"] == "*":
                assert all(re.match(r"\w+:(Describe|GetAuthorizationToken|Discover)", a) for a in statement["Action"])


def test_only_this_stacks_instances_can_be_terminated():
    statement = allowed("CapacityRole", "ec2:TerminateInstances")

    assert statement["Condition"] == {"StringEquals": {f"ec2:ResourceTag/{STACK_TAG}": {"Ref": "AWS::StackName"}}}


def test_the_lambda_cannot_retag_an_instance_into_the_stack():
    tagging = [s for s in statements("CapacityRole") if "ec2:CreateTags" in s["Action"]]

    assert tagging
    for statement in tagging:
        assert STACK_TAG not in statement["Condition"]["ForAllValues:StringEquals"]["aws:TagKeys"]


@pytest.mark.parametrize("role", ["InstanceRole", "WorkerRole", "ExecutionRole", "IngestRole"])
def test_only_the_capacity_lambda_buys_and_ends_machines(role):
    assert not re.search(r"ec2:|autoscaling:|iam:|ecs:UpdateService", json.dumps(resource(role).get("Policies")))


def test_the_instance_may_say_one_thing_and_fetch_one_file():
    assert allowed("InstanceRole", "sns:Publish")["Resource"] == [{"Ref": "NoticesTopic"}]
    (asset,) = allowed("InstanceRole", "s3:GetObject")["Resource"]
    assert asset["Fn::Sub"].endswith(f"${{AssetsBucket}}/{ASSETS.agent.key}")


def test_everything_that_can_be_tagged_says_whose_it_is():
    untagged_types = {
        "AWS::EC2::Route", "AWS::EC2::SubnetRouteTableAssociation", "AWS::EC2::VPCGatewayAttachment",
        "AWS::IAM::InstanceProfile", "AWS::S3::BucketPolicy", "AWS::SNS::Subscription", "AWS::SQS::QueuePolicy",
    }  # fmt: skip
    for title, found in template()["Resources"].items():
        tagged = STACK_TAG in json.dumps(found["Properties"].get("Tags", found["Properties"].get("TagSpecifications")))
        in_fleet = title == "SpotFleet" and STACK_TAG in json.dumps(found["Properties"])
        assert tagged or in_fleet or found["Type"] in untagged_types, title
    launched = resource("LaunchTemplate")["LaunchTemplateData"]["TagSpecifications"]
    assert {spec["ResourceType"] for spec in launched} == {"instance", "volume"}


# What the Lambdas are told


def test_the_lambdas_read_the_settings_that_the_template_writes():
    from capacity.settings import Settings as Capacity
    from ingest.settings import Settings as Ingest

    def environment(function):
        variables = resource(function)["Environment"]["Variables"]
        return {name: _resolved(value) for name, value in variables.items()}

    capacity, ingest = Capacity.read(environment("CapacityFunction")), Ingest.read(environment("IngestFunction"))

    assert capacity.queues == {"<AWS::StackName>-workers": "<Jobs>"}
    assert capacity.units_by_type["g5.xlarge"] == 1
    assert ingest.routes[0].queue_url == "<Jobs>"


def _resolved(value):
    if not isinstance(value, dict):
        return value
    if "Ref" in value:
        return f"<{value['Ref']}>"
    body, names = value["Fn::Sub"] if isinstance(value["Fn::Sub"], list) else (value["Fn::Sub"], {})
    return re.sub(r"\$\{([\w:]+)\}", lambda m: _resolved(names[m[1]]) if m[1] in names else f"<{m[1]}>", body)


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
