"""What a job is, as its message tells it, and where its results go (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

LONGEST_KEY = 1024
"""Bytes of UTF-8 in an S3 object key (S3 user guide, "Naming Amazon S3 objects")."""

LONGEST_NAME = 128
"""Bytes of UTF-8 that one result may be called."""


NONSENSE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What comes of reading a message that might hold anything."""


class NotAJob(Exception):
    """The message is no `spindrift.job/1`."""


@dataclass(frozen=True)
class Job:
    """One upload to be worked on. `size` is in bytes; `version` is empty in a bucket without versions."""

    not_theirs: ClassVar[tuple[str, ...]] = (".parts/", ".checkpoints/", ".failures/", ".manifests/")
    """Folders of the results bucket that are not for the results of uploads."""

    job_id: str
    bucket: str
    key: str
    version: str
    etag: str
    size: int

    @classmethod
    def read(cls, body: str) -> Job:
        """{"schema": "spindrift.job/1", "job_id", "bucket", "key", "version": or "", "etag", "size": bytes}."""
        try:
            told = json.loads(body)
            known = told["schema"] == "spindrift.job/1"
            job = cls(
                str(told["job_id"]),
                str(told["bucket"]),
                str(told["key"]),
                str(told["version"]),
                str(told["etag"]),
                int(told["size"]),
            )
        except NONSENSE as error:
            raise NotAJob("the message is no spindrift.job/1") from error
        if not known:
            raise NotAJob("the message is of another schema than spindrift.job/1")
        return job

    def told_to_processor(self, attempt: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """The mapping a processor is called with."""
        return {**asdict(self), "attempt": attempt, "options": options}


def result_key(job: Job, name: str) -> str:
    """`<source key>/<job id>/<name>`, for one attempt as for the next.

    S3 takes `..` literally; what copies a bucket into folders does not. So segments that mean something to a file
    system are percent-encoded, and no job's results leave the job's own folder. A source key too long to carry the
    rest is cut: the job id alone already makes the place unique.
    """
    rest = f"/{job.job_id}/{_harmless(name)}"
    room = LONGEST_KEY - len(rest.encode()) - len("%2E%2E")  # a cut may leave `..` at the end
    return _harmless(_apart(job).encode()[:room].decode(errors="ignore")) + rest


def _apart(job: Job) -> str:
    """The key, outside the folders in which workers leave something for each other: an upload may have any name."""
    key = _harmless(job.key)
    return "%2E" + key[1:] if key.startswith(job.not_theirs) else key


def _harmless(path: str) -> str:
    """`../a//b` becomes `%2E%2E/a/%2F/b`: no empty segment, none of dots alone."""
    return "/".join(
        "%2F" if segment == "" else segment.replace(".", "%2E") if segment in {".", ".."} else segment
        for segment in path.split("/")
    )
