"""The jobs of a benchmark: samples that are uploaded again and again, their records, and their end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import Any

from ops.account import Account, records
from ops.text import short
from ops.throughput import Sample, sample, warm
from ops.work import WITHDRAWN

sys.path.append(str(Path(__file__).resolve().parent.parent / "lambdas"))

from ingest.routing import Upload

LOOK_SECONDS = 2.0
"""Between two looks."""
MOST_BETWEEN_LOOKS = 10
"""Jobs for one processor: of very short ones it may wait for more."""
OUT_OF_SIGHT_SECONDS = 10.0
ENDED = ("SUCCEEDED", "FAILED")


class NoSample(Exception):
    """A file cannot be measured; the message says which, and why."""


@dataclass
class Job:
    """One upload. `record` is its job as it was last seen."""

    upload: Upload
    file: str
    at: datetime
    """When it was uploaded."""
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """Of the record; "" before there is one."""
        return str(self.record.get("state", ""))


class Samples:
    """All uploads of one run. Every method may raise ClientError or BotoCoreError."""

    def __init__(
        self,
        account: Account,
        stack: Mapping[str, str],
        files: Sequence[Path],
        prefix: str,
        at_once: int,
        now: Callable[[], datetime],
    ) -> None:
        """`stack`: physical ids by title; `prefix`: of the keys; `at_once`: jobs of one worker."""
        self._account, self._at_once, self._now = account, at_once, now
        self._s3, self._table = account.client("s3"), account.client("dynamodb")
        self._jobs_table = stack["JobsTable"]
        self._uploads, self._results = stack["UploadsBucket"], stack["ResultsBucket"]
        self._files, self._next = {file.name for file in files}, cycle(files)
        self.prefix = prefix
        self._jobs: dict[str, Job] = {}

    def read(self) -> None:
        """The records of the jobs that are not over."""
        found = records(self._account, self._jobs_table, [one.upload.job_id for one in self.open])
        for job_id, record in found.items():
            self._jobs[job_id].record = record

    def check(self) -> None:
        """Raises NoSample, where a job failed for good or was split."""
        for job in self._jobs.values():
            if job.state == "FAILED" and job.record.get("error") != WITHDRAWN:
                raise NoSample(f"{job.file} is no sample: {short(str(job.record.get('error', 'it failed')), 300)}")
            if job.state == "SPLIT":
                raise NoSample(f"{job.file} is no sample: the processor splits it among workers")

    def measured(self) -> dict[str, list[Sample]]:
        """What is known of each type, of warm processors."""
        found = (sample(job.record, job.file) for job in self._jobs.values())
        return warm((one for one in found if one), self._at_once)

    def whole(self, samples: Sequence[Sample], jobs: int) -> bool:
        """Whether that is enough: so many, and each of the files."""
        return len(samples) >= jobs and {one.file for one in samples} == self._files

    def feed(self, gpus: int) -> None:
        """Keep so many waiting as these GPUs may begin until the next look, so that none of them is idle.

        There may be a reader more, the service's own worker. A job that waits for longer than two take has a message
        that is out of sight for a while, as one is that a worker had when it was stopped.
        """
        known = [one.gpu_seconds for found in self.measured().values() for one in found] or [LOOK_SECONDS]
        each = 1 + min(ceil(LOOK_SECONDS / min(known)), MOST_BETWEEN_LOOKS)
        fresh = self._now() - timedelta(seconds=max(OUT_OF_SIGHT_SECONDS, 2 * max(known)))
        waiting = sum(job.state in ("", "QUEUED") and job.at >= fresh for job in self._jobs.values())
        for _ in range(each * (gpus + 1) * self._at_once - waiting):
            file = next(self._next)
            key = f"{self.prefix}{len(self._jobs):05d}-{file.name}"
            with file.open("rb") as body:
                put = self._s3.put_object(Bucket=self._uploads, Key=key, Body=body)
            upload = Upload(
                bucket=self._uploads,
                key=key,
                version=put.get("VersionId", ""),
                etag=put["ETag"].strip('"'),
                size=file.stat().st_size,
            )
            self._jobs[upload.job_id] = Job(upload, file.name, self._now())

    @property
    def open(self) -> list[Job]:
        """Those that are not over."""
        return [job for job in self._jobs.values() if job.state not in ENDED]

    def withdraw(self) -> None:
        """A job that nobody has begun is over: whoever gets its message finds that, and drops it."""
        for job in self.open:
            if job.state != "QUEUED":
                continue
            try:
                self._table.update_item(
                    TableName=self._jobs_table,
                    Key={"job_id": {"S": job.upload.job_id}},
                    UpdateExpression="SET #state = :failed, #error = :error, finished = :now",
                    ConditionExpression="#state = :queued",
                    ExpressionAttributeNames={"#state": "state", "#error": "error"},
                    ExpressionAttributeValues={
                        ":failed": {"S": "FAILED"},
                        ":queued": {"S": "QUEUED"},
                        ":error": {"S": WITHDRAWN},
                        ":now": {"S": self._now().isoformat()},
                    },
                )
            except self._table.exceptions.ConditionalCheckFailedException:
                continue

    def remove(self) -> None:
        """Delete uploads and results of the jobs that are over."""
        kept = {job.upload.key for job in self.open}
        for bucket in (self._uploads, self._results):
            self._delete(bucket, kept)

    def _delete(self, bucket: str, kept: set[str]) -> None:
        """Every version of what this run has put there, but for the jobs that are kept."""
        versions = self._account.all("s3", "list_object_versions", "Versions", Bucket=bucket, Prefix=self.prefix)
        gone = [
            {"Key": one["Key"], "VersionId": one["VersionId"]}
            for one in versions
            if not any(one["Key"] == key or one["Key"].startswith(f"{key}/") for key in kept)
        ]
        for start in range(0, len(gone), 1000):
            self._s3.delete_objects(Bucket=bucket, Delete={"Objects": gone[start : start + 1000], "Quiet": True})
