"""The account and region that a command works in. Clients are made here, when they are first asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import boto3
from boto3.dynamodb.types import TypeDeserializer
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

CONFIG = Config(connect_timeout=5, read_timeout=60, retries={"mode": "standard", "max_attempts": 5})
KEYS_AT_ONCE = 100
"""Of one BatchGetItem."""


class NoSuchStack(Exception):
    """There is no stack of ours with that name; the message says it."""


class Account:
    """Whatever the standard AWS environment, profile or instance says it is."""

    def __init__(self, session: boto3.Session | None = None) -> None:
        self._session = session or boto3.Session()
        self._clients: dict[tuple[str, str | None], Any] = {}

    @property
    def region(self) -> str | None:
        """The region, None when nothing names one."""
        return self._session.region_name

    def client(self, service: str, region: str | None = None) -> Any:
        """The client of a service, in the account's region or in another. Raises BotoCoreError."""
        if (service, region) not in self._clients:
            # boto3's stubs know a client by a literal name only.
            make: Any = self._session.client
            self._clients[service, region] = make(service, region_name=region, config=CONFIG)
        return self._clients[service, region]

    def all(self, service: str, operation: str, key: str, **parameters: Any) -> list[Any]:
        """Every page of a list or Describe call: what stands under `key`. Raises ClientError or BotoCoreError."""
        pages = self.client(service).get_paginator(operation).paginate(**parameters)
        return [item for page in pages for item in page.get(key, [])]


def resources(account: Account, stack: str) -> dict[str, str]:
    """Physical ids of a stack's resources by title. Raises NoSuchStack, ClientError or BotoCoreError."""
    try:
        found = account.all("cloudformation", "list_stack_resources", "StackResourceSummaries", StackName=stack)
    except ClientError as error:
        if code(error) != "ValidationError":
            raise
        raise NoSuchStack(f"there is no stack {stack} in {account.region}") from error
    return {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in found if one.get("PhysicalResourceId")}


def cluster_resources(account: Account, stack: str) -> dict[str, str]:
    """The same of a stack of build/cluster.json. Raises NoSuchStack for any other, ClientError or BotoCoreError."""
    found = resources(account, stack)
    if "JobsTable" not in found:
        raise NoSuchStack(not_of_a_cluster(stack, found))
    return found


def not_of_a_cluster(stack: str, found: Mapping[str, str]) -> str:
    """What to say of a stack that is not of build/cluster.json, and what to ask instead. `found`: `resources`."""
    ids = found.values()
    if any(":image-pipeline/" in one for one in ids):
        return f"{stack} is a stack of build/image.json, which bakes images: python build.py ami --stack {stack}"
    if any(":job-queue/" in one for one in ids):
        return f"{stack} is a stack of build/batch.json: python build.py batch status --stack {stack}"
    return f"{stack} is none of our stacks"


class Depth(NamedTuple):
    """How many messages a queue has, all approximate: to be had, with a reader, and not to be had yet."""

    visible: int
    in_flight: int
    delayed: int

    @property
    def total(self) -> int:
        """Every message."""
        return sum(self)


def depth(account: Account, queue_url: str) -> Depth:
    """Ask SQS. Raises ClientError or BotoCoreError."""
    names = [f"ApproximateNumberOfMessages{which}" for which in ("", "NotVisible", "Delayed")]
    counts = account.client("sqs").get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
    return Depth(*(int(counts[name]) for name in names))


def plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item of a table without DynamoDB's types; numbers are Decimal."""
    read = TypeDeserializer().deserialize
    return {name: read(value) for name, value in item.items()}


def records(account: Account, table: str, job_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Job records by job id, of those that there are. Raises ClientError or BotoCoreError."""
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(job_ids), KEYS_AT_ONCE):
        keys = [{"job_id": {"S": job_id}} for job_id in job_ids[start : start + KEYS_AT_ONCE]]
        wanted = {table: {"Keys": keys, "ConsistentRead": True}}
        while wanted:
            reply = account.client("dynamodb").batch_get_item(RequestItems=wanted)
            found |= {str(item["job_id"]): item for item in map(plain, reply["Responses"].get(table, ()))}
            wanted = reply.get("UnprocessedKeys")
    return found


def code(error: Exception) -> str:
    """The error code of an answer, "" for anything that is none."""
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else ""


def told(error: ClientError | BotoCoreError) -> str:
    """What went wrong, on one line: AWS's code and words, without botocore's preamble."""
    if isinstance(error, ClientError):
        answer: Mapping[str, Any] = error.response["Error"]
        return " ".join(f"{answer.get('Code', '')}: {answer.get('Message', '')}".split())
    return " ".join(str(error).split())
