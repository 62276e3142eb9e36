import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner

import build
from judges.filled import filled
from localcloud.imagebuilder import Build, ImageBuilder
from localcloud.world import World
from ops.ami import Baker, CannotBake, Image, changes
from templates.image import COMPONENTS, MOST_DATA
from templates.settings import BadSettings, Settings
from templates.stacks import STACKS
from tests.stacks_make import GIVEN_VPC, IMAGE, assets, stack

ROOT = Path(__file__).parents[1]
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
PIPELINE = "arn:aws:imagebuilder:eu-west-1:111122223333:image-pipeline/mine"
RECIPE = "arn:aws:imagebuilder:eu-west-1:111122223333:image-recipe/mine/1.0.3"
OLD, NEW = (f"arn:aws:imagebuilder:eu-west-1:111122223333:image/mine/1.0.3/{number}" for number in (1, 2))
WORKER = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/gpu-worker:7"


def image(**table):
    return stack(table, name="image")


def p(template, title):
    return template["Resources"][title]["Properties"]


def of_type(template, kind):
    return {title for title, one in template["Resources"].items() if one["Type"] == kind}


# The template


def test_it_starts_from_the_newest_image_of_ecs_at_each_build():
    recipe = p(image(), "Recipe")

    assert recipe["ParentImage"] == "ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/gpu/recommended/image_id"
    assert not re.search(r"ami-[0-9a-f]{8}", json.dumps(image()))


def test_the_cluster_takes_the_parameter_that_a_build_writes():
    name = p(image(), "Goal")["Distributions"][0]["SsmParameterConfigurations"][0]["ParameterName"]

    assert image()["Outputs"]["AmiParameter"]["Value"] == name
    assert stack({})["Parameters"]["AmiId"]["Type"] == "AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>"


def test_nothing_of_it_costs_before_a_build():
    free = ("AWS::ImageBuilder::", "AWS::IAM::", "AWS::Logs::", "AWS::EC2::")
    private = image(network={"private": True})

    assert all(one["Type"].startswith(free) for one in image()["Resources"].values())
    assert "Schedule" not in p(image(), "Pipeline")
    for title in of_type(private, "AWS::EC2::VPCEndpoint"):
        assert p(private, title)["VpcEndpointType"] == "Gateway", "others cost all month"


def test_it_is_built_in_a_vpc_that_is_given():
    template = image(network=GIVEN_VPC)

    assert of_type(template, "AWS::EC2::VPC") == set()
    assert p(template, "Infrastructure")["SubnetId"] == GIVEN_VPC["subnet_ids"][0]
    assert p(template, "WorkerSecurityGroup")["VpcId"] == GIVEN_VPC["vpc_id"]


def test_a_machine_that_builds_may_fetch_what_is_baked_and_nothing_else_of_the_bucket():
    template = stack(IMAGE, name="image")
    [policy] = p(template, "BuildRole")["Policies"]
    fetched = [
        filled(template, one["Resource"], {"AssetsBucket": "b"})[0]
        for one in policy["PolicyDocument"]["Statement"]
        if one["Action"] == ["s3:GetObject"]
    ]

    assert fetched == [
        f"arn:aws:s3:::b/{key}" for key in (assets().agent.key, *IMAGE["image"]["apps"]["octave"].values())
    ]


def test_settings_say_what_is_kept_and_where_it_is_built():
    template = image(image={"keep": 5, "in_use_days": 7, "instance_types": ["m7i.large"]})
    [detail] = p(template, "CleanUp")["PolicyDetails"]

    assert detail["Filter"] == {"Type": "COUNT", "Value": 5}
    assert detail["ExclusionRules"]["Amis"]["LastLaunched"] == {"Unit": "DAYS", "Value": 7}
    assert p(template, "Infrastructure")["InstanceTypes"] == ["m7i.large"]


def test_apps_are_placed_only_where_there_are_some():
    assert "AppsComponent" not in image()["Resources"]
    assert "AppsComponent" in stack(IMAGE, name="image")["Resources"]


def test_every_script_is_used_and_fits():
    files = {file.name for file in (ROOT / "templates/components").iterdir()}
    used = {name for one in COMPONENTS for names in (one.build, one.validate, one.test) for name in names}
    template = stack(IMAGE, name="image")
    data = [filled(template, p(template, title)["Data"]) for title in of_type(template, "AWS::ImageBuilder::Component")]

    assert files == used | {"disk.sh", "shared.sh"}
    assert max(map(len, data)) < MOST_DATA
    assert not [text for text in data if re.search(r"\{[A-Z_]+\}", text)], "a place that nobody filled"


@pytest.mark.parametrize(
    ("case", "table", "said"),
    [
        (
            "a family without an archive",
            {"image": {"apps": {"octave": {"g4dn": "a.tar", "g5": "b.tar"}}}},
            "image.apps.octave: an archive for each family of instance_types, none for g6",
        ),
        ("no archive", {"image": {"apps": {"octave": {"g4dn": "a.zip"}}}}, "must look like"),
        ("a key that is a command", {"image": {"apps": {"octave": {"g4dn": "$(reboot).tar"}}}}, "must look like"),
        ("two things at /shared", {**IMAGE, "worker": {"shared_files": True}}, "image.apps: not with worker.shared_files"),
        (
            "types that EC2 chooses",
            {**IMAGE, "compute": {"attributes": {}}, "spot": {"allocation_strategy": "lowestPrice"}},
            "image.apps: only with compute.instance_types",
        ),
        ("none is kept", {"image": {"keep": 0}}, "image.keep: at least 1, got 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused(case, table, said):
    with pytest.raises(BadSettings) as refused:
        Settings.read(table)

    assert said in str(refused.value)


def test_workers_find_the_apps_at_shared_and_can_only_read_them():
    container = stack(IMAGE)["Resources"]["DefaultTask"]["Properties"]

    [volume] = [one for one in container["Volumes"] if one["Name"] == "shared"]
    [mount] = [one for one in container["ContainerDefinitions"][0]["MountPoints"] if one["SourceVolume"] == "shared"]
    assert volume["Host"] == {"SourcePath": "/shared"}
    assert mount == {"SourceVolume": "shared", "ContainerPath": "/shared", "ReadOnly": True}


# The local cloud


def test_an_instance_of_the_local_cloud_has_the_worker_that_was_baked_in(tmp_path):
    builder = ImageBuilder(World(tmp_path, "http://127.0.0.1:1"), None, None, None)
    template = image()
    for title in of_type(template, "AWS::ImageBuilder::Component"):
        builder.kept[title] = {"data": filled(template, p(template, title)["Data"], {"WorkerImage": WORKER})}
    builder.kept[RECIPE] = {"components": [{"componentArn": arn} for arn in builder.kept]}
    builder.builds[NEW] = Build(NEW, PIPELINE, RECIPE, {}, NOON, ami="ami-new")

    assert builder.pulled("ami-new") == {WORKER}
    assert builder.pulled("ami-of-ecs") == set()


# The command


class Cloud:
    """An account with one pipeline: a build has the statuses of `life`, one each time somebody looks."""

    region = "eu-west-1"

    def __init__(self, life=(), before=(), failure=None, digest="sha256:new", parent="ami-newsource"):
        self.life, self.before, self.failure = list(life), list(before), failure
        self.digest, self.parent = digest, parent
        self.started = None

    def client(self, service, region=None):
        return self

    def all(self, service, operation, key, **_):
        if operation == "list_stack_resources":
            return [{"LogicalResourceId": "Pipeline", "PhysicalResourceId": PIPELINE}]
        if operation == "list_image_pipeline_images":
            return self.before
        took = timedelta(minutes=20 if _["imageBuildVersionArn"] == OLD else 22)
        steps = {"status": "RUNNING", "totalStepCount": 14, "totalStepsSucceeded": 3}
        return [{**steps, "startTime": NOON.isoformat(), "endTime": (NOON + took).isoformat()}]

    def start_image_pipeline_execution(self, **asked):
        self.started = asked
        return {"imageBuildVersionArn": NEW}

    def get_image(self, imageBuildVersionArn):  # noqa: N803 - botocore's names
        status = self.life.pop(0) if len(self.life) > 1 else self.life[0]
        tags = self.started["tags"] if self.started else {}
        return {"image": shown(imageBuildVersionArn, status, "ami-new", self.failure, **tags)}

    def get_image_pipeline(self, **_):
        tags = {"spindrift:agent": "0123456789abcdef", "spindrift:worker": WORKER}
        return {"imagePipeline": {"imageRecipeArn": RECIPE, "imageTags": tags}}

    def get_image_recipe(self, **_):
        return {"imageRecipe": {"parentImage": "ssm:/aws/service/ecs/gpu"}}

    def get_parameter(self, Name):  # noqa: N803
        assert Name == "/aws/service/ecs/gpu"
        return {"Parameter": {"Value": self.parent}}

    def describe_images(self, **asked):
        if "repositoryName" in asked:
            assert asked["registryId"] == "111122223333" and asked["imageIds"] == [{"imageTag": "7"}]
            return {"imageDetails": [{"imageDigest": self.digest}]}
        [ami] = asked["ImageIds"]
        return {"Images": [{"BlockDeviceMappings": [{"Ebs": {"SnapshotId": f"snap-of-{ami}"}}]}]}

    def describe_snapshots(self, SnapshotIds):  # noqa: N803
        size = {"snap-of-ami-old": 12, "snap-of-ami-new": 15}[SnapshotIds[0]]
        return {"Snapshots": [{"FullSnapshotSizeInBytes": size * 2**30}]}


def shown(arn, status, ami, failure=None, **tags):
    state = {"status": status, **(failure or {})}
    amis = [{"region": "us-east-1", "image": "ami-elsewhere"}, {"region": "eu-west-1", "image": ami}]
    return {
        "arn": arn,
        "state": state,
        "tags": tags,
        "dateCreated": NOON.isoformat(),
        "outputResources": {"amis": amis},
    }


def before():
    tags = {"spindrift:source": "ami-oldsource", "spindrift:agent": "0123456789abcdef", "spindrift:worker": WORKER}
    return shown(OLD, "AVAILABLE", "ami-old", **tags, **{"spindrift:worker-digest": "sha256:old"})


def bake(cloud):
    """Start and follow a build, in no time: what the operator reads."""
    said, clock = [], [NOON]

    def pause(seconds):
        clock[0] += timedelta(seconds=seconds)

    baker = Baker(cloud, "mine", said.append, pause, lambda: clock[0])
    baker.follow(baker.start())
    return said


def test_a_build_is_followed_and_held_against_the_last():
    cloud = Cloud(["PENDING", "BUILDING", "BUILDING", "TESTING", "AVAILABLE"], [before()])
    said = bake(cloud)

    assert said[0] == f"{NEW} is being built"
    assert [line.split() for line in said[1:5]] == [
        ["0", "s", "PENDING", "3", "of", "14", "steps"],
        ["5", "s", "BUILDING", "3", "of", "14", "steps"],
        ["15", "s", "TESTING", "3", "of", "14", "steps"],
        ["20", "s", "AVAILABLE", "3", "of", "14", "steps"],
    ]
    facts = {line[:15].strip(): line[15:].split() for line in said[6:-1]}
    assert facts["source"] == ["ami-oldsource", "ami-newsource"]
    assert facts["agent"] == ["0123456789abcdef", "the", "same"]
    assert facts["worker's digest"] == ["sha256:old", "sha256:new"]
    assert facts["image"] == ["ami-old", "ami-new"]
    assert facts["stored"] == ["12.0", "GiB", "15.0", "GiB"]
    assert facts["took"] == ["20", "min", "22", "min"]
    assert said[-1].endswith("AmiId=/imagebuilder/mine/ami")


def test_what_it_was_made_of_is_written_on_the_image():
    cloud = Cloud(["AVAILABLE"])
    bake(cloud)

    assert cloud.started["tags"] == {
        "spindrift:source": "ami-newsource", "spindrift:agent": "0123456789abcdef", "spindrift:worker": WORKER,
        "spindrift:worker-digest": "sha256:new",
    }  # fmt: skip


def test_a_worker_that_ecr_does_not_have_is_not_waited_for():
    cloud = Cloud()
    cloud.describe_images = lambda **_: {"imageDetails": []}

    with pytest.raises(CannotBake, match="gpu-worker:7 is not in its registry"):
        bake(cloud)
    assert cloud.started is None


def test_a_registry_that_does_not_answer_keeps_nobody_from_building():
    cloud = Cloud(["AVAILABLE"])

    def refuse(**asked):
        if "repositoryName" in asked:
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "DescribeImages")
        return Cloud.describe_images(cloud, **asked)

    cloud.describe_images = refuse

    assert f"{WORKER}: its digest is unknown: AccessDeniedException: no" in bake(cloud)


def test_a_build_that_runs_is_followed_and_no_other_is_started():
    cloud = Cloud(["AVAILABLE"], [shown(NEW, "TESTING", "")])

    assert bake(cloud)[0] == f"{NEW} is being built already"
    assert cloud.started is None


def test_a_failed_build_says_which_step():
    where = {"componentArn": "component/mine-worker/1.0.0/1", "phaseName": "test", "stepName": "worker"}
    failure = {
        "reason": "a component failed",
        "failureContext": {"componentFailure": {**where, "errorMessage": "no such image"}},
    }

    with pytest.raises(
        CannotBake, match=r"FAILED: a component failed: component/mine-worker/1\.0\.0/1/test/worker: no such"
    ):
        bake(Cloud(["BUILDING", "FAILED"], failure=failure))


def test_what_is_unknown_is_not_said_to_be_the_same():
    nothing = Image("ami-1", {}, None, None)

    assert not any("the same" in line for line in changes(nothing, Image("ami-2", {}, None, None)))


def test_a_stack_of_another_kind_is_refused():
    cloud = Cloud()
    cloud.all = lambda *_, **__: [{"LogicalResourceId": "Cluster", "PhysicalResourceId": "spindrift"}]
    said = CliRunner().invoke(build.cli, ["ami", "--help"]).output

    with pytest.raises(Exception, match=r"mine in eu-west-1 is no stack of build/image\.json"):
        Baker(cloud, "mine", print)
    assert "python build.py ami --stack NAME --follow" in said


def test_its_description_begins_with_our_name():
    """`down` deletes nothing else."""
    assert all(STACKS[name](Settings(), assets()).to_dict()["Description"].startswith("Spindrift") for name in STACKS)
