"""The worker as a process, among real queues: whatever is done to it, no job is lost and none is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest
from lambdas_make import sample
from PIL import Image
from worker_make import ROOT, ecs, until

from gpu_worker.pipeline import PATIENCE


def jpeg(width=900, height=600):
    data = BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(data, "JPEG")
    return data.getvalue()


def test_a_photograph_becomes_its_renditions(bench):
    (bench.host_dir / "instance.json").write_text(
        json.dumps({"instanceId": "i-1", "instanceType": "g5.xlarge", "availabilityZone": "a", "lifecycle": "spot"})
    )
    job_id = bench.job(jpeg(), "photos/beach.jpg")
    with (
        ecs() as agent,
        bench.worker(
            SPINDRIFT_PROCESSOR="gpu_worker.images:process",
            SPINDRIFT_OPTIONS="{}",
            ECS_AGENT_URI=f"{agent.url}/api",
            ECS_CONTAINER_METADATA_URI_V4=f"{agent.url}/v4",
        ) as worker,
    ):
        record = bench.until_state(job_id, "SUCCEEDED")
        until(lambda: bench.messages() == (0, 0))
        until(lambda: len(agent.asked) == 2)
        worker.terminate()
        assert worker.wait(10) == 0

    names = [f"photos/beach.jpg/{job_id}/{name}.webp" for name in ("large", "medium", "thumb")]
    assert bench.stored() == record["outputs"] == names
    thumb = bench.s3.get_object(Bucket=bench.results, Key=names[2])
    assert Image.open(thumb["Body"]).size == (256, 171)
    assert (thumb["Metadata"], thumb["ContentType"]) == ({"job-id": job_id}, "image/webp")
    assert record["attempts"] == 1 and 0 < record["gpu_seconds"] < 20
    assert record["owner"] == "arn:aws:ecs:us-east-1:123456789012:task/spindrift/abc"
    assert [record[each] for each in ("instance_id", "instance_type", "zone", "lifecycle")] == [
        "i-1", "g5.xlarge", "a", "spot",
    ]  # fmt: skip
    assert "lease_until" not in record
    assert agent.asked == [
        ("/api/task-protection/v1/state", {"ProtectionEnabled": True, "ExpiresInMinutes": 60}),
        ("/api/task-protection/v1/state", {"ProtectionEnabled": False}),
    ]
    assert not list((bench.folder / "tmp").iterdir())


def test_hostile_uploads_fail_at_once_with_a_reason_and_the_worker_goes_on(bench):
    bomb = BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    hostile = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"hello, I am a photograph", "neither"),
        "cut.jpg": (jpeg()[:2000], "cannot be decoded"),
        "bomb.png": (bomb.getvalue(), "bomb"),
        "large.jpg": (b"\0" * 2_000_000, "more than 1000000 bytes"),
    }
    lying = bench.job(b"\1" * 2_000_000, "lying.jpg", size=10)
    jobs = {bench.job(body, key): reason for key, (body, reason) in hostile.items()}
    with bench.worker(
        SPINDRIFT_PROCESSOR="gpu_worker.images:process", SPINDRIFT_OPTIONS="{}", SPINDRIFT_MAX_INPUT_BYTES="1000000"
    ):
        for job_id, reason in jobs.items():
            record = bench.until_state(job_id, "FAILED")
            assert reason in record["error"] and record["attempts"] == 1
        assert "more than 1000000 bytes" in bench.until_state(lying, "FAILED")["error"]
        fine = bench.job(jpeg(), "fine.jpg")
        bench.until_state(fine, "SUCCEEDED")
        until(lambda: bench.messages() == (0, 0))

    buried = bench.buried()
    assert len(buried) == len(jobs) + 1
    assert all(any(reason in each for each in buried) for reason in jobs.values())
    assert {key.split("/")[0] for key in bench.stored()} == {"fine.jpg"}


def test_results_stay_under_their_own_key(bench):
    keys = {
        "a b+c/ünï 🌊.jpg": "a b+c/ünï 🌊.jpg",
        "q'\"&?#%41\n.jpg": "q'\"&?#%41\n.jpg",
        "../../etc/passwd": "%2E%2E/%2E%2E/etc/passwd",
        "/": "%2F/%2F",
        "a//./b": "a/%2F/%2E/b",
        "x" * 1020: "x" * 980,
    }
    jobs = {bench.job(b"nothing", key): folder for key, folder in keys.items()}
    with bench.worker():
        outputs = {job_id: bench.until_state(job_id, "SUCCEEDED")["outputs"] for job_id in jobs}

    assert outputs == {job_id: [f"{folder}/{job_id}/done"] for job_id, folder in jobs.items()}
    assert bench.stored() == sorted(key for [key] in outputs.values())


def test_one_job_told_twice_has_one_effect(bench):
    job_id = bench.job(b"sleep 1", told=2)
    with bench.worker(SPINDRIFT_LEASE_SECONDS="4"), bench.worker(SPINDRIFT_LEASE_SECONDS="4"):
        record = bench.until_state(job_id, "SUCCEEDED")
        until(lambda: bench.messages() == (0, 0))

    assert (record["attempts"], bench.diary.read_text()) == (1, "sleep\n")


def test_the_message_of_a_running_job_is_kept_until_its_lease_ends(bench):
    ends = int(time.time()) + 3
    job_id = bench.job(b"nothing", state="RUNNING", owner="another", attempts=1, lease_until=ends)
    with bench.worker():
        until(lambda: bench.messages() == (0, 1))
        assert bench.record(job_id)["owner"] == "another"
        record = bench.until_state(job_id, "SUCCEEDED")

    assert record["attempts"] == 2
    assert datetime.fromisoformat(record["started"]).timestamp() > ends


def test_a_killed_worker_s_job_is_done_by_another(bench):
    job_id = bench.job(b"sleep 1")
    with bench.worker(SPINDRIFT_LEASE_SECONDS="3") as worker:
        until(bench.diary.exists)
        worker.kill()
    with bench.worker(SPINDRIFT_LEASE_SECONDS="3"):
        record = bench.until_state(job_id, "SUCCEEDED")

    assert record["attempts"] == 2
    assert not {"failures", "releases"} & set(record)


@pytest.mark.parametrize(
    "stop_code, counted",
    [("EssentialContainerExited", {"crashes": 1}), ("SpotInterruption", {})],
    ids=["crash", "interruption"],
)
def test_a_crash_of_the_whole_worker_makes_a_suspect_and_the_loss_of_its_instance_does_not(bench, stop_code, counted):
    dead = "arn:aws:ecs:us-east-1:123456789012:task/spindrift/dead"
    job_id = bench.job(b"nothing", state="RUNNING", owner=dead, attempts=1, lease_until=1)
    crashed = {"stopCode": stop_code, "containers": [{"name": "worker", "exitCode": 139}]}
    with ecs(crashed) as agent, bench.worker(AWS_ENDPOINT_URL_ECS=agent.url) as worker:
        record = bench.until_state(job_id, "SUCCEEDED")
        said = [line["event"] for line in worker.said()]

    assert {each: record[each] for each in ("crashes", "lapses") if each in record} == {"lapses": 1, **counted}
    assert "failures" not in record
    assert ("alone" in said) is bool(counted)


def test_crashes_of_the_whole_worker_use_up_a_job(bench):
    dead = "arn:aws:ecs:us-east-1:123456789012:task/spindrift/dead"
    past = {"state": "RUNNING", "owner": dead, "attempts": 3, "crashes": 2, "lapses": 2, "lease_until": 1}
    last, other = bench.job(b"nothing", "last", failures=2, **past), bench.job(b"nothing", "other", failures=0, **past)
    crashed = {"stopCode": "EssentialContainerExited", "containers": [{"name": "worker", "exitCode": 139}]}
    with ecs(crashed) as agent, bench.worker(AWS_ENDPOINT_URL_ECS=agent.url):
        assert bench.until_state(last, "FAILED")["error"] == "failure 3 of 3: its worker crashed: exit code 139"
        assert until(lambda: (r := bench.record(other)).get("failures") == 1 and r)["state"] == "QUEUED"
        bench.until_state(other, "SUCCEEDED")

    assert bench.buried() == ["failure 3 of 3: its worker crashed: exit code 139"]
    assert bench.diary.read_text() == "nothing\n"


def test_a_suspect_is_worked_on_alone(bench):
    jobs = [bench.job(b"sleep 0.5", f"{n}", **({"crashes": 1} if n % 2 else {})) for n in range(6)]
    with bench.worker(SPINDRIFT_PROCESSORS="3"):
        records = [bench.until_state(job_id, "SUCCEEDED") for job_id in jobs]

    def at_work(record):
        ends = datetime.fromisoformat(record["finished"]).timestamp()
        return ends - record["gpu_seconds"], ends - 0.1  # storing needs no processor

    works = [at_work(record) for record in records]
    for n in (1, 3, 5):
        begins, ends = works[n]
        assert not [other for other in works if other is not works[n] and other[0] < ends and begins < other[1]]


def test_a_heartbeat_keeps_a_job_longer_than_its_lease(bench):
    job_id = bench.job(b"sleep 30")
    with bench.worker(SPINDRIFT_LEASE_SECONDS="3"):
        until(bench.diary.exists)
        time.sleep(4)
        assert bench.record(job_id)["lease_until"] > time.time()
        assert bench.messages() == (0, 1)


def test_sigterm_in_mid_job_gives_it_back_at_once(bench):
    job_id = bench.job(b"sleep 30")
    with bench.worker(SPINDRIFT_STOP_TIMEOUT_SECONDS="30") as worker:
        until(bench.diary.exists)
        asked = time.monotonic()
        worker.terminate()
        assert worker.wait(10) == 0
        assert time.monotonic() - asked < 3

    record = bench.record(job_id)
    assert (record["state"], record["releases"], record["attempts"]) == ("QUEUED", 1, 1)
    assert not {"failures", "owner", "lease_until"} & set(record)
    assert bench.messages() == (1, 0)
    assert not list((bench.folder / "tmp").iterdir())


def test_a_worker_that_goes_deletes_the_messages_of_what_it_has_done(bench):
    job_id = bench.job(b"nothing")
    with bench.worker() as worker:
        bench.until_state(job_id, "SUCCEEDED")
        worker.terminate()
        assert worker.wait(10) == 0

    assert bench.messages() == (0, 0)


def test_a_notice_far_enough_away_lets_the_job_finish_and_no_other_begin(bench):
    first = bench.job(b"sleep 2", "first")
    with bench.worker() as worker:
        until(bench.diary.exists)
        bench.notice(seconds=120)
        second = bench.job(b"nothing", "second")
        bench.until_state(first, "SUCCEEDED")
        until(lambda: bench.messages() == (1, 0))
        time.sleep(1)
        assert worker.poll() is None  # it waits to be stopped
        assert bench.messages() == (1, 0)
        worker.terminate()
        assert worker.wait(5) == 0

    assert bench.record(second)["state"] == "QUEUED"
    assert "attempts" not in bench.record(second)


def test_while_nothing_is_known_of_their_pace_jobs_are_taken_one_by_one(bench):
    for n in range(4):
        bench.job(b"sleep 3", f"{n}")
    with bench.worker():
        until(bench.diary.exists)
        time.sleep(1)
        assert bench.messages() == (3, 1)


def test_each_processor_works_on_a_job_of_its_own(bench):
    jobs = [bench.job(b"sleep 3", f"{n}") for n in range(4)]
    with bench.worker(SPINDRIFT_PROCESSORS="3"):
        until(lambda: bench.diary.exists() and len(bench.diary.read_text().split()) == 3)
        assert bench.messages() == (1, 3)
        assert all(bench.until_state(job_id, "SUCCEEDED")["attempts"] == 1 for job_id in jobs)


def test_what_begins_soon_is_made_ready_and_goes_back_unharmed_when_the_end_is_near(bench):
    bench.until_state(quick := bench.job(b"nothing", "quick"), "QUEUED")
    with bench.worker(SPINDRIFT_STOP_TIMEOUT_SECONDS="60") as worker:
        bench.until_state(quick, "SUCCEEDED")
        jobs = [bench.job(b"sleep 4", f"{n}") for n in range(6)]
        until(lambda: len(in_state(bench, jobs, "RUNNING")) > 2)
        until(lambda: len(list((bench.folder / "tmp").glob("*/*/input"))) > 2)
        worker.terminate()
        until(lambda: len(in_state(bench, jobs, "QUEUED")) == 5, 3)
        until(lambda: bench.messages()[0] == 5, 1)
        assert worker.wait(20) == 0

    [done] = in_state(bench, jobs, "SUCCEEDED")  # the one that had begun, and fitted
    assert done["attempts"] == 1
    assert bench.diary.read_text().split() == ["nothing", "sleep"]
    assert not any("failures" in record for record in map(bench.record, jobs))
    assert not list((bench.folder / "tmp").iterdir())


IMPATIENT = "from datetime import timedelta; from gpu_worker import pipeline; pipeline.PATIENCE = timedelta(seconds=1)"


def test_a_job_that_waits_long_behind_one_that_does_not_end_is_done_by_another_worker(bench):
    assert PATIENCE == timedelta(seconds=30)
    bench.until_state(bench.job(b"nothing", "quick"), "QUEUED")
    with bench.worker(first=IMPATIENT):
        until(lambda: [r for r in bench.records() if r["state"] == "SUCCEEDED"])
        jobs = [bench.job(b"sleep 60", f"{n}") for n in range(2)]
        until(lambda: [r for r in map(bench.record, jobs) if r.get("releases")])
        stuck = jobs[0] if bench.record(jobs[1]).get("releases") else jobs[1]
        assert "releases" not in bench.record(stuck)
        with bench.worker():
            until(lambda: len({r["owner"] for r in in_state(bench, jobs, "RUNNING")}) == 2)

    assert "failures" not in bench.record(jobs[0]) | bench.record(jobs[1])


def test_a_job_is_not_given_back_because_its_upload_takes_long(bench):
    slow = "import time; from gpu_worker.cloud import Cloud; fetch = Cloud.download\n"
    slow += "Cloud.download = lambda *told: (time.sleep(2.5), fetch(*told))\n"
    job_id = bench.job(b"nothing")
    with bench.worker(first=slow + IMPATIENT):
        record = bench.until_state(job_id, "SUCCEEDED")

    assert (record["attempts"], record.get("releases")) == (1, None)


def in_state(bench, jobs, state):
    return [record for record in map(bench.record, jobs) if record["state"] == state]


def disk(total, free):
    """Code that makes the scratch disk of this size, in bytes."""
    return (
        "import shutil; from types import SimpleNamespace\n"
        f"shutil.disk_usage = lambda _: SimpleNamespace(total={total}, free={free})\n"
    )


def test_an_upload_for_which_there_is_no_room_goes_back_unharmed(bench):
    large = bench.job(b"nothing", "large", size=2**28)
    with bench.worker(first=disk(total=2**30, free=2**28)) as worker:
        record = until(lambda: (r := bench.record(large)).get("releases") and r)
        assert record["state"] == "QUEUED" and "failures" not in record
        until(lambda: any("no room on the scratch disk" in line.get("error", "") for line in worker.said()))
        bench.until_state(bench.job(b"nothing", "small"), "SUCCEEDED")


def test_an_upload_for_which_no_disk_of_the_kind_has_room_does_not_come_again_for_ever(bench):
    huge = bench.job(b"nothing", "huge", size=2**29, failures=2)
    with bench.worker(first=disk(total=2**30, free=2**30)):
        assert "the scratch disk is too small" in bench.until_state(huge, "FAILED")["error"]


def no_space(flag):
    """Code to run first: from when the file is there, the disk is full."""
    return f"""
import errno, os, pathlib
def full_or(make):
    def made(path, *rest, **more):
        if os.path.exists({str(flag)!r}) and "spindrift-" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(path, *rest, **more)
    return made
os.mkdir, pathlib.Path.write_text = full_or(os.mkdir), full_or(pathlib.Path.write_text)
"""


def test_a_disk_that_is_quite_full_holds_up_no_job_longer_than_it_is(bench):
    full = bench.folder / "full"
    with bench.worker(first=no_space(full)) as worker:
        until(lambda: any(line["event"] == "ready" for line in worker.said()))
        full.touch()
        job_id = bench.job(b"nothing")
        until(lambda: bench.record(job_id).get("releases"))
        full.unlink()
        record = bench.until_state(job_id, "SUCCEEDED")

    assert not {"failures", "lapses", "crashes"} & set(record)


def test_a_job_goes_back_even_if_the_disk_has_no_room_to_tell_its_processor(bench):
    full = bench.folder / "full"
    job_id = bench.job(b"sleep 30")
    with bench.worker(first=no_space(full), SPINDRIFT_STOP_TIMEOUT_SECONDS="30") as worker:
        until(bench.diary.exists)
        full.touch()
        worker.terminate()
        assert worker.wait(10) == 0

    assert (bench.record(job_id)["state"], bench.record(job_id)["releases"]) == ("QUEUED", 1)


def test_an_upload_that_fills_the_disk_since_its_size_lied_goes_back_unharmed(bench):
    full = "import errno, os; write = os.pwrite\n"
    full += "def tight(file, data, at):\n"
    full += "    if at + len(data) > 1000: raise OSError(errno.ENOSPC, 'No space left on device')\n"
    full += "    return write(file, data, at)\n"
    full += "os.pwrite = tight\n"
    lying = bench.job(b"nothing" + bytes(2000), "lying", size=10)
    with bench.worker(first=full) as worker:
        record = until(lambda: (r := bench.record(lying)).get("releases") and r)
        assert record["state"] == "QUEUED" and "failures" not in record
        until(lambda: any("the scratch disk is full" in line.get("error", "") for line in worker.said()))
        bench.until_state(bench.job(b"nothing", "small"), "SUCCEEDED")


def test_what_arrives_during_the_poll_of_a_doomed_worker_is_given_back(bench):
    with bench.worker() as worker:
        until(lambda: any(line["event"] == "ready" for line in worker.said()))
        time.sleep(0.3)
        bench.notice(seconds=120)
        job_id = bench.job(b"nothing")
        until(lambda: any(line["event"] == "leaving" for line in worker.said()))

    assert bench.record(job_id)["state"] == "QUEUED"
    assert bench.messages() == (1, 0)


def test_a_lost_lease_neither_finishes_nor_fails_the_job(bench):
    job_id = bench.job(b"sleep 30")
    with bench.worker(SPINDRIFT_LEASE_SECONDS="3") as worker:
        until(bench.diary.exists)
        bench.write(job_id, owner="another", attempts=2, lease_until=int(time.time()) + 600)
        until(lambda: any(line["event"] == "lost the lease" for line in worker.said()))
        after = bench.job(b"nothing", "after")
        bench.until_state(after, "SUCCEEDED")
        until(lambda: sum(bench.messages()) == 1)

    record = bench.record(job_id)
    assert (record["state"], record["owner"], record["attempts"]) == ("RUNNING", "another", 2)
    assert "failures" not in record


@pytest.mark.parametrize(
    "order, reason",
    [
        ("crash", "signal 11"),
        ("raise", "RuntimeError: the model   melted"),
        ("hang", "time-out"),
        ("link", "plain file"),
    ],
)
def test_failures_are_counted_until_they_are_used_up(bench, order, reason):
    job_id = bench.job(order.encode(), failures=1)
    last = bench.job(f"{order} last".encode(), "last", failures=2)
    with bench.worker(SPINDRIFT_JOB_SECONDS="1") as worker:
        record = until(lambda: (r := bench.record(job_id)).get("failures") == 2 and r)
        assert record["state"] == "QUEUED" and reason in record["error"]
        record = bench.until_state(last, "FAILED")
        assert record["failures"] == 3 and reason in record["error"]
        assert worker.poll() is None

        until(lambda: sum(bench.messages()) == 1)

    assert bench.buried() == [record["error"]]


def test_a_failed_job_whose_worker_died_before_it_was_buried_is_buried_when_its_message_comes_again(bench):
    job_id = bench.job(b"reject", told=2)
    with bench.worker(SPINDRIFT_LEASE_SECONDS="3", SPINDRIFT_DEAD_LETTER_QUEUE_URL=f"{bench.dead}-nowhere") as worker:
        bench.until_state(job_id, "FAILED")
        until(lambda: [line for line in worker.said() if "bury" in line.get("error", "")])
    assert sum(bench.messages()) == 2

    with bench.worker(SPINDRIFT_LEASE_SECONDS="3"):
        until(lambda: bench.messages() == (0, 0))

    record = bench.record(job_id)
    assert (record["failures"], record["attempts"], "unburied" in record) == (1, 1, False)
    assert bench.buried() == ["not for us"]
    assert bench.diary.read_text() == "reject\n"


def test_a_processor_that_will_not_start_again_costs_no_job_anything_and_its_worker_leaves(bench):
    broken = bench.folder / "broken"
    (bench.folder / "fickle.py").write_text(
        f"""
import os
from pathlib import Path
if Path({str(broken)!r}).exists(): raise RuntimeError("CUDA error: unknown error")
def process(source, output_dir, job):
    if source.read_text() == "crash": os._exit(9)
    (output_dir / "done").touch()
"""
    )
    fickle = {"SPINDRIFT_PROCESSOR": "fickle:process"}
    fickle["PYTHONPATH"] = os.pathsep.join([bench.env()["PYTHONPATH"], str(bench.folder)])
    with bench.worker(**fickle) as worker:
        until(lambda: any(line["event"] == "ready" for line in worker.said()))
        broken.touch()
        crash = bench.job(b"crash", "crash", failures=2)
        bench.until_state(crash, "FAILED")
        jobs = [bench.job(b"well", f"{n}") for n in range(4)]
        assert worker.wait(20) == 2
        assert "CUDA error" in worker.printed()
    assert not any("failures" in bench.record(each) for each in jobs)

    broken.unlink()
    with bench.worker(**fickle):
        for each in jobs:
            bench.until_state(each, "SUCCEEDED")


def test_a_processor_that_is_killed_while_it_starts_again_is_no_reason_to_leave(bench):
    (bench.folder / "late.py").write_text(
        f"""
import os, time
from pathlib import Path
if Path({str(bench.diary)!r}).exists(): time.sleep(3)
def process(source, output_dir, job):
    Path({str(bench.diary)!r}).touch()
    if source.read_text() == "crash": os._exit(9)
    (output_dir / "done").touch()
"""
    )
    late = {"SPINDRIFT_PROCESSOR": "late:process", "SPINDRIFT_LEASE_SECONDS": "3"}
    late["PYTHONPATH"] = os.pathsep.join([bench.env()["PYTHONPATH"], str(bench.folder)])
    crash = bench.job(b"crash", "crash", failures=2)
    with bench.worker(**late) as worker:
        bench.until_state(crash, "FAILED")
        taken = bench.job(b"well", "taken")
        bench.until_state(taken, "RUNNING")
        bench.write(taken, owner="another", attempts=2, lease_until=int(time.time()) + 600)
        until(lambda: any(line["event"] == "lost the lease" for line in worker.said()))
        bench.until_state(bench.job(b"well", "well"), "SUCCEEDED")
        assert worker.poll() is None


def test_what_is_done_is_stored_when_s3_comes_back_and_not_done_again(bench):
    trouble = bench.folder / "trouble"
    first = f"""
import os
from gpu_worker.cloud import Cloud, Trouble
upload = Cloud.upload
def try_to_upload(*told):
    if os.path.exists({str(trouble)!r}): raise Trouble("upload: SlowDown")
    return upload(*told)
Cloud.upload = try_to_upload
"""
    trouble.touch()
    job_id = bench.job(b"nothing")
    with bench.worker(first=first) as worker:
        until(lambda: sum("SlowDown" in line.get("error", "") for line in worker.said()) > 1)
        trouble.unlink()
        record = bench.until_state(job_id, "SUCCEEDED")

    assert (record["attempts"], bench.diary.read_text()) == (1, "nothing\n")


SPLITS = {"SPINDRIFT_PROCESSOR": "wordcount:process", "SPINDRIFT_OPTIONS": '{"lines_per_part": 1}'}


@pytest.mark.parametrize("kind", [{}, SPLITS], ids=["results", "parts"])
def test_what_s3_will_never_take_is_a_failure_with_its_reason(bench, kind):
    path = os.pathsep.join([bench.env()["PYTHONPATH"], str(ROOT / "ecs-tasks/examples/wordcount")])
    job_id = bench.job(b"nothing\nnothing", failures=2)
    with bench.worker(SPINDRIFT_RESULTS_BUCKET=f"{bench.results}-nowhere", PYTHONPATH=path, **kind):
        assert "NoSuchBucket" in bench.until_state(job_id, "FAILED")["error"]


def test_a_doomed_worker_that_cannot_store_gives_the_job_back(bench):
    job_id = bench.job(b"nothing")
    never = "from gpu_worker.cloud import Cloud, Trouble\n"
    never += "def upload(*_): raise Trouble('upload: SlowDown')\n"
    never += "Cloud.upload = upload\n"
    with bench.worker(first=never, SPINDRIFT_STOP_TIMEOUT_SECONDS="12") as worker:
        until(lambda: any("SlowDown" in line.get("error", "") for line in worker.said()))
        worker.terminate()
        assert worker.wait(10) == 0

    assert (bench.record(job_id)["state"], bench.record(job_id)["releases"]) == ("QUEUED", 1)
    assert bench.messages() == (1, 0)


def test_rejected_and_not_now_are_said_by_exit_code_or_by_exception(bench):
    rejected = [bench.job(b"reject", "a"), bench.job(b"exit 3", "b")]
    not_now = [bench.job(b"not-now", "c"), bench.job(b"exit 4", "d")]
    with bench.worker():
        for job_id in rejected:
            bench.until_state(job_id, "FAILED")
        for job_id in not_now:
            record = until(lambda job_id=job_id: (r := bench.record(job_id)).get("releases") and r)
            assert "failures" not in record


def test_an_earlier_attempt_s_result_is_kept(bench):
    job_id = bench.job(b"nothing")
    key = f"a.jpg/{job_id}/done"
    bench.s3.put_object(Bucket=bench.results, Key=key, Body=b"earlier")
    with bench.worker():
        bench.until_state(job_id, "SUCCEEDED")

    assert bench.s3.get_object(Bucket=bench.results, Key=key)["Body"].read() == b"earlier"


def test_messages_that_can_never_be_work_are_dropped_or_buried(bench):
    finished = bench.job(b"nothing", "finished", state="SUCCEEDED")
    for body in ("hello", "[" * 100_000):
        bench.sqs.send_message(QueueUrl=bench.queue, MessageBody=body)
    unknown = bench.job(b"nothing", "unknown")
    bench.dynamodb.delete_item(TableName=bench.table, Key={"job_id": {"S": unknown}})
    gone = bench.job(b"nothing", "gone")
    bench.s3.delete_object(Bucket=bench.uploads, Key="gone")
    replaced = bench.job(b"nothing", "replaced")
    bench.s3.put_object(Bucket=bench.uploads, Key="replaced", Body=b"other")
    with bench.worker():
        until(lambda: bench.messages() == (0, 0))

    assert sorted(bench.buried()) == [
        "the job has no record",
        "the message is no spindrift.job/1",
        "the message is no spindrift.job/1",
        "the upload is gone",
        "the upload was replaced before its job ran",
    ]
    assert [bench.record(each)["state"] for each in (finished, gone, replaced)] == ["SUCCEEDED", "FAILED", "FAILED"]
    assert not bench.diary.exists()


# S3 writes to the job queue itself.


def test_an_upload_told_by_s3_is_recorded_and_done(bench):
    bench.version()
    upload = bench.upload(b"nothing", "a b+c/ünï.txt")
    before = datetime.now(UTC)
    [job_id] = bench.tell(upload)
    time.sleep(1)
    with bench.worker(SPINDRIFT_QUEUE="big-ones") as worker:
        record = bench.until_state(job_id, "SUCCEEDED")
        until(lambda: bench.messages() == (0, 0))
        assert {line.get("queue") for line in worker.said() if line["event"] in ("ready", "claimed", "settled")} == {
            "big-ones"
        }

    assert record["queue"] == "big-ones"
    assert (record["key"], record["version"]) == ("a b+c/ünï.txt", upload["object"]["versionId"])
    assert (record["attempts"], record["releases"], record["failures"]) == (1, 0, 0)
    # Created when S3 told of it, not when a worker came to hear it.
    assert abs(datetime.fromisoformat(record["created"]) - before) < timedelta(seconds=0.9)
    assert bench.there(upload)


def test_what_s3_sends_that_is_no_upload_is_no_job(bench):
    folder = bench.upload(b"", "photos/")
    bench.tell(folder)
    bench.tell(bench.upload(b"nothing", "gone"), event="ObjectRemoved:Delete")
    bench.sqs.send_message(QueueUrl=bench.queue, MessageBody=sample("s3-test-event"))
    bench.sqs.send_message(QueueUrl=bench.queue, MessageBody='{"Records": [{"eventName": "ObjectCreated:Put"}]}')
    with bench.worker():
        until(lambda: bench.messages() == (0, 0))

    assert bench.buried() == ["the message is an S3 event that cannot be read"]
    assert not bench.diary.exists()


def test_the_same_upload_told_again_is_one_job(bench):
    upload = bench.upload(b"nothing", "a")
    [job_id], _, _ = bench.tell(upload), bench.tell(upload), bench.tell(upload, upload)
    with bench.worker(SPINDRIFT_LEASE_SECONDS="3"), bench.worker(SPINDRIFT_LEASE_SECONDS="3"):
        record = bench.until_state(job_id, "SUCCEEDED")
        until(lambda: bench.messages() == (0, 0))

    assert (record["attempts"], bench.diary.read_text()) == (1, "nothing\n")


def test_several_uploads_in_one_event_are_all_done_and_the_bad_one_is_buried(bench):
    orders = (b"nothing", b"reject", b"exit 0", b"raise", b"nothing more")
    jobs = bench.tell(*(bench.upload(order, f"{n}") for n, order in enumerate(orders)))
    with bench.worker(SPINDRIFT_MAX_FAILURES="1"):
        until(lambda: bench.messages() == (0, 0))

    states = [bench.record(job_id)["state"] for job_id in jobs]
    assert states == ["SUCCEEDED", "FAILED", "SUCCEEDED", "FAILED", "SUCCEEDED"]
    assert sorted(bench.buried()) == ["failure 1 of 1: RuntimeError: the model   melted", "not for us"]
    assert len(bench.diary.read_text().splitlines()) == 5


def test_what_is_left_of_an_event_is_done_when_it_comes_again(bench):
    jobs = bench.tell(bench.upload(b"nothing", "a"), bench.upload(b"raise", "b"), bench.upload(b"exit 0", "c"))
    with bench.worker(SPINDRIFT_MAX_FAILURES="2") as worker:
        until(lambda: bench.record(jobs[1]).get("failures") == 1)
        worker.terminate()
        assert worker.wait(10) == 0
    assert [bench.record(job_id)["state"] for job_id in jobs] == ["SUCCEEDED", "QUEUED", "none"]
    assert sum(bench.messages()) == 1

    with bench.worker(SPINDRIFT_MAX_FAILURES="2"):
        until(lambda: bench.messages() == (0, 0))

    assert [bench.record(job_id)["state"] for job_id in jobs] == ["SUCCEEDED", "FAILED", "SUCCEEDED"]
    assert bench.diary.read_text().split() == ["nothing", "raise", "raise", "exit"]


def test_an_event_of_many_short_jobs_stays_hidden_while_they_are_done(bench):
    jobs = bench.tell(*(bench.upload(b"sleep 0.8", f"{n}") for n in range(6)))
    with bench.worker(SPINDRIFT_LEASE_SECONDS="3"):
        until(bench.diary.exists)
        while bench.record(jobs[-1])["state"] != "SUCCEEDED":
            assert bench.messages()[0] == 0
            time.sleep(0.1)


def test_a_doomed_worker_gives_back_what_is_left_of_an_event(bench):
    jobs = bench.tell(bench.upload(b"sleep 2", "a"), bench.upload(b"nothing", "b"))
    with bench.worker():
        until(bench.diary.exists)
        bench.notice(seconds=120)
        bench.until_state(jobs[0], "SUCCEEDED")
        until(lambda: bench.messages() == (1, 0))

    assert bench.record(jobs[1])["state"] == "none"


# Uploads that have done their duty.


def test_the_upload_of_a_finished_job_is_deleted_and_no_other_version_of_it(bench):
    bench.version()
    old, mine, new = (bench.upload(body, "a b+c.txt") for body in (b"reject", b"nothing", b"raise"))
    [job_id] = bench.tell(mine)
    with bench.worker(SPINDRIFT_DELETE_UPLOADS="1"):
        bench.until_state(job_id, "SUCCEEDED")
        until(lambda: bench.messages() == (0, 0))

    assert [bench.there(each) for each in (old, mine, new)] == [True, False, True]
    assert len(bench.stored()) == 1


def test_without_versions_an_upload_is_deleted_only_while_it_is_the_one_that_was_worked_on(bench):
    same, replaced = bench.upload(b"nothing", "same"), bench.upload(b"sleep 2", "replaced")
    jobs = bench.tell(replaced) + bench.tell(same)
    with bench.worker(SPINDRIFT_DELETE_UPLOADS="1") as worker:
        until(lambda: bench.diary.exists() and "sleep" in bench.diary.read_text())
        bench.upload(b"nothing yet", "replaced")
        for job_id in jobs:
            bench.until_state(job_id, "SUCCEEDED")
        until(lambda: bench.messages() == (0, 0))
        assert not [line for line in worker.said() if line["event"] == "the upload stays"]

    assert (bench.there(same), bench.there(replaced)) == (False, True)


@pytest.mark.parametrize("order", ["reject", "raise", "not-now"])
def test_the_upload_of_a_job_that_did_not_succeed_stays(bench, order):
    bench.version()
    upload = bench.upload(order.encode(), "a")
    [job_id] = bench.tell(upload)
    with bench.worker(SPINDRIFT_DELETE_UPLOADS="1", SPINDRIFT_MAX_FAILURES="1"):
        until(lambda: (r := bench.record(job_id))["state"] == "FAILED" or r.get("releases"))
        bench.tell(upload)
        time.sleep(1)

    assert bench.there(upload)


def test_an_upload_that_cannot_be_deleted_fails_nothing_and_is_tried_again_with_the_next_message(bench):
    bench.version()
    bench.s3.put_object_lock_configuration(
        Bucket=bench.uploads, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"}
    )
    upload = bench.upload(b"nothing", "a")
    hold = {"Bucket": bench.uploads, "Key": "a", "VersionId": upload["object"]["versionId"]}
    bench.s3.put_object_legal_hold(LegalHold={"Status": "ON"}, **hold)
    [job_id] = bench.tell(upload)
    with bench.worker(SPINDRIFT_DELETE_UPLOADS="1") as worker:
        bench.until_state(job_id, "SUCCEEDED")
        until(lambda: bench.messages() == (0, 0))
        [line] = [line for line in worker.said() if line["event"] == "the upload stays"]
        assert (line["job_id"], line["error"]) == (job_id, "delete the upload: AccessDenied")
        assert bench.there(upload)

        bench.s3.put_object_legal_hold(LegalHold={"Status": "OFF"}, **hold)
        bench.tell(upload)
        until(lambda: not bench.there(upload))

    assert (bench.record(job_id)["attempts"], bench.buried()) == (1, [])


def test_the_upload_stays_until_the_record_says_that_the_job_succeeded(bench):
    bench.version()
    upload = bench.upload(b"sleep 1", "a")
    [job_id] = bench.tell(upload)
    with bench.worker(SPINDRIFT_DELETE_UPLOADS="1") as worker:
        until(bench.diary.exists)
        bench.write(job_id, owner="another", attempts=2)
        until(lambda: any(line["event"] == "lost the lease" for line in worker.said()))

    assert len(bench.stored()) == 1
    assert bench.there(upload)


def test_a_processor_finds_the_shared_files(bench):
    (bench.folder / "shared").mkdir()
    job_id = bench.job(b"share")
    with bench.worker(SPINDRIFT_SHARED_DIR=str(bench.folder / "shared")):
        bench.until_state(job_id, "SUCCEEDED")

    assert (bench.folder / "shared/model").read_text() == "of many jobs"


@pytest.mark.parametrize(
    "env, said",
    [
        (
            {
                "SPINDRIFT_QUEUE_URL": "",
                "SPINDRIFT_LEASE_SECONDS": "1",
                "SPINDRIFT_OPTIONS": "[",
                "AWS_DEFAULT_REGION": "",
            },
            [
                "SPINDRIFT_QUEUE_URL is missing",
                "SPINDRIFT_LEASE_SECONDS: a whole",
                "SPINDRIFT_OPTIONS: a JSON",
                "REGION",
            ],
        ),
        ({"SPINDRIFT_PROCESSOR": "no_such_module:process"}, ["no_such_module"]),
        ({"SPINDRIFT_OPTIONS": '{"problems": ["too few", "too many"]}'}, ["too few; too many"]),
    ],
    ids=["settings", "processor", "options"],
)
def test_what_can_never_work_is_refused_before_a_job_is_taken(bench, env, said):
    done = subprocess.run(
        [sys.executable, "-m", "gpu_worker"],
        env=bench.env(**env),
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert done.returncode == 2
    [line] = map(json.loads, done.stdout.splitlines())
    assert all(each in line["error"] for each in said)


SOON = "from gpu_worker import host; host.HUNG_SECONDS = 2"


def test_a_worker_whose_main_loop_hangs_prints_its_stacks_and_dies_and_its_job_is_done_by_another(bench):
    job_id, notice = bench.job(b"sleep 1"), bench.host_dir / "notice.json"
    with bench.worker(first=SOON, SPINDRIFT_LEASE_SECONDS="3") as worker:
        until(bench.diary.exists)
        os.mkfifo(notice)  # who opens it waits for a writer
        assert worker.wait(10) == 1
        assert "Timeout (0:00:02)!" in worker.printed() and "in _read_notice" in worker.printed()
    notice.unlink()
    with bench.worker(SPINDRIFT_LEASE_SECONDS="3"):
        bench.until_state(job_id, "SUCCEEDED")


def test_a_worker_that_works_or_waits_to_be_stopped_does_not_hang(bench):
    bench.job(b"sleep 3")
    with bench.worker(first=SOON) as worker:
        until(bench.diary.exists)
        bench.notice(seconds=120)
        until(lambda: any(line["event"] == "leaving" for line in worker.said()))
        time.sleep(3)
        worker.terminate()
        assert worker.wait(5) == 0


def test_a_processor_does_not_outlive_its_worker(bench):
    bench.job(b"sleep 60")
    with bench.worker() as worker:
        until(bench.diary.exists)
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(worker.pid)], capture_output=True, text=True, check=True
        )
        [child] = listed.stdout.split()
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        until(lambda: subprocess.run(["ps", "-p", child], capture_output=True, check=False).returncode != 0, 5)
