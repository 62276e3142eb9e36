"""How much of a processor's time the worker uses, and what AWS charges for the calls about a job.

The same photograph many times over, by the built-in processor, on two cores:

  memory   the processor alone, fed from memory: as fast as it goes
  worker   the shipped worker, with S3, SQS and DynamoDB of the local cloud, from a queue that the shipped ingest code
           filled
  plain    a loop such as people write: receive one, download, process, upload, delete, without records or leases

Every figure is the median of `ROUNDS` rounds, in each of which the three take turns. The local cloud answers on the
same two cores, so that the worker's share is lower here than where AWS answers. Calls are counted as they leave for the
wire, retries too. Writes build/bench/worker.json.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from math import ceil
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from uuid import uuid4

ROOT = Path(__file__).resolve().parent.parent
sys.path[1:1] = [str(ROOT / each) for each in ("lambdas", "ecs-tasks/gpu-worker", "tests")]

import boto3  # noqa: E402
from botocore.awsrequest import AWSPreparedRequest  # noqa: E402
from worker_make import cloud  # noqa: E402

ROUNDS = 3
JOBS = {"memory": 100, "worker": 200, "plain": 100}
WARM = 15
"""Jobs before the measured ones."""
FASTEST = 50
"""Milliseconds that the processor should take at least: a faster one is not what GPUs are hired for."""
PHOTO = ROOT / "localcloud/photos/freespace-1a.jpg"
PROCESSOR = "gpu_worker.images:process"
OPTIONS: Mapping[str, Any] = {"renditions": [{"name": "medium", "width": 640}, {"name": "thumb", "width": 256}]}
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}

PRICES = {
    "sqs": 0.40,
    "dynamodb write": 0.625,
    "dynamodb read": 0.125,
    "lambda request": 0.20,
    "s3 get": 0.40,
    "s3 put": 5.00,
}
"""USD per million in us-east-1: SQS standard requests, DynamoDB on-demand request units of 1 KiB written and 4 KiB read
(since November 2024), Lambda requests, S3 Standard GET and PUT. From the services' price pages, 2026-03; free tiers are
left out."""
LAMBDA_GB_SECOND = 0.0000133334
"""USD on arm64 (AWS Lambda price page, 2026-03)."""
INGEST_GB = 0.5
"""Memory of the ingest Lambda (templates/functions.py)."""
OUTSIDE = {"S3 tells the upload queue": 10, "Lambda receives from it": 1, "Lambda deletes from it": 1}
"""SQS requests for ten uploads that AWS makes itself and charges for: S3 sends an event for each object, Lambda takes
them ten at a time. They cannot be counted here."""


class Counted(boto3.Session):
    """A session that counts what leaves for the wire, by service and operation."""

    calls: ClassVar[Counter[str]] = Counter()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.events.register("before-send", self._count)

    def _count(self, request: AWSPreparedRequest, event_name: str, **_: Any) -> None:  # noqa: ARG002 (botocore's)
        self.calls[event_name.removeprefix("before-send.")] += 1


class Place:
    """A queue, a table and two buckets of their own for each measurement."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        name = f"b{uuid4().hex[:12]}"
        self.folder, self.name, self.endpoint = folder, name, endpoint
        self.uploads, self.results = f"{name}-uploads", f"{name}-results"
        session = boto3.Session()
        self.sqs, self.s3, self.dynamodb = (session.client(each) for each in ("sqs", "s3", "dynamodb"))
        self.queue, self.dead, self.notices = (
            self.sqs.create_queue(QueueName=f"{name}{each}")["QueueUrl"] for each in ("", "-dead", "-notices")
        )
        self.dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "job_id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "job_id", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        for bucket in (self.uploads, self.results):
            self.s3.create_bucket(Bucket=bucket)

    def put(self, photo: bytes, count: int) -> list[dict[str, Any]]:
        """Upload the photograph so often; returns what S3 would tell of each."""
        told = []
        for number in range(count):
            key = f"photos/{number:05}.jpg"
            etag = self.s3.put_object(Bucket=self.uploads, Key=key, Body=photo)["ETag"].strip('"')
            stored = {"key": key, "size": len(photo), "eTag": etag}
            told.append({"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": self.uploads}, "object": stored}})
        return told

    def ingest(self, told: list[dict[str, Any]]) -> tuple[Counter[str], float]:
        """Let the shipped Lambda's code make jobs of them, ten at a time; its calls, and its seconds."""
        from ingest.cloud import Aws  # noqa: PLC0415
        from ingest.handler import run  # noqa: PLC0415
        from ingest.routing import Route  # noqa: PLC0415

        Counted.calls.clear()
        aws = Aws(Counted(), table=self.name, notices_url=self.notices)
        routes = [Route(prefix="", queue="default", queue_url=self.queue)]
        begin = time.monotonic()
        with redirect_stdout(io.StringIO()):
            for start in range(0, len(told), 10):
                records = [
                    {"messageId": str(n), "body": json.dumps({"Records": [each]})}
                    for n, each in enumerate(told[start : start + 10])
                ]
                run(aws, routes, {"Records": records}, datetime.now(UTC))
        return Counted.calls.copy(), time.monotonic() - begin

    def environment(self) -> dict[str, str]:
        """A worker's."""
        return {
            **os.environ,
            "TMPDIR": str(self.folder),
            "SPINDRIFT_QUEUE": "default",
            "SPINDRIFT_QUEUE_URL": self.queue,
            "SPINDRIFT_DEAD_LETTER_QUEUE_URL": self.dead,
            "SPINDRIFT_JOBS_TABLE": self.name,
            "SPINDRIFT_RESULTS_BUCKET": self.results,
            "SPINDRIFT_HOST_DIR": str(self.folder),
            "SPINDRIFT_OPTIONS": json.dumps(OPTIONS),
        }

    def records(self) -> list[dict[str, Any]]:
        """All job records."""
        pages = self.dynamodb.get_paginator("scan").paginate(TableName=self.name)
        return [item for page in pages for item in page["Items"]]


def alone(photo: bytes, folder: Path) -> float:
    """Images a second of the processor alone."""
    from gpu_worker.processor import Processor  # noqa: PLC0415

    processor = Processor(PROCESSOR, OPTIONS)
    processor.wait_ready()
    begin = time.monotonic()
    for number in range(JOBS["memory"] + WARM):
        if number == WARM:
            begin = time.monotonic()
        work = folder / str(number)
        (work / "output").mkdir(parents=True)
        (work / "input").write_bytes(photo)
        told = {"options": OPTIONS, "job_id": "0", "key": "a"}
        outcome = processor.run(work / "input", work / "output", told, timedelta(minutes=1))
        if outcome.code:
            raise SystemExit(outcome.error)
    processor.kill()
    return JOBS["memory"] / (time.monotonic() - begin)


def plain(place: Place) -> float:
    """Images a second of a plain loop."""
    from gpu_worker.images import process  # noqa: PLC0415

    source, output = place.folder / "source", place.folder / "renditions"
    output.mkdir(exist_ok=True)
    done, begin = 0, 0.0
    while done < JOBS["plain"] + WARM:
        if done == WARM:
            begin = time.monotonic()
        got = place.sqs.receive_message(QueueUrl=place.queue, MaxNumberOfMessages=1, WaitTimeSeconds=2)["Messages"][0]
        job = json.loads(got["Body"])
        place.s3.download_file(job["bucket"], job["key"], str(source))
        process(source, output, {"options": OPTIONS})
        for path in output.iterdir():
            place.s3.upload_file(str(path), place.results, f"{job['key']}/{path.name}")
        place.sqs.delete_message(QueueUrl=place.queue, ReceiptHandle=got["ReceiptHandle"])
        done += 1
    return JOBS["plain"] / (time.monotonic() - begin)


def worker(place: Place) -> tuple[float, Counter[str]]:
    """Images a second of the worker, between its first jobs and its last, and all its calls."""
    counted = place.folder / "calls.json"
    process = subprocess.Popen(
        [sys.executable, __file__, "--count", str(counted)], env=place.environment(), stdout=subprocess.DEVNULL
    )
    ends: list[str] = []
    while len(ends) < JOBS["worker"]:
        time.sleep(2)  # a look costs the local cloud time
        ends = sorted(item["finished"]["S"] for item in place.records() if "finished" in item)
    time.sleep(1)
    process.terminate()
    process.wait(30)
    first, last = (datetime.fromisoformat(ends[each]) for each in (WARM, -1))
    return (len(ends) - WARM - 1) / (last - first).total_seconds(), Counter(json.loads(counted.read_text()))


def count(file: Path) -> None:
    """Be a worker whose calls are written to a file at its end."""
    boto3.Session = Counted  # type: ignore[misc]
    from gpu_worker.__main__ import main  # noqa: PLC0415

    main()
    file.write_text(json.dumps(Counted.calls))


def a_round(endpoint: str, photo: bytes) -> dict[str, Any]:
    """The three, one after the other."""
    with TemporaryDirectory(prefix="spindrift-bench-") as folder:
        place, other = Place(endpoint, Path(folder)), Place(endpoint, Path(folder))
        told = place.put(photo, JOBS["worker"])
        ingest_calls, seconds = place.ingest(told)
        other.ingest(other.put(photo, JOBS["plain"] + WARM))
        memory = alone(photo, Path(folder))
        worked, worker_calls = worker(place)
        calls = ingest_calls + worker_calls
        record = max(len(json.dumps(item)) for item in place.records())
        return {
            "memory": memory,
            "worker": worked,
            "plain": plain(other),
            "calls": {name: each / JOBS["worker"] for name, each in calls.items()},
            "ingest_seconds": seconds / JOBS["worker"],
            "record_kib": ceil(record / 1024),
        }


def bill(calls: Mapping[str, float], units: int, ingest_seconds: float) -> dict[str, float]:
    """USD for the control of a million jobs, from the calls of one."""
    writes = sum(calls.get(f"dynamodb.{each}", 0) for each in ("PutItem", "UpdateItem"))
    return {
        "SQS, our calls": sum(n for name, n in calls.items() if name.startswith("sqs.")) * PRICES["sqs"],
        "SQS, AWS's own calls": sum(OUTSIDE.values()) / 10 * PRICES["sqs"],
        "DynamoDB writes": writes * units * PRICES["dynamodb write"],
        "DynamoDB reads": calls.get("dynamodb.GetItem", 0) * PRICES["dynamodb read"],
        "Lambda requests": PRICES["lambda request"] / 10,
        "Lambda time": ingest_seconds * INGEST_GB * LAMBDA_GB_SECOND * 1_000_000,
    }


def main() -> None:
    """Measure, print a table, and leave build/bench/worker.json."""
    photo = PHOTO.read_bytes()
    with TemporaryDirectory(prefix="spindrift-bench-cloud-") as folder, cloud(Path(folder)) as endpoint:
        os.environ.update(KEYS, AWS_ENDPOINT_URL=endpoint, PYTHONPATH=str(ROOT / "ecs-tasks/gpu-worker"))
        rounds = [a_round(endpoint, photo) for _ in range(ROUNDS)]

    def usual(value: Callable[[dict[str, Any]], float]) -> float:
        return median(value(each) for each in rounds)

    calls = {name: usual(lambda each, name=name: each["calls"].get(name, 0)) for name in sorted(rounds[0]["calls"])}
    costs = bill(calls, rounds[0]["record_kib"], usual(lambda each: each["ingest_seconds"]))
    result = {
        "efficiency": round(usual(lambda each: each["worker"] / each["memory"]), 3),
        "plain_loop_ratio": round(usual(lambda each: each["worker"] / each["plain"]), 2),
        "sqs_calls_per_10_jobs": round(10 * sum(n for name, n in calls.items() if name.startswith("sqs.")), 2),
        "dynamodb_writes_per_job": round(calls["dynamodb.PutItem"] + calls["dynamodb.UpdateItem"], 3),
        "control_cost_per_million_jobs_usd": round(sum(costs.values()), 2),
    }
    print(f"images a second, medians of {ROUNDS} rounds of {JOBS}:")
    for name in ("memory", "worker", "plain"):
        speeds = [each[name] for each in rounds]
        print(f"  {name:8} {median(speeds):6.2f}   ({', '.join(f'{speed:.2f}' for speed in speeds)})")
    print("calls for ten jobs:")
    for name, each in calls.items():
        print(f"  {name:40} {10 * each:6.2f}")
    print("USD for the control of a million jobs:")
    for name, each in costs.items():
        print(f"  {name:40} {each:6.2f}")
    data = 1e6 * (calls["s3.GetObject"] * PRICES["s3 get"] + calls["s3.PutObject"] * PRICES["s3 put"]) / 1e6
    print(f"  (and for fetching and storing by S3      {data:6.2f})")
    print(json.dumps(result, indent=2))
    file = ROOT / "build/bench/worker.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
    if (took := 1000 / usual(lambda each: each["memory"])) < FASTEST:
        raise SystemExit(f"the processor takes {took:.0f} ms here: choose a larger photograph")


if __name__ == "__main__":
    count(Path(sys.argv[2])) if sys.argv[1:2] == ["--count"] else main()
