"""The only AWS of this Lambda: the jobs table, the job queues, the notices queue."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ingest.routing import Upload

if TYPE_CHECKING:
    from mypy_boto3_sqs.type_defs import SendMessageBatchRequestEntryTypeDef


BUSY_FOR = timedelta(seconds=10)
"""A queue that has jobs keeps its capacity for longer than this, whatever becomes of them."""


class CloudFailed(Exception):
    """AWS refused or did not answer; trying again may help."""


class Cloud(Protocol):
    """What ingest needs of the world. Every method raises CloudFailed."""

    def record(self, upload: Upload, queue: str, now: datetime) -> bool:
        """Record a job unless there is one; say whether it waits to be taken, so that its message is due."""

    def is_quiet(self, queue_url: str, now: datetime) -> bool:
        """Say whether the queue is without a job, as far as SQS knows."""

    def send(self, queue_url: str, bodies: Mapping[str, str]) -> dict[str, str]:
        """Send the bodies; return why, for those that were not sent."""

    def wake(self, now: datetime) -> None:
        """Ask for a capacity pass now."""


class Aws:
    """The Cloud that is AWS."""

    def __init__(self, session: boto3.Session, *, table: str, notices_url: str) -> None:
        config = Config(connect_timeout=2, read_timeout=10, retries={"mode": "standard", "max_attempts": 3})
        self._table = session.resource("dynamodb", config=config).Table(table)
        self._sqs = session.client("sqs", config=config)
        self._notices_url = notices_url
        self._busy_until: dict[str, datetime] = {}

    def record(self, upload: Upload, queue: str, now: datetime) -> bool:
        """Record a job unless there is one; say whether it waits to be taken.

        A job found QUEUED may have lost its message to a crash between record and send. It is sent again: two
        messages of one job are one job, because a claim is a conditional write.
        """
        job: dict[str, str | int] = {
            "job_id": upload.job_id,
            "bucket": upload.bucket,
            "key": upload.key,
            "etag": upload.etag,
            "size": upload.size,
            "queue": queue,
            "state": "QUEUED",
            "attempts": 0,
            "releases": 0,
            "failures": 0,
            "created": now.isoformat(),
        }
        if upload.version:
            job["version"] = upload.version
        try:
            self._table.put_item(Item=job, ConditionExpression="attribute_not_exists(job_id)")
        except self._table.meta.client.exceptions.ConditionalCheckFailedException:
            return self._state(upload.job_id) == "QUEUED"
        except (ClientError, BotoCoreError) as error:
            raise CloudFailed(f"{upload.job_id} is not recorded: {error}") from error
        return True

    def is_quiet(self, queue_url: str, now: datetime) -> bool:
        """Say whether nothing waits, runs or is delayed. The numbers are approximate; the minute schedule forgives.

        A queue that was busy a moment ago is not asked about: in a stream of uploads that would be a call for each ten.
        """
        if now < self._busy_until.get(queue_url, now):
            return False
        try:
            counts = self._sqs.get_queue_attributes(
                QueueUrl=queue_url,
                AttributeNames=[
                    "ApproximateNumberOfMessages",
                    "ApproximateNumberOfMessagesNotVisible",
                    "ApproximateNumberOfMessagesDelayed",
                ],
            )["Attributes"]
        except (ClientError, BotoCoreError) as error:
            raise CloudFailed(f"{queue_url} does not say how long it is: {error}") from error
        quiet = not any(int(count) for count in counts.values())
        if not quiet:
            self._busy_until[queue_url] = now + BUSY_FOR
        return quiet

    def send(self, queue_url: str, bodies: Mapping[str, str]) -> dict[str, str]:
        """Send the bodies, by job id, ten per call; return why, for those that were not sent."""
        entries: list[SendMessageBatchRequestEntryTypeDef] = [
            {"Id": job_id, "MessageBody": body} for job_id, body in bodies.items()
        ]
        failed: dict[str, str] = {}
        for start in range(0, len(entries), 10):
            chunk = entries[start : start + 10]
            try:
                reply = self._sqs.send_message_batch(QueueUrl=queue_url, Entries=chunk)
                failed |= {refused["Id"]: refused["Code"] for refused in reply.get("Failed", [])}
            except (ClientError, BotoCoreError) as error:
                failed |= {entry["Id"]: str(error) for entry in chunk}
        return failed

    def wake(self, now: datetime) -> None:
        """Ask for a capacity pass now rather than at the next minute."""
        wake = {"schema": "spindrift.wake/1", "reason": "first upload after a quiet time", "at": now.isoformat()}
        try:
            self._sqs.send_message(QueueUrl=self._notices_url, MessageBody=json.dumps(wake))
        except (ClientError, BotoCoreError) as error:
            raise CloudFailed(f"capacity is not woken: {error}") from error

    def _state(self, job_id: str) -> object:
        try:
            reply = self._table.get_item(Key={"job_id": job_id}, ConsistentRead=True)
        except (ClientError, BotoCoreError) as error:
            raise CloudFailed(f"{job_id} is not read: {error}") from error
        return reply.get("Item", {}).get("state")
