"""What lies in a stack's dead-letter queue: look at it, give jobs another chance, or throw them away.

A message gets there in two ways: the worker puts a copy with the reason, or SQS moves it after a thousand receives. It
tells of one job or of a piece of one, is an S3 event of any number of uploads, or is nothing that a worker can read. Of
a piece only the whole job can be tried again. Whoever looks hides the messages from others for a while, and gives back
what was not taken off.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from ops.account import Account, cluster_resources, code, depth, records
from ops.text import short, table

sys.path.append(str(Path(__file__).resolve().parent.parent / "ecs-tasks" / "gpu-worker"))

from gpu_worker.job import Job, NotAJob
from gpu_worker.parts import Piece, message, read
from gpu_worker.upload import told_by_s3

HIDDEN_SECONDS = 60
"""From a receive on: long enough to go through a thousand messages, and soon over when somebody is cut off."""
WAIT_SECONDS = 2
"""A receive that waits asks all of SQS's servers: what it does not bring is not there, or is hidden."""
MOST_LISTED = 1000
MOST_REPEATS = 3
"""So many receives in a row with nothing new: all has been seen, and the first ones come again."""
AT_ONCE = 10
"""Messages in one call of SQS."""


@dataclass(frozen=True, kw_only=True)
class Dead:
    """One message, and the jobs that it tells of; none when a worker cannot read it."""

    id: str
    receipt: str
    body: str
    sent: datetime
    reason: str | None
    source: str | None
    """Name of the queue from which SQS moved it; None for a worker's copy."""
    event: bool
    """Whether it is S3's own; its jobs may have no record yet."""
    jobs: tuple[Job, ...]
    piece: str | None
    """The id of the piece that it was about; `jobs` has the whole."""

    @property
    def name(self) -> str:
        """What an operator calls it: its job, or its own id where it has none or several."""
        return self.jobs[0].job_id if len(self.jobs) == 1 else self.id

    @property
    def names(self) -> frozenset[str]:
        """All that it answers to."""
        return frozenset({self.id, *(job.job_id for job in self.jobs), *([self.piece] if self.piece else [])})

    @property
    def again(self) -> str:
        """The body of the message that makes a worker try again."""
        return message(self.jobs[0]) if self.piece else self.body


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One message as it is listed. `failures` is None where there is no record."""

    name: str
    key: str
    reason: str
    state: str
    failures: int | None
    when: datetime

    @classmethod
    def of(cls, dead: Dead, records: Mapping[str, Mapping[str, Any]]) -> Entry:
        """Put together what the message and the records of its jobs say; of several jobs, those that failed."""
        found = [records[job.job_id] for job in dead.jobs if job.job_id in records]
        failed = [record for record in found if record["state"] == "FAILED"] or found
        keys = [str(record.get("key", "")) for record in failed] or [job.key for job in dead.jobs]
        record = failed[0] if failed else {}
        moved = "SQS moved it here after a thousand receives" if dead.source else "no reason was given"
        when = record.get("finished")
        return cls(
            name=dead.name,
            key=", ".join(keys),
            reason=dead.reason or str(record.get("error") or moved),
            state=str(record.get("state", "no record" if dead.jobs else "no job")),
            failures=int(record["failures"]) if "failures" in record else None,
            when=datetime.fromisoformat(str(when)) if when else dead.sent,
        )


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The messages that were seen, and about how many more there are or are hidden."""

    entries: Sequence[Entry]
    more: int

    def text(self) -> Iterator[str]:
        """As it is printed."""
        head = ("job", "key", "state", "failures", "when (UTC)", "reason")
        rows = [
            (
                one.name,
                short(one.key, 40),
                one.state,
                "-" if one.failures is None else str(one.failures),
                f"{one.when:%Y-%m-%d %H:%M:%S}",
                short(one.reason),
            )
            for one in self.entries
        ]
        if rows:
            yield from table([head, *rows], numbers={3})
            yield ""
        more = f", and about {self.more} more are hidden or were not asked for" if self.more else ""
        yield f"{len(rows)} in the dead-letter queue{more}"


@dataclass
class Done:
    """What became of each message that was meant: by name, in words."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """What could not be done, and why."""
    already: list[str] = field(default_factory=list)
    """Names that are not in the queue, and need not be."""


class DeadLetters:
    """One stack's dead-letter queue. Any method may raise ClientError or BotoCoreError."""

    def __init__(self, account: Account, stack: str) -> None:
        """Find queues and table. Raises NoSuchStack."""
        titles = cluster_resources(account, stack)
        self._account = account
        self._sqs = account.client("sqs")
        self._dynamodb = account.client("dynamodb")
        self._url = titles["DeadLetter"]
        self._table = titles["JobsTable"]
        self._queues = {title: url for title, url in titles.items() if title.endswith("Jobs")}
        self._gone: set[str] = set()

    def listing(self) -> Listing:
        """All messages, or the first thousand."""
        there = depth(self._account, self._url).total
        entries: list[Entry] = []
        with self._opened() as batches:
            for batch in batches:
                found = self._records(batch)
                entries += [Entry.of(dead, found) for dead in batch]
                if len(entries) >= MOST_LISTED:
                    break
        entries.sort(key=lambda one: one.when)
        return Listing(entries=entries, more=max(0, there - len(entries)))

    def show(self, name: str) -> dict[str, Any] | None:
        """The message of that name and the records of its jobs; None when it is not there, or hidden."""
        with self._opened() as batches:
            for dead in (dead for batch in batches for dead in batch):
                if name in dead.names:
                    return {
                        "message_id": dead.id,
                        "sent": dead.sent.isoformat(),
                        "reason": dead.reason,
                        "moved_from": dead.source,
                        "message": _readable(dead.body),
                        "records": [_numbers(record) for record in self._records([dead]).values()],
                    }
        return None

    def requeue(self, names: Collection[str] | None) -> Done:
        """Give the jobs of these messages, or of all (None), another chance, without their failures.

        The record first, then the message into its own queue, then off this one: what is cut short in between is done
        again, and two messages of one job are one job.
        """
        done, sent, missing = Done(), set[str](), dict.fromkeys(names or ())
        for dead in self._meant(names, missing):
            if why_not := self._requeue(dead, sent):
                done.left.append(f"{dead.name}: {why_not}")
            else:
                done.done.append(dead.name)
        for name, state in self._states(missing):
            absent = done.left if state in (None, "FAILED") else done.already
            absent.append(_absent(name, state))
        return done

    def purge(self, names: Collection[str] | None) -> Done:
        """Delete these messages, or all (None), for ever. The records stay."""
        done, missing = Done(), dict.fromkeys(names or ())
        for dead in self._meant(names, missing):
            self._remove(dead)
            done.done.append(dead.name)
        for name, state in self._states(missing):
            absent = done.left if state is None else done.already
            absent.append(_absent(name, state))
        return done

    def _meant(self, names: Collection[str] | None, missing: dict[str, None]) -> Iterator[Dead]:
        """The messages that were meant; what is found is taken out of `missing`."""
        with self._opened() as batches:
            for dead in (dead for batch in batches for dead in batch):
                if names is None or not dead.names.isdisjoint(names):
                    for name in dead.names:
                        missing.pop(name, None)
                    yield dead

    def _states(self, names: Collection[str]) -> Iterator[tuple[str, str | None]]:
        """The names that are not in the queue, and the state of the job that is called so."""
        found = records(self._account, self._table, [*names])
        return ((name, str(found[name]["state"]) if name in found else None) for name in names)

    def _requeue(self, dead: Dead, sent: set[str]) -> str | None:
        """Why the message cannot be requeued, None when it was. `sent` is what this command has sent already."""
        if not dead.jobs:
            return "it tells of no job; purge it"
        found = [*self._records([dead]).values()]
        if not found and not dead.event:
            return "its job has no record; upload the file again, and purge this"
        failed = [str(record["job_id"]) for record in found if record["state"] == "FAILED"]
        if failed and dead.again in sent:
            return "it has failed again meanwhile"
        over = len(found) == len(dead.jobs) and all(record["state"] == "SUCCEEDED" for record in found)
        if not over and dead.again not in sent:
            url = self._home(dead, found)
            if url is None:
                return "from which queue it came is not known"
            for job_id in failed:
                self._reset(job_id)
            self._sqs.send_message(QueueUrl=url, MessageBody=dead.again)
            sent.add(dead.again)
        self._remove(dead)
        return None

    def _home(self, dead: Dead, found: Sequence[Mapping[str, Any]]) -> str | None:
        """The URL of the queue that the message belongs to."""
        for record in found:
            title = "".join(part.capitalize() for part in str(record.get("queue", "")).split("-"))
            if url := self._queues.get(f"{title}Jobs"):
                return url
        for url in self._queues.values():
            if dead.source and url.rpartition("/")[2] == dead.source:
                return url
        return next(iter(self._queues.values())) if len(self._queues) == 1 else None

    def _reset(self, job_id: str) -> None:
        """FAILED becomes QUEUED, without failures; whatever it is by now otherwise stays."""
        try:
            self._dynamodb.update_item(
                TableName=self._table,
                Key={"job_id": {"S": job_id}},
                UpdateExpression="SET #state = :queued, failures = :none REMOVE #error, finished, #owner, lease_until",
                ConditionExpression="#state = :failed",
                ExpressionAttributeNames={"#state": "state", "#error": "error", "#owner": "owner"},
                ExpressionAttributeValues={":queued": {"S": "QUEUED"}, ":none": {"N": "0"}, ":failed": {"S": "FAILED"}},
            )
        except ClientError as error:
            if code(error) != "ConditionalCheckFailedException":
                raise

    def _remove(self, dead: Dead) -> None:
        self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=dead.receipt)
        self._gone.add(dead.id)

    def _records(self, batch: Sequence[Dead]) -> dict[str, dict[str, Any]]:
        job_ids = dict.fromkeys(job.job_id for dead in batch for job in dead.jobs)
        return records(self._account, self._table, [*job_ids])

    @contextmanager
    def _opened(self) -> Iterator[Iterator[list[Dead]]]:
        """Every message once, ten at a time; in the end those that were not removed are given back."""
        held: dict[str, str] = {}
        try:
            yield self._receive(held)
        finally:
            back = [(id_, receipt) for id_, receipt in held.items() if id_ not in self._gone]
            for start in range(0, len(back), AT_ONCE):
                self._sqs.change_message_visibility_batch(
                    QueueUrl=self._url,
                    Entries=[
                        {"Id": str(place), "ReceiptHandle": receipt, "VisibilityTimeout": 0}
                        for place, (_, receipt) in enumerate(back[start : start + AT_ONCE])
                    ],
                )

    def _receive(self, held: dict[str, str]) -> Iterator[list[Dead]]:
        """Receive until nothing new comes; `held` is told the latest receipt of each message."""
        repeats = 0
        while repeats < MOST_REPEATS:
            reply = self._sqs.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=AT_ONCE,
                VisibilityTimeout=HIDDEN_SECONDS,
                WaitTimeSeconds=WAIT_SECONDS,
                AttributeNames=["All"],
                MessageAttributeNames=["reason"],
            )
            got = reply.get("Messages", ())
            if not got:
                return
            fresh = [_dead(message) for message in got if message["MessageId"] not in held]
            held |= {message["MessageId"]: message["ReceiptHandle"] for message in got}
            repeats = 0 if fresh else repeats + 1
            yield fresh


def _dead(message: Mapping[str, Any]) -> Dead:
    body, attributes = str(message["Body"]), message["Attributes"]
    source = attributes.get("DeadLetterQueueSourceArn")
    reason = message.get("MessageAttributes", {}).get("reason", {}).get("StringValue")
    event, jobs, piece = _jobs(body)
    return Dead(
        id=str(message["MessageId"]),
        receipt=str(message["ReceiptHandle"]),
        body=body,
        sent=datetime.fromtimestamp(int(attributes["SentTimestamp"]) / 1000, UTC),
        reason=reason,
        source=source.rpartition(":")[2] if source else None,
        event=event,
        jobs=jobs,
        piece=piece,
    )


def _jobs(body: str) -> tuple[bool, tuple[Job, ...], str | None]:
    """Whether the message is S3's, its jobs as a worker reads them, and which piece of its job it is about."""
    try:
        uploads = told_by_s3(body)
        if uploads is not None:
            return True, tuple(uploads), None
        job = read(body)
    except NotAJob:
        return False, (), None
    return (False, (job.whole,), job.job_id) if isinstance(job, Piece) else (False, (job,), None)


def _absent(name: str, state: str | None) -> str:
    """What there is to say of a name that is not in the queue, and of the job that is called so."""
    return f"{name}: not there, or hidden while somebody looks" + (f"; its job is {state}" if state else "")


def _readable(body: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record that JSON can hold: DynamoDB's numbers are Decimal."""
    whole: dict[str, Any] = json.loads(json.dumps(record, default=lambda one: int(one) if one % 1 == 0 else float(one)))
    return whole
