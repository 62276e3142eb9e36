"""The examples of ecs-tasks/examples, each with a real worker, as a user would run them."""

import io
import json
import os
import random
import signal
import tarfile
import time
from collections import Counter
from functools import partial

from PIL import Image
from worker_make import ROOT
from worker_make import until as true_in

EXAMPLES = ROOT / "ecs-tasks/examples"
LONG = 90
until = partial(true_in, seconds=LONG)


def brought(name, **options):
    """The environment of a worker with this example in it."""
    path = [ROOT / "ecs-tasks/gpu-worker", EXAMPLES / name]
    return {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "SPINDRIFT_PROCESSOR": f"{name}:process",
        "SPINDRIFT_OPTIONS": json.dumps(options),
    }


def body(bench, key):
    return bench.s3.get_object(Bucket=bench.results, Key=key)["Body"].read()


def steps(worker):
    return [line["line"] for line in worker.said() if line["event"] == "printed"]


def test_every_example_is_run_here_and_told_of():
    names = sorted(each.name for each in EXAMPLES.iterdir() if each.is_dir() and each.name != "__pycache__")

    assert names == ["longsum", "nearest", "unpack", "wordcount", "words"]
    for name in names:
        assert f"]({name})" in (EXAMPLES / "README.md").read_text()
        assert (EXAMPLES / name / "README.md").exists()


def test_unpack(bench):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name in ("a.txt", "folder/b.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    job_id = bench.job(archive.getvalue(), "two.tar.gz")
    with bench.worker(**brought("unpack")):
        record = bench.until_state(job_id, "SUCCEEDED", LONG)

    assert record["outputs"] == [f"two.tar.gz/{job_id}/{name}" for name in ("a.txt", "folder/b.txt")]
    assert [body(bench, key) for key in record["outputs"]] == [b"a.txt", b"folder/b.txt"]


def test_words(bench):
    command = json.dumps([str(EXAMPLES / "words/words.sh"), "{input}", "{output}"])
    paused = bench.folder / "paused"
    text, binary = bench.job(b"to be or\nnot to be\n", "text"), bench.job(b"\xff\xfe\x00", "binary")
    paused.touch()
    with bench.worker(SPINDRIFT_COMMAND=command, WORDS_PAUSED=str(paused)):
        until(lambda: bench.record(text).get("releases"))
        assert "failures" not in bench.record(text)
        paused.unlink()
        [key] = bench.until_state(text, "SUCCEEDED", LONG)["outputs"]
        failed = bench.until_state(binary, "FAILED", LONG)

    assert body(bench, key).split() == [b"2", b"6", b"19"]
    assert failed["error"] == "exit code 3: this is no text"


def test_longsum_goes_on_where_it_was_told_to_stop(bench):
    job_id = bench.job("\n".join(map(str, range(40))).encode(), "numbers")
    env = brought("longsum", seconds_per_step=0.1)
    with bench.worker(**env, SPINDRIFT_STOP_TIMEOUT_SECONDS="60") as worker:
        until(lambda: "step 9" in steps(worker))
        worker.terminate()
        assert worker.wait(30) == 0
        first = steps(worker)
    record = bench.record(job_id)
    assert (record["state"], record["releases"]) == ("QUEUED", 1)
    assert not {"failures", "owner", "lease_until"} & set(record)
    assert bench.messages() == (1, 0)

    with bench.worker(**env) as worker:
        record = bench.until_state(job_id, "SUCCEEDED", LONG)
        until(lambda: bench.messages() == (0, 0))
        assert first + steps(worker) == [f"step {number}" for number in range(40)]

    assert body(bench, record["outputs"][0]) == b"780\n"
    assert bench.stored() == record["outputs"]  # and no checkpoint any more


def test_longsum_survives_workers_that_are_killed_at_random(bench):
    """With a lease of 3 s a checkpoint is a second old at most, so each death costs so much work and no more."""
    job_id = bench.job("\n".join(map(str, range(60))).encode(), "numbers")
    chance, done, deaths = random.Random(7), [], 0
    while bench.record(job_id)["state"] != "SUCCEEDED":
        with bench.worker(**brought("longsum", seconds_per_step=0.1), SPINDRIFT_LEASE_SECONDS="3") as worker:
            until(lambda worker=worker: steps(worker) or bench.record(job_id)["state"] == "SUCCEEDED")
            ends = time.monotonic() + chance.uniform(2, 3.5)
            until(lambda ends=ends: time.monotonic() > ends or bench.record(job_id)["state"] == "SUCCEEDED")
            deaths += bench.record(job_id)["state"] != "SUCCEEDED"
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            done += steps(worker)

    assert deaths >= 2
    assert set(done) == {f"step {number}" for number in range(60)}
    assert len(done) <= 60 + deaths * 30
    [key] = bench.record(job_id)["outputs"]
    assert body(bench, key) == b"1770\n"
    assert "failures" not in bench.record(job_id)


TEXT = "".join(f"line {number % 7} of\nmany words\n" for number in range(30))


def counted(bench, record):
    [key] = record["outputs"]
    return json.loads(body(bench, key))


def test_wordcount_is_shared_and_comes_to_the_same(bench):
    bench.version()
    upload = bench.upload(TEXT.encode(), "a b+c.txt")
    [job_id] = bench.tell(upload)
    env = {**brought("wordcount", lines_per_part=10), "SPINDRIFT_DELETE_UPLOADS": "1"}
    with bench.worker(**env) as one, bench.worker(**env) as other:
        record = bench.until_state(job_id, "SUCCEEDED", LONG)
        until(lambda: bench.messages() == (0, 0))
        until(lambda: not bench.there(upload))
        settled = [line for worker in (one, other) for line in worker.said() if line["event"] == "settled"]

    assert counted(bench, record) == Counter(TEXT.split())
    assert record["outputs"] == [f"a b+c.txt/{job_id}/words.json"] == bench.stored()[:1]
    parts = [bench.record(f"{job_id}-1-{number:05d}") for number in range(6)]
    assert [(part["state"], part["parent"], part["attempts"]) for part in parts] == [("SUCCEEDED", job_id, 1)] * 6
    assert (record["parts_total"], record["parts_done"]) == (6, 6)
    assert sum(line["job_id"] == f"{job_id}-1-stitch" for line in settled) == 1
    assert not [key for key in bench.stored() if key.startswith(".parts/") and job_id in key]


def test_wordcount_survives_workers_that_are_killed_at_random(bench):
    job_id = bench.job(TEXT.encode(), "text")
    env = {**brought("wordcount", lines_per_part=10), "SPINDRIFT_LEASE_SECONDS": "3"}
    chance = random.Random(3)
    for _ in range(4):
        with bench.worker(**env) as worker:
            until(
                lambda worker=worker: (
                    any(line["event"] == "claimed" for line in worker.said()) or bench.messages() == (0, 0)
                )
            )
            time.sleep(chance.uniform(0, 0.3))
            worker.kill()
    with bench.worker(**env):
        record = bench.until_state(job_id, "SUCCEEDED", LONG)
        until(lambda: bench.messages() == (0, 0))

    assert counted(bench, record) == Counter(TEXT.split())
    assert "failures" not in record and bench.buried() == []


def test_a_part_that_fails_fails_the_whole_once_and_the_others_are_dropped(bench):
    text = TEXT.encode()[:200] + b"\xff" + TEXT.encode()[200:] + b"\xff\n"
    job_id = bench.job(text, "text")
    (bench.folder / "latin.py").write_text(
        "from wordcount import process, stitch\n"
        "def split(source, parts_dir, job):\n"
        "    for number, line in enumerate(source.read_bytes().splitlines()):\n"
        "        (parts_dir / f'{number:05d}').write_bytes(line)\n"
    )
    env = brought("wordcount")
    env |= {"PYTHONPATH": f"{env['PYTHONPATH']}{os.pathsep}{bench.folder}", "SPINDRIFT_PROCESSOR": "latin:process"}
    with bench.worker(**env, SPINDRIFT_MAX_FAILURES="1"):
        record = bench.until_state(job_id, "FAILED", LONG)
        until(lambda: bench.messages() == (0, 0))

    assert "of 61: failure 1 of 1: UnicodeDecodeError" in record["error"]
    [reason] = bench.buried()
    assert reason == record["error"]
    assert not [key for key in bench.stored() if not key.startswith(".parts/")]


def test_a_photograph_that_is_shared_comes_out_the_same(bench):
    large = io.BytesIO()
    Image.open(ROOT / "localcloud/photos/china.jpg").resize((2400, 1600)).save(large, "JPEG")
    photograph = large.getvalue()
    whole = bench.job(photograph, "whole.jpg")
    images = {"SPINDRIFT_PROCESSOR": "gpu_worker.images:process"}
    with bench.worker(**images, SPINDRIFT_OPTIONS="{}"):
        outputs = bench.until_state(whole, "SUCCEEDED", LONG)["outputs"]
    job_id = bench.job(photograph, "shared.jpg")
    with bench.worker(**images, SPINDRIFT_OPTIONS=json.dumps({"split_pixels": 1_000_000})):
        shared = bench.until_state(job_id, "SUCCEEDED", LONG)

    assert shared["parts_total"] > 1
    assert [body(bench, key) for key in shared["outputs"]] == [body(bench, key) for key in outputs]


def test_small_jobs_that_share_a_call_and_only_bad_ones_fail(bench):
    vectors = {"cat": [0.9, 0.1, 0.0], "dog": [0.1, 0.8, 0.3]}
    texts = ["[1, 0, 0]", "[0, 1, 0.4]", "[9, 1, 0]", "[0, 0, 7]", "no vector", "[1, 2]", "[5, 4, 3]", "[4, 5, 6]"]
    with bench.worker(**brought("nearest", vectors=vectors), SPINDRIFT_BATCH="4") as worker:
        bench.until_state(bench.job(b"[2, 2, 2]", "first"), "SUCCEEDED", LONG)
        jobs = [bench.job(text.encode(), f"{n}.json") for n, text in enumerate(texts)]
        records = [
            bench.until_state(job_id, "FAILED" if n in (4, 5) else "SUCCEEDED", LONG) for n, job_id in enumerate(jobs)
        ]
        until(lambda: sum(line["event"] == "settled" for line in worker.said()) == 9)

    found = [
        json.loads(body(bench, record["outputs"][0]))["name"] for n, record in enumerate(records) if n not in (4, 5)
    ]
    assert found == ["cat", "dog", "cat", "dog", "cat", "dog"]
    assert ["no list of numbers" in record.get("error", "") for record in records] == [n == 4 for n in range(8)]
    assert not any(record.get("failures") for n, record in enumerate(records) if n not in (4, 5))
