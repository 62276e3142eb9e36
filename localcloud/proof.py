"""What became of every upload, told from the buckets and the table alone: never from the product's own counters."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from boto3.dynamodb.types import TypeDeserializer
from PIL import Image, UnidentifiedImageError

from localcloud.uploads import Upload


@dataclass(frozen=True)
class Proof:
    """The account of a run. `lost` and `double` name the uploads, so that a failure can be looked into."""

    succeeded: int
    failed: int
    lost: tuple[str, ...]
    double: tuple[str, ...]
    released: int


def prove(uploads: Iterable[Upload], outputs: Mapping[str, str], client: Any) -> Proof:
    """Hold every upload against its job record and its results.

    Lost: a photograph without a SUCCEEDED job whose every result decodes, or a hostile file without a FAILED job and
    its reason. Double: an upload with two jobs, a result written twice, or a result that no job's record names.
    `outputs` are the stack's; `client(service)` makes boto3 clients.
    """
    jobs = list(_jobs(client("dynamodb"), outputs["JobsTable"]))
    stored = _versions(client("s3"), outputs["ResultsBucket"])
    s3 = client("s3")
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    for job in jobs:
        by_key.setdefault(job["key"], []).append(job)

    lost, double = [], []
    for upload in uploads:
        of_upload = by_key.get(upload.key, [])
        if len(of_upload) > 1:
            double.append(f"{upload.key}: {len(of_upload)} jobs")
        right = [job for job in of_upload if _is_right(job, upload, stored, s3, outputs["ResultsBucket"])]
        if not right:
            lost.append(f"{upload.key}: {[(job['state'], job.get('error')) for job in of_upload]}")
    named = {key for job in jobs for key in job.get("outputs", ())}
    double += [f"{key}: {count} versions" for key, count in stored.items() if count > 1]
    double += [f"{key}: no job names it" for key in stored if key not in named]
    states = Counter(job["state"] for job in jobs)
    return Proof(
        succeeded=states["SUCCEEDED"],
        failed=states["FAILED"],
        lost=tuple(lost),
        double=tuple(double),
        released=sum(int(job.get("releases", 0)) for job in jobs),
    )


def prove_batch(uploads: Iterable[Upload], outputs: Mapping[str, str], client: Any, told: Mapping[str, str]) -> Proof:
    """The same of a stack `batch`, which has no records: by the buckets, and by the reasons that `told` has for the
    keys that failed.

    Lost: a photograph that failed, of which a result does not decode, or that has fewer results than another; a hostile
    file that did not fail, or without a reason. Double: results of two jobs for one upload, a result written twice, or
    one of something that was not uploaded.
    """
    files = list(uploads)
    stored = {key: count for key, count in _versions(client("s3"), outputs["ResultsBucket"]).items() if key[0] != "."}
    s3, bucket = client("s3"), outputs["ResultsBucket"]
    results = {file.key: [key for key in stored if key.startswith(f"{file.key}/")] for file in files}
    whole = max((len(keys) for keys in results.values()), default=0)

    def is_right(file: Upload) -> bool:
        keys = results[file.key]
        if file.hostile:
            return bool(told.get(file.key)) and not keys
        complete = file.key not in told and len(keys) == whole > 0
        return complete and all(_decodes(key, stored, s3, bucket) for key in keys)

    right = {file.key for file in files if is_right(file)}
    double = [f"{key}: {count} versions" for key, count in stored.items() if count > 1]
    for key, mine in results.items():
        if (jobs := len({one.removeprefix(f"{key}/").partition("/")[0] for one in mine})) > 1:
            double.append(f"{key}: {jobs} jobs")
    known = {key for keys in results.values() for key in keys}
    double += [f"{key}: nobody uploaded it" for key in stored if key not in known]
    return Proof(
        succeeded=sum(file.key in right for file in files if not file.hostile),
        failed=len(told),
        lost=tuple(
            f"{file.key}: {told.get(file.key, 'without all its results')}" for file in files if file.key not in right
        ),
        double=tuple(double),
        released=0,
    )


def _is_right(job: Mapping[str, Any], upload: Upload, stored: Mapping[str, int], s3: Any, bucket: str) -> bool:
    if upload.hostile:
        return job["state"] == "FAILED" and bool(job.get("error"))
    results = job.get("outputs", ())
    return job["state"] == "SUCCEEDED" and bool(results) and all(_decodes(key, stored, s3, bucket) for key in results)


def _decodes(key: str, stored: Mapping[str, int], s3: Any, bucket: str) -> bool:
    if key not in stored:
        return False
    try:
        with Image.open(io.BytesIO(s3.get_object(Bucket=bucket, Key=key)["Body"].read())) as image:
            image.load()
    except (UnidentifiedImageError, OSError):
        return False
    return True


def _jobs(dynamodb: Any, table: str) -> Iterable[dict[str, Any]]:
    read = TypeDeserializer().deserialize
    for page in dynamodb.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        for item in page["Items"]:
            yield {name: read(value) for name, value in item.items()}


def _versions(s3: Any, bucket: str) -> Counter[str]:
    counted: Counter[str] = Counter()
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):
        counted.update(version["Key"] for version in page.get("Versions", ()))
    return counted
