"""The whole chain on the local cloud: the deployed template, real processes, real time. Nothing is ever lost."""

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from localcloud.control import Refused
from localcloud.image import REGISTRY
from localcloud.laptop import PROJECT, Laptop, laptop
from localcloud.proof import prove
from localcloud.scene import Scene, Window
from localcloud.uploads import PHOTOS, Upload, uploads
from tests.permissions import UNUSED, Grant, answers, deployed_grants, unused, wrong

pytestmark = [pytest.mark.story, pytest.mark.timeout(240)]
STACK = "story"
SPEED = 20
IMAGE = "slow-pictures:local"


@dataclass
class Story:
    cloud: Laptop
    build: Path
    image: str = ""
    """Id of the machine image that the stack was updated to."""
    outputs: dict[str, str] = field(default_factory=dict)
    files: list[Upload] = field(default_factory=list)
    """What was uploaded and is not proved yet."""
    proved: int = 0
    grants: dict[Grant, set[str]] = field(default_factory=lambda: defaultdict(set))
    """What the roles may do, and could do before the stack was updated."""
    _clients: dict[str, Any] = field(default_factory=dict)

    def deploy(self, **parameters: str) -> None:
        self.outputs = self.cloud.deploy(self.build, STACK, WorkerImage=f"{REGISTRY}/{IMAGE}", **parameters)
        self.window = Window(self.outputs, self.client, STACK)
        for grant, arns in deployed_grants(self.cloud, STACK, self.template).items():
            self.grants[grant] |= arns

    def client(self, service: str) -> Any:
        if service not in self._clients:
            self._clients[service] = self.cloud.client(service)
        return self._clients[service]

    @cached_property
    def template(self) -> dict[str, Any]:
        return json.loads((self.build / "cluster.json").read_text())

    def upload(self, folder: str, many: int = 12, seed: int = 1) -> None:
        """Put `many` pictures, five of them hostile, under a folder of their own."""
        self._put(Upload(f"{folder}/{file.key}", file.body, file.hostile) for file in uploads(many, seed))

    def upload_slow(self, folder: str, many: int = 8) -> None:
        """Put photographs that take seconds each, so that a worker is caught in the middle of one."""
        photo = (PHOTOS / "life.jpg").read_bytes()
        self._put(Upload(f"slow/{folder}/{number}.jpg", photo) for number in range(many))

    def _put(self, files: Iterable[Upload]) -> None:
        for file in files:
            self.client("s3").put_object(Bucket=self.outputs["UploadsBucket"], Key=file.key, Body=file.body)
            self.files.append(file)

    def busy_spot_instance(self) -> str:
        """The id of a Spot instance whose worker holds a job now."""
        scene = self.until(lambda scene: scene.busy & set(scene.pools), "a busy Spot instance")
        return min(scene.busy & set(scene.pools))

    def until(self, reached: Callable[[Scene], object], what: str, seconds: float = 90) -> Scene:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            scene = self.window.look()
            if reached(scene):
                return scene
            time.sleep(0.2)
        raise AssertionError(f"waited {seconds} s for {what}; last seen {scene}")

    def until_done(self) -> None:
        self.until(lambda scene: scene.finished >= self.proved + len(self.files), "every job finished")

    def until_zero(self) -> None:
        self.until(lambda scene: scene.at_zero, "nothing left running", 120)

    def running_job(self) -> dict[str, str]:
        """The record of a job that a worker holds now."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            items = self.client("dynamodb").scan(TableName=self.outputs["JobsTable"], ConsistentRead=True)["Items"]
            for item in items:
                if item["state"]["S"] == "RUNNING":
                    return {name: value.get("S") or value.get("N", "") for name, value in item.items()}
            time.sleep(0.02)
        raise AssertionError("no job was ever RUNNING")

    def record(self, job_id: str) -> dict[str, dict[str, str]]:
        table = self.client("dynamodb")
        return table.get_item(TableName=self.outputs["JobsTable"], Key={"job_id": {"S": job_id}})["Item"]

    def subjects(self, what: str) -> list[str]:
        """Of what something is told in the diary."""
        return [entry["subject"] for entry in self.cloud.remote.do("diary", what=what)]

    def instances(self) -> dict[str, dict[str, Any]]:
        """Every instance that ever was, by id."""
        pages = self.client("ec2").get_paginator("describe_instances").paginate()
        return {one["InstanceId"]: one for page in pages for held in page["Reservations"] for one in held["Instances"]}

    def jobs(self, prefix: str) -> list[dict[str, Any]]:
        """The records of what was uploaded under a prefix."""
        pages = self.client("dynamodb").get_paginator("scan").paginate(TableName=self.outputs["JobsTable"])
        return [item for page in pages for item in page["Items"] if item["key"]["S"].startswith(prefix)]

    def new_image(self) -> str:
        """Name of an SSM parameter of the operator's own, with another machine image than the stack has."""
        ssm, other = self.client("ssm"), "/aws/service/ecs/optimized-ami/amazon-linux-2/gpu/recommended/image_id"
        self.image = ssm.get_parameter(Name=other)["Parameter"]["Value"]
        ssm.put_parameter(Name="/gpu/image", Value=self.image, Type="String")
        return "/gpu/image"

    def joined(self) -> dict[str, tuple[str, str]]:
        """By instance id: the container instance's ARN and its status."""
        ecs, cluster = self.client("ecs"), self.outputs["ClusterName"]
        listed = ecs.list_container_instances(cluster=cluster)["containerInstanceArns"]
        told = ecs.describe_container_instances(cluster=cluster, containerInstances=listed)["containerInstances"]
        return {one["ec2InstanceId"]: (one["containerInstanceArn"], one["status"]) for one in told}

    def prove_nothing_lost(self) -> None:
        proof = prove(self.files, self.outputs, self.client)
        assert proof.lost == ()
        assert proof.double == ()
        self.proved += len(self.files)
        self.files.clear()


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Iterator[Story]:
    home = tmp_path_factory.mktemp("story")
    build = [sys.executable, "build.py", "--settings", str(PROJECT / "tests/slow.toml"), "--out", str(home / "build")]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    with laptop(home / "cloud", speed=SPEED, seed=3) as cloud:
        folder = str(PROJECT / "tests/story_image")
        cloud.remote.do("image/add", name=IMAGE, folder=folder, base="gpu-worker:local")
        story = Story(cloud, home / "build")
        story.deploy()
        yield story


@pytest.fixture
def story(deployed: Story) -> Iterator[Story]:
    """The deployed stack; after the test, everything it uploaded is accounted for."""
    yield deployed
    deployed.until_done()
    deployed.prove_nothing_lost()


def test_an_upload_becomes_a_result_and_the_system_returns_to_zero(story: Story):
    story.upload("plain")

    story.until_done()
    story.until_zero()


def test_a_notice_drains_the_instance_tops_up_and_moves_the_work(story: Story):
    story.upload_slow("notice")
    victim = story.busy_spot_instance()

    story.cloud.remote.do("market/reclaim", instance=victim)

    def ordered() -> list[int]:
        """On-Demand instances; called off again should Spot bring another in the meantime."""
        return [order["desired"] for order in story.cloud.remote.do("diary", what="group desired")]

    story.until(lambda _: victim in story.subjects("draining"), "DRAINING", 20)
    story.until(lambda _: any(ordered()), "a top-up", 20)


def test_a_worker_killed_in_mid_job_loses_nothing(story: Story):
    story.upload_slow("killed worker", 4)
    for _ in range(10):
        job = story.running_job()
        story.cloud.remote.do("task/kill", task=job["owner"].split("#")[0])
        if story.record(job["job_id"])["state"]["S"] == "RUNNING":
            break  # caught in the middle: nobody is left to finish this attempt

    story.until_done()

    after = story.record(job["job_id"])
    assert after["state"]["S"] == "SUCCEEDED"
    assert int(after["attempts"]["N"]) == int(job["attempts"]) + 1


def test_the_capacity_lambda_killed_in_mid_pass_loses_nothing(story: Story):
    story.upload_slow("killed capacity")
    resource = {"StackName": STACK, "LogicalResourceId": "CapacityFunction"}
    told = story.client("cloudformation").describe_stack_resource(**resource)["StackResourceDetail"]
    victim = story.busy_spot_instance()
    story.cloud.remote.do("market/reclaim", instance=victim)

    story.until(lambda _: _killed(story, told["PhysicalResourceId"]), "a pass to kill", 20)

    story.until(
        lambda _: victim in story.subjects("draining") + story.subjects("instance terminated"),
        "the notice heard",
        60,
    )


def test_everything_delivered_twice_happens_once(story: Story):
    story.cloud.remote.do("chaos/duplicates", rate=1.0)
    try:
        story.upload_slow("twice")
        victim = story.busy_spot_instance()
        story.cloud.remote.do("market/rebalance", instance=victim)
        story.cloud.remote.do("market/reclaim", instance=victim)
        story.until_done()
    finally:
        story.cloud.remote.do("chaos/duplicates", rate=0.0)


def test_an_instance_whose_agent_died_is_reclaimed_and_loses_nothing(story: Story):
    story.upload_slow("dead agent")
    victim = story.busy_spot_instance()

    story.cloud.remote.do("agent/kill", instance=victim)
    story.cloud.remote.do("market/reclaim", instance=victim)

    story.until(lambda _: victim in story.subjects("draining"), "DRAINING by way of EventBridge", 30)


def test_instances_that_were_to_leave_are_taken_back_when_there_is_work(story: Story):
    story.upload_slow("taken back")
    story.busy_spot_instance()
    leaving = {id_: arn for id_, (arn, status) in story.joined().items() if status == "ACTIVE"}

    # As the capacity Lambda leaves what it does not need any more.
    story.client("ec2").create_tags(Resources=[*leaving], Tags=[{"Key": "spindrift:surplus", "Value": "now"}])
    story.client("ecs").update_container_instances_state(
        cluster=story.outputs["ClusterName"], containerInstances=[*leaving.values()], status="DRAINING"
    )

    def back() -> list[str]:
        return [id_ for id_, (_, status) in story.joined().items() if id_ in leaving and status == "ACTIVE"]

    story.until(lambda _: back(), "one taken back", 20)


def test_another_machine_image_in_the_midst_of_work_is_a_new_fleet_and_loses_nothing(story: Story):
    story.upload_slow("new image")
    story.busy_spot_instance()
    before, old = story.instances(), story.outputs["SpotFleetId"]

    with ThreadPoolExecutor() as beside:
        update = beside.submit(story.deploy, AmiId=story.new_image())
        for number in count():
            story.upload_slow(f"new image {number}", 4)
            if update.done():
                break
            time.sleep(1.5)
    update.result()

    fleets = story.client("ec2").describe_spot_fleet_requests()["SpotFleetRequestConfigs"]
    alive = [one["SpotFleetRequestId"] for one in fleets if one["SpotFleetRequestState"] != "cancelled"]
    assert alive == [story.outputs["SpotFleetId"]]
    assert alive != [old]
    story.until_done()
    later = story.instances()
    assert {one["State"]["Name"] for id_, one in later.items() if id_ in before} <= {"shutting-down", "terminated"}
    assert {one["ImageId"] for id_, one in later.items() if id_ not in before} == {story.image}
    assert any(int(job["attempts"]["N"]) > 1 for job in story.jobs("slow/new image")), "nobody was interrupted"


def test_a_fleet_that_gets_nothing_is_made_up_for_and_left_again(story: Story):
    """And On-Demand, too, comes with the image that the stack has now."""
    story.until_zero()
    pools = story.cloud.remote.do("market/show")["pools"]
    for pool in pools:
        story.cloud.remote.do("market/capacity", pool=pool, instances=0)
    try:
        story.upload("dry")
        story.until(lambda scene: scene.on_demand_joined, "On-Demand after the operator's patience", 90)
        story.until_done()
    finally:
        for pool, held in pools.items():
            story.cloud.remote.do("market/capacity", pool=pool, instances=held["capacity"])
    running = [one for one in story.instances().values() if one["State"]["Name"] == "running"]
    assert {one["ImageId"] for one in running if "InstanceLifecycle" not in one} == {story.image}
    story.until_zero()


def test_in_the_end_everything_has_left_and_nothing_has_gone_wrong_unseen(story: Story):
    story.until_zero()

    assert story.subjects("fault") == []


def test_each_role_may_do_what_it_did_and_nothing_more(story: Story):
    asked = answers(story.cloud, STACK)
    found = wrong(story.grants, asked) + unused(story.grants, asked, UNUSED)

    assert not found, "\n".join(found)


def _killed(story: Story, function: str) -> bool:
    try:
        story.cloud.remote.do("lambda/kill", function=function)
    except Refused:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def _everything_is_set_up():
    if not Path(PROJECT / ".venv-aws/bin/aws").exists():
        pytest.skip("no .venv-aws: run `make setup`")
