"""Workers that are killed at random, on a cloud that has a bad day: every job has exactly one effect.

`make soak` does 2,000 jobs; SOAK_JOBS says how many.
"""

import json
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path

import pytest
from worker_make import Bench, cloud, until

JOBS = int(os.environ.get("SOAK_JOBS", "100"))
WORKERS = 2
KILL_EVERY = (2, 5)
"""Seconds between two kills: long enough for a worker to begin, short enough to hit every stage."""
ENV = {"SPINDRIFT_LEASE_SECONDS": "6", "AWS_SDK_UA_APP_ID": "worker"}


@pytest.mark.timeout(60 + 2 * JOBS)
def test_every_job_has_exactly_one_effect_whatever_is_killed_or_fails(tmp_path):
    chance = random.Random(7)
    (tmp_path / "cloud").mkdir()
    with cloud(tmp_path / "cloud", program=[str(Path(__file__).parent / "faulty_cloud.py")], SEED="7") as url:
        bench = Bench(url, tmp_path)
        bench.s3.put_bucket_versioning(Bucket=bench.results, VersioningConfiguration={"Status": "Enabled"})
        orders = {f"{n:05}": chance.choice([b"nothing", b"sleep 0.05", b"sleep 0.3"]) for n in range(JOBS)}
        bad = set(chance.sample(sorted(orders), max(1, JOBS // 50)))
        with ThreadPoolExecutor(8) as pool:
            made = pool.map(lambda key: bench.job(b"reject" if key in bad else orders[key], key), orders)
            ids = dict(zip(orders, made, strict=True))
        begin, kills = time.monotonic(), 0
        kinds = cycle([ENV, {**ENV, "SPINDRIFT_BATCH": "4"}])
        with ExitStack() as workers:
            alive = [workers.enter_context(bench.worker(**next(kinds))) for _ in range(WORKERS)]
            while records := [each for each in bench.records() if each["state"] not in ("SUCCEEDED", "FAILED")]:
                time.sleep(chance.uniform(*KILL_EVERY))
                victim = chance.randrange(WORKERS)
                alive[victim].kill()
                kills += 1
                alive[victim] = workers.enter_context(bench.worker(**next(kinds)))
                print(f"{time.monotonic() - begin:.0f} s: {len(records)} jobs left", file=sys.stderr)
            took = time.monotonic() - begin
            until(lambda: sum(bench.messages()) == 0, 60)
            for each in alive:
                until(lambda each=each: any(line["event"] == "ready" for line in each.said()))
                each.terminate()
            assert [each.wait(20) for each in alive] == [0] * WORKERS

        told = {each["job_id"]: each for each in bench.records()}
        failed = {key for key in ids if told[ids[key]]["state"] == "FAILED"}
        effects = sorted(each["Key"] for each in bench.versions())
        buried = bench.all_buried()

    assert failed == bad
    assert effects == sorted(f"{key}/{ids[key]}/done" for key in set(ids) - bad)
    assert all(told[ids[key]]["outputs"] == [f"{key}/{ids[key]}/done"] for key in set(ids) - bad)
    assert set(buried) == {ids[key] for key in bad}
    assert not list((tmp_path / "tmp").iterdir())
    print(json.dumps({"jobs": JOBS, "kills": kills, "seconds": round(took), "buried": len(buried), "bad": len(bad)}))
