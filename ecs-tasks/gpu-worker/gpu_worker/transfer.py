"""Large objects go in parts, several at a time; one that fails leaves nothing behind in S3.

boto3's own transfer manager would do, but it passes no condition on to CompleteMultipartUpload, and results are put
once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LARGE = 64 * 2**20
"""Bytes from which an object goes in parts."""
PART = 16 * 2**20
MOST_PARTS = 10_000
"""(S3 user guide, "Multipart upload limits")."""
AT_ONCE = 4
CHUNK = 2**20


class TooLarge(Exception):
    """The object has more bytes than allowed."""


def fetch(s3: S3Client, source: Mapping[str, Any], path: Path, size: int, limit: int) -> None:
    """Fetch the object into the file. `source` are arguments of GetObject; `size` is what it is thought to have.

    Raises TooLarge as soon as it turns out to have more than `limit` bytes.
    """
    if size > limit:
        raise TooLarge
    with path.open("wb") as file:
        if size < LARGE:
            _save(s3.get_object(**source), file.fileno(), 0, limit)
            return
        first = s3.get_object(**source, Range=f"bytes=0-{PART - 1}")
        total = int(first["ContentRange"].rpartition("/")[2])
        if total > limit:
            first["Body"].close()
            raise TooLarge
        _save(first, file.fileno(), 0, limit)

        def rest(start: int) -> None:
            wanted = f"bytes={start}-{min(start + PART, total) - 1}"
            _save(s3.get_object(**source, Range=wanted), file.fileno(), start, limit)

        _each(rest, range(PART, total, PART))


def store(s3: S3Client, target: Mapping[str, Any], path: Path) -> None:
    """Put the file unless the object exists: S3 then says PreconditionFailed. `target` are arguments of PutObject."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < LARGE:
            s3.put_object(**target, Body=file, IfNoneMatch="*")
            return
        where = {"Bucket": target["Bucket"], "Key": target["Key"]}
        length = max(PART, -(-size // MOST_PARTS))
        with _upload(s3, target, where) as upload:

            def send(start: int) -> dict[str, Any]:
                number = start // length + 1
                body = os.pread(file.fileno(), length, start)
                sent = s3.upload_part(**where, UploadId=upload, PartNumber=number, Body=body, ChecksumAlgorithm="CRC32")
                return {"PartNumber": number, "ETag": sent["ETag"], "ChecksumCRC32": sent["ChecksumCRC32"]}

            parts = _each(send, range(0, size, length))
            s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*")


@contextmanager
def _upload(s3: S3Client, target: Mapping[str, Any], where: Mapping[str, Any]) -> Iterator[str]:
    """An upload in parts, aborted if it is not completed; what even that misses, the bucket's life cycle removes."""
    upload = s3.create_multipart_upload(**target, ChecksumAlgorithm="CRC32")["UploadId"]
    try:
        yield upload
    except BaseException:
        with suppress(ClientError, BotoCoreError):
            s3.abort_multipart_upload(**where, UploadId=upload)
        raise


def _each(work: Callable[[int], Any], starts: range) -> list[Any]:
    """The results in order; at the first error nothing more is begun."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            return [done.result() for done in [pool.submit(work, start) for start in starts]]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _save(answer: Any, descriptor: int, at: int, limit: int) -> None:
    with closing(answer["Body"]) as body:
        while chunk := body.read(CHUNK):
            if at + len(chunk) > limit:
                raise TooLarge
            at += os.pwrite(descriptor, chunk, at)
