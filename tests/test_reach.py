"""Who can reach what in a VPC, and what may not be deleted while something needs it: each lack is planted once."""

import copy

import pytest
from ec2_make import NOON, Cloud

from localcloud.launch import Blueprint, Subnet
from localcloud.network import HTTPS, INTERNET, NFS, Endpoint, Interface, Network, Origin

EVERYWHERE = {"CidrIp": "0.0.0.0/0"}
WORKER = Origin("subnet-a", ("sg-worker",), public=False)


def rule(port: int = HTTPS, ranges=(), groups=(), protocol: str = "tcp") -> dict:
    pairs = [{"GroupId": group} for group in groups]
    return {
        "IpProtocol": protocol,
        "FromPort": port,
        "ToPort": port,
        "IpRanges": [{"CidrIp": block} for block in ranges],
        "UserIdGroupPairs": pairs,
    }


def private() -> dict[str, list[dict]]:
    """A VPC without a way out, with one group for workers and one for what they call."""
    return {
        "subnet": [
            {"SubnetId": f"subnet-{zone}", "VpcId": "vpc-1", "CidrBlock": f"10.42.{place}.0/24"}
            for place, zone in enumerate("ab")
        ],
        "route-table": [
            {"RouteTableId": "rtb-main", "VpcId": "vpc-1", "Routes": [], "Associations": [{"Main": True}]},
            {
                "RouteTableId": "rtb-1",
                "VpcId": "vpc-1",
                "Routes": [],
                "Associations": [{"SubnetId": "subnet-a"}, {"SubnetId": "subnet-b"}],
            },
        ],
        "internet-gateway": [],
        "security-group": [
            {
                "GroupId": "sg-worker",
                "VpcId": "vpc-1",
                "IpPermissions": [],
                "IpPermissionsEgress": [rule(ranges=["0.0.0.0/0"]), rule(NFS, groups=["sg-files"])],
            },
            {
                "GroupId": "sg-ends",
                "VpcId": "vpc-1",
                "IpPermissions": [rule(groups=["sg-worker"])],
                "IpPermissionsEgress": [],
            },
            {
                "GroupId": "sg-files",
                "VpcId": "vpc-1",
                "IpPermissions": [rule(NFS, groups=["sg-worker"])],
                "IpPermissionsEgress": [],
            },
        ],
        "mount-target": [],
    }


def public() -> dict[str, list[dict]]:
    vpc = private()
    vpc["internet-gateway"] = [{"InternetGatewayId": "igw-1", "Attachments": [{"VpcId": "vpc-1"}]}]
    vpc["route-table"][1]["Routes"] = [{"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-1"}]
    return vpc


def endpoint(service: str, **changes) -> Endpoint:
    values = {
        "id": f"vpce-{service}",
        "kind": "Interface",
        "service": service,
        "service_name": f"com.amazonaws.us-east-1.{service}",
        "vpc": "vpc-1",
        "created": NOON,
        "groups": ("sg-ends",),
        "private_dns": True,
        "interfaces": (Interface("eni-1", "subnet-a", ("sg-ends",), "vpc_endpoint", "", "10.42.0.9"),),
    }
    return Endpoint(**{**values, **changes})


def network(tmp_path, vpc, *endpoints: Endpoint) -> Network:
    made = Network(Cloud(tmp_path).instances, records=lambda kind: copy.deepcopy(vpc[kind]))
    made.endpoints = {one.id: one for one in endpoints}
    return made


def test_a_private_subnet_reaches_what_has_an_endpoint_and_nothing_else(tmp_path):
    here = network(tmp_path, private(), endpoint("ecs"), endpoint("ecr.api"))

    assert here.reaches(WORKER, "ecs")
    assert here.reaches(Origin("subnet-b", ("sg-worker",), public=False), "ecs"), "the name resolves in the whole VPC"
    assert here.reaches(WORKER, "ecr")
    assert not here.reaches(WORKER, "sqs")
    assert not here.reaches(WORKER, INTERNET)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda vpc, end: vpc["security-group"][1].update(IpPermissions=[]),
        lambda vpc, end: vpc["security-group"][1].update(IpPermissions=[rule(80, groups=["sg-worker"])]),
        lambda vpc, end: vpc["security-group"][1].update(IpPermissions=[rule(ranges=["10.43.0.0/16"])]),
        lambda vpc, end: vpc["security-group"][0].update(IpPermissionsEgress=[rule(ranges=["127.0.0.1/32"])]),
        lambda vpc, end: setattr(end, "private_dns", False),
        lambda vpc, end: setattr(end, "vpc", "vpc-2"),
        lambda vpc, end: setattr(end, "deleting", True),
    ],
    ids=["nobody in", "another port", "another block", "nothing out", "no name", "another VPC", "going"],
)
def test_whatever_is_wrong_with_an_endpoint_it_is_not_reached(tmp_path, break_it):
    vpc, end = private(), endpoint("ecs")
    break_it(vpc, end)

    assert not network(tmp_path, vpc, end).reaches(WORKER, "ecs")


@pytest.mark.parametrize(
    "who", [{"ranges": ["10.42.0.0/16"]}, {"ranges": ["0.0.0.0/0"]}, {"protocol": "-1", "groups": ["sg-worker"]}]
)
def test_a_rule_may_let_in_a_block_or_everything(tmp_path, who):
    vpc = private()
    vpc["security-group"][1]["IpPermissions"] = [rule(**who)]

    assert network(tmp_path, vpc, endpoint("ecs")).reaches(WORKER, "ecs")


def test_a_gateway_endpoint_serves_the_subnets_of_its_route_tables(tmp_path):
    s3 = endpoint("s3", kind="Gateway", tables=("rtb-1",), interfaces=(), policy={"Statement": []})
    here = network(tmp_path, private(), s3)

    assert here.reaches(WORKER, "s3")
    assert here.policy(WORKER, "s3") == {"Statement": []}
    s3.tables = ("rtb-main",)
    assert not here.reaches(WORKER, "s3")
    assert here.policy(WORKER, "s3") is None


@pytest.mark.parametrize(
    "change, there",
    [
        (lambda vpc: None, True),
        (lambda vpc: vpc["internet-gateway"][0].update(Attachments=[]), False),
        (lambda vpc: vpc["route-table"][1].update(Routes=[]), False),
        (lambda vpc: vpc["security-group"][0].update(IpPermissionsEgress=[rule(groups=["sg-ends"])]), False),
    ],
    ids=["all there", "detached", "no route", "not let out"],
)
def test_a_public_address_a_route_and_a_gateway_lead_out(tmp_path, change, there):
    vpc = public()
    change(vpc)
    here = network(tmp_path, vpc)

    assert here.reaches(Origin("subnet-a", ("sg-worker",), public=True), "sqs") == there
    assert not here.reaches(WORKER, "sqs"), "without a public address nobody answers"


def test_a_nat_gateway_needs_no_public_address(tmp_path):
    vpc = private()
    vpc["route-table"][1]["Routes"] = [{"DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": "nat-1"}]

    assert network(tmp_path, vpc).reaches(WORKER, INTERNET)


def test_private_dns_leaves_no_other_way(tmp_path):
    """With an endpoint that lets nobody in, the service is not reached over the internet gateway either."""
    vpc = public()
    vpc["security-group"][1]["IpPermissions"] = []

    assert not network(tmp_path, vpc, endpoint("ecs")).reaches(Origin("subnet-a", ("sg-worker",), True), "ecs")


def test_files_are_reached_when_both_groups_say_so(tmp_path):
    vpc = private()
    assert network(tmp_path, vpc).meets(WORKER, ["sg-files"], NFS, ["10.42.0.7"])
    vpc["security-group"][0]["IpPermissionsEgress"] = [rule(ranges=["0.0.0.0/0"])]
    assert not network(tmp_path, vpc).meets(WORKER, ["sg-files"], NFS, ["10.42.0.7"])


# What is in use


def launched(here: Network):
    blueprint = Blueprint(template_id="lt-1", version=1, security_groups=("sg-worker",))
    subnet = Subnet("subnet-a", "us-east-1a", "vpc-1", public=True)
    return here._instances.launch("g5.xlarge", "on-demand", subnet, blueprint, "group", {}, NOON)


def test_an_instance_is_in_the_way_until_it_is_terminated(tmp_path):
    here = network(tmp_path, public())
    guards = here.guards()
    one = launched(here)

    for kind, name in (
        ("AWS::EC2::Subnet", "subnet-a"),
        ("AWS::EC2::SecurityGroup", "sg-worker"),
        ("AWS::EC2::VPCGatewayAttachment", "IGW|vpc-1"),
    ):
        assert "DependencyViolation" in guards[kind](name)
    assert guards["AWS::EC2::Subnet"]("subnet-b") is None

    here._instances.terminate(one, "api", NOON)
    here._instances.world.advance(60)
    assert guards["AWS::EC2::Subnet"]("subnet-a") is None
    assert guards["AWS::EC2::VPCGatewayAttachment"]("IGW|vpc-1") is None


@pytest.mark.parametrize(
    "kind, name, obstacle",
    [
        ("AWS::EC2::Subnet", "subnet-a", "eni-1"),
        ("AWS::EC2::Subnet", "subnet-b", "eni-efs"),
        ("AWS::EC2::SecurityGroup", "sg-ends", "eni-1"),
        ("AWS::EC2::SecurityGroup", "sg-files", "eni-efs, sg-worker"),
        ("AWS::EC2::InternetGateway", "igw-1", "vpc-1"),
        ("AWS::EC2::RouteTable", "rtb-1", "subnet-a"),
        ("AWS::EC2::VPC", "vpc-1", "vpce-ecs, rtb-1"),
    ],
)
def test_what_is_needed_is_not_deleted(tmp_path, kind, name, obstacle):
    vpc = public()
    mount = {
        "MountTargetId": "fsmt-1",
        "FileSystemId": "fs-1",
        "NetworkInterfaceId": "eni-efs",
        "IpAddress": "10.42.1.7",
    }
    vpc["mount-target"] = [{**mount, "SubnetId": "subnet-b", "SecurityGroups": ["sg-files"]}]

    said = network(tmp_path, vpc, endpoint("ecs")).guards()[kind](name)

    assert said.startswith("DependencyViolation")
    assert obstacle in said
