"""Everything the worker asks of AWS: the queue, the job records, the objects, and whether its host is to go.

Errors are translated here into four words: `LostLease`, `Rejected` (the upload itself), `Trouble` (it may pass) and
`Refused` (it will not).
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from gpu_worker.job import Job, result_key
from gpu_worker.lease import Lease
from gpu_worker.outcome import Rejected
from gpu_worker.settings import Settings
from gpu_worker.upload import record_of

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_ecs import ECSClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

POLL = timedelta(seconds=2)
"""How long a receive waits. SQS would allow 20 s; a doomed worker must not sit in one, and idle ones are few."""

PATIENT = Config(connect_timeout=3, read_timeout=15, retries={"mode": "standard", "total_max_attempts": 4})
BRIEF = Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1})
"""For what can be asked again later, and may not hold up the work."""
CHUNK = 1 << 20
MAY_PASS = frozenset({409, 429, *range(500, 600)})
THROTTLED = ("Throttl", "ProvisionedThroughput", "RequestLimit", "SlowDown", "RequestTimeout", "ExpiredToken")
NOT_IN_FLIGHT = ("MessageNotInflight", "InvalidParameterValue")
GONE = {
    "NoSuchKey": "the upload is gone",
    "NoSuchVersion": "the upload is gone",
    "PreconditionFailed": "the upload was replaced before its job ran",
}


class CloudError(Exception):
    """AWS did not do what it was asked."""


class Trouble(CloudError):
    """For a cause that may pass: throttled, unreachable, its own fault."""


class Refused(CloudError):
    """For a cause that will not pass by itself: not allowed, not there, not valid."""


class LostLease(Exception):
    """The job is another worker's, or nobody's, by now."""


@dataclass(frozen=True)
class Message:
    """One receive of an SQS message; the receipt is for this receive alone. `sent` is when it was put in the queue."""

    body: str
    receipt: str
    sent: datetime


class Cloud:
    """The worker's queue, table and buckets."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session = boto3.Session()

    # A client costs a tenth of a second of loading: each is made when first needed, one at a time.
    @cached_property
    def _sqs(self) -> SQSClient:
        return self._session.client("sqs", config=PATIENT)

    @cached_property
    def _table(self) -> DynamoDBClient:
        return self._session.client("dynamodb", config=PATIENT)

    @cached_property
    def _s3(self) -> S3Client:
        return self._session.client("s3", config=PATIENT)

    @cached_property
    def _ecs(self) -> ECSClient:
        return self._session.client("ecs", config=BRIEF)

    def draining(self, container_instance: str) -> bool:
        """Whether ECS drains this host: arn:aws:ecs:REGION:ACCOUNT:container-instance/CLUSTER/ID."""
        with _asking("look at the host"):
            found = self._ecs.describe_container_instances(
                cluster=container_instance.split("/")[-2], containerInstances=[container_instance]
            )["containerInstances"]
        return any(host["status"] == "DRAINING" for host in found)

    def receive(self) -> Message | None:
        """The next message, hidden from others for as long as a lease; None when none came."""
        with _asking("receive"):
            answer = self._sqs.receive_message(
                QueueUrl=self._settings.queue_url,
                AttributeNames=["SentTimestamp"],
                MaxNumberOfMessages=1,
                WaitTimeSeconds=POLL.seconds,
                VisibilityTimeout=_seconds(self._settings.lease),
            )
        if not answer.get("Messages"):
            return None
        [got] = answer["Messages"]
        sent = datetime.fromtimestamp(int(got["Attributes"]["SentTimestamp"]) / 1000, UTC)
        return Message(got["Body"], got["ReceiptHandle"], sent)

    def hide(self, message: Message, delay: timedelta) -> None:
        """Let nobody see the message for so long from now; zero gives it back.

        A message that can be seen already, or is gone, is let be: the model has MessageNotInflight for it, the service
        itself says InvalidParameterValue (aws/aws-sdk-net#1927).
        """
        with _asking("hide"):
            try:
                self._sqs.change_message_visibility(
                    QueueUrl=self._settings.queue_url, ReceiptHandle=message.receipt, VisibilityTimeout=_seconds(delay)
                )
            except ClientError as error:
                if not error.response["Error"]["Code"].endswith(NOT_IN_FLIGHT):
                    raise

    def delete(self, message: Message) -> None:
        """The message has done its duty."""
        with _asking("delete"):
            self._sqs.delete_message(QueueUrl=self._settings.queue_url, ReceiptHandle=message.receipt)

    def bury(self, message: Message, reason: str) -> None:
        """A copy of the message for the dead-letter queue, with the reason."""
        with _asking("bury"):
            self._sqs.send_message(
                QueueUrl=self._settings.dead_letter_queue_url,
                MessageBody=message.body,
                MessageAttributes={"reason": {"DataType": "String", "StringValue": reason}},
            )

    def create(self, job: Job, created: datetime) -> None:
        """Record a job unless there is one: S3 told of an upload, and tells the same one again when it likes."""
        item = {name: _typed(value) for name, value in record_of(job, self._settings.queue, created).items()}
        with _asking("record the job"):
            try:
                self._table.put_item(
                    TableName=self._settings.jobs_table,
                    Item=item,
                    ConditionExpression="attribute_not_exists(job_id)",
                )
            except self._table.exceptions.ConditionalCheckFailedException:
                return

    def claim(self, job: Job, owner: str, facts: Mapping[str, str], now: datetime) -> Lease | None:
        """Take the job if it waits or its worker's lease has ended; None when it is not to be had."""
        sets = {"state": "RUNNING", "owner": owner, "started": now.isoformat(), **facts}
        try:
            record = self._update(
                job.job_id,
                sets={**sets, "lease_until": _epoch(now + self._settings.lease)},
                adds=("attempts",),
                condition="#state = :queued OR (#state = :running AND #lease_until < :now)",
                values={":queued": "QUEUED", ":running": "RUNNING", ":now": _epoch(now)},
            )
        except LostLease:
            return None
        attempt, failures = int(record["attempts"]), int(record.get("failures", 0))
        return Lease.taken(job, owner, attempt, failures, now, self._settings.lease)

    def record(self, job_id: str) -> Mapping[str, Any] | None:
        """The job as it is now: its texts and numbers."""
        with _asking("look at the job"):
            item = self._table.get_item(
                TableName=self._settings.jobs_table, Key={"job_id": {"S": job_id}}, ConsistentRead=True
            ).get("Item")
        return _plain(item) if item else None

    def extend(self, lease: Lease, message: Message, now: datetime) -> Lease:
        """Heartbeat: the record's lease and the message's hiding, together."""
        self._ours(lease, sets={"lease_until": _epoch(now + self._settings.lease)})
        self.hide(message, self._settings.lease)
        return lease.renewed(now, self._settings.lease)

    def finish(self, lease: Lease, outputs: Sequence[str], now: datetime) -> None:
        """SUCCEEDED: from here on the results count."""
        spent = round((now - lease.started).total_seconds(), 3)
        sets = {"state": "SUCCEEDED", "outputs": outputs, "finished": now.isoformat(), "gpu_seconds": spent}
        self._ours(lease, sets=sets, removes=("lease_until", "error"))

    def release(self, lease: Lease) -> None:
        """QUEUED again, unharmed."""
        self._ours(lease, sets={"state": "QUEUED"}, adds=("releases",), removes=("owner", "lease_until"))

    def fail(self, lease: Lease, reason: str) -> None:
        """QUEUED again, one failure nearer to the end."""
        sets = {"state": "QUEUED", "error": reason}
        self._ours(lease, sets=sets, adds=("failures",), removes=("owner", "lease_until"))

    def reject(self, lease: Lease, reason: str, now: datetime) -> None:
        """FAILED, for good."""
        sets = {"state": "FAILED", "error": reason, "finished": now.isoformat()}
        self._ours(lease, sets=sets, adds=("failures",), removes=("lease_until",))

    def download(self, job: Job, path: Path) -> None:
        """Fetch the very object the job is about, and no more bytes than allowed."""
        limit = self._settings.max_input_bytes
        too_large = Rejected(f"the upload has more than {limit} bytes")
        if job.size > limit:
            raise too_large
        with _asking("download", GONE), path.open("wb") as file:
            answer = self._s3.get_object(Bucket=job.bucket, Key=job.key, **_exactly(job))
            with closing(answer["Body"]) as body:
                while chunk := body.read(CHUNK):
                    if file.tell() + len(chunk) > limit:
                        raise too_large
                    file.write(chunk)

    def upload(self, job: Job, name: str, path: Path) -> str:
        """Store one result unless an earlier attempt did; returns its key."""
        key = result_key(job, name)
        with _asking("upload"), path.open("rb") as body:
            try:
                self._s3.put_object(
                    Bucket=self._settings.results_bucket,
                    Key=key,
                    Body=body,
                    ContentType=mimetypes.guess_type(name, strict=False)[0] or "application/octet-stream",
                    Metadata={"job-id": job.job_id},
                    IfNoneMatch="*",
                )
            except ClientError as error:
                if error.response["Error"]["Code"] != "PreconditionFailed":
                    raise
        return key

    def delete_upload(self, job: Job) -> None:
        """Remove the very object the job is about, for good; one that is gone, or was replaced, is let be."""
        with _asking("delete the upload"):
            try:
                self._s3.delete_object(Bucket=job.bucket, Key=job.key, **_exactly(job))
            except ClientError as error:
                if error.response["Error"]["Code"] not in GONE:
                    raise

    def _ours(self, lease: Lease, **change: Any) -> None:
        """Change the record if this attempt of this owner still holds it."""
        self._update(
            lease.job.job_id,
            condition="#state = :running AND #owner = :owner AND #attempts = :attempt",
            values={":running": "RUNNING", ":owner": lease.owner, ":attempt": lease.attempt},
            **change,
        )

    def _update(
        self,
        job_id: str,
        *,
        condition: str,
        values: Mapping[str, object],
        sets: Mapping[str, object],
        adds: Sequence[str] = (),
        removes: Sequence[str] = (),
    ) -> Mapping[str, Any]:
        """One conditional write; `adds` counts up by one. Every name gets a `#`, since many are reserved words."""
        change = "SET " + ", ".join(f"#{name} = :set_{name}" for name in sets)
        change += " ADD " + ", ".join(f"#{name} :one" for name in adds) if adds else ""
        change += " REMOVE " + ", ".join(f"#{name}" for name in removes) if removes else ""
        given = {**values, **{f":set_{name}": value for name, value in sets.items()}, **({":one": 1} if adds else {})}
        with _asking("write the job"):
            answer = self._table.update_item(
                TableName=self._settings.jobs_table,
                Key={"job_id": {"S": job_id}},
                UpdateExpression=change,
                ConditionExpression=condition,
                ExpressionAttributeNames={name: name[1:] for name in re.findall(r"#\w+", change + condition)},
                ExpressionAttributeValues={name: _typed(value) for name, value in given.items()},
                ReturnValues="ALL_NEW",
            )
        return _plain(answer["Attributes"])


def _exactly(job: Job) -> dict[str, Any]:
    """Which object S3 is asked for: this version; without versions, what is there if it still is what was uploaded."""
    return {"VersionId": job.version} if job.version else {"IfMatch": job.etag}


@contextmanager
def _asking(what: str, input_faults: Mapping[str, str] | None = None) -> Iterator[None]:
    """Translate botocore's errors; `input_faults` names the codes that are the upload's own fault."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "ConditionalCheckFailedException":
            raise LostLease from error
        if input_faults and code in input_faults:
            raise Rejected(input_faults[code]) from error
        passes = status in MAY_PASS or code.startswith(THROTTLED)
        raise (Trouble if passes else Refused)(f"{what}: {code}") from error
    except BotoCoreError as error:
        raise Trouble(f"{what}: {error!r}") from error


def _typed(value: object) -> Any:
    """DynamoDB's notation for the few kinds of value a job record has."""
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, int | float):
        return {"N": repr(value)}
    if isinstance(value, Sequence):
        return {"L": [_typed(each) for each in value]}
    raise TypeError(f"no job record holds {value!r}")


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """The record's texts and numbers; nothing here reads its lists."""
    numbers = {name: float(value["N"]) for name, value in item.items() if "N" in value}
    return numbers | {name: value["S"] for name, value in item.items() if "S" in value}


def _epoch(moment: datetime) -> int:
    return ceil(moment.timestamp())


def _seconds(delay: timedelta) -> int:
    return ceil(delay.total_seconds())
