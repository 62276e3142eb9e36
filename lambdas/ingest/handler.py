"""One invocation: record uploads as jobs, send the jobs, wake capacity after a quiet time."""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import boto3

from ingest.cloud import Aws, Cloud, CloudFailed
from ingest.routing import Malformed, Route, Upload, route, uploads
from ingest.settings import Settings


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:  # noqa: ARG001 - Lambda passes it
    """Take one batch of upload events; return the messages that are to come again."""
    return run(*_wired(), event, now=datetime.now(UTC))


@cache
def _wired() -> tuple[Cloud, Sequence[Route]]:
    """Built on the first invocation, kept while the sandbox is warm."""
    settings = Settings.read(os.environ)
    return Aws(boto3.Session(), table=settings.table, notices_url=settings.notices_url), settings.routes


def run(cloud: Cloud, routes: Sequence[Route], event: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Take one batch. A message that failed comes again alone; what it had done already is not done twice."""
    failed: dict[str, str] = {}
    due: dict[str, dict[str, Upload]] = defaultdict(dict)
    told_by: dict[str, list[str]] = defaultdict(list)
    for record in event["Records"]:
        message = record["messageId"]
        try:
            for upload in uploads(record["body"]):
                told_by[upload.job_id].append(message)
                if destination := _recorded(cloud, routes, upload, now):
                    due[destination][upload.job_id] = upload
        except (Malformed, CloudFailed) as error:
            failed[message] = str(error)

    for queue_url, jobs in due.items():
        for job_id, why in _send(cloud, queue_url, jobs, now).items():
            failed |= dict.fromkeys(told_by[job_id], why)
    for message, why in failed.items():
        _log("upload-failed", why=why, message=message)
    return {"batchItemFailures": [{"itemIdentifier": message} for message in failed]}


def _recorded(cloud: Cloud, routes: Sequence[Route], upload: Upload, now: datetime) -> str | None:
    """Record the job; return the queue where its message is due, None if it has no use for one."""
    destination = route(upload.key, routes)
    if destination is None:
        _log("not-a-job", why="no route has a prefix of the key", bucket=upload.bucket, key=upload.key)
        return None
    waits = cloud.record(upload, destination.queue, now)
    if not waits:
        _log("known", why="the job was taken before", job=upload.job_id)
    return destination.queue_url if waits else None


def _send(cloud: Cloud, queue_url: str, jobs: Mapping[str, Upload], now: datetime) -> Mapping[str, str]:
    """Send the jobs, then wake capacity if they end a quiet time; return why, for jobs that were not sent.

    Waking saves the wait for the minute. Without it the jobs are late, not lost, so its failure is told and no more.
    """
    try:
        quiet = cloud.is_quiet(queue_url, now)
    except CloudFailed as error:
        _log("quiet-unknown", why=str(error))
        quiet = True
    failed = cloud.send(queue_url, {job_id: upload.message for job_id, upload in jobs.items()})
    sent = sorted(jobs.keys() - failed.keys())
    if sent:
        _log("jobs", why="uploaded", jobs=sent, queue_url=queue_url, quiet=quiet)
    if sent and quiet:
        try:
            cloud.wake(now)
        except CloudFailed as error:
            _log("not-woken", why=str(error))
    return failed


def _log(event: str, *, why: str, **numbers: object) -> None:
    """Write one JSON object on one line."""
    sys.stdout.write(json.dumps({"event": event, "why": why, **numbers}) + "\n")
    sys.stdout.flush()
