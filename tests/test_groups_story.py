"""Profile `groups` with its Lambda on the local cloud: it grows, makes up for Spot, replaces, empties; nothing is lost."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from localcloud.demo import shorten_the_grace
from localcloud.laptop import PROJECT, Laptop, laptop
from localcloud.proof import prove
from localcloud.scene import Scene, Window
from localcloud.uploads import Upload, uploads
from tests.permissions import UNUSED, answers, deployed_grants, unused, wrong

pytestmark = [pytest.mark.story, pytest.mark.timeout(240)]
SPEED = 30
STACK = "herd"
SETTINGS = PROJECT / "tests" / "groups.toml"


@dataclass
class Story:
    cloud: Laptop
    build: Path
    outputs: dict[str, str]
    window: Window
    files: list[Upload] = field(default_factory=list)

    def upload(self, folder: str, many: int, seed: int) -> None:
        for file in uploads(many, seed):
            mine = Upload(f"{folder}/{file.key}", file.body, file.hostile)
            self.files.append(mine)
            self.cloud.client("s3").put_object(Bucket=self.outputs["UploadsBucket"], Key=mine.key, Body=mine.body)

    def until(self, reached: Callable[[Scene], object], what: str, seconds: float = 90) -> Scene:
        deadline = time.monotonic() + seconds
        while not reached(scene := self.window.look()):
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}; last seen {scene}"
            time.sleep(0.2)
        return scene

    def until_done(self) -> None:
        self.until(lambda scene: scene.finished >= len(self.files), "every job finished")

    def subjects(self, what: str) -> list[str]:
        """Of what something is told in the diary."""
        return [entry["subject"] for entry in self.cloud.remote.do("diary", what=what)]

    def joined(self) -> dict[str, str]:
        """ARN by instance id, of those that are ACTIVE."""
        ecs, cluster = self.cloud.client("ecs"), self.outputs["ClusterName"]
        listed = ecs.list_container_instances(cluster=cluster, status="ACTIVE")["containerInstanceArns"]
        if not listed:
            return {}
        told = ecs.describe_container_instances(cluster=cluster, containerInstances=listed)["containerInstances"]
        return {one["ec2InstanceId"]: one["containerInstanceArn"] for one in told}

    def drain(self, instance: str) -> None:
        """As an operator does who wants it idle now: to its group it is there, and to us it is of no use any more."""
        ecs, cluster, arn = self.cloud.client("ecs"), self.outputs["ClusterName"], self.joined()[instance]
        ecs.update_container_instances_state(cluster=cluster, containerInstances=[arn], status="DRAINING")
        for task in ecs.list_tasks(cluster=cluster, containerInstance=arn)["taskArns"]:
            ecs.stop_task(cluster=cluster, task=task)

    def passes(self) -> list[dict[str, Any]]:
        """What the capacity Lambda said of its passes."""
        named = {"StackName": STACK, "LogicalResourceId": "CapacityLogs"}
        group = self.cloud.client("cloudformation").describe_stack_resource(**named)["StackResourceDetail"]
        logs = self.cloud.client("logs").get_paginator("filter_log_events")
        pages = logs.paginate(logGroupName=group["PhysicalResourceId"])
        lines = (event["message"] for page in pages for event in page["events"] if event["message"].startswith("{"))
        return [told for line in lines if (told := json.loads(line))["event"] == "capacity"]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    home = tmp_path_factory.mktemp("herd")
    build = [sys.executable, "build.py", "--settings", str(SETTINGS), "--out", str(home / "build")]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    with laptop(home / "cloud", speed=SPEED, seed=4) as cloud:
        outputs = cloud.deploy(home / "build", STACK)
        shorten_the_grace(cloud, STACK, SPEED)
        yield Story(cloud, home / "build", outputs, Window(outputs, cloud.client, STACK))


def test_a_new_stack_s_alarms_that_there_are_no_jobs_do_nothing(story: Story):
    def told() -> list[str]:
        alarms = story.cloud.client("cloudwatch").describe_alarms(StateValue="ALARM")["MetricAlarms"]
        return [one["AlarmName"] for one in alarms if "-DefaultNoJobsAlarm-" in one["AlarmName"]]

    story.until(lambda _: told() and story.passes(), "the alarm")

    assert {one["why"] for one in story.passes()} == {"no work"}
    assert story.window.look().at_zero


def test_spot_grows_and_replaces_what_is_taken_and_what_somebody_drained(story: Story):
    story.upload("plain", 20, seed=1)
    story.until(lambda scene: scene.spot_joined > 1, "two Spot instances")
    taken, drained = sorted(story.joined())[:2]

    story.drain(drained)
    story.upload("more", 20, seed=2)
    story.until(lambda _: drained in [i for one in story.passes() for i in one["replace"]], "its replacement")
    story.cloud.remote.do("market/reclaim", instance=taken)

    story.until(lambda _: taken in story.subjects("draining"), "DRAINING", 20)
    story.until(lambda scene: not {taken, drained} & set(scene.pools), "their end")
    story.until_done()
    assert story.window.look().on_demand_running == 0


def test_without_spot_on_demand_comes_and_all_leave_when_nothing_is_left_to_do(story: Story):
    for pool in story.cloud.remote.do("market/show")["pools"]:
        story.cloud.remote.do("market/capacity", pool=pool, instances=0)
        story.cloud.remote.do("market/reclaim", pool=pool, notice=False)
    story.upload("dry", 10, seed=5)
    story.until(lambda scene: scene.on_demand_joined, "On-Demand after the operator's patience")
    drained = min(story.joined())

    story.drain(drained)

    story.until(lambda scene: scene.on_demand_joined and drained not in story.joined(), "another in its place")
    story.until_done()
    story.until(lambda scene: scene.at_zero, "nothing left running")
    ended = [one for one in story.passes() if one["shrink"]]
    assert {kind for one in ended for kind in one["shrink"]} == {"spot", "on-demand"}
    assert all(one["why"].startswith("no work for") and not sum(one["backlog"].values()) for one in ended)


def test_everything_that_was_uploaded_is_accounted_for(story: Story):
    proof = prove(story.files, story.outputs, story.cloud.client)

    assert (proof.lost, proof.double) == ((), ())
    assert story.subjects("fault") == []


def test_the_capacity_lambda_may_do_what_it_did_and_nothing_more(story: Story):
    template = json.loads((story.build / "cluster.json").read_text())
    every = deployed_grants(story.cloud, STACK, template)
    grants = {grant: arns for grant, arns in every.items() if grant.actor == "Capacity"}
    asked = [answer for answer in answers(story.cloud, STACK) if answer.actor == "Capacity"]
    reasons = [replace(one, actors=("Capacity",)) for one in UNUSED if "Capacity" in one.actors]
    found = wrong(grants, asked) + unused(grants, asked, reasons)

    assert not found, "\n".join(found)
