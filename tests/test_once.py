"""One job in one process, as AWS Batch runs it: what its exit code says, and what it leaves for the next attempt."""

import json
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from worker_make import ROOT, running, until

from ingest.routing import Upload

MANIFEST = ".manifests/m.jsonl"
EXAMPLES = ROOT / "ecs-tasks" / "examples"
SLOW = """
import json, time
from pathlib import Path

def process(source, output_dir, job):
    steps = Path(job["checkpoint"]) / "steps"
    done = int(steps.read_text()) if steps.exists() else 0
    steps.write_text(str(done + 1))
    Path(job["options"]["diary"]).open("a").write(f"{done} ")
    while not done and not Path(job["deadline_file"]).exists():
        time.sleep(0.05)
    if not done:
        time.sleep(60)
    (output_dir / "steps").write_text(str(done + 1))
"""


def handed_in(bench, *bodies):
    """Upload a file for each body, and a manifest of them; returns the job ids."""
    uploads = []
    for number, body in enumerate(bodies):
        key = f"in/{number}.txt"
        etag = bench.s3.put_object(Bucket=bench.uploads, Key=key, Body=body)["ETag"].strip('"')
        uploads.append(Upload(bucket=bench.uploads, key=key, version="", etag=etag, size=len(body)))
    text = "".join(f"{one.message}\n" for one in uploads)
    bench.s3.put_object(Bucket=bench.results, Key=MANIFEST, Body=text.encode())
    return [one.job_id for one in uploads]


@contextmanager
def started(bench, attempt=1, **env):
    """The process, as Batch starts it: there is no queue and no table. `.said()` reads its log."""
    env = {"AWS_BATCH_JOB_ID": "b:0", "SPINDRIFT_MANIFEST": MANIFEST, "AWS_BATCH_JOB_ATTEMPT": str(attempt), **env}
    known = {name: value for name, value in bench.env(**env).items() if "QUEUE" not in name and "TABLE" not in name}
    with running(["-m", "gpu_worker", "once"], known, bench.folder) as process:
        yield process


def attempted(bench, attempt=1, **env):
    """The exit code of an attempt."""
    with started(bench, attempt, **env) as process:
        return process.wait(30)


def reasons(bench):
    """By attempt, what the failures left behind."""
    found = bench.s3.list_objects_v2(Bucket=bench.results, Prefix=".failures/").get("Contents", [])
    return {
        one["Key"].removeprefix(".failures/"): bench.s3.get_object(Bucket=bench.results, Key=one["Key"])["Body"]
        .read()
        .decode()
        for one in found
    }


def results(bench):
    return [key for key in bench.stored() if not key.startswith(".")]


def test_child_i_works_on_line_i_and_a_job_without_children_on_the_first(bench):
    first, second = handed_in(bench, b"one", b"two")

    assert attempted(bench, AWS_BATCH_JOB_ARRAY_INDEX="1") == 0
    assert results(bench) == [f"in/1.txt/{second}/done"]
    assert attempted(bench) == 0
    assert results(bench) == [f"in/0.txt/{first}/done", f"in/1.txt/{second}/done"]


def test_a_second_attempt_at_what_is_done_changes_nothing(bench):
    handed_in(bench, b"one")
    assert attempted(bench) == 0
    stored = bench.s3.head_object(Bucket=bench.results, Key=results(bench)[0])["LastModified"]

    assert attempted(bench, 2) == 0
    assert bench.s3.head_object(Bucket=bench.results, Key=results(bench)[0])["LastModified"] == stored


def test_only_failures_of_its_own_end_a_job_and_the_last_of_them_is_final(bench):
    handed_in(bench, b"raise")

    # Attempts 1 to 5 and 7 lost their machine: nobody heard of them.
    assert attempted(bench, 6) == 1
    assert attempted(bench, 8) == 1
    assert attempted(bench, 9) == 3
    assert reasons(bench) == {
        "b:0/6": "RuntimeError: the model   melted",
        "b:0/8": "RuntimeError: the model   melted",
        "b:0/9": "failure 3 of 3: RuntimeError: the model   melted",
    }


def test_the_failures_of_one_child_are_not_another_ones(bench):
    handed_in(bench, b"raise")

    assert attempted(bench, AWS_BATCH_JOB_ID="b:10", SPINDRIFT_MAX_FAILURES="2") == 1
    assert attempted(bench, AWS_BATCH_JOB_ID="b:1", SPINDRIFT_MAX_FAILURES="2") == 1, "b:1 is another job than b:10"
    assert attempted(bench, 2, AWS_BATCH_JOB_ID="b:1", SPINDRIFT_MAX_FAILURES="2") == 3


@pytest.mark.parametrize(
    "case, order, code, reason",
    [
        ("rejected", b"reject", 3, "not for us"),
        ("not now", b"not-now", 4, None),
        ("killed by a signal", b"crash", 1, "signal 11"),
        ("a code of its own", b"exit 7", 1, "exit code 7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_how_a_processor_ends_is_told_by_the_exit_code(bench, case, order, code, reason):
    handed_in(bench, order)

    assert attempted(bench) == code
    assert results(bench) == []
    assert [reason in said for said in reasons(bench).values()] == ([True] if reason else [])


def test_an_upload_that_is_gone_is_not_tried_again(bench):
    handed_in(bench, b"one")
    bench.s3.delete_object(Bucket=bench.uploads, Key="in/0.txt")

    assert attempted(bench) == 3
    assert list(reasons(bench).values()) == ["the upload is gone"]


@pytest.mark.parametrize(
    "case, env",
    [
        ("no such line", {"AWS_BATCH_JOB_ARRAY_INDEX": "1"}),
        ("no manifest", {"SPINDRIFT_MANIFEST": ""}),
        ("no such processor", {"SPINDRIFT_PROCESSOR": "nobody:home"}),
        ("settings", {"SPINDRIFT_JOB_SECONDS": "soon"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_attempt_could_mend_is_refused(bench, case, env):
    handed_in(bench, b"one")

    with started(bench, **env) as process:
        assert process.wait(30) == 2
    assert [line["event"] for line in process.said()][-1] == "refused"


def test_a_manifest_that_cannot_be_read_now_is_a_failure_and_no_refusal(bench):
    assert attempted(bench, SPINDRIFT_MANIFEST=".manifests/none") == 1


def test_one_told_to_stop_keeps_its_checkpoint_and_the_next_attempt_goes_on(bench):
    handed_in(bench, b"slow")
    (bench.folder / "slow.py").write_text(SLOW)
    env = {"SPINDRIFT_PROCESSOR": "slow:process"}
    env["PYTHONPATH"] = f"{bench.env()['PYTHONPATH']}:{bench.folder}"

    with started(bench, **env) as process:
        until(lambda: bench.diary.exists() and bench.diary.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(25) == 4
    assert (results(bench), reasons(bench)) == ([], {})
    assert attempted(bench, 2, **env) == 0

    assert bench.diary.read_text() == "0 1 "
    assert not [key for key in bench.stored() if key.startswith(".checkpoints")], "the job is over"


@pytest.mark.parametrize("comes_back", [True, False])
def test_what_is_done_waits_for_s3_until_it_is_told_to_stop(bench, comes_back):
    [job_id] = handed_in(bench, b"nothing")
    trouble = bench.folder / "trouble"
    trouble.touch()
    (bench.folder / "sitecustomize.py").write_text(
        f"""
import os
from gpu_worker.cloud import Cloud, Trouble
upload = Cloud.upload
def try_to_upload(*told):
    if os.path.exists({str(trouble)!r}): raise Trouble("upload: SlowDown")
    return upload(*told)
Cloud.upload = try_to_upload
"""
    )
    with started(bench, PYTHONPATH=f"{bench.folder}:{bench.env()['PYTHONPATH']}") as process:
        until(lambda: sum("SlowDown" in line.get("error", "") for line in process.said()) > 1)
        if comes_back:
            trouble.unlink()
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == (0 if comes_back else 4)

    assert bench.diary.read_text() == "nothing\n"
    assert (results(bench), reasons(bench)) == ([f"in/0.txt/{job_id}/done"] * comes_back, {})


def test_one_that_is_told_to_stop_while_it_loads_is_no_failure(bench):
    handed_in(bench, b"one")
    (bench.folder / "heavy.py").write_text(
        "import time\nfrom pathlib import Path\nPath('loading').touch()\ntime.sleep(60)\ndef process(*_): ...\n"
    )
    env = {"SPINDRIFT_PROCESSOR": "heavy:process"}
    env["PYTHONPATH"] = f"{bench.env()['PYTHONPATH']}:{bench.folder}"

    with started(bench, **env) as process:
        until(lambda: (bench.folder / "loading").exists() and process.said())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 4


def test_what_a_processor_would_share_it_does_alone(bench):
    (job_id,) = handed_in(bench, b"a b\na\nb\na\n")
    env = {
        "SPINDRIFT_PROCESSOR": "wordcount:process",
        "SPINDRIFT_OPTIONS": json.dumps({"lines_per_part": 1}),
        "PYTHONPATH": f"{bench.env()['PYTHONPATH']}:{EXAMPLES / 'wordcount'}",
    }

    assert attempted(bench, **env) == 0
    stored = bench.s3.get_object(Bucket=bench.results, Key=f"in/0.txt/{job_id}/words.json")["Body"].read()
    assert json.loads(stored) == {"a": 3, "b": 2}


def test_the_worker_and_the_template_speak_of_the_same_folders():
    from gpu_worker import once
    from gpu_worker.cloud import checkpoint_key
    from gpu_worker.job import Job
    from templates import batch

    assert once.FAILURES == batch.FAILURES
    assert checkpoint_key("j").startswith(batch.CHECKPOINTS)
    assert {batch.FAILURES, batch.MANIFESTS, batch.CHECKPOINTS} <= set(Job.not_theirs)
    assert Path(MANIFEST).parent.name == batch.MANIFESTS.strip("/")
