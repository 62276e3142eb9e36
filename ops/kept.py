"""What may outlive a stack because there is work or history in it: is it there, what is in it, and how it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from botocore.exceptions import ClientError

from ops.account import Account, code, depth
from ops.ami import GIB, stored
from templates.image import PARAMETER as AMI_PARAMETER
from templates.settings import STACK_TAG

KEY_DAYS = 30
"""How long a key waits for its deletion, the longest that KMS allows (7 to 30): until then it can be taken back, and
with it the backup that DynamoDB keeps of a deleted table for 35 days."""
EMPTY = "empty"
SNAPSHOT_USD = 0.05
"""A month for each GiB of a snapshot (Amazon EBS pricing, standard tier, us-east-1)."""


@dataclass(frozen=True)
class Kind:
    """One kind of thing that holds data."""

    noun: str
    type: str
    """Of the CloudFormation resource, whose physical id names the thing; or of what makes it, with `find`."""
    tagged: str
    """As the Resource Groups Tagging API calls it."""
    name: Callable[[str], str]
    """The thing's name in its physical id or ARN."""
    state: Callable[[Account, str], str | None]
    """What is in it, in words; None when it is gone. Raises ClientError."""
    remove: Callable[[Account, str], None]
    """Delete it with all that is in it. Raises ClientError."""
    command: Callable[[Account, str], str]
    """What an operator types to do that."""
    find: Callable[[Account, str], list[str]] | None = None
    """The names of those that a stack has made, where they are no resources of it. Raises ClientError."""
    without: str = ""
    """What no longer works without it."""


def _queue_url(account: Account, name: str) -> str:
    return str(account.client("sqs").get_queue_url(QueueName=name)["QueueUrl"])


def _queue_state(account: Account, queue: str) -> str | None:
    try:
        found = depth(account, _queue_url(account, queue))
    except ClientError as error:
        if code(error) in ("AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"):
            return None
        raise
    return f"{found.visible + found.delayed} messages waiting, {found.in_flight} in flight" if found.total else EMPTY


def _delete_queue(account: Account, queue: str) -> None:
    account.client("sqs").delete_queue(QueueUrl=_queue_url(account, queue))


def _bucket_state(account: Account, bucket: str) -> str | None:
    s3 = account.client("s3")
    try:
        found = s3.list_object_versions(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        if code(error) == "NoSuchBucket":
            return None
        raise
    return "holds objects" if found.get("Versions") or found.get("DeleteMarkers") else EMPTY


def _delete_bucket(account: Account, bucket: str) -> None:
    """A bucket goes only when every version, delete marker and unfinished upload has gone."""
    s3 = account.client("s3")
    for upload in account.all("s3", "list_multipart_uploads", "Uploads", Bucket=bucket):
        s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        found = [
            {"Key": one["Key"], "VersionId": one["VersionId"]}
            for one in (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
        ]
        if found:
            refused = s3.delete_objects(Bucket=bucket, Delete={"Objects": found, "Quiet": True}).get("Errors", ())
            if refused:
                raise ClientError({"Error": refused[0]}, "DeleteObjects")
    s3.delete_bucket(Bucket=bucket)


def _table_state(account: Account, table: str) -> str | None:
    try:
        found = account.client("dynamodb").describe_table(TableName=table)["Table"]
    except ClientError as error:
        if code(error) == "ResourceNotFoundException":
            return None
        raise
    return f"about {found['ItemCount']} records"


def _delete_table(account: Account, table: str) -> None:
    account.client("dynamodb").delete_table(TableName=table)


def _files_state(account: Account, system: str) -> str | None:
    try:
        (found,) = account.client("efs").describe_file_systems(FileSystemId=system)["FileSystems"]
    except ClientError as error:
        if code(error) == "FileSystemNotFound":
            return None
        raise
    return f"{found['SizeInBytes']['Value']:,} bytes"


def _delete_files(account: Account, system: str) -> None:
    account.client("efs").delete_file_system(FileSystemId=system)


def _key_state(account: Account, key: str) -> str | None:
    try:
        found = account.client("kms").describe_key(KeyId=key)["KeyMetadata"]
    except ClientError as error:
        if code(error) == "NotFoundException":
            return None
        raise
    return None if found["KeyState"] == "PendingDeletion" else "reads what it encrypted"


def _delete_key(account: Account, key: str) -> None:
    account.client("kms").schedule_key_deletion(KeyId=key, PendingWindowInDays=KEY_DAYS)


def _images_of(account: Account, stack: str) -> list[str]:
    mine = [{"Name": f"tag:{STACK_TAG}", "Values": [stack]}]
    return [one["ImageId"] for one in account.all("ec2", "describe_images", "Images", Owners=["self"], Filters=mine)]


def _image_state(account: Account, ami: str) -> str | None:
    try:
        if not account.client("ec2").describe_images(ImageIds=[ami])["Images"]:
            return None
    except ClientError as error:
        if code(error) in ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable"):
            return None
        raise
    alive = [{"Name": "image-id", "Values": [ami]}, {"Name": "instance-state-name", "Values": ["pending", "running"]}]
    held = account.all("ec2", "describe_instances", "Reservations", Filters=alive)
    size = stored(account, ami)
    worth = "of unknown size"
    if size is not None:
        worth = f"{size / GIB:.1f} GiB, about {size / GIB * SNAPSHOT_USD:.2f} USD a month"
    return f"{worth}; running from it: {sum(len(one['Instances']) for one in held)}"


def _delete_image(account: Account, ami: str) -> None:
    account.client("ec2").deregister_image(ImageId=ami, DeleteAssociatedSnapshots=True)


def _parameter_of(_: Account, stack: str) -> list[str]:
    return [AMI_PARAMETER.replace("${AWS::StackName}", stack)]


def _parameter_state(account: Account, name: str) -> str | None:
    try:
        return str(account.client("ssm").get_parameter(Name=name)["Parameter"]["Value"])
    except ClientError as error:
        if code(error) == "ParameterNotFound":
            return None
        raise


def _delete_parameter(account: Account, name: str) -> None:
    account.client("ssm").delete_parameter(Name=name)


def _last(separator: str) -> Callable[[str], str]:
    return lambda whole: whole.rpartition(separator)[2]


def _typed(command: str) -> Callable[[Account, str], str]:
    return lambda _, name: f"aws {command} {name}"


def _type_delete_queue(account: Account, name: str) -> str:
    return f"aws sqs delete-queue --queue-url {_queue_url(account, name)}"


def _type_delete_bucket(_: Account, bucket: str) -> str:
    # The aws command line empties no versioned bucket.
    python = f"b = boto3.resource('s3').Bucket('{bucket}'); b.object_versions.delete(); b.delete()"
    return f'.venv/bin/python -c "import boto3; {python}"'


QUEUE = Kind(
    "queue",
    "AWS::SQS::Queue",
    "sqs",
    lambda whole: whole.rpartition("/")[2].rpartition(":")[2],
    _queue_state,
    _delete_queue,
    _type_delete_queue,
)
BUCKET = Kind("bucket", "AWS::S3::Bucket", "s3", _last(":"), _bucket_state, _delete_bucket, _type_delete_bucket)
TABLE = Kind(
    "table",
    "AWS::DynamoDB::Table",
    "dynamodb:table",
    _last("/"),
    _table_state,
    _delete_table,
    _typed("dynamodb delete-table --table-name"),
)
FILES = Kind(
    "file system",
    "AWS::EFS::FileSystem",
    "elasticfilesystem:file-system",
    _last("/"),
    _files_state,
    _delete_files,
    _typed("efs delete-file-system --file-system-id"),
)
KEY = Kind(
    "key",
    "AWS::KMS::Key",
    "kms:key",
    _last("/"),
    _key_state,
    _delete_key,
    _typed(f"kms schedule-key-deletion --pending-window-in-days {KEY_DAYS} --key-id"),
)
IMAGES_COME_FROM = "AWS::ImageBuilder::ImagePipeline"
POINTER = Kind(
    "parameter",
    IMAGES_COME_FROM,
    "ssm:parameter",
    str,
    _parameter_state,
    _delete_parameter,
    _typed("ssm delete-parameter --name"),
    _parameter_of,
    "a stack that has it as AmiId cannot be deployed again",
)
IMAGE = Kind(
    "image",
    IMAGES_COME_FROM,
    "ec2:image",
    str,
    _image_state,
    _delete_image,
    _typed("ec2 deregister-image --delete-associated-snapshots --image-id"),
    _images_of,
    "what launches from it launches no more",
)
KINDS = (QUEUE, BUCKET, TABLE, FILES, POINTER, IMAGE, KEY)
"""In the order in which they go: the key last, or what it encrypted could be read no more and was still there."""
