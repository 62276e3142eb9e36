import ipaddress
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cfnlint.helpers import AVAILABILITY_ZONES
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend
from troposphere import GetAtt, Ref, Template, autoscaling, ec2

from templates import files, network
from templates.assets import Asset, Assets
from templates.settings import Settings
from templates.stacks import STACKS

REGIONS = sorted(RegionsAndZonesBackend.zones)
ZONES = {r: sorted(AVAILABILITY_ZONES[r])[: len(RegionsAndZonesBackend.zones[r])] for r in REGIONS}
"""What two collections of others agree on; where they differ, the fewer."""
EVERYTHING = {
    "network": {"private": True, "zones": 6}, "worker": {"shared_files": True}, "security": {"session_manager": True},
}  # fmt: skip
GIVEN = {
    "network": {"vpc_id": "vpc-12345678", "subnet_ids": ["subnet-11111111", "subnet-22222222"]},
    "worker": {"shared_files": True},
}
PRIVATE = {"network": {"private": True}}


def template(**table):
    """The network and the files, with a group that launches in them and waits for what it is told to wait for."""
    made, settings = Template(Description="A network"), Settings.read(table)
    places = network.add(made, settings)
    shared = files.add(made, settings, places)
    launch = made.add_resource(
        ec2.LaunchTemplate(
            "Launch",
            LaunchTemplateData=ec2.LaunchTemplateData(ImageId="ami-12345678", SecurityGroupIds=[places.security_group]),
        )
    )
    made.add_resource(
        autoscaling.AutoScalingGroup(
            "Group",
            MinSize="0",
            MaxSize="1",
            VPCZoneIdentifier=places.subnets,
            LaunchTemplate=autoscaling.LaunchTemplateSpecification(
                LaunchTemplateId=Ref(launch), Version=GetAtt(launch, "LatestVersionNumber")
            ),
            DependsOn=[*places.ready, *(shared.mounts if shared else [])],
        )
    )
    return json.loads(made.to_json())


def deployed(region="eu-west-1", made=None, **table):
    """The resources as CloudFormation would make them there: conditions decided, pseudo parameters filled in."""
    made = made or template(**table)
    partition = {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(region.rpartition("-")[0].rpartition("-")[0], "aws")
    pseudo = {"AWS::Region": region, "AWS::Partition": partition, "AWS::AccountId": "111111111111"}

    def resolve(value):
        if isinstance(value, list):
            return [item for item in map(resolve, value) if item != {"Ref": "AWS::NoValue"}]
        if not isinstance(value, dict):
            return value
        match list(value.items()):
            case [("Ref", name)]:
                return pseudo.get(name, value)
            case [("Fn::Sub", str(text))]:
                return re.sub(r"\$\{(AWS::\w+)\}", lambda place: pseudo.get(place[1], place[0]), text)
            case [("Fn::If", [title, yes, no])]:
                return resolve(yes if resolve(made["Conditions"][title]) else no)
            case [("Fn::Equals", [one, other])]:
                return resolve(one) == resolve(other)
            case [("Fn::Or", some)]:
                return any(map(resolve, some))
            case [("Fn::Not", [other])]:
                return not resolve(other)
            case [("Fn::GetAZs", "")]:
                return ZONES[region]
            case [("Fn::Select", [number, some])]:
                return resolve(some)[int(number)]
        return {key: resolve(item) for key, item in value.items()}

    found = made["Resources"].items()
    return {t: resolve(r) for t, r in found if "Condition" not in r or resolve(made["Conditions"][r["Condition"]])}


def of_type(kind, resources):
    return {title: r["Properties"] for title, r in resources.items() if r["Type"] == kind}


def named(value):
    """The titles of resources that something refers to."""
    if isinstance(value, list):
        return set().union(*map(named, value))
    if not isinstance(value, dict):
        return set()
    here = {value["Ref"]} if "Ref" in value else {value["Fn::GetAtt"][0]} if "Fn::GetAtt" in value else set()
    depends = value.get("DependsOn", [])
    return here.union({depends} if isinstance(depends, str) else depends, *map(named, value.values()))


# Zones


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_gets_a_subnet_in_every_zone_that_it_has_and_in_no_other(region):
    subnets = of_type("AWS::EC2::Subnet", deployed(region, network={"zones": 6}))

    assert sorted(s["AvailabilityZone"] for s in subnets.values()) == ZONES[region]


@pytest.mark.parametrize("region, zones", [("us-west-1", 2), ("cn-north-1", 2), ("eu-west-1", 3), ("us-east-1", 3)])
def test_three_zones_are_asked_for_and_fewer_taken(region, zones):
    found = deployed(region)

    assert found["Group"]["Properties"]["VPCZoneIdentifier"] == [{"Ref": f"Subnet{n + 1}"} for n in range(zones)]


@pytest.mark.parametrize("table", [{}, {"network": {"zones": 6}}, EVERYTHING, GIVEN], ids=str)
def test_nothing_refers_to_what_a_region_lacks(table):
    made = template(**table)
    for region in REGIONS:
        found = deployed(region, made)

        assert named(found) - {"AWS::StackName"} <= set(found), region


def test_nothing_is_conditional_where_every_region_has_it():
    assert "Conditions" not in template(network={"zones": 2}, worker={"shared_files": True})
    assert set(template()["Conditions"]) == {"Zone3"}


def test_what_launches_waits_for_the_route_of_a_zone_that_may_be_missing():
    """DependsOn must name what exists in every region; a reference in the group's metadata need not."""
    here, there = deployed("eu-west-1"), deployed("us-west-1")

    assert "Subnet2Routes" in here["Group"]["DependsOn"]
    assert here["WorkerSecurityGroup"]["Metadata"] == {"WaitsFor": [{"Ref": "Subnet3Routes"}]}
    assert there["WorkerSecurityGroup"]["Metadata"] == {"WaitsFor": [""]}
    assert here["Launch"]["Properties"]["LaunchTemplateData"]["SecurityGroupIds"] == [{"Ref": "WorkerSecurityGroup"}]


def test_subnets_lie_in_the_block_and_beside_each_other():
    found = deployed("us-east-1", network={"zones": 6, "cidr": "10.7.0.0/20"})
    blocks = [ipaddress.ip_network(s["CidrBlock"]) for s in of_type("AWS::EC2::Subnet", found).values()]

    assert len(blocks) == 6
    assert all(block.subnet_of(ipaddress.ip_network("10.7.0.0/20")) for block in blocks)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(blocks, 2))


# Ways in and out


@pytest.mark.parametrize("table", [{}, PRIVATE, {"network": GIVEN["network"]}], ids=str)
def test_nothing_comes_in_to_the_workers_and_only_https_goes_out(table):
    group = deployed(**table)["WorkerSecurityGroup"]["Properties"]

    assert "SecurityGroupIngress" not in group
    assert [(rule["FromPort"], rule["ToPort"]) for rule in group["SecurityGroupEgress"]] == [(443, 443)]


def test_public_subnets_have_a_way_out_and_private_ones_none():
    ways = {"AWS::EC2::InternetGateway", "AWS::EC2::NatGateway", "AWS::EC2::Route", "AWS::EC2::VPCGatewayAttachment"}
    public, private = deployed(), deployed(**PRIVATE)

    assert {r["Type"] for r in public.values()} & ways and "RouteOut" in public["Group"]["DependsOn"]
    assert not {r["Type"] for r in private.values()} & ways
    assert all(s["MapPublicIpOnLaunch"] for s in of_type("AWS::EC2::Subnet", public).values())
    assert not any(s["MapPublicIpOnLaunch"] for s in of_type("AWS::EC2::Subnet", private).values())


def test_going_private_keeps_the_subnets():
    """New ones could not be made beside them: their blocks are the same."""
    created_with = ("AvailabilityZone", "CidrBlock", "VpcId")
    public, private = (of_type("AWS::EC2::Subnet", deployed(**table)) for table in ({}, PRIVATE))

    assert list(public) == list(private)
    assert all(public[title][key] == private[title][key] for title in public for key in created_with)


def services(found):
    return {e["ServiceName"]: e for e in of_type("AWS::EC2::VPCEndpoint", found).values()}


@pytest.mark.parametrize("table", [{}, PRIVATE], ids=str)
def test_s3_and_dynamodb_are_reached_over_the_route_table(table):
    found = services(deployed(**table))

    for service in ("s3", "dynamodb"):
        endpoint = found[f"com.amazonaws.eu-west-1.{service}"]
        assert (endpoint["VpcEndpointType"], endpoint["RouteTableIds"]) == ("Gateway", [{"Ref": "Routes"}])


def interfaces(found):
    return {name: e for name, e in services(found).items() if e["VpcEndpointType"] == "Interface"}


def test_private_instances_reach_each_service_that_they_call_and_wait_for_it():
    found = deployed(**PRIVATE)
    endpoints = interfaces(found)

    assert set(endpoints) == {
        f"com.amazonaws.eu-west-1.{service}"
        for service in ("ecr.api", "ecr.dkr", "ecs", "ecs-agent", "ecs-telemetry", "logs", "sns", "sqs")
    }
    for endpoint in endpoints.values():
        assert endpoint["PrivateDnsEnabled"] is True
        assert endpoint["SubnetIds"] == found["Group"]["Properties"]["VPCZoneIdentifier"]
        assert endpoint["SecurityGroupIds"] == [{"Ref": "EndpointSecurityGroup"}]
    titles = {title for title, e in of_type("AWS::EC2::VPCEndpoint", found).items() if e in endpoints.values()}
    assert titles <= set(found["Group"]["DependsOn"])
    assert interfaces(deployed()) == {}


def test_only_the_workers_reach_the_endpoints():
    (rule,) = deployed(**PRIVATE)["EndpointSecurityGroup"]["Properties"]["SecurityGroupIngress"]

    assert (rule["FromPort"], rule["ToPort"]) == (443, 443)
    assert rule["SourceSecurityGroupId"] == {"Ref": "WorkerSecurityGroup"}


def test_session_manager_adds_its_endpoints():
    more = interfaces(deployed(**PRIVATE, security={"session_manager": True}))

    assert set(more) - set(interfaces(deployed(**PRIVATE))) == {
        "com.amazonaws.eu-west-1.ssm", "com.amazonaws.eu-west-1.ssmmessages",
    }  # fmt: skip


@pytest.mark.parametrize(
    "region, chinese", [("us-gov-west-1", set()), ("cn-northwest-1", {"ecr.api", "ecr.dkr", "sqs"})]
)
def test_endpoints_have_the_names_of_their_partition(region, chinese):
    found = services(deployed(region, **PRIVATE))

    assert {name.split(f".{region}.")[1] for name in found if name.startswith("cn.com.amazonaws.")} == chinese
    assert all(re.fullmatch(rf"(cn\.)?com\.amazonaws\.{region}\.[a-z.0-9-]+", name) for name in found)


def lets(policy, account, action, resource):
    """Whether an endpoint policy lets a principal of this account pass; the two conditions that there are."""
    return any(
        statement["Action"] in ("*", action)
        and re.fullmatch(statement["Resource"].replace("*", ".*"), resource)
        and statement.get("Condition") in (None, {"StringEquals": {"aws:PrincipalAccount": account}})
        for statement in policy["Statement"]
    )


@pytest.mark.parametrize("region, partition", [("eu-west-1", "aws"), ("cn-north-1", "aws-cn")])
def test_credentials_of_another_account_are_of_no_use_in_private_subnets(region, partition):
    found = services(deployed(region, **PRIVATE))
    s3 = found.pop(f"com.amazonaws.{region}.s3")["PolicyDocument"]
    ours, other = "111111111111", "222222222222"

    for name, endpoint in found.items():
        if not name.endswith(("ecs-agent", "ecs-telemetry")):
            assert lets(endpoint["PolicyDocument"], ours, "any:Thing", "arn:any"), name
            assert not lets(endpoint["PolicyDocument"], other, "any:Thing", "arn:any"), name
    upload = f"arn:{partition}:s3:::a-bucket/key"
    layer = f"arn:{partition}:s3:::prod-{region}-starport-layer-bucket/layer"
    assert lets(s3, ours, "s3:PutObject", upload) and not lets(s3, other, "s3:PutObject", upload)
    assert lets(s3, other, "s3:GetObject", layer) and not lets(s3, other, "s3:PutObject", layer)


# Shared files


def shared(region="eu-west-1", **table):
    return deployed(region, **{"worker": {"shared_files": True}, **table})


def test_there_is_no_file_system_unless_it_is_asked_for():
    assert not [r for r in deployed().values() if r["Type"].startswith("AWS::EFS::")]


def test_files_are_encrypted_at_rest_and_on_the_way_and_nobody_mounts_unnamed():
    system = shared()["SharedFiles"]["Properties"]
    policy = system["FileSystemPolicy"]["Statement"]

    assert system["Encrypted"] is True
    # A policy without any Allow: only a role that may mount can, and not by every way.
    assert {statement["Effect"] for statement in policy} == {"Deny"}
    assert all("elasticfilesystem:ClientMount" in s["Action"] and s["Principal"] == {"AWS": "*"} for s in policy)
    assert [s["Condition"]["Bool"] for s in policy] == [
        {"aws:SecureTransport": "false"}, {"elasticfilesystem:AccessedViaMountTarget": "false"},
    ]  # fmt: skip


def test_files_outlive_the_stack():
    system = shared()["SharedFiles"]

    assert (system["DeletionPolicy"], system["UpdateReplacePolicy"]) == ("Retain", "Retain")
    assert system["Properties"]["BackupPolicy"] == {"Status": "ENABLED"}


CHANGES = [
    {"security": {"customer_key": False}}, {"network": {"private": True}}, {"network": {"zones": 1}},
    {"network": GIVEN["network"]}, {"tags": {"team": "imaging"}}, {"profile": "groups"},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("title", ["SharedFiles", "SharedFilesAccess"])
def test_no_change_of_settings_makes_another_file_system(title, change):
    before, after = shared()[title], shared(**change)[title]
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", before["Type"]).schema

    keys = {path.split("/")[2] for path in schema["createOnlyProperties"]}
    assert {"KmsKeyId", "Encrypted"} <= keys or {"RootDirectory", "PosixUser"} <= keys
    assert all(before["Properties"].get(key) == after["Properties"].get(key) for key in keys)


def test_a_customer_key_does_not_touch_the_files():
    """KmsKeyId can only be set when a file system is made."""
    assert shared(security={"customer_key": True}) == shared(security={"customer_key": False})
    assert "KmsKeyId" not in shared()["SharedFiles"]["Properties"]


@pytest.mark.parametrize("region, zones", [("us-west-1", 2), ("eu-west-1", 3)])
def test_every_subnet_has_its_mount_target_and_tasks_wait_for_it(region, zones):
    found = shared(region)
    mounts = of_type("AWS::EFS::MountTarget", found)

    assert [m["SubnetId"] for m in mounts.values()] == found["Group"]["Properties"]["VPCZoneIdentifier"]
    assert len(mounts) == zones
    waited_for = {*found["Group"]["DependsOn"], *named(found["SharedFilesAccess"]["Metadata"])}
    assert {*mounts, "WorkersReachFiles"} <= waited_for


def test_given_subnets_have_mount_targets_too():
    mounts = of_type("AWS::EFS::MountTarget", deployed(**GIVEN))

    assert [m["SubnetId"] for m in mounts.values()] == GIVEN["network"]["subnet_ids"]


def test_workers_and_nobody_else_reach_the_files():
    found = shared()
    group, way = found["FilesSecurityGroup"]["Properties"], found["WorkersReachFiles"]["Properties"]

    (rule,) = group["SecurityGroupIngress"]
    assert (rule["FromPort"], rule["ToPort"], rule["SourceSecurityGroupId"]) == (
        2049, 2049, {"Ref": "WorkerSecurityGroup"},
    )  # fmt: skip
    assert (way["GroupId"], way["DestinationSecurityGroupId"]) == (
        {"Ref": "WorkerSecurityGroup"}, {"Ref": "FilesSecurityGroup"},
    )  # fmt: skip
    assert (way["FromPort"], way["ToPort"]) == (2049, 2049)
    assert [m["SecurityGroups"] for m in of_type("AWS::EFS::MountTarget", found).values()] == [
        [{"Ref": "FilesSecurityGroup"}]
    ] * 3


def test_files_belong_to_the_user_in_the_workers_image():
    dockerfile = Path(__file__).parents[1].joinpath("ecs-tasks/gpu-worker/Dockerfile").read_text()
    access = shared()["SharedFilesAccess"]["Properties"]

    assert access["PosixUser"]["Uid"] == re.search(r"useradd .*--uid (\d+)", dockerfile)[1]
    assert access["RootDirectory"]["CreationInfo"]["OwnerUid"] == access["PosixUser"]["Uid"]


# The whole stack


@pytest.fixture(scope="module")
def everything():
    """The cluster with every option on."""
    asset = Asset("an-asset", "0" * 64)
    settings = Settings.load(Path(__file__).with_name("everything.toml"))
    return json.loads(STACKS["cluster"](settings, Assets(asset, asset, asset, asset)).to_json())


def test_whatever_a_role_on_the_instances_may_call_has_an_endpoint(everything):
    found = deployed(made=everything)
    allowed = {
        action.split(":")[0]
        for role in ("InstanceRole", "WorkerRole", "ExecutionRole")
        for policy in found[role]["Properties"]["Policies"]
        for statement in policy["PolicyDocument"]["Statement"]
        for action in statement["Action"]
    }
    reached = {name.split(".")[3] for name in services(found)}

    # KMS is called by the services that encrypt; EFS is mounted, at an address in the VPC.
    assert allowed - {"kms", "elasticfilesystem"} <= reached


def test_nothing_in_the_stack_refers_to_what_a_region_lacks(everything):
    for region in REGIONS:
        found = deployed(region, everything)
        names = {name for name in named(found) if not name.startswith("AWS::")}

        assert names <= {*found, *everything["Parameters"]}, region


# Judges


def lint(made, tmp_path):
    paths = []
    for number, one in enumerate(made):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(one))
    said = subprocess.run(
        [Path(sys.executable).with_name("cfn-lint"), "-e", "-x", "E3012:strict=true",
         "-r", "us-east-1", "us-west-1", "us-gov-west-1", "cn-north-1", "eu-central-2", "-t", *paths],
        capture_output=True, text=True,
    )  # fmt: skip
    return said.stdout


def test_cfn_lint_has_nothing_to_say_in_any_partition(tmp_path):
    tables = [{}, {"network": {"zones": 1}}, PRIVATE, EVERYTHING, GIVEN]

    assert lint([template(**table) for table in tables], tmp_path) == ""


def test_cfn_lint_would_see_a_dependence_on_a_zone_that_may_be_missing(tmp_path):
    made = template()
    made["Resources"]["Group"]["DependsOn"].append("Subnet3Routes")

    assert "'Subnet3Routes' will not exist when condition 'Zone3' is False" in lint([made], tmp_path)
