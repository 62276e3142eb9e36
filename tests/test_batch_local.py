"""The stack `batch` by the stock command line: deployed, given work, interrupted, changed, deleted; and its commands."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner

import build as command
from localcloud import demo
from localcloud.batchscene import BatchWindow
from localcloud.image import REGISTRY
from localcloud.laptop import ASSETS_BUCKET, PROJECT, WORKER_IMAGE, Laptop, laptop
from localcloud.proof import prove_batch
from localcloud.uploads import Upload, uploads
from ops import batch as ops
from ops.account import Account
from tests.cloud import eventually
from tests.permissions import UNUSED_BATCH, answers, deployed_grants, unused, wrong
from tests.test_stacks import DEFAULTS, build, changed, client, left, resources, what_there_is

pytestmark = [pytest.mark.story, pytest.mark.stacks, pytest.mark.timeout(480)]
IMAGE = "slow-pictures:local"
WITHOUT_PROGRAM = (('command = ["/app/sharpen", "{input}", "{output}"]', 'processor = "slow_pictures:process"'),)
BATCH = {
    "queues": ("describe_job_queues", "jobQueues", "jobQueueArn"),
    "environments": ("describe_compute_environments", "computeEnvironments", "computeEnvironmentArn"),
    "definitions": ("describe_job_definitions", "jobDefinitions", "jobDefinitionArn"),
}


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laptop]:
    with laptop(tmp_path / "cloud", speed=20, seed=5) as cloud:
        for name, value in cloud.environment.items():
            monkeypatch.setenv(name, value)
        cloud.aws("s3", "mb", f"s3://{ASSETS_BUCKET}")
        cloud.remote.do("image/add", name=IMAGE, folder=str(PROJECT / "tests/story_image"), base="gpu-worker:local")
        yield cloud


def deploy(cloud: Laptop, template: Path, image: str = f"{REGISTRY}/{IMAGE}") -> dict[str, str]:
    """Physical ids by title."""
    cloud.aws(
        *("cloudformation", "deploy", "--stack-name", "mine", "--template-file", str(template)),
        *("--capabilities", "CAPABILITY_IAM", "--s3-bucket", ASSETS_BUCKET),
        *("--parameter-overrides", f"WorkerImage={image}"),
    )
    return resources(cloud, "mine")


def here(cloud: Laptop) -> dict[str, list[str]]:
    """What there is of Batch's."""
    batch = client(cloud, "batch")
    asked = {"definitions": {"status": "ACTIVE"}}
    return {
        kind: [one[key] for one in getattr(batch, name)(**asked.get(kind, {}))[listed]]
        for kind, (name, listed, key) in BATCH.items()
    }


def run(*words: str) -> Any:
    return CliRunner().invoke(command.cli, ["batch", *words])


def told(*jobs: str) -> list[dict[str, Any]]:
    """What `batch status` says of these jobs, once they are over."""

    def over() -> list[dict[str, Any]]:
        done = run("status", "--stack", "mine", "--json")
        assert done.exit_code == 0, done.output
        found = [one for one in json.loads(done.output)["jobs"] if one["job_id"] in jobs]
        return found if all(one["succeeded"] + len(one["failed"]) == one["objects"] for one in found) else []

    return list(eventually(over, within=300, what="every object is done"))


def submitted(*words: str) -> dict[str, str]:
    """Job id -> how many objects, as `batch submit` says."""
    done = run("submit", "--stack", "mine", *words)
    assert done.exit_code == 0, done.output
    return dict(line.split("  ", 1) for line in done.output.splitlines())


def take_down(name: str, *words: str) -> tuple[int, str]:
    """Exit status of `down`, and what it said."""
    done = CliRunner().invoke(command.cli, ["down", "--stack", name, "--yes", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


def put(cloud: Laptop, bucket: str, *files: Upload) -> None:
    for file in files:
        client(cloud, "s3").put_object(Bucket=bucket, Key=file.key, Body=file.body)


def stored(cloud: Laptop, bucket: str) -> dict[str, int]:
    """Results by key: how many versions of each."""
    counts: dict[str, int] = {}
    for page in client(cloud, "s3").get_paginator("list_object_versions").paginate(Bucket=bucket):
        for one in page.get("Versions", []):
            if not one["Key"].startswith("."):
                counts[one["Key"]] = counts.get(one["Key"], 0) + 1
    return counts


def busy(cloud: Laptop) -> list[str]:
    """Spot instances on which a job runs."""
    spot = {one["id"] for one in cloud.remote.do("instances/show") if one["lifecycle"] == "spot" and not one["notice"]}
    return sorted({one["instance"] for one in cloud.remote.do("tasks/show") if one["status"] == "RUNNING"} & spot)


def lost(cloud: Laptop) -> list[str]:
    """Jobs whose attempts ended with their machine."""
    ends = cloud.remote.do("diary", what="batch attempt")
    return [one["subject"] for one in ends if one["reason"].startswith("Host EC2")]


def take_a_job(cloud: Laptop, *, notice: bool) -> None:
    """Take busy machines, one after the other, until a job was lost with one: it may just have been done."""
    known = len(lost(cloud))
    for _ in range(5):
        victim = eventually(lambda: busy(cloud), within=60, what="a job runs on Spot")[0]
        cloud.remote.do("market/reclaim", instance=victim, notice=notice)
        gone = f"{victim} is gone, and ECS has noticed"
        eventually(lambda: victim not in _running(cloud), within=60, what=gone)  # noqa: B023
        eventually(lambda: victim not in _at_work(cloud), within=60, what=gone)  # noqa: B023
        if len(lost(cloud)) > known:
            return
    raise AssertionError("no job was lost")


def test_fifty_images_and_two_interruptions_and_nothing_is_lost(cloud: Laptop, tmp_path: Path) -> None:
    before, none = what_there_is(cloud), here(cloud)
    settings = changed(
        DEFAULTS,
        ('processor = "gpu_worker.images:process"', 'processor = "slow_pictures:process"'),
        ("max_units = 8", "max_units = 4"),
        ("\nmax_units = 4\n# How many of these", "\nmax_units = 1\n# How many of these"),
        ("max_tasks = 8", "max_tasks = 4"),
    )
    ids = deploy(cloud, build(tmp_path / "first", settings) / "batch.json")
    files = [Upload(f"slow/{one.key}", one.body, one.hostile) for one in uploads(50, seed=2)]
    put(cloud, ids["UploadsBucket"], *files, Upload("elsewhere/1.jpg", files[0].body))
    [(job, objects)] = submitted("--prefix", "slow/").items()
    assert objects == "50 objects"

    # Of two minutes' notice Batch makes nothing.
    take_a_job(cloud, notice=True)
    take_a_job(cloud, notice=False)

    # And in the midst of it all machines are replaced, by others and of other types.
    bigger = changed(
        settings, ("root_volume_gib = 60", "root_volume_gib = 80"), ('"g4dn.xlarge", "g4dn.2xlarge", ', "")
    )
    again = deploy(cloud, build(tmp_path / "second", bigger) / "batch.json")
    assert {title for title in ids if ids[title] != again[title]} == set(), "nothing is made anew"
    assert {one["status"] for one in client(cloud, "batch").describe_compute_environments()["computeEnvironments"]} <= {
        "VALID", "UPDATING",
    }  # fmt: skip

    [end] = told(job)
    proof = prove_batch(files, ids, cloud.client, {one["key"]: one["reason"] for one in end["failed"]})
    assert (end["succeeded"], proof.succeeded, proof.failed, proof.lost, proof.double) == (45, 45, 5, (), ())
    assert len(stored(cloud, ids["ResultsBucket"])) == 3 * 45
    assert BatchWindow(cloud.client, "mine", [job]).lost_attempts() == Counter(lost(cloud))
    for child in set(lost(cloud)):
        [seen] = client(cloud, "batch").describe_jobs(jobs=[child])["jobs"]
        assert len(seen["attempts"]) == 1 + lost(cloud).count(child), "and no attempt more"
    launched = cloud.remote.do("diary", what="instance launched")
    assert {one["lifecycle"] for one in launched} == {"spot", "on-demand"}, "what Spot has no room for is not left"
    eventually(lambda: not _running(cloud), within=60, what="nothing runs when nothing is to do")

    cloud.aws("cloudformation", "delete-stack", "--stack-name", "mine")
    eventually(lambda: "mine" not in _stacks(cloud), within=60, what="the stack is gone")
    assert here(cloud) == none
    kept = {ids[title] for title in ("UploadsBucket", "ResultsBucket", "Key")}
    assert left(cloud, before) == kept


def test_the_demo_takes_spot_away_twice_and_loses_nothing(tmp_path: Path) -> None:
    assert demo.main(["--profile", "batch", "--out", str(tmp_path)]) == 0

    summary = json.loads((tmp_path / "demo/summary.json").read_text())
    said = {
        name: summary[name] for name in ("uploads", "succeeded", "failed", "lost", "double_effects", "interruptions")
    }
    assert said == {"uploads": 50, "succeeded": 45, "failed": 5, "lost": 0, "double_effects": 0, "interruptions": 2}
    assert summary["back_to_zero"]


def test_every_option_is_deployed_and_works(cloud: Laptop, tmp_path: Path) -> None:
    settings = (PROJECT / "tests" / "everything.toml").read_text("utf-8")
    ids = deploy(cloud, build(tmp_path / "all", changed(settings, *WITHOUT_PROGRAM)) / "batch.json")
    put(cloud, ids["UploadsBucket"], *[one for one in uploads(10, seed=3) if not one.hostile])
    assert run("submit", "--stack", "mine", "--prefix", "").exit_code == 2, "which of the queues?"
    done = run("submit", "--stack", "mine", "--prefix", "", "--queue", "nobody")
    assert (done.exit_code, "--queue is one of" in done.output) == (2, True)

    assert [one["failed"] for one in told(*submitted("--prefix", "", "--queue", "big-ones"))] == [[]]
    assert not client(cloud, "s3").list_objects_v2(Bucket=ids["UploadsBucket"]).get("Contents"), "as the settings say"
    launched = cloud.remote.do("diary", what="instance launched")
    assert {one["lifecycle"] for one in launched} == {"spot"}
    shared = cloud.state / "files" / ids["SharedFiles"] / "spindrift"
    assert len([note for note in shared.iterdir() if not note.name.startswith(".")]) == 5, "each job has left its note"
    template = json.loads((tmp_path / "all/build/batch.json").read_text())
    grants, asked = deployed_grants(cloud, "mine", template), answers(cloud, "mine")
    found = wrong(grants, asked) + unused(grants, asked, UNUSED_BATCH)
    assert not found, "\n".join(found)


def test_arrays_have_their_limits_and_failures_their_reasons(
    cloud: Laptop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = deploy(cloud, build(tmp_path / "built", DEFAULTS) / "batch.json", WORKER_IMAGE)
    assert run("status", "--stack", "mine").output == "nothing was submitted within the past week\n"
    photos = [one for one in uploads(11, seed=3) if not one.hostile]
    bad = next(one for one in uploads(11, seed=3) if one.hostile)
    put(cloud, ids["UploadsBucket"], *(Upload(f"p/{number}", one.body) for number, one in enumerate(photos)))
    put(cloud, ids["UploadsBucket"], Upload("p/bad", bad.body), Upload("p/folder/", b""))

    # Seven objects in arrays of three at most: the last is a job without children.
    monkeypatch.setattr(ops, "LARGEST_ARRAY", 3)
    jobs = submitted("--prefix", "p/")
    assert list(jobs.values()) == ["3 objects", "3 objects", "1 object"]
    ends = told(*jobs)
    assert [one["succeeded"] for one in ends] == [3, 3, 0]
    [failure] = ends[2]["failed"]
    assert failure["key"] == "p/bad" and failure["reason"]
    text = run("status", "--stack", "mine").output
    assert "p/bad" in text and failure["reason"] in text

    # The same objects again, half of them by another worker: other jobs, the same results.
    results = stored(cloud, ids["ResultsBucket"])
    before = submitted("--prefix", "p/")
    again = deploy(cloud, tmp_path / "built/build/batch.json", f"{REGISTRY}/{IMAGE}")
    assert {title for title in ids if ids[title] != again[title]} == {"DefaultJob"}, "another revision"
    after = submitted("--prefix", "p/")
    assert {one["succeeded"] for one in told(*before, *after)} == {3, 0}
    assert stored(cloud, ids["ResultsBucket"]) == results
    described = client(cloud, "batch").describe_jobs(jobs=[*before, *after])["jobs"]
    revisions = {one["jobDefinition"] for one in described}
    assert len(revisions) == 2 and revisions == set(here(cloud)["definitions"])

    done = run("submit", "--stack", "mine", "--prefix", "nothing/")
    assert (done.exit_code, done.output) == (1, f"nothing in s3://{ids['UploadsBucket']} begins with 'nothing/'\n")
    assert run("status", "--stack", "yours").exit_code == 2
    cloud.aws("s3", "cp", str(tmp_path / "built/settings.toml"), f"s3://{ids['UploadsBucket']}/settings.toml")
    [(job, _)] = submitted("--prefix", "settings").items()
    client(cloud, "batch").terminate_job(jobId=job, reason="not that one")
    [end] = told(job)
    assert [one["reason"] for one in end["failed"]] == ["not that one"]

    # The stack does not go as long as something is to do, unless it is meant.
    again = submitted("--prefix", "p/")
    code, said = take_down("mine")
    assert (code, "add --end-jobs" in said) == (1, True)
    assert [job for job in again if f"ends: job {job} of Batch" in said] == [*again]
    assert "mine" in _stacks(cloud)
    code, said = take_down("mine", "--end-jobs")
    assert (code, "of Batch is told to end" in said, "proved: of mine" in said) == (0, True, True), said
    assert {one.rpartition("/")[2] for one in revisions} == set(re.findall(r"goes: job definition (\S+) ", said))
    assert here(cloud) == {kind: [] for kind in BATCH}
    assert not _running(cloud)
    assert f"kept: bucket {ids['ResultsBucket']} (holds objects)" in said


def test_an_account_without_the_stack_is_told(cloud: Laptop) -> None:
    with pytest.raises(ops.NoSuchStack):
        ops.Jobs(Account(boto3.Session()), "nowhere")


def _running(cloud: Laptop) -> list[str]:
    return [one["id"] for one in cloud.remote.do("instances/show") if one["state"] in ("pending", "running")]


def _at_work(cloud: Laptop) -> set[str]:
    """Instances on which ECS thinks that something runs."""
    return {one["instance"] for one in cloud.remote.do("tasks/show")}


def _stacks(cloud: Laptop) -> set[str]:
    found = client(cloud, "cloudformation").describe_stacks()["Stacks"]
    return {one["StackName"] for one in found if one["StackStatus"] != "DELETE_COMPLETE"}
