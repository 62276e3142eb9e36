"""Put built files into the assets bucket. A name holds its content's hash, so what is there already is right."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class CannotPublish(Exception):
    """The bucket could not be looked into or written to."""


def publish(files: Iterable[Path], bucket: str, client: S3Client | None = None) -> list[str]:
    """Upload the files that the bucket lacks, and return their names. Raises CannotPublish."""
    s3 = client or boto3.client("s3")
    uploaded = []
    try:
        for file in files:
            if not _is_there(s3, bucket, file.name):
                s3.put_object(Bucket=bucket, Key=file.name, Body=file.read_bytes(), ChecksumAlgorithm="SHA256")
                uploaded.append(file.name)
    except (BotoCoreError, ClientError) as error:
        raise CannotPublish(f"s3://{bucket}: {error}") from error
    return uploaded


def _is_there(s3: S3Client, bucket: str, key: str) -> bool:
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        # S3 answers a HEAD without a body: 404 for the key; 403 without s3:ListBucket, which is not an absence.
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            return False
        raise
    return True
