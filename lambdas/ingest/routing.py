"""Which uploads an S3 event tells of, which job each one is, and which queue it goes to. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import unquote_plus


class Malformed(ValueError):
    """Not an S3 event. The message goes back, and in the end to the dead-letter queue, where somebody can see it."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One version of one object. `version` is empty in a bucket without versions; `size` is in bytes."""

    bucket: str
    key: str
    version: str
    etag: str
    size: int

    @property
    def job_id(self) -> str:
        """The same upload is the same job, however often it is announced."""
        identity = json.dumps([self.bucket, self.key, self.version or self.etag])
        return sha256(identity.encode()).hexdigest()[:32]

    @property
    def message(self) -> str:
        """What a worker gets."""
        return json.dumps(
            {
                "schema": "spindrift.job/1",
                "job_id": self.job_id,
                "bucket": self.bucket,
                "key": self.key,
                "version": self.version,
                "etag": self.etag,
                "size": self.size,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Route:
    """Keys that start with `prefix` are jobs of `queue`."""

    prefix: str
    queue: str
    queue_url: str


def uploads(body: str) -> list[Upload]:
    """Read the body of one SQS message. Raises Malformed.

    S3 sends `s3:TestEvent` when notifications are set up, may put several Records into one event, and URL-encodes keys,
    with `+` for a space (S3 user guide, Event message structure).
    """
    try:
        event = json.loads(body)
        if event.get("Event") == "s3:TestEvent":
            return []
        created = [_upload(r["s3"]) for r in event["Records"] if r["eventName"].startswith("ObjectCreated:")]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Malformed(f"not an S3 event: {type(error).__name__} {error}") from error
    return [upload for upload in created if not _is_folder(upload)]


def route(key: str, routes: Iterable[Route]) -> Route | None:
    """Choose the route with the longest prefix of the key; None if no prefix fits."""
    fitting = [candidate for candidate in routes if key.startswith(candidate.prefix)]
    return max(fitting, key=lambda candidate: len(candidate.prefix), default=None)


def _upload(s3: Mapping[str, Any]) -> Upload:
    """{"bucket": {"name": "b"}, "object": {"key": "a+b.jpg", "size": 9, "eTag": "d41d…", "versionId": "096f…"}, …}."""
    stored = s3["object"]
    return Upload(
        bucket=str(s3["bucket"]["name"]),
        key=unquote_plus(stored["key"], errors="strict"),
        version=stored.get("versionId", ""),
        etag=stored.get("eTag", ""),
        size=int(stored.get("size", 0)),
    )


def _is_folder(upload: Upload) -> bool:
    """The console makes an empty object with a key ending in `/` for a folder."""
    return upload.size == 0 and upload.key.endswith("/")
