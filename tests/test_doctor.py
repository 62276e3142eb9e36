"""What `build.py doctor` says of an account: the judgements alone, and the command against a real API."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import build
from ops import doctor
from ops.doctor import COULD_NOT_LOOK, OK, PROBLEM, Offered
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
    finding = doctor.weigh_quota("spot", "g", limit, 8, "compute.max_units", [LARGE, SMALL])

    assert finding.state == state
    assert said in finding.what
    assert "L-3819A6DF" in finding.what
    assert state == OK or "--quota-code L-3819A6DF --desired-value 64" in finding.do


def test_a_quota_counts_whole_instances():
    four_gpus = INSTANCE_TYPES["g5.12xlarge"]

    assert doctor.vcpus_for(5, four_gpus) == 2 * 48
    assert "allow 4 of 5 units" in doctor.weigh_quota("spot", "g", 95, 5, "compute.max_units", [four_gpus]).what


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
    assert doctor.QUOTAS[market, doctor.family(name, market)][0] == code


def test_pools_that_do_not_exist_are_named():
    there = {("g5.xlarge", "a"), ("g5.xlarge", "b"), ("p5en.48xlarge", "a")}

    gone, rest = doctor.weigh_pools(["g5.xlarge", "p5e.48xlarge", "p5en.48xlarge"], ["a", "b"], there)

    assert (gone.state, "p5e.48xlarge" in gone.what) == (PROBLEM, True)
    assert (rest.state, "3 of 6" in rest.what, "p5en.48xlarge in b" in rest.what) == (OK, True, True)


def test_a_task_is_held_against_what_ecs_registers():
    sizes = {"g4dn.xlarge": SMALL, "g5.2xlarge": INSTANCE_TYPES["g5.2xlarge"]}

    (fits,) = doctor.weigh_task(Worker(), sizes)
    (memory,) = doctor.weigh_task(Worker(memory_mib=16_000), sizes)  # 16 GiB, less what the kernel and ECS keep
    (cpu,) = doctor.weigh_task(Worker(cpu=4097), sizes)

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

    unsold, differs = doctor.weigh_types([*((name, "spot") for name in offered), ("g6.xlarge", "on-demand")], offered)

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

    finding = doctor.weigh_image("/a/parameter", image | change, 60)

    assert finding.state == state
    assert what in finding.what


def test_given_subnets_must_be_there_in_the_vpc_and_in_zones_of_their_own():
    zones = {"subnet-1": ("vpc-1", "a"), "subnet-2": ("vpc-1", "a"), "subnet-3": ("vpc-2", "b")}

    said = [one.what for one in doctor.weigh_subnets("vpc-1", ["subnet-1", "subnet-2", "subnet-3", "subnet-4"], zones)]

    assert said == [
        "subnet-3 is in vpc-2, not in vpc-1",
        "subnet-4 does not exist in this region",
        "subnet-1, subnet-2 are all in a: a Spot Fleet takes one subnet of a zone",
    ]


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
    assert doctor.principal_of(arn) == principal


@pytest.mark.parametrize(
    "name, profile", [("cluster", "fleet"), ("cluster", "groups"), ("image", "fleet"), ("batch", "fleet")]
)
def test_every_service_of_the_template_has_an_action_that_is_asked_for(name, profile):
    settings = Settings.load(ROOT / "tests/everything.toml").model_copy(update={"profile": profile})
    template = STACKS[name](settings, assets()).to_dict()
    services = {resource["Type"].split("::")[1].lower() for resource in template["Resources"].values()}
    prefixes = {"efs": "elasticfilesystem", "applicationautoscaling": "application-autoscaling"}

    asked = {action.partition(":")[0] for action in doctor.actions_for(settings, name)}

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

    def with_subnets(*subnets: str) -> tuple[int, str]:
        file = tmp_path / "given.toml"
        file.write_text(f'[network]\nvpc_id = "{vpc}"\nsubnet_ids = {json.dumps(subnets)}\n')
        return examine(cloud, "--settings", str(file))

    assert with_subnets(one, other)[0] == 0
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
