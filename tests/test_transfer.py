"""Large objects in parts, against real S3 calls: byte for byte, put once, and no litter."""

import random
import shutil
from collections import namedtuple
from pathlib import Path
from subprocess import Popen
from sys import executable
from threading import Barrier, Thread

import boto3
import pytest
from botocore.exceptions import ClientError
from worker_make import until

from gpu_worker import transfer
from gpu_worker.scratch import SPARE, NoRoom, Scratch
from gpu_worker.transfer import TooLarge, fetch, store

MIB = 2**20


@pytest.fixture
def s3(endpoint, monkeypatch):
    monkeypatch.setattr(transfer, "LARGE", 6 * MIB)
    monkeypatch.setattr(transfer, "PART", 5 * MIB)
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **keys)
    client.create_bucket(Bucket="results")
    client.asked = []
    client.meta.events.register("before-call.s3", lambda model, **_: client.asked.append(model.name))
    yield client
    uploads = client.list_multipart_uploads(Bucket="results").get("Uploads", [])
    assert not uploads
    for each in client.list_objects_v2(Bucket="results").get("Contents", []):
        client.delete_object(Bucket="results", Key=each["Key"])


def noise(size):
    return random.Random(size).randbytes(size)


def target(job="1"):
    return {"Bucket": "results", "Key": "k", "ContentType": "image/webp", "Metadata": {"job-id": job}}


@pytest.mark.parametrize("size", [0, 1, 6 * MIB - 1, 6 * MIB, 10 * MIB, 10 * MIB + 1])
def test_what_is_stored_and_fetched_is_the_same(s3, tmp_path, size):
    (tmp_path / "out").write_bytes(noise(size))
    store(s3, target(), tmp_path / "out")
    fetch(s3, {"Bucket": "results", "Key": "k"}, tmp_path / "in", size, size)

    assert (tmp_path / "in").read_bytes() == noise(size)
    assert ("UploadPart" in s3.asked) is (size >= 6 * MIB)
    head = s3.head_object(Bucket="results", Key="k")
    assert (head["ContentType"], head["Metadata"]) == ("image/webp", {"job-id": "1"})


@pytest.mark.parametrize("thought", [0, 7 * MIB, 20 * MIB])
def test_an_object_with_more_bytes_than_allowed_is_not_fetched(s3, tmp_path, thought):
    s3.put_object(Bucket="results", Key="k", Body=noise(12 * MIB))

    with pytest.raises(TooLarge):
        fetch(s3, {"Bucket": "results", "Key": "k"}, tmp_path / "in", thought, 12 * MIB - 1)


def test_an_object_that_exists_is_kept(s3, tmp_path):
    s3.put_object(Bucket="results", Key="k", Body=b"earlier")
    for size in (9, 12 * MIB):
        (tmp_path / "out").write_bytes(noise(size))
        with pytest.raises(ClientError, match="PreconditionFailed"):
            store(s3, target(), tmp_path / "out")

    assert s3.get_object(Bucket="results", Key="k")["Body"].read() == b"earlier"


def test_of_two_that_store_at_once_one_wins(s3, tmp_path):
    ends, together = [], Barrier(2)

    def meet(**_):
        together.wait(20)

    s3.meta.events.register("before-call.s3.CompleteMultipartUpload", meet)

    def put(job):
        (tmp_path / job).write_bytes(noise(12 * MIB))
        try:
            store(s3, target(job), tmp_path / job)
            ends.append("stored")
        except ClientError as error:
            ends.append(error.response["Error"]["Code"])

    threads = [Thread(target=put, args=(job,)) for job in "12"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert sorted(ends) == ["PreconditionFailed", "stored"]


def test_a_part_that_fails_leaves_nothing_behind(s3, tmp_path):
    def refuse(params, **_):
        if params["PartNumber"] == 2:
            raise RuntimeError("the network is gone")

    s3.meta.events.register("provide-client-params.s3.UploadPart", refuse)
    (tmp_path / "out").write_bytes(noise(12 * MIB))

    with pytest.raises(RuntimeError, match="the network is gone"):
        store(s3, target(), tmp_path / "out")


# Scratch


def test_a_disk_that_is_full_in_the_middle_is_no_room(tmp_path):
    with Scratch(tmp_path) as scratch:
        with pytest.raises(NoRoom, match="full"), scratch.room_for(1), Path("/dev/full").open("wb") as file:
            file.write(b"more than was announced")
        with pytest.raises(IsADirectoryError), scratch.room_for(1):
            Path("/").open("wb")


def test_every_job_s_folder_goes_with_all_that_is_in_it(tmp_path):
    with Scratch(tmp_path) as scratch:
        with scratch.folder() as one, scratch.folder() as other:
            assert one != other
            (one / "a").mkdir()
            (one / "a/file").write_text("")
        assert not one.exists()
        with scratch.folder() as left:
            shutil.rmtree(left)

    assert not list(tmp_path.iterdir())


def test_what_a_killed_worker_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    order = (
        "import sys, time; from pathlib import Path; from gpu_worker.scratch import Scratch\n"
        "with Scratch(Path(sys.argv[1])) as scratch, scratch.folder() as folder:\n"
        "    (folder / 'input').write_text('half')\n"
        "    time.sleep(60)\n"
    )
    workers = [Popen([executable, "-c", order, str(tmp_path)], cwd="ecs-tasks/gpu-worker") for _ in range(2)]
    until(lambda: len(list(tmp_path.glob("spindrift-*/*/input"))) == 2)
    workers[0].kill()
    workers[0].wait()
    try:
        with Scratch(tmp_path):
            assert len(list(tmp_path.glob("spindrift-*/*/input"))) == 1
    finally:
        workers[1].kill()
        workers[1].wait()
    with Scratch(tmp_path):
        pass

    assert not list(tmp_path.iterdir())


def test_what_others_keep_in_the_same_place_is_let_be(tmp_path):
    (tmp_path / "spindrift-bench").mkdir()
    (tmp_path / "spindrift-bench/results").write_text("mine")
    with Scratch(tmp_path):
        pass

    assert (tmp_path / "spindrift-bench/results").exists()


def test_there_is_room_for_what_arrives_and_for_what_is_promised(tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(SPARE + 200, SPARE + 100))
    with Scratch(tmp_path) as scratch:
        with scratch.room_for(30):
            with scratch.room_for(20):
                pass
            with pytest.raises(NoRoom, match="42 bytes are needed, 40 are free"), scratch.room_for(21):
                pass
        with scratch.room_for(50):
            pass
        with pytest.raises(NoRoom), scratch.room_for(100):
            pass
        with pytest.raises(ValueError, match="too small: 202 bytes are needed"), scratch.room_for(101):
            pass
        with pytest.raises(NoRoom), scratch.room_for(51):
            pass
