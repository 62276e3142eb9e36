"""One JSON object a line, for machines to search; never a key, a token or a job's content."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime


def log(event: str, **facts: object) -> None:
    """Write what happened, and to which `job_id`."""
    line = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **facts}
    sys.stdout.write(json.dumps(line, default=str) + "\n")
    sys.stdout.flush()
