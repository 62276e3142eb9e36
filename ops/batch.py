"""Jobs for AWS Batch: an array for the objects under a prefix, and what became of them.

The manifest says which object each child of an array is about, a line each, in the words of a job of the queues: it
lies in the results bucket under the hash of what it says, for a month.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from ops.account import Account, NoSuchStack, resources
from ops.text import count, lasting, short, table
from templates.batch import FAILURES, MANIFESTS

sys.path.append(str(Path(__file__).resolve().parent.parent / "lambdas"))

from ingest.routing import Upload

LARGEST_ARRAY = 10_000
"""Batch User Guide, "Service quotas"; the smallest has two children, so that one object is a job without any."""
MANIFEST = "SPINDRIFT_MANIFEST"
"""What tells a job's container its manifest (worker: once.py)."""
AT_A_TIME = 100
"""Jobs that DescribeJobs takes."""
SHOWN = 20
"""Failed children on the screen."""
WAITING = ("SUBMITTED", "PENDING", "RUNNABLE")
AT_WORK = ("STARTING", "RUNNING")


class NothingToDo(Exception):
    """There is nothing to submit; the message says where was looked."""


@dataclass(frozen=True)
class Submitted:
    """An array, or a job of one object."""

    job_id: str
    objects: int


@dataclass(frozen=True)
class Failed:
    """An object whose job failed for good, and the last that is known of why."""

    job_id: str
    key: str
    reason: str


@dataclass(frozen=True)
class Progress:
    """How far one submitted job is; its numbers are objects."""

    job_id: str
    name: str
    created: datetime
    objects: int
    waiting: int
    working: int
    succeeded: int
    failed: tuple[Failed, ...]
    why: str
    """What Batch says of it, such as why nothing starts."""


@dataclass(frozen=True)
class Report:
    """All that Batch still knows: it forgets a job a week after its end (Batch User Guide, "Job states")."""

    jobs: tuple[Progress, ...]
    now: datetime

    def json(self) -> str:
        """For programs."""
        return json.dumps({"jobs": self.jobs}, default=lambda one: vars(one) if hasattr(one, "__dict__") else str(one))

    def text(self) -> Iterator[str]:
        """For people."""
        if not self.jobs:
            yield "nothing was submitted within the past week"
            return
        head = ("job", "submitted", "objects", "waiting", "working", "succeeded", "failed")
        rows = [
            (
                one.job_id,
                f"{lasting(self.now - one.created)} ago",
                *(f"{number:,}" for number in (one.objects, one.waiting, one.working, one.succeeded, len(one.failed))),
            )
            for one in self.jobs
        ]
        yield from table([head, *rows], numbers=range(2, 7))
        for one in self.jobs:
            if one.why:
                yield f"\n{one.job_id}: {short(one.why, 200)}"
        failed = [each for one in self.jobs for each in one.failed]
        if failed:
            yield ""
            yield from table(
                [("failed", "object", "reason"), *((one.job_id, one.key, one.reason) for one in failed[:SHOWN])]
            )
        if len(failed) > SHOWN:
            yield f"and {count(len(failed) - SHOWN, 'object')} more: see --json"


class Jobs:
    """Batch's jobs of one stack."""

    def __init__(self, account: Account, stack: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Raises NoSuchStack, ClientError or BotoCoreError."""
        self._account, self._now = account, now
        self._batch, self._s3 = account.client("batch"), account.client("s3")
        found = resources(account, stack)
        self._queues = {title.removesuffix("Queue"): one for title, one in found.items() if ":job-queue/" in one}
        if not self._queues:
            raise NoSuchStack(f"{stack} in {account.region} is no stack of build/batch.json")
        self._definitions = {title: found[f"{title}Job"] for title in self._queues}
        self._uploads, self._results = found["UploadsBucket"], found["ResultsBucket"]

    def submit(self, prefix: str, queue: str | None = None) -> list[Submitted]:
        """Hand in every object whose key begins so. Without `queue` the stack has only one.

        Raises NothingToDo, KeyError (the queue's name), ClientError or BotoCoreError.
        """
        title = self._title(queue)
        lines = [one.message for one in self._objects(prefix)]
        if not lines:
            raise NothingToDo(f"nothing in s3://{self._uploads} begins with {prefix!r}")
        arrays = [lines[start : start + LARGEST_ARRAY] for start in range(0, len(lines), LARGEST_ARRAY)]
        return [self._hand_in(title, array) for array in arrays]

    def report(self) -> Report:
        """What became of all that Batch still knows. Raises ClientError or BotoCoreError."""
        found = []
        for title in self._queues:
            summaries = self._account.all(
                "batch",
                "list_jobs",
                "jobSummaryList",
                jobQueue=self._queues[title],
                filters=[{"name": "AFTER_CREATED_AT", "values": ["0"]}],  # without a filter it is one status
            )
            ids = [one["jobId"] for one in summaries]
            for start in range(0, len(ids), AT_A_TIME):
                found += self._batch.describe_jobs(jobs=ids[start : start + AT_A_TIME])["jobs"]
        jobs = sorted((self._progress(one) for one in found), key=lambda one: one.created)
        return Report(tuple(jobs), self._now())

    def _title(self, queue: str | None) -> str:
        if queue is None and len(self._queues) == 1:
            return next(iter(self._queues))
        names = {arn.rpartition("/")[2]: title for title, arn in self._queues.items()}
        found = [title for name, title in names.items() if queue and name.endswith(f"-{queue}")]
        if not found:
            raise KeyError(f"--queue is one of {', '.join(sorted(names))}, without the stack's name")
        return found[0]

    def _objects(self, prefix: str) -> Iterator[Upload]:
        """The newest version of each; the console's folders are none."""
        versions = self._account.all("s3", "list_object_versions", "Versions", Bucket=self._uploads, Prefix=prefix)
        for one in versions:
            if one["IsLatest"] and not (one["Size"] == 0 and one["Key"].endswith("/")):
                etag = one["ETag"].strip('"')
                yield Upload(
                    bucket=self._uploads, key=one["Key"], version=one["VersionId"], etag=etag, size=one["Size"]
                )

    def _hand_in(self, title: str, lines: Sequence[str]) -> Submitted:
        text = "".join(f"{line}\n" for line in lines).encode()
        name = sha256(text).hexdigest()[:16]
        key = f"{MANIFESTS}{name}.jsonl"
        self._s3.put_object(Bucket=self._results, Key=key, Body=text, ContentType="application/jsonl")
        more: dict[str, Any] = {"arrayProperties": {"size": len(lines)}} if len(lines) > 1 else {}
        submitted = self._batch.submit_job(
            jobName=f"{title}-{name}",
            jobQueue=self._queues[title],
            jobDefinition=self._definitions[title],
            containerOverrides={"environment": [{"name": MANIFEST, "value": key}]},
            **more,
        )
        return Submitted(submitted["jobId"], len(lines))

    def _progress(self, job: dict[str, Any]) -> Progress:
        array = job.get("arrayProperties", {})
        counts: dict[str, int] = array.get("statusSummary", {job["status"]: 1})
        return Progress(
            job_id=job["jobId"],
            name=job["jobName"],
            created=datetime.fromtimestamp(job["createdAt"] / 1000, UTC),
            objects=array.get("size", 1),
            waiting=sum(counts.get(status, 0) for status in WAITING),
            working=sum(counts.get(status, 0) for status in AT_WORK),
            succeeded=counts.get("SUCCEEDED", 0),
            failed=tuple(self._failed(job)) if counts.get("FAILED") else (),
            why=job.get("statusReason", "") if job["status"] in WAITING else "",
        )

    def _failed(self, job: dict[str, Any]) -> Iterator[Failed]:
        """Each object of a job whose child failed."""
        keys = self._manifest(job)
        if "arrayProperties" not in job:
            yield self._why(job, keys, 0)
            return
        for child in self._account.all(
            "batch", "list_jobs", "jobSummaryList", arrayJobId=job["jobId"], jobStatus="FAILED"
        ):
            yield self._why(child, keys, child["arrayProperties"]["index"])

    def _manifest(self, job: dict[str, Any]) -> list[str]:
        """The keys, in their order; none when it is gone."""
        told = {one["name"]: one["value"] for one in job["container"].get("environment", ())}
        try:
            body = self._s3.get_object(Bucket=self._results, Key=told[MANIFEST])["Body"].read()
        except (KeyError, self._s3.exceptions.NoSuchKey):
            return []
        return [json.loads(line)["key"] for line in body.decode().splitlines()]

    def _why(self, job: dict[str, Any], keys: Sequence[str], line: int) -> Failed:
        """The worker's own last word, or Batch's where it had none."""
        said = self._account.all(
            "s3", "list_objects_v2", "Contents", Bucket=self._results, Prefix=f"{FAILURES}{job['jobId']}/"
        )
        reason = job.get("statusReason", "")
        if said:
            last = max(said, key=lambda one: int(one["Key"].rpartition("/")[2]))
            reason = self._s3.get_object(Bucket=self._results, Key=last["Key"])["Body"].read().decode()
        key = keys[line] if line < len(keys) else f"line {line} of a manifest that is gone"
        return Failed(job["jobId"], short(key), short(reason))
