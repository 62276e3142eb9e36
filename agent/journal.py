"""The agent's diary: one JSON line per event on stdout, for journald."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone


def record(event: str, **facts: object) -> None:
    """Write one event. When nothing happens, nothing is written."""
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    sys.stdout.write(json.dumps({"at": at, "event": event, **facts}) + "\n")
    sys.stdout.flush()
