"""Everything the worker asks of AWS: the queue, the job records, the objects, and whether its host is to go.

Errors are translated here into four words: `LostLease`, `Rejected` (the upload itself), `Trouble` (it may pass) and
`Refused` (it will not).
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from gpu_worker import transfer
from gpu_worker.cost import NOTHING, Spent
from gpu_worker.intake import BATCH
from gpu_worker.job import Job, result_key
from gpu_worker.lease import Lapsed, Lease, crash_of
from gpu_worker.outcome import Rejected
from gpu_worker.parts import Change, Piece, part_ids, part_key, record_of
from gpu_worker.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_ecs import ECSClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

POLL = timedelta(seconds=2)
"""How long a receive waits. SQS would allow 20 s; a doomed worker must not sit in one, and idle ones are few."""

PATIENT = Config(
    connect_timeout=3,
    read_timeout=15,
    retries={"mode": "standard", "total_max_attempts": 4},
    max_pool_connections=50,
)
BRIEF = Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1})
"""For what can be asked again later, and may not hold up the work."""
NONE: Mapping[str, float] = {}
MAY_PASS = frozenset({409, 429, *range(500, 600)})
THROTTLED = ("Throttl", "ProvisionedThroughput", "RequestLimit", "SlowDown", "RequestTimeout", "ExpiredToken")
CLOCK = ("RequestTimeTooSkewed", "InvalidSignature", "SignatureDoesNotMatch")
"""This machine's clock is wrong by minutes; it will be set. (S3's code, and those of others.)"""
NOT_IN_FLIGHT = ("MessageNotInflight", "InvalidParameterValue", "ReceiptHandleIsInvalid")
GONE = {
    "NoSuchKey": "the upload is gone",
    "NoSuchVersion": "the upload is gone",
    "PreconditionFailed": "the upload was replaced before its job ran",
}


T = TypeVar("T")


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
        # Clients may be used by many threads, but not made by them.
        self._sqs: SQSClient = self._session.client("sqs", config=PATIENT)
        self._table: DynamoDBClient = self._session.client("dynamodb", config=PATIENT)
        self._s3: S3Client = self._session.client("s3", config=PATIENT)

    # Most workers never ask ECS, and a client costs a tenth of a second; only the main thread does.
    @cached_property
    def _ecs(self) -> ECSClient:
        return self._session.client("ecs", config=BRIEF)

    def draining(self, container_instance: str) -> bool:
        """Whether ECS drains this host: arn:aws:ecs:REGION:ACCOUNT:container-instance/CLUSTER/ID."""
        with asking("look at the host"):
            found = self._ecs.describe_container_instances(
                cluster=container_instance.split("/")[-2], containerInstances=[container_instance]
            )["containerInstances"]
        return any(host["status"] == "DRAINING" for host in found)

    def receive(self, most: int) -> list[Message]:
        """Up to `most` messages, hidden from others for as long as a lease; none if none came for a while."""
        with asking("receive"):
            answer = self._sqs.receive_message(
                QueueUrl=self._settings.queue_url,
                AttributeNames=["SentTimestamp"],
                MaxNumberOfMessages=most,
                WaitTimeSeconds=POLL.seconds,
                VisibilityTimeout=_seconds(self._settings.lease),
            )
        return [
            Message(
                got["Body"],
                got["ReceiptHandle"],
                datetime.fromtimestamp(int(got["Attributes"]["SentTimestamp"]) / 1000, UTC),
            )
            for got in answer.get("Messages", [])
        ]

    def hide(self, messages: Sequence[Message], delay: timedelta) -> None:
        """Let nobody see the messages for so long from now; zero gives them back.

        A message that can be seen already, or is gone, is let be: the model has MessageNotInflight for it, the service
        itself says InvalidParameterValue (aws/aws-sdk-net#1927).
        """
        for batch in _tens(messages):
            with asking("hide"):
                failed = self._sqs.change_message_visibility_batch(
                    QueueUrl=self._settings.queue_url,
                    Entries=[
                        {"Id": str(n), "ReceiptHandle": each.receipt, "VisibilityTimeout": _seconds(delay)}
                        for n, each in enumerate(batch)
                    ],
                ).get("Failed", [])
            codes = {each["Code"] for each in failed if not each["Code"].endswith(NOT_IN_FLIGHT)}
            if codes:
                raise Trouble(f"hide: {', '.join(sorted(codes))}")

    def delete(self, messages: Sequence[Message]) -> None:
        """The messages have done their duty. One that stays comes again, and its job is found over."""
        for batch in _tens(messages):
            with asking("delete"):
                self._sqs.delete_message_batch(
                    QueueUrl=self._settings.queue_url,
                    Entries=[{"Id": str(n), "ReceiptHandle": each.receipt} for n, each in enumerate(batch)],
                )

    def bury(self, message: Message, reason: str) -> None:
        """A copy of the message for the dead-letter queue, with the reason."""
        with asking("bury"):
            self._sqs.send_message(
                QueueUrl=self._settings.dead_letter_queue_url,
                MessageBody=message.body,
                MessageAttributes={"reason": {"DataType": "String", "StringValue": reason}},
            )

    def buried(self, job: Job) -> None:
        """The dead-letter queue has its copy. A job that is not FAILED, or has no record, needs none."""
        with suppress(LostLease):
            self._update(
                job.job_id,
                removes=("unburied",),
                condition="#state = :failed",
                values={":failed": "FAILED"},
            )

    def create(self, job: Job, created: datetime) -> None:
        """Record a job unless there is one: S3 told of an upload, and tells the same one again when it likes."""
        item = {name: _typed(value) for name, value in record_of(job, self._settings.queue, created).items()}
        with asking("record the job"):
            try:
                self._table.put_item(
                    TableName=self._settings.jobs_table,
                    Item=item,
                    ConditionExpression="attribute_not_exists(job_id)",
                )
            except self._table.exceptions.ConditionalCheckFailedException:
                return

    def claim(
        self, job: Job, owner: str, facts: Mapping[str, str], now: datetime, *, suspect: bool = False
    ) -> Lease | None:
        """Take the job if it waits, and is a suspect only if that is known; None when it is not to be had."""
        sets = {"state": "RUNNING", "owner": owner, "started": now.isoformat(), **facts}
        try:
            record = self._update(
                job.job_id,
                sets={**sets, "lease_until": _epoch(now + self._settings.lease)},
                adds={"attempts": 1},
                condition="#state = :queued" + ("" if suspect else " AND attribute_not_exists(#crashes)"),
                values={":queued": "QUEUED"},
            )
        except LostLease:
            return None
        attempt, failures = int(record["attempts"]), int(record.get("failures", 0))
        return Lease(job, owner, attempt, failures, now, "checkpoint" in record)

    def record(self, job_id: str) -> Mapping[str, Any] | None:
        """The job as it is now: its texts and numbers."""
        with asking("look at the job"):
            item = self._table.get_item(
                TableName=self._settings.jobs_table, Key={"job_id": {"S": job_id}}, ConsistentRead=True
            ).get("Item")
        return _plain(item) if item else None

    def crash(self, owner: str) -> str | None:
        """What the worker of that task died of, if it was its own death and ECS still knows: it does for an hour."""
        if not owner.startswith("arn:"):
            return None
        with asking("look at the dead worker"):
            found = self._ecs.describe_tasks(cluster=owner.split("/")[-2], tasks=[owner])["tasks"]
        return crash_of(found[0]) if found else None

    def lapse(self, job_id: str, lapsed: Lapsed, counts: Sequence[str], now: datetime) -> None:
        """QUEUED again, in the place of its dead worker. Raises LostLease if it is not dead, or another was faster."""
        self._update(
            job_id,
            sets={"state": "QUEUED"},
            adds=dict.fromkeys(counts, 1),
            removes=("owner", "lease_until"),
            condition="#state = :running AND #owner = :owner AND #attempts = :attempt AND #lease_until < :now",
            values={":running": "RUNNING", ":owner": lapsed.owner, ":attempt": lapsed.attempt, ":now": _epoch(now)},
        )

    def extend(self, lease: Lease, now: datetime) -> None:
        """Heartbeat: the job stays ours for another lease from now. Its message has to stay hidden with it."""
        self._ours(lease, sets={"lease_until": _epoch(now + self._settings.lease)})

    def pool(self, name: str) -> Mapping[str, Any] | None:
        """What the market Lambda knows of a pool, None where it does not."""
        if self._settings.pools_table is None:
            return None
        with asking("look at the pool"):
            item = self._table.get_item(TableName=self._settings.pools_table, Key={"pool": {"S": name}}).get("Item")
        return _plain(item) if item else None

    def finish(
        self, lease: Lease, outputs: Sequence[str], spent: Spent, now: datetime, also: Change | None = None
    ) -> None:
        """SUCCEEDED: from here on the results count. `also` is written with it, both or none."""
        sets = {"state": "SUCCEEDED", "outputs": outputs, "finished": now.isoformat()}
        self._ours(lease, spent, sets=sets, removes=("lease_until", "error", "checkpoint"), also=also)

    def release(self, lease: Lease, spent: Spent) -> None:
        """QUEUED again, unharmed."""
        self._ours(lease, spent, sets={"state": "QUEUED"}, adds={"releases": 1}, removes=("owner", "lease_until"))

    def fail(self, lease: Lease, reason: str, spent: Spent) -> None:
        """QUEUED again, one failure nearer to the end."""
        sets = {"state": "QUEUED", "error": reason}
        self._ours(lease, spent, sets=sets, adds={"failures": 1}, removes=("owner", "lease_until"))

    def reject(self, lease: Lease, reason: str, spent: Spent, now: datetime, also: Change | None = None) -> None:
        """FAILED, for good. `also` is written with it, both or none.

        `unburied` names the job of whose message the dead-letter queue has no copy yet; no piece has one of its own.
        """
        sets = {"state": "FAILED", "error": reason, "finished": now.isoformat()}
        if not isinstance(lease.job, Piece):
            sets["unburied"] = lease.job.job_id
        self._ours(lease, spent, sets=sets, adds={"failures": 1}, removes=("lease_until", "checkpoint"), also=also)

    def split(self, lease: Lease, parts: int, spent: Spent) -> None:
        """SPLIT: the parts are jobs of their own, and the work goes on in them."""
        sets = {"state": "SPLIT", "parts_total": parts, "parts_done": 0}
        self._ours(lease, spent, sets=sets, removes=("owner", "lease_until", "error", "checkpoint"))

    def send(self, bodies: Sequence[str]) -> None:
        """Put messages into the queue that this worker takes its own from."""
        for batch in _tens(bodies):
            with asking("send"):
                failed = self._sqs.send_message_batch(
                    QueueUrl=self._settings.queue_url,
                    Entries=[{"Id": str(n), "MessageBody": body} for n, body in enumerate(batch)],
                ).get("Failed", [])
            if failed:
                raise Trouble(f"send: {', '.join(sorted({each['Code'] for each in failed}))}")

    def download(self, job: Job, path: Path) -> None:
        """Fetch the very object the job is about, and no more bytes than allowed."""
        limit = self._settings.max_input_bytes
        with asking("download", GONE):
            try:
                source = {"Bucket": job.bucket, "Key": job.key, **_exactly(job)}
                transfer.fetch(self._s3, source, path, job.size, limit)
            except transfer.TooLarge as error:
                raise Rejected(f"the upload has more than {limit} bytes") from error

    def upload(self, job: Job, name: str, path: Path) -> str:
        """Store one result unless an earlier attempt did; returns its key."""
        target = {
            "Bucket": self._settings.results_bucket,
            "Key": result_key(job, name),
            "ContentType": mimetypes.guess_type(name, strict=False)[0] or "application/octet-stream",
            "Metadata": {"job-id": job.job_id},
        }
        with asking("upload"):
            self._put_once(target, path)
        return str(target["Key"])

    def store_part(self, part: Piece, path: Path) -> None:
        """Store what a part is to be made of. Its key belongs to this attempt alone."""
        with asking("store a part"):
            self._put_once({"Bucket": part.bucket, "Key": part.key}, path)

    def fetch_results(self, stitch: Piece, folder: Path) -> None:
        """Fetch what came of the parts: a folder for each, in their order, with the results by name."""
        for number, job_id in enumerate(part_ids(stitch)):
            (folder / f"{number:05d}").mkdir(parents=True)
            for key in self._outputs(job_id):
                path = folder / f"{number:05d}" / key.partition(f"/{job_id}/")[2]
                path.parent.mkdir(parents=True, exist_ok=True)
                with asking("fetch a part's result"):
                    self._s3.download_file(self._settings.results_bucket, key, str(path))

    def remove_parts(self, stitch: Piece) -> None:
        """Delete the parts and what came of them. What an attempt left that died is for the bucket's lifecycle."""
        for number, job_id in enumerate(part_ids(stitch)):
            keys = [part_key(stitch.whole, stitch.round, number), *self._outputs(job_id)]
            with asking("remove a part"):
                self._s3.delete_objects(
                    Bucket=self._settings.results_bucket,
                    Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
                )

    def _outputs(self, job_id: str) -> list[str]:
        """The keys of a job's results."""
        with asking("look at a part"):
            record = self._table.get_item(
                TableName=self._settings.jobs_table, Key={"job_id": {"S": job_id}}, ConsistentRead=True
            )["Item"]
        return [each["S"] for each in record["outputs"]["L"]]

    def keep_checkpoint(self, lease: Lease, packed: Path) -> None:
        """Store how far a job has come, in place of an earlier state. Raises LostLease."""
        with asking("keep the checkpoint"):
            self._s3.upload_file(str(packed), self._settings.results_bucket, checkpoint_key(lease.job.job_id))
        self._ours(lease, sets={"checkpoint": 1})

    def fetch_checkpoint(self, lease: Lease, packed: Path) -> None:
        """Fetch how far a job has come. Raises CloudError, also if it is not there."""
        with asking("fetch the checkpoint"):
            self._s3.download_file(self._settings.results_bucket, checkpoint_key(lease.job.job_id), str(packed))

    def forget_checkpoint(self, lease: Lease) -> None:
        """The job is over."""
        with asking("forget the checkpoint"):
            self._s3.delete_object(Bucket=self._settings.results_bucket, Key=checkpoint_key(lease.job.job_id))

    def delete_upload(self, job: Job) -> None:
        """Remove the very object the job is about, for good; one that is gone, or was replaced, is let be."""
        with asking("delete the upload"):
            try:
                self._s3.delete_object(Bucket=job.bucket, Key=job.key, **_exactly(job))
            except ClientError as error:
                if error.response["Error"]["Code"] not in GONE:
                    raise

    def _put_once(self, target: Mapping[str, Any], path: Path) -> None:
        """Store the file; what is there already stays."""
        try:
            transfer.store(self._s3, target, path)
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise

    def _ours(
        self,
        lease: Lease,
        spent: Spent = NOTHING,
        adds: Mapping[str, float] = NONE,
        also: Change | None = None,
        **change: Any,
    ) -> None:
        """Change the record if this attempt of this owner still holds it, and add what the attempt took.

        With `also` the two are one transaction: LostLease if either record is not as expected.
        """
        used = {"gpu_seconds": spent.gpu_seconds, "cost_usd": spent.usd or 0}
        change |= {
            "adds": {**adds, **{name: amount for name, amount in used.items() if amount}},
            "condition": "#state = :running AND #owner = :owner AND #attempts = :attempt",
            "values": {":running": "RUNNING", ":owner": lease.owner, ":attempt": lease.attempt},
        }
        if also is None:
            self._update(lease.job.job_id, **change)
            return
        other = self._change(
            also.job_id,
            condition=" AND ".join(f"#{name} = :is_{name}" for name in also.expects),
            values={f":is_{name}": value for name, value in also.expects.items()},
            sets=also.sets,
            adds=also.adds,
        )
        with asking("write the job"):
            self._table.transact_write_items(
                TransactItems=[{"Update": self._change(lease.job.job_id, **change)}, {"Update": other}]
            )

    def _update(self, job_id: str, **change: Any) -> Mapping[str, Any]:
        """One conditional write; returns the record after it."""
        with asking("write the job"):
            answer = self._table.update_item(**self._change(job_id, **change), ReturnValues="ALL_NEW")
        return _plain(answer["Attributes"])

    def _change(
        self,
        job_id: str,
        *,
        condition: str,
        values: Mapping[str, object],
        sets: Mapping[str, object] = NONE,
        adds: Mapping[str, float] = NONE,
        removes: Sequence[str] = (),
    ) -> Any:
        """A conditional write; `adds` counts up. Every name gets a `#`, since many are reserved words."""
        change = "SET " + ", ".join(f"#{name} = :set_{name}" for name in sets) if sets else ""
        change += " ADD " + ", ".join(f"#{name} :add_{name}" for name in adds) if adds else ""
        change += " REMOVE " + ", ".join(f"#{name}" for name in removes) if removes else ""
        given = {**values, **{f":set_{name}": value for name, value in sets.items()}}
        given |= {f":add_{name}": amount for name, amount in adds.items()}
        return {
            "TableName": self._settings.jobs_table,
            "Key": {"job_id": {"S": job_id}},
            "UpdateExpression": change,
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {name: name[1:] for name in re.findall(r"#\w+", change + condition)},
            "ExpressionAttributeValues": {name: _typed(value) for name, value in given.items()},
        }


def _exactly(job: Job) -> dict[str, Any]:
    """Which object S3 is asked for: this version; without versions, what is there if it still is what was uploaded.

    A part has neither, and is nobody else's.
    """
    if isinstance(job, Piece):
        return {}
    return {"VersionId": job.version} if job.version else {"IfMatch": job.etag}


def checkpoint_key(job_id: str) -> str:
    """Where in the results bucket a job's checkpoint is kept."""
    return f".checkpoints/{job_id}/checkpoint.tar"


@contextmanager
def asking(what: str, input_faults: Mapping[str, str] | None = None) -> Iterator[None]:
    """Translate botocore's errors; `input_faults` names the codes that are the upload's own fault."""
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "ConditionalCheckFailedException" or "ConditionalCheckFailed" in _cancelled(error):
            raise LostLease from error
        if code == "TransactionCanceledException":  # another one had one of its records in hand
            raise Trouble(f"{what}: {code}") from error
        if input_faults and code in input_faults:
            raise Rejected(input_faults[code]) from error
        passes = status in MAY_PASS or code.startswith(THROTTLED + CLOCK)
        raise (Trouble if passes else Refused)(f"{what}: {code}") from error
    except (BotoCoreError, Boto3Error) as error:
        raise Trouble(f"{what}: {error!r}") from error


def _cancelled(error: ClientError) -> set[str]:
    """Why a transaction was: the codes of its items."""
    return {reason.get("Code", "") for reason in cast(Any, error.response).get("CancellationReasons", [])}


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


def _tens(things: Sequence[T]) -> Iterator[Sequence[T]]:
    """What SQS takes in one batch. (Ten messages of 5 KB, with two keys of 1 KB each, are far below its 256 KB.)"""
    return (things[start : start + BATCH] for start in range(0, len(things), BATCH))


def _epoch(moment: datetime) -> int:
    return ceil(moment.timestamp())


def _seconds(delay: timedelta) -> int:
    return ceil(delay.total_seconds())
