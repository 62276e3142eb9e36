"""The whole chain on the local cloud: the deployed template, real processes, real time. Nothing is ever lost."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from localcloud.control import Refused
from localcloud.laptop import PROJECT, Laptop, laptop
from localcloud.proof import prove
from localcloud.scene import Scene, Window
from localcloud.uploads import PHOTOS, Upload, uploads

pytestmark = [pytest.mark.story, pytest.mark.timeout(240)]
STACK = "story"
SPEED = 10


@dataclass
class Story:
    cloud: Laptop
    outputs: dict[str, str]
    window: Window
    files: list[Upload] = field(default_factory=list)
    """What was uploaded and is not proved yet."""
    proved: int = 0

    def upload(self, folder: str, count: int = 12, seed: int = 1) -> None:
        """Put `count` pictures, five of them hostile, under a folder of their own."""
        s3 = self.cloud.client("s3")
        for file in uploads(count, seed):
            placed = Upload(f"{folder}/{file.key}", file.body, file.hostile)
            s3.put_object(Bucket=self.outputs["UploadsBucket"], Key=placed.key, Body=placed.body)
            self.files.append(placed)

    def upload_heavy(self, folder: str, count: int = 14) -> None:
        """Put whole photographs: seconds of work each, so that a worker is caught in the middle of one."""
        photo = (PHOTOS / "life.jpg").read_bytes()
        for number in range(count):
            placed = Upload(f"{folder}/{number}.jpg", photo)
            self.cloud.client("s3").put_object(Bucket=self.outputs["UploadsBucket"], Key=placed.key, Body=photo)
            self.files.append(placed)

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
            time.sleep(0.3)
        raise AssertionError(f"waited {seconds} s for {what}; last seen {scene}")

    def until_done(self) -> None:
        self.until(lambda scene: scene.finished >= self.proved + len(self.files), "every job finished")

    def until_zero(self) -> None:
        self.until(lambda scene: scene.at_zero, "nothing left running", 120)

    def running_job(self) -> dict[str, str]:
        """The record of a job that a worker holds now."""
        deadline = time.monotonic() + 90
        dynamodb = self.cloud.client("dynamodb")
        while time.monotonic() < deadline:
            items = dynamodb.scan(TableName=self.outputs["JobsTable"], ConsistentRead=True)["Items"]
            for item in items:
                if item["state"]["S"] == "RUNNING":
                    return {name: value.get("S") or value.get("N", "") for name, value in item.items()}
            time.sleep(0.02)
        raise AssertionError("no job was ever RUNNING")

    def record(self, job_id: str) -> dict[str, dict[str, str]]:
        table = self.cloud.client("dynamodb")
        return table.get_item(TableName=self.outputs["JobsTable"], Key={"job_id": {"S": job_id}})["Item"]

    def prove_nothing_lost(self) -> None:
        proof = prove(self.files, self.outputs, self.cloud.client)
        assert proof.lost == ()
        assert proof.double == ()
        self.proved += len(self.files)
        self.files.clear()


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Iterator[Story]:
    home = tmp_path_factory.mktemp("story")
    build = [sys.executable, "build.py", "--settings", str(PROJECT / "tests/story.toml"), "--out", str(home / "build")]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    with laptop(home / "cloud", speed=SPEED, seed=3) as cloud:
        outputs = cloud.deploy(home / "build", STACK)
        yield Story(cloud, outputs, Window(outputs, cloud.client, STACK))


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


def test_a_fleet_that_gets_nothing_is_made_up_for_and_left_again(story: Story):
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
    story.until_zero()


def test_a_notice_drains_the_instance_tops_up_and_moves_the_work(story: Story):
    story.upload_heavy("notice")
    victim = story.busy_spot_instance()

    story.cloud.remote.do("market/reclaim", instance=victim)

    story.until(lambda _: victim in _subjects(story, "draining"), "DRAINING", 10)
    story.until(lambda scene: scene.on_demand_running, "a top-up", 30)


def test_a_worker_killed_in_mid_job_loses_nothing(story: Story):
    story.upload_heavy("killed worker")
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
    story.upload_heavy("killed capacity")
    function = json.loads(
        story.cloud.aws(
            "cloudformation",
            "describe-stack-resource",
            "--stack-name",
            STACK,
            "--logical-resource-id",
            "CapacityFunction",
        )
    )["StackResourceDetail"]["PhysicalResourceId"]
    victim = story.busy_spot_instance()
    story.cloud.remote.do("market/reclaim", instance=victim)

    story.until(lambda _: _killed(story, function), "a pass to kill", 20)

    story.until(
        lambda _: victim in _subjects(story, "draining") + _subjects(story, "instance terminated"),
        "the notice heard",
        60,
    )


def test_everything_delivered_twice_happens_once(story: Story):
    story.cloud.remote.do("chaos/duplicates", rate=1.0)
    try:
        story.upload_heavy("twice")
        story.cloud.remote.do("market/reclaim", instance=story.busy_spot_instance())
        story.until_done()
    finally:
        story.cloud.remote.do("chaos/duplicates", rate=0.0)


def test_an_instance_whose_agent_died_is_reclaimed_and_loses_nothing(story: Story):
    story.upload_heavy("dead agent")
    victim = story.busy_spot_instance()

    story.cloud.remote.do("agent/kill", instance=victim)
    story.cloud.remote.do("market/reclaim", instance=victim)

    story.until(lambda _: victim in _subjects(story, "draining"), "DRAINING by way of EventBridge", 30)


def test_in_the_end_everything_has_left_and_nothing_has_gone_wrong_unseen(story: Story):
    story.until_zero()

    assert _subjects(story, "fault") == []


def _killed(story: Story, function: str) -> bool:
    try:
        story.cloud.remote.do("lambda/kill", function=function)
    except Refused:
        return False
    return True


def _subjects(story: Story, what: str) -> list[str]:
    return [entry["subject"] for entry in story.cloud.remote.do("diary", what=what)]


@pytest.fixture(scope="session", autouse=True)
def _everything_is_set_up():
    if not Path(PROJECT / ".venv-aws/bin/aws").exists():
        pytest.skip("no .venv-aws: run `make setup`")
