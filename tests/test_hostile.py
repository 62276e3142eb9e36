"""Uploads that mean harm: each ends FAILED with a reason within its limit, and the worker goes on."""

import io
import json
import os
import tarfile
from contextlib import contextmanager

import pytest
from PIL import Image
from worker_make import ROOT

from gpu_worker import images, results
from gpu_worker.outcome import Rejected
from gpu_worker.results import MOST_RESULTS

GIB = 1 << 30
LONG = 90


@contextmanager
def archive(mode="w"):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as tar:
        yield tar, data


def packed(name, content=b"x", kind=tarfile.REGTYPE, link="", mode="w"):
    with archive(mode) as (tar, data):
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, len(content)
        tar.addfile(member, io.BytesIO(content))
    return data.getvalue()


def bomb():
    """Sixteen kilobytes that say they are sixteen megabytes of zeros."""
    return packed("zeros", bytes(1 << 24), mode="w:gz")


def sparse():
    """A GNU sparse member: 5 GiB of nothing in one block (tar.h, `oldgnu_header`)."""
    member = tarfile.TarInfo("hole")
    member.size = 0
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    block[483:495] = f"{5 * GIB:011o}\0".encode()
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block) + b"\0" * 1024


ARCHIVES = {
    "cut": (packed("a", b"x" * 5000, mode="w:gz")[:60], "cannot be unpacked"),
    "text": (b"I am an archive, I swear", "cannot be unpacked"),
    "empty": (b"", "cannot be unpacked"),
    "up": (packed("../../evil"), "outside the destination"),
    "symlink": (packed("link", b"", tarfile.SYMTYPE, "/etc/passwd"), "neither a file nor a folder"),
    "hardlink": (packed("link", b"", tarfile.LNKTYPE, "/etc/passwd"), "neither a file nor a folder"),
    "device": (packed("null", b"", tarfile.CHRTYPE), "neither a file nor a folder"),
    "many": (b"".join(packed(f"{n}")[:1024] for n in range(201)) + b"\0" * 1024, "more bytes or files than allowed"),
    "sparse": (sparse(), "more bytes or files than allowed"),
    "control": (packed("a\nb"), "control characters"),
}


def test_archives_that_mean_harm(bench):
    env = {
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT / "ecs-tasks/gpu-worker", ROOT / "ecs-tasks/examples/unpack"])),
        "SPINDRIFT_PROCESSOR": "unpack:process",
        "SPINDRIFT_OPTIONS": json.dumps({"max_bytes": 1 << 20}),
        "SPINDRIFT_MAX_FAILURES": "1",
    }
    jobs = {bench.job(data, f"{name}.tar"): reason for name, (data, reason) in ARCHIVES.items()}
    jobs[bench.job(bomb(), "bomb.tar.gz")] = "more bytes or files than allowed"
    with bench.worker(**env) as worker:
        for job_id, reason in jobs.items():
            record = bench.until_state(job_id, "FAILED", LONG)
            assert reason in record["error"], record["key"]
            assert record["attempts"] == 1
        fine = bench.until_state(bench.job(packed("a/b"), "fine.tar"), "SUCCEEDED", LONG)
        assert worker.poll() is None

    assert bench.stored() == fine["outputs"]
    assert not list((bench.folder / "tmp").rglob("evil"))


def test_an_object_that_is_too_large_is_never_fetched(bench):
    job_id = bench.job(b"not five gigabytes", "large", size=5 * GIB)
    with bench.worker(SPINDRIFT_OPTIONS=json.dumps({"diary": str(bench.diary)})):
        record = bench.until_state(job_id, "FAILED", LONG)

    assert "more than" in record["error"]
    assert not bench.diary.exists()


@pytest.mark.parametrize(
    "order, reason",
    [
        ("sparse", "may have 1048576 bytes together"),
        ("grow", "File too large"),
        ("many", f"{MOST_RESULTS} results"),
        ("newline", "control characters"),
        ("long", "may have 128 bytes"),
        ("fork", "time-out"),
    ],
)
def test_what_a_processor_was_led_to_do_is_bounded(bench, order, reason):
    job_id = bench.job(f"bomb {order}".encode(), "bomb")
    env = {"SPINDRIFT_MAX_OUTPUT_BYTES": str(1 << 20), "SPINDRIFT_MAX_FAILURES": "1", "SPINDRIFT_JOB_SECONDS": "5"}
    with bench.worker(**env) as worker:
        assert reason in bench.until_state(job_id, "FAILED", LONG)["error"]
        fine = bench.until_state(bench.job(b"nothing", "fine"), "SUCCEEDED", LONG)
        assert worker.poll() is None

    assert bench.stored() == fine["outputs"]


def test_uploads_named_like_what_workers_leave_for_each_other_stay_apart(bench):
    keys = (".parts/x", ".checkpoints/y", ".partsy", "a/.parts/x")
    jobs = [bench.job(b"nothing", key) for key in keys]
    with bench.worker():
        [outputs, *_] = zip(*(bench.until_state(job_id, "SUCCEEDED", LONG)["outputs"] for job_id in jobs), strict=True)

    folders = [key.split(job_id)[0] for key, job_id in zip(outputs, jobs, strict=True)]
    assert folders == ["%2Eparts/x/", "%2Echeckpoints/y/", ".partsy/", "a/.parts/x/"]


# The built-in processor, without a worker.


@pytest.mark.parametrize("hole", [0, 5 * GIB])
def test_a_hole_is_no_photograph(tmp_path, hole):
    (tmp_path / "input").touch()
    os.truncate(tmp_path / "input", hole)

    with pytest.raises(Rejected):
        images.process(tmp_path / "input", tmp_path, {"options": {}})


def test_a_bomb_of_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "input", "PNG")

    with pytest.raises(Rejected, match="bomb"):
        images.process(tmp_path / "input", tmp_path, {"options": {}})


# What may be stored.


def sparse_file(path, size):
    path.touch()
    os.truncate(path, size)


def test_links_pipes_and_names_that_cannot_be_stored_are_no_results(tmp_path):
    plain = "a result must be a plain file"
    control = "a result's name may have no control characters"
    for number, (make, reason) in enumerate(
        [
            (lambda path: (path / "link").symlink_to("/etc/passwd"), plain),
            (lambda path: (path / "link").symlink_to(path), plain),
            (lambda path: os.mkfifo(path / "pipe"), plain),
            (lambda path: (path / "a\tb").touch(), control),
            (lambda path: (path / "a\tb").mkdir(), control),
            (lambda path: (path / ("x" * 129)).touch(), "a result's name may have 128 bytes"),
            (lambda path: sparse_file(path / "hole", 5 * GIB), f"the results of a job may have {GIB} bytes together"),
            (lambda path: (path / os.fsdecode(b"\xff")).touch(), control),
            (lambda path: [(path / f"{n}").touch() for n in range(MOST_RESULTS + 1)], "a job may have 300 results"),
        ]
    ):
        (folder := tmp_path / str(number)).mkdir()
        make(folder)
        with pytest.raises(ValueError, match=f"^{reason}$"):
            results.results(folder, GIB)


def test_results_of_just_the_size_the_number_and_the_name_that_are_allowed_are_stored(tmp_path):
    (tmp_path / "folder").mkdir()
    names = [f"folder/{number}" for number in range(MOST_RESULTS - 2)] + ["é" * 64, "whole"]
    for name in names:
        (tmp_path / name).touch()
    sparse_file(tmp_path / "whole", GIB)

    assert results.results(tmp_path, GIB) == {name: tmp_path / name for name in names}


def test_parts_are_plain_files_and_not_too_many(tmp_path):
    assert results.parts(tmp_path / "none", GIB) == []
    for number in range(results.MOST_PARTS):
        (tmp_path / f"{number:05d}").touch()
    assert len(results.parts(tmp_path, GIB)) == results.MOST_PARTS
    (tmp_path / "more").touch()
    with pytest.raises(ValueError, match="1000 parts"):
        results.parts(tmp_path, GIB)
    (tmp_path / "more").unlink()
    (tmp_path / "00000").unlink()
    (tmp_path / "00000").mkdir()
    with pytest.raises(ValueError, match=r"^a part must be a plain file$"):
        results.parts(tmp_path, GIB)
