"""`build.py bench`: on a stage by the test's clock, and on the local cloud with types whose throughput is known."""

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bench_make import NOON, SPEEDS, SUBNETS, WORK, Stage
from click.testing import CliRunner
from moto import mock_aws

import build as command
from localcloud.benchdemo import SETTINGS as PACED
from localcloud.benchdemo import TRUTH, WORKER_IMAGE, judge, paced_cloud
from localcloud.laptop import Laptop
from ops.account import NoSuchStack
from ops.bench import Bench, NoSample, NoSuchQueue, files_of
from templates.settings import Settings
from tests.cloud import eventually
from tests.test_stacks import build

JOBS = 4
STACK = "mine"


# On a stage, by the clock of the test.


@pytest.fixture
def stage():
    with mock_aws():
        yield Stage()


@pytest.fixture
def file(tmp_path):
    sample = tmp_path / "photo.jpg"
    sample.write_bytes(b"a photo")
    return sample


def nothing_is_left(stage: Stage) -> bool:
    kept = [stage.s3.list_object_versions(Bucket=bucket).get("Versions", []) for bucket in ("uploads", "results")]
    waits = [job for job in stage.jobs().values() if job["state"] not in ("SUCCEEDED", "FAILED")]
    return not (stage.alive or kept[0] or kept[1] or waits)


def test_each_type_is_measured_and_what_was_made_for_it_goes(stage, file):
    report = stage.bench([file]).run()

    assert [one.type for one in report.lines] == ["g5.xlarge", "g4dn.xlarge"]
    found = {one.type: one.rate.jobs_per_hour for one in report.lines}
    assert found == pytest.approx({name: 3600 * SPEEDS[name] / WORK for name in found})
    assert {one.type: one.weight for one in report.lines} == {"g4dn.xlarge": 2, "g5.xlarge": 7}
    assert report.lines[0].spot == 0.25, "of EC2, where the market Lambda has not looked yet"
    assert nothing_is_left(stage)


def test_an_instance_is_launched_as_the_stack_would_and_says_when_it_goes(stage, file):
    stage.bench([file], types=["g5.xlarge"], minutes=30).run()

    [asked] = stage.ran
    assert (asked["LaunchTemplate"]["Version"], asked["InstanceType"]) == ("7", "g5.xlarge")
    tags = {
        one["ResourceType"]: {tag["Key"]: tag["Value"] for tag in one["Tags"]} for one in asked["TagSpecifications"]
    }
    assert tags["instance"] == {"spindrift:stack": "one", "spindrift:bench": "2026-11-20T12:40:00+00:00"}
    assert tags["volume"] == {"spindrift:stack": "one"}
    script = base64.b64decode(asked["UserData"]).decode()
    assert script == "#!/bin/bash\nshutdown -h +35\nset -e\njoin\n", "before anything that may fail"
    assert asked["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_jobs_are_uploads_of_the_queue_and_only_as_many_as_are_needed(stage, file):
    stage.bench([file], types=["g5.xlarge"], jobs=6).run()

    keys = {job["key"] for job in stage.jobs().values()}
    assert all(key.startswith("in/.bench/20261120-120000-") for key in keys)
    assert len(keys) <= 6 + 1 + 4, (
        "the samples, the one for warming up, and what may be begun by two until the next look"
    )


def test_jobs_that_no_worker_gets_to_see_are_made_up_for(stage, file):
    stage.out_of_sight = 4

    assert not stage.bench([file], types=["g5.xlarge"]).run().missing
    assert stage.now - NOON < timedelta(minutes=3)
    assert nothing_is_left(stage)


def test_a_full_zone_is_passed_over_and_a_type_that_nobody_has_is_told(stage, file):
    stage.full = {"subnet-aaaaaaaa"}
    assert not stage.bench([file]).run().missing
    assert {one["SubnetId"] for one in stage.ran} == set(SUBNETS)

    stage.full = set(SUBNETS)
    report = stage.bench([file]).run()
    assert [one.why for one in report.missing] == [
        "none of 2 subnets has one: InsufficientInstanceCapacity: no capacity in us-east-1b"
    ] * 2


def test_types_take_turns_where_the_quota_is_small(stage, file):
    stage.quota, stage.full = 1, {"subnet-aaaaaaaa"}

    assert not stage.bench([file]).run().missing
    assert len(stage.ran) < 20, "EC2 is asked now and then"


def test_a_quota_is_one_for_all_zones(stage, file):
    stage.quota = 0

    report = stage.bench([file]).run()

    assert {one.why for one in report.missing} == {"MaxSpotInstanceCountExceeded: Max spot instance count exceeded"}
    assert len(stage.ran) == 2


def test_an_instance_that_ec2_takes_is_launched_again_thrice_at_the_most(stage, file):
    def take(stage: Stage) -> None:
        if stage.paused in taken and stage.alive:
            stage.instances[stage.alive[0]]["state"] = "terminated"

    stage.on_pause, taken = take, {3}
    assert not stage.bench([file], types=["g5.xlarge"]).run().missing
    assert len(stage.ran) == 2

    stage.ran, taken, stage.paused = [], range(1, 99), 0
    report = stage.bench([file], types=["g5.xlarge"]).run()
    assert [one.why for one in report.missing] == ["EC2 took its instance 3 times"]
    assert len(stage.ran) == 3


def test_an_instance_that_ec2_does_not_tell_of_yet_is_not_launched_again(stage, file):
    stage.unseen = timedelta(seconds=10)

    assert not stage.bench([file], types=["g5.xlarge"]).run().missing
    assert len(stage.ran) == 1


def test_one_that_was_given_up_too_soon_goes_too(stage, file):
    stage.unseen, stage.joining = timedelta(seconds=40), timedelta(minutes=1)

    stage.bench([file], types=["g5.xlarge"]).run()

    assert len(stage.ran) > 1
    assert nothing_is_left(stage)


def test_each_gpu_has_a_worker_and_a_services_own_is_as_good(stage, file):
    def settle(stage: Stage) -> None:
        if stage.paused == 1:
            stage.place(stage.alive[0])

    stage.on_pause = settle

    report = stage.bench([file], types=["g4dn.12xlarge"]).run()

    assert report.lines[0].rate.jobs_per_hour == pytest.approx(4 * 3600 / WORK)
    assert sorted(one["by"][:6] for one in stage.tasks.values()) == ["bench-"] * 3 + ["servic"]


def test_a_service_gets_no_place_on_an_instance_that_goes(stage, file):
    stage.serving = True

    stage.bench([file], types=["g5.xlarge"]).run()

    assert stage.now - NOON < timedelta(minutes=2)
    assert nothing_is_left(stage)


def test_workers_that_do_not_stay_are_not_started_for_ever(stage, file):
    stage.crashing = True

    report = stage.bench([file], types=["g5.xlarge"]).run()

    assert report.missing[0].why == "its workers do not stay: CannotPullContainerError"
    assert len(stage.tasks) == 1 + 3


def test_an_instance_without_its_gpus_is_no_measure(stage, file):
    stage.gpus = {"g4dn.12xlarge": 3}

    report = stage.bench([file], types=["g4dn.12xlarge"]).run()

    assert report.missing[0].why == "its instance joined with 3 GPUs"
    assert not stage.tasks


def test_time_is_up_for_what_never_joins(stage, file):
    stage.joining = timedelta(hours=9)

    report = stage.bench([file], minutes=10).run()

    assert {one.why for one in report.missing} == {"its instance had not joined the cluster"}
    assert timedelta(minutes=10) <= stage.now - NOON < timedelta(minutes=11)
    assert nothing_is_left(stage)


@pytest.mark.parametrize("ends, why", [("FAILED", "cannot be decoded"), ("SPLIT", "the processor splits it")])
def test_a_sample_that_cannot_be_measured_ends_it_and_says_why(stage, file, ends, why):
    stage.ends = ends

    with pytest.raises(NoSample, match=f"photo.jpg is no sample: {why}"):
        stage.bench([file]).run()

    assert not stage.alive
    assert ends == "SPLIT" or nothing_is_left(stage), "of parts nobody knows when they are done"


def test_ctrl_c_ends_it_with_what_is_known(stage, file):
    def interrupt(stage: Stage) -> None:
        if any(one.endswith("jobs an hour") for one in stage.said) and not stage.interrupted:
            stage.interrupted = True
            raise KeyboardInterrupt

    stage.interrupted, stage.on_pause = False, interrupt
    stage.joining = timedelta(0)
    slow = stage.bench([file], types=["g5.xlarge", "g4dn.12xlarge"], jobs=9)

    report = slow.run()

    assert slow.interrupted
    assert [bool(one.rate) for one in report.lines] == [True, False]
    assert nothing_is_left(stage)


def test_what_a_foreign_worker_holds_in_the_end_is_let_be_and_told(stage, file):
    def hold(stage: Stage) -> None:
        for job_id, job in ({} if held else stage.jobs()).items():
            if job["state"] == "QUEUED" and not held:
                held.append(job["key"])
                item = {"job_id": {"S": job_id}, "key": {"S": job["key"]}, "state": {"S": "RUNNING"}}
                stage.table.put_item(TableName="jobs", Item=item)

    held, stage.on_pause = [], hold

    stage.bench([file]).run()

    left = [one["Key"] for one in stage.s3.list_object_versions(Bucket="uploads")["Versions"]]
    assert left == held
    assert stage.said[-1].startswith("1 job could not be called off, so in/.bench/")
    assert not stage.alive


def test_every_file_of_a_folder_counts(stage, tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())

    report = stage.bench(files_of(tmp_path), types=["g5.xlarge"], jobs=1).run()

    assert report.lines[0].rate.jobs >= 3
    names = {job["key"].rpartition("-")[2] for job in stage.jobs().values()}
    assert names == {"a.jpg", "b.jpg", "c.jpg"}


def test_a_queue_and_a_stack_that_are_not_there_are_told(stage, file, tmp_path):
    with pytest.raises(NoSuchQueue, match="--queue is one of default"):
        stage.bench([file], queue="urgent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoSample, match="has no files"):
        files_of(tmp_path / "empty")
    del stage.ids["DefaultTask"]
    with pytest.raises(NoSuchQueue, match="one was deployed without the queue default"):
        stage.bench([file])
    stage.ids = {"DefaultQueue": "arn:aws:batch:us-east-1:123456789012:job-queue/default", "LaunchTemplate": "lt-1"}
    with pytest.raises(NoSuchStack, match="batch"):
        stage.bench([file])


# The command.

SETTINGS = """
[compute]
instance_types = ["g4dn.xlarge", "g5.xlarge"]
[on_demand]
instance_types = ["g4dn.xlarge"]
[[queues]]
prefix = "in/"
"""


@pytest.fixture
def run(stage, file, tmp_path, monkeypatch):
    def made(*parts: Any) -> Bench:
        return Bench(*parts, pause=stage.pause, now=lambda: stage.now)

    monkeypatch.setattr(command, "Account", lambda: stage.account)
    monkeypatch.setattr("ops.bench.Bench", made)
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS)
    words = ["bench", "--sample", str(file), "--settings", str(settings), "--out", str(tmp_path / "out")]
    return lambda *more: CliRunner().invoke(command.cli, [*words, *more])


def test_without_write_the_settings_stay_and_what_would_change_is_told(run, tmp_path):
    done = run("--stack", "one")

    assert done.exit_code == 0, done.output
    assert "as --write would change it:" in done.output
    assert "  compute.weights: g4dn.xlarge 2, g5.xlarge 7 (was none)" in done.output
    assert (tmp_path / "settings.toml").read_text() == SETTINGS


def test_half_the_weights_are_none(run, stage, tmp_path):
    stage.rare = {"g5.xlarge"}

    done = run("--stack", "one", "--write")

    assert done.exit_code == 1
    assert "g5.xlarge is not measured: none of 2 subnets has one" in done.output
    assert "the settings want a weight for each of their types, or for none" in done.output
    assert (tmp_path / "settings.toml").read_text() == SETTINGS


@pytest.mark.parametrize(
    "words, told",
    [
        (("--stack", "two"), "there is no stack two"),
        (("--stack", "one", "--queue", "urgent"), "--queue is one of default"),
        (("--stack", "one", "--types", "g5.xlarge,g5.tiny"), "--types: g5.tiny does not exist"),
    ],
)
def test_what_is_asked_wrongly_is_told_before_anything_is_launched(run, stage, words, told):
    done = run(*words)

    assert done.exit_code == 2
    assert told in done.output
    assert not stage.ran


# On the local cloud.


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    with paced_cloud(tmp_path / "cloud", seed=5) as cloud:
        for name, value in cloud.environment.items():
            monkeypatch.setenv(name, value)
        yield cloud


def of_bench(cloud: Laptop) -> dict[str, str]:
    """Instances with the tag of a benchmark, by id: their state."""
    pages = (
        cloud.client("ec2")
        .get_paginator("describe_instances")
        .paginate(Filters=[{"Name": "tag-key", "Values": ["spindrift:bench"]}])
    )
    found = (one for page in pages for held in page["Reservations"] for one in held["Instances"])
    return {one["InstanceId"]: one["State"]["Name"] for one in found}


def kept(cloud: Laptop, bucket: str) -> list[str]:
    """The keys of a benchmark's in a bucket, older versions too."""
    told = cloud.client("s3").list_object_versions(Bucket=bucket)
    return [one["Key"] for one in told.get("Versions", ()) if one["Key"].startswith(".bench/")]


def messages(cloud: Laptop, queue: str) -> int:
    names = [f"ApproximateNumberOfMessages{kind}" for kind in ("", "NotVisible", "Delayed")]
    told = cloud.client("sqs").get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
    return sum(int(told[name]) for name in names)


@pytest.mark.story
@pytest.mark.timeout(240)
def test_three_types_come_out_in_their_order_with_their_weights_and_nothing_is_left(cloud: Laptop, tmp_path: Path):
    """The dearest type an hour is the cheapest a job, and a fourth cannot be had."""
    built = build(tmp_path / "built", PACED.read_text())
    settings = tmp_path / "built" / "settings.toml"
    outputs = cloud.deploy(built, STACK, WorkerImage=WORKER_IMAGE)
    for zone in "abc":
        cloud.remote.do("market/capacity", pool=f"g5.2xlarge/us-east-1{zone}", instances=0)
    sample = tmp_path / "sample.bin"
    sample.write_bytes(b"anything")

    words = ["bench", "--stack", STACK, "--sample", str(sample), "--types", ",".join([*TRUTH, "g5.2xlarge"])]
    words += ["--jobs", str(JOBS), "--settings", str(settings), "--out", str(tmp_path / "out"), "--write", "--json"]
    done = CliRunner().invoke(command.cli, words)

    print(done.stderr)
    assert done.exit_code == 1, "one could not be had"
    lines = {one["type"]: one for one in json.loads(done.stdout)}
    assert [*lines] == ["g5.xlarge", "g6.xlarge", "g4dn.xlarge", "g5.2xlarge"]
    costs = [lines[name]["spot"] for name in ("g4dn.xlarge", "g6.xlarge", "g5.xlarge")]
    assert costs == sorted(costs), "by the hour it is the other way round"
    assert "none of 3 subnets has one: InsufficientInstanceCapacity" in lines["g5.2xlarge"]["why"]
    assert judge([*lines.values()], TRUTH)[1] == []

    after = Settings.load(settings)
    weights = after.compute.weights
    assert weights == {"g4dn.xlarge": 3, "g6.xlarge": 7, "g5.xlarge": 11}
    assert "max_units = 3  # once in a while" in settings.read_text()
    assert weighted(build_again(settings, tmp_path / "again")) == weights

    assert of_bench(cloud)
    assert set(of_bench(cloud).values()) <= {"shutting-down", "terminated"}
    assert kept(cloud, outputs["UploadsBucket"]) == kept(cloud, outputs["ResultsBucket"]) == []
    eventually(lambda: not messages(cloud, outputs["JobsQueueUrl"]), within=30, what="no job waits")
    assert messages(cloud, outputs["DeadLetterQueueUrl"]) == 0
    assert (tmp_path / "out/bench/types.svg").read_text().startswith("<svg")


def build_again(settings: Path, folder: Path) -> dict[str, Any]:
    """The stack's template with these settings."""
    done = CliRunner().invoke(command.cli, ["--settings", str(settings), "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return json.loads((folder / "cluster.json").read_text())


def weighted(template: dict[str, Any]) -> dict[str, int]:
    """WeightedCapacity by instance type, as CloudFormation is told."""
    found = {}

    def look(part: Any) -> None:
        if isinstance(part, dict):
            if "WeightedCapacity" in part:
                found[part["InstanceType"]] = part["WeightedCapacity"]
            for each in part.values():
                look(each)
        elif isinstance(part, list):
            for each in part:
                look(each)

    look(template["Resources"]["SpotFleet"])
    return found
