"""Which jobs an S3 event tells of, where S3 writes to the job queue itself (pure).

There is then no ingest Lambda, and its work falls to the worker: the same job has the same id and the same record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import unquote_plus

from gpu_worker.job import NONSENSE, Job, NotAJob


def told_by_s3(body: str) -> list[Job] | None:
    """The uploads that an S3 event tells of, as jobs; None if the message is no S3 event. Raises NotAJob.

    S3 sends `s3:TestEvent` when notifications are set up, may put several Records into one event, and URL-encodes keys,
    with `+` for a space (S3 user guide, "Event message structure").
    """
    try:
        event = json.loads(body)
    except NONSENSE:
        return None
    match event:
        case {"Event": "s3:TestEvent"}:
            return []
        case {"Records": [*records]}:
            try:
                created = [_job(each["s3"]) for each in records if each["eventName"].startswith("ObjectCreated:")]
            except (*NONSENSE, AttributeError) as error:
                raise NotAJob("the message is an S3 event that cannot be read") from error
            return [job for job in created if not _is_folder(job)]
    return None


def record_of(job: Job, queue: str, created: datetime) -> dict[str, str | int]:
    """The record of a job that waits, as the ingest Lambda would write it."""
    record: dict[str, str | int] = {
        "job_id": job.job_id,
        "bucket": job.bucket,
        "key": job.key,
        "etag": job.etag,
        "size": job.size,
        "queue": queue,
        "state": "QUEUED",
        "attempts": 0,
        "releases": 0,
        "failures": 0,
        "created": created.isoformat(),
    }
    return {**record, "version": job.version} if job.version else record


def _job(s3: Mapping[str, Any]) -> Job:
    """{"bucket": {"name": "b"}, "object": {"key": "a+b.jpg", "size": 9, "eTag": "d41d…", "versionId": "096f…"}, …}."""
    bucket, stored = str(s3["bucket"]["name"]), s3["object"]
    key = unquote_plus(stored["key"], errors="strict")
    version, etag = str(stored.get("versionId", "")), str(stored.get("eTag", ""))
    job_id = sha256(json.dumps([bucket, key, version or etag]).encode()).hexdigest()[:32]
    return Job(job_id, bucket, key, version, etag, int(stored.get("size", 0)))


def _is_folder(job: Job) -> bool:
    """The console makes an empty object with a key ending in `/` for a folder."""
    return job.size == 0 and job.key.endswith("/")
