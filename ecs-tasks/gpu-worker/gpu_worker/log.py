"""One JSON object a line, for machines to search; never a key, a token or a job's content."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from threading import Lock

_one_at_a_time = Lock()


def log(event: str, **facts: object) -> None:
    """Write what happened, and to which `job_id`."""
    line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
    text = json.dumps(line, default=str) + "\n"
    with _one_at_a_time:
        sys.stdout.write(text)
        sys.stdout.flush()
