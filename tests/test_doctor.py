"""What `build.py doctor` says of an account: the judgements alone, and the command against a real API."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import build
from ops import findings, permissions
from ops.findings import COULD_NOT_LOOK, OK, PROBLEM, Offered
from ops.subnets import Subnet, called, described, weigh_subnets, weigh_ways_out
from templates.instance_types import INSTANCE_TYPES
from templates.settings import Settings, Worker
from templates.stacks import STACKS
from tests.cloud import Laptop, running_cloud
from tests.stacks_make import assets

ROOT = Path(__file__).parents[1]
SMALL, LARGE = INSTANCE_TYPES["g4dn.xlarge"], INSTANCE_TYPES["g4dn.2xlarge"]


@pytest.mark.parametrize(
    "limit, state, said",
    [
        (64, OK, "takes 32 to 64"),
        (63, PROBLEM, "allow 7 to 8 of 8 units"),
        (4, PROBLEM, "allow 0 to 1 of 8 units"),
        (3, PROBLEM, "less than one instance"),
        (0, PROBLEM, "not one instance will ever start"),
    ],
)
def test_a_quota_is_told_in_units(limit, state, said):
    finding = findings.weigh_quota("spot", "g", limit, 8, "compute.max_units", [LARGE, SMALL])

    assert finding.state == state
    assert said in finding.what
    assert "L-3819A6DF" in finding.what
    assert state == OK or "--quota-code L-3819A6DF --desired-value 64" in finding.do


def test_a_quota_counts_whole_instances():
    four_gpus = INSTANCE_TYPES["g5.12xlarge"]

    assert findings.vcpus_for(5, four_gpus) == 2 * 48
    assert "allow 4 of 5 units" in findings.weigh_quota("spot", "g", 95, 5, "compute.max_units", [four_gpus]).what


@pytest.mark.parametrize(
    "name, market, code",
    [
        ("g6e.xlarge", "spot", "L-3819A6DF"),
        ("gr6.4xlarge", "on-demand", "L-DB2E81BA"),
        ("p4d.24xlarge", "spot", "L-7212CCBC"),
        ("p5en.48xlarge", "spot", "L-C4BD4855"),
        ("p5.48xlarge", "on-demand", "L-417A185B"),
    ],
)
def test_every_family_counts_against_its_own_quota(name, market, code):
    assert findings.QUOTAS[market, findings.family(name, market)][0] == code


def test_pools_that_do_not_exist_are_named():
    there = {("g5.xlarge", "a"), ("g5.xlarge", "b"), ("p5en.48xlarge", "a")}

    gone, rest = findings.weigh_pools(["g5.xlarge", "p5e.48xlarge", "p5en.48xlarge"], ["a", "b"], there)

    assert (gone.state, "p5e.48xlarge" in gone.what) == (PROBLEM, True)
    assert (rest.state, "3 of 6" in rest.what, "p5en.48xlarge in b" in rest.what) == (OK, True, True)


def test_a_task_is_held_against_what_ecs_registers():
    sizes = {"g4dn.xlarge": SMALL, "g5.2xlarge": INSTANCE_TYPES["g5.2xlarge"]}

    (fits,) = findings.weigh_task(Worker(), sizes)
    (memory,) = findings.weigh_task(Worker(memory_mib=16_000), sizes)  # 16 GiB, less what the kernel and ECS keep
    (cpu,) = findings.weigh_task(Worker(cpu=4097), sizes)

    assert (fits.state, memory.state, cpu.state) == (OK, PROBLEM, PROBLEM)
    assert "g4dn.xlarge" in memory.what
    assert "lower worker.cpu to 4096" in cpu.do


def test_a_type_that_differs_from_our_table_or_is_not_sold_as_spot_is_told():
    known = INSTANCE_TYPES["g5.xlarge"]
    offered = {
        "g4dn.xlarge": Offered(LARGE, frozenset({"spot"})),
        "g5.xlarge": Offered(known, frozenset({"on-demand"})),
        "g6.xlarge": Offered(INSTANCE_TYPES["g6.xlarge"], frozenset({"spot", "on-demand"})),
    }

    unsold, differs = findings.weigh_types([*((name, "spot") for name in offered), ("g6.xlarge", "on-demand")], offered)

    assert "templates/instance_types.py" in differs.do
    assert "g5.xlarge: EC2 does not sell it as spot" in unsold.what


@pytest.mark.parametrize(
    "change, state, what",
    [
        ({}, OK, "30 GiB on a root volume of 60"),
        ({"Architecture": "arm64"}, PROBLEM, "for arm64"),
        ({"RootDeviceName": "/dev/sda1"}, PROBLEM, "/dev/sda1"),
        (
            {"BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 100}}]},
            PROBLEM,
            "of 100 GiB; compute.root_volume_gib is 60",
        ),
    ],
)
def test_the_image_must_fit_the_root_volume(change, state, what):
    disk = {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 30}}
    image = {"ImageId": "ami-1", "Architecture": "x86_64", "RootDeviceName": "/dev/xvda", "BlockDeviceMappings": [disk]}

    finding = findings.weigh_image("/a/parameter", image | change, 60)

    assert finding.state == state
    assert what in finding.what


def test_given_subnets_must_be_there_in_the_vpc_and_in_zones_of_their_own():
    places = {"subnet-1": ("vpc-1", "a"), "subnet-2": ("vpc-1", "a"), "subnet-3": ("vpc-2", "b")}
    there = {name: Subnet(id=name, vpc=vpc, zone=zone, public=True) for name, (vpc, zone) in places.items()}

    said = [one.what for one in weigh_subnets("vpc-1", ["subnet-1", "subnet-2", "subnet-3", "subnet-4"], there)]

    assert said == [
        "subnet-3 is in vpc-2, not in vpc-1",
        "subnet-4 does not exist in this region",
        "subnet-1, subnet-2 are all in a: a Spot Fleet takes one subnet of a zone",
    ]


def leaving(public=True, endpoints=(), **route):
    """A subnet with a route table of its own, in a VPC whose main one leads to the internet. `route`: to everywhere."""
    internet = {"DestinationCidrBlock": "0.0.0.0/0", "GatewayId": "igw-main", "State": "active"}
    local = {"DestinationCidrBlock": "10.0.0.0/16", "GatewayId": "local", "State": "active"}
    routes = [local, {"DestinationCidrBlock": "0.0.0.0/0", "State": "active", **route}] if route else [local]
    tables = [
        {"RouteTableId": "main", "VpcId": "vpc-1", "Associations": [{"Main": True}], "Routes": [local, internet]},
        {"RouteTableId": "own", "VpcId": "vpc-1", "Associations": [{"SubnetId": "subnet-1"}], "Routes": routes},
    ]
    subnet = {"SubnetId": "subnet-1", "VpcId": "vpc-1", "AvailabilityZone": "a", "MapPublicIpOnLaunch": public}
    return described([subnet], tables, endpoints)["subnet-1"]


def endpoint(service, kind="Interface", **parts):
    """An endpoint as EC2 describes it; a gateway is in the subnet's own route table."""
    how = {"PrivateDnsEnabled": True} if kind == "Interface" else {"RouteTableIds": ["own"]}
    return {"ServiceName": f"com.amazonaws.x-1.{service}", "VpcId": "vpc-1", "State": "available", **how, **parts}


@pytest.mark.parametrize(
    "case, subnet, state, said",
    [
        ("by NAT", leaving(public=False, NatGatewayId="nat-1"), OK, "subnet-1 by nat-1"),
        ("to the internet", leaving(GatewayId="igw-1"), OK, "subnet-1 by igw-1"),
        ("without an address", leaving(public=False, GatewayId="igw-1"), PROBLEM, "its instances get none"),
        ("nothing", leaving(), PROBLEM, "no route to 0.0.0.0/0, and no endpoint for ecr.api, s3, sqs"),
        (
            "a gateway that was deleted",
            leaving(NatGatewayId="nat-1", State="blackhole"),
            PROBLEM,
            "nat-1, which has gone",
        ),
        ("another network", leaving(TransitGatewayId="tgw-1"), COULD_NOT_LOOK, "what is behind that is not looked at"),
        (
            "by endpoints",
            leaving(False, [endpoint("ecr.api"), endpoint("sqs"), endpoint("s3", "Gateway")]),
            OK,
            "subnet-1 by endpoints",
        ),
        (
            "by endpoints in China",
            leaving(
                False,
                [
                    endpoint("ecr.api", ServiceName="cn.com.amazonaws.cn-north-1.ecr.api"),
                    *(endpoint("sqs"), endpoint("s3")),
                ],
            ),
            OK,
            "subnet-1 by endpoints",
        ),
        (
            "endpoints that do not serve it",
            leaving(
                False,
                [
                    endpoint("ecr.api", PrivateDnsEnabled=False),
                    endpoint("ecr.api", VpcId="vpc-2"),
                    endpoint("sqs", State="pendingAcceptance"),
                    endpoint("s3", "Gateway", RouteTableIds=["main"]),
                ],
            ),
            PROBLEM,
            "no endpoint for ecr.api, s3, sqs",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_subnet_must_lead_to_what_instances_call(case, subnet, state, said):
    (finding,) = weigh_ways_out([subnet], {"ecr.api", "s3", "sqs"})

    assert (finding.state, said in finding.what) == (state, True), finding.what
    assert (state == PROBLEM) == bool(finding.do)


def test_a_subnet_without_a_route_table_of_its_own_has_the_main_one_of_its_vpc():
    table = {"RouteTableId": "main", "VpcId": "vpc-1", "Associations": [{"Main": True}], "Routes": []}
    other = {**table, "VpcId": "vpc-2", "Routes": [{"DestinationCidrBlock": "0.0.0.0/0", "NatGatewayId": "nat-2"}]}
    subnet = {"SubnetId": "subnet-1", "VpcId": "vpc-1", "AvailabilityZone": "a", "MapPublicIpOnLaunch": False}

    assert described([subnet], [other, table], [])["subnet-1"].way == ""
    assert described([{**subnet, "VpcId": "vpc-2"}], [other, table], [])["subnet-1"].way == "nat-2"


@pytest.mark.parametrize("name", ["cluster", "batch"])
def test_what_a_given_subnet_must_lead_to_has_an_endpoint_in_private_subnets_of_our_own(name):
    """Of the templates themselves: what they make there is known to be enough, by the stories."""
    settings = Settings.load(ROOT / "tests/everything.toml")
    private = settings.model_copy(update={"network": settings.network.model_copy(update={"private": True})})
    template = STACKS[name](private, assets()).to_dict()
    made = {
        str(one["Properties"]["ServiceName"]).rpartition("${AWS::Region}.")[2].rstrip("'}] ")
        for one in template["Resources"].values()
        if one["Type"] == "AWS::EC2::VPCEndpoint"
    }

    assert called(private, name) <= made
    assert name == "batch" or called(private, name) == made


@pytest.mark.parametrize(
    "arn, principal",
    [
        ("arn:aws:iam::123456789012:user/people/ann", ("user", "ann")),
        ("arn:aws:sts::123456789012:assumed-role/Deployer/session", ("role", "Deployer")),
        ("arn:aws:iam::123456789012:root", ("root", "")),
        ("arn:aws:sts::123456789012:federated-user/ann", ("federated-user", "ann")),
    ],
)
def test_whoever_calls_is_known_to_iam_by_kind_and_name(arn, principal):
    assert permissions.principal_of(arn) == principal


@pytest.mark.parametrize(
    "name, profile", [("cluster", "fleet"), ("cluster", "groups"), ("image", "fleet"), ("batch", "fleet")]
)
def test_every_service_of_the_template_has_an_action_that_is_asked_for(name, profile):
    settings = Settings.load(ROOT / "tests/everything.toml").model_copy(update={"profile": profile})
    template = STACKS[name](settings, assets()).to_dict()
    services = {resource["Type"].split("::")[1].lower() for resource in template["Resources"].values()}
    prefixes = {"efs": "elasticfilesystem", "applicationautoscaling": "application-autoscaling"}

    asked = {action.partition(":")[0] for action in permissions.actions_for(settings, name)}

    assert {prefixes.get(service, service) for service in services} <= asked


@pytest.fixture(scope="module")
def cloud():
    with running_cloud() as laptop:
        yield laptop


def examine(cloud: Laptop, *arguments: str, **environment: str) -> tuple[int, str]:
    """The command's exit status and what it printed."""
    result = CliRunner(env={**cloud.environment, "AWS_CONFIG_FILE": "/dev/null", **environment}).invoke(
        build.cli, ["doctor", *arguments]
    )
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def lines(output: str, state: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(state)]


def test_an_account_in_which_all_is_well(cloud):
    code, said = examine(cloud)

    assert (code, lines(said, PROBLEM), lines(said, COULD_NOT_LOOK)) == (0, [], [])
    assert "15 of 15" in said
    assert "30 GiB on a root volume of 60" in said


def test_a_new_accounts_quota_of_nothing_is_found(cloud):
    cloud.remote.do("market/quota", vcpus=0)
    try:
        code, said = examine(cloud)
    finally:
        cloud.remote.do("market/quota", vcpus=None)

    assert code == 1
    assert len(lines(said, PROBLEM)) == 1
    assert "L-3819A6DF): 0 vCPUs" in said


def test_types_by_attributes_are_those_that_ec2_finds(cloud):
    code, said = examine(cloud, "--settings", str(ROOT / "tests/everything.toml"))

    assert code == 0, said
    assert "27 pools today" in said
    assert "p3" not in said


@pytest.mark.parametrize("template", ["image", "batch"])
def test_an_account_in_which_all_is_well_for_the_other_stacks(cloud, template):
    code, said = examine(cloud, "--template", template)

    assert (code, lines(said, PROBLEM), lines(said, COULD_NOT_LOOK)) == (0, [], []), said
    assert "30 GiB on a root volume of 60" in said
    assert "SpotFleet" not in said


def test_for_batch_each_quota_is_held_against_what_it_may_buy(cloud, tmp_path):
    file = tmp_path / "attributes.toml"
    file.write_text("""
        compute.attributes.gpu_names = ["t4"]
        spot.allocation_strategy = "priceCapacityOptimized"
        on_demand = { instance_types = ["g5.xlarge"], max_units = 4, urgency = "spot-only" }
    """)
    for market in ("spot", "on-demand"):
        cloud.remote.do("market/quota", market=market, vcpus=8)
    try:
        code, said = examine(cloud, "--template", "batch", "--settings", str(file))
    finally:
        for market in ("spot", "on-demand"):
            cloud.remote.do("market/quota", market=market, vcpus=None)

    assert (code, len(lines(said, PROBLEM))) == (1, 2), said
    assert "compute.max_units = 8 takes 32" in said
    assert "g4dn" not in said, "Batch buys the types of On-Demand on Spot too"
    assert "on_demand.max_units = 4 takes 16" in said


def test_an_image_is_baked_where_one_instance_of_its_type_may_run(cloud, tmp_path):
    file = tmp_path / "large.toml"
    file.write_text('image.instance_types = ["g4dn.xlarge", "g5.4xlarge", "g99.large"]\n')
    cloud.remote.do("market/quota", market="on-demand", vcpus=8)
    try:
        code, said = examine(cloud, "--template", "image", "--settings", str(file))
    finally:
        cloud.remote.do("market/quota", market="on-demand", vcpus=None)

    assert code == 1
    large, unknown = lines(said, PROBLEM)
    assert "a build takes 16 (g5.4xlarge)" in large and "--desired-value 16" in said
    assert "g99.large: EC2 has none" in unknown


def test_an_image_of_ones_own_must_be_there(cloud):
    cloud.client("ssm").put_parameter(Name="/imagebuilder/gone/ami", Value="ami-0123456789abcdef0", Type="String")

    for parameter, why in (("/imagebuilder/gone/ami", "InvalidAMIID.NotFound"), ("/mine", "ParameterNotFound")):
        code, said = examine(cloud, "--ami", parameter)
        (problem,) = lines(said, PROBLEM)
        assert (code, f"{parameter}: {why}" in problem, "build.py ami bakes one" in said) == (1, True, True)


def test_a_role_that_a_service_makes_itself_is_no_problem(cloud):
    iam, name = cloud.client("iam"), "AWSServiceRoleForBatch"
    iam.delete_service_linked_role(RoleName=name)
    try:
        code, said = examine(cloud, "--template", "batch")
    finally:
        iam.create_service_linked_role(AWSServiceName="batch.amazonaws.com")

    assert (code, f"{name}: not there yet; Batch makes it" in said) == (0, True)


def test_a_missing_role_is_made_only_when_asked(cloud):
    iam, name = cloud.client("iam"), "AWSServiceRoleForEC2SpotFleet"
    iam.delete_service_linked_role(RoleName=name)

    before, told = examine(cloud)
    still_missing, _ = examine(cloud)
    fixed, made = examine(cloud, "--fix")
    after, _ = examine(cloud)

    assert (before, still_missing, fixed, after) == (1, 1, 0, 0)
    assert "aws iam create-service-linked-role --aws-service-name spotfleet.amazonaws.com" in told
    assert made.index("--fix makes it now") < made.index(f"{name}: made")


def test_what_the_caller_may_not_look_at_is_neither_good_nor_bad(cloud):
    code, said = examine(cloud, **credentials(cloud, "ann", "sts:GetCallerIdentity"))

    assert code == 1
    assert lines(said, PROBLEM) == []
    unseen = lines(said, COULD_NOT_LOOK)
    assert {line.removeprefix(COULD_NOT_LOOK).strip().partition(":")[0] for line in unseen} >= {
        "permissions",
        "service-linked roles",
        "instance types",
        "image of the instances",
    }


def test_what_the_caller_may_not_do_is_named(cloud):
    allowed = ["iam:Simulate*", "iam:Get*", "ec2:*", "servicequotas:*", "ssm:*"]
    code, said = examine(cloud, **credentials(cloud, "ben", *allowed))

    assert code == 1
    (denied,) = lines(said, PROBLEM)
    assert "sqs:CreateQueue" in denied
    assert "ec2:" not in denied


def test_images_are_looked_up_in_ecr_and_nowhere_else(cloud):
    registry = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
    ecr = cloud.client("ecr")
    ecr.create_repository(repositoryName="doctored")
    ecr.put_image(repositoryName="doctored", imageManifest='{"schemaVersion": 2}', imageTag="v1")

    there, _ = examine(cloud, "--image", f"{registry}/doctored:v1")
    wrong_tag, told = examine(cloud, "--image", f"{registry}/doctored:v2")
    no_repository, _ = examine(cloud, "--image", f"{registry}/nothing:v1")
    elsewhere, unseen = examine(cloud, "--image", "docker.io/somebody/worker:v1")

    assert (there, wrong_tag, no_repository, elsewhere) == (0, 1, 1, 1)
    assert "is not there" in told
    assert "other registries are not looked into" in lines(unseen, COULD_NOT_LOOK)[0]


def test_the_assets_bucket_must_be_there(cloud):
    cloud.client("s3").create_bucket(Bucket="assets-of-ours")

    there, _ = examine(cloud, "--bucket", "assets-of-ours")
    gone, told = examine(cloud, "--bucket", "assets-of-nobody")

    assert (there, gone) == (0, 1)
    assert "aws s3 mb s3://assets-of-nobody" in told


def test_a_given_vpc_is_looked_at(cloud, tmp_path):
    ec2 = cloud.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    made = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{place}.0/24", AvailabilityZone=f"us-east-1{zone}")
        for place, zone in enumerate("aab")
    ]
    one, same_zone, other = [answer["Subnet"]["SubnetId"] for answer in made]

    def with_subnets(*subnets: str, template: str = "cluster", image: str = "") -> tuple[int, str]:
        file = tmp_path / "given.toml"
        file.write_text(f'[network]\nvpc_id = "{vpc}"\nsubnet_ids = {json.dumps(subnets)}\n')
        return examine(cloud, "--settings", str(file), "--template", template, "--image", image)

    closed, said = with_subnets(one, other)
    assert closed == 1
    assert [line.split()[1] for line in lines(said, PROBLEM)] == [one, other]
    assert "no route to 0.0.0.0/0, and no endpoint for dynamodb, ecr.api, " in said
    _, said = with_subnets(one, template="image")
    assert "imagebuilder" in lines(said, PROBLEM)[0]
    _, said = with_subnets(one, image="docker.io/somebody/worker:v1")
    assert "only ECR can be reached" in lines(said, PROBLEM)[1]

    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(VpcId=vpc, InternetGatewayId=gateway)
    (table,) = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["RouteTables"]
    ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    ec2.modify_subnet_attribute(SubnetId=one, MapPublicIpOnLaunch={"Value": True})
    code, said = with_subnets(one, other)
    assert code == 1
    (problem,) = lines(said, PROBLEM)
    assert f"{other} has no way out: {gateway} serves public addresses" in problem
    assert with_subnets(one, other, template="image")[0] == 0, "a build is in the first one"

    ec2.modify_subnet_attribute(SubnetId=other, MapPublicIpOnLaunch={"Value": True})
    open_, said = with_subnets(one, other)
    assert open_ == 0, said
    assert f"ways out: {one} by {gateway}, {other} by {gateway}" in said
    code, said = with_subnets(one, same_zone, "subnet-0123456789abcdef0")
    assert code == 1
    assert f"{one}, {same_zone} are all in us-east-1a" in said
    assert "subnet-0123456789abcdef0 does not exist" in said


def test_without_credentials_or_region_nothing_else_is_asked(cloud):
    refused, said = examine(cloud, AWS_ACCESS_KEY_ID="AKIAAAAAAAAAAAAAAAAA")
    nowhere, told = examine(cloud, AWS_DEFAULT_REGION="", AWS_REGION="")

    assert (refused, nowhere) == (1, 1)
    assert "InvalidClientTokenId" in said
    assert "region: none is set" in told
    assert len(lines(said, PROBLEM)) == len(lines(told, PROBLEM)) == 1
    assert lines(said, OK) == lines(told, OK) == []


def test_wrong_settings_are_the_operators_mistake(cloud, tmp_path):
    file = tmp_path / "wrong.toml"
    file.write_text("[compute]\nmax_units = 0\n")

    code, said = examine(cloud, "--settings", str(file))

    assert (code, "compute.max_units" in said) == (2, True)


def credentials(cloud: Laptop, user: str, *actions: str) -> dict[str, str]:
    """The environment of a user who may do these actions and nothing else."""
    iam = cloud.client("iam")
    iam.create_user(UserName=user)
    statement = {"Effect": "Allow", "Action": actions, "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName=user, PolicyName="its", PolicyDocument=document)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
