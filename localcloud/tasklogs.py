"""The awslogs driver: a container's output to CloudWatch Logs, with the instance's own credentials.

Source: "Send Amazon ECS logs to CloudWatch" (developer guide): on EC2 the instance role writes, unless the agent has
ECS_ENABLE_AWSLOGS_EXECUTIONROLE_OVERRIDE.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from localcloud.signed import Refused

_MOST_LINES = 1000
"""In one PutLogEvents; the API takes 10,000 and 1 MiB."""
_LONGEST_LINE = 1000

Write = Callable[[str, Mapping[str, Any]], Any]
"""`(operation, params)`: a call of CloudWatch Logs. Raises Refused."""


class LogStream:
    """One container's stream `<prefix>/<container>/<task id>`."""

    def __init__(self, options: Mapping[str, str], container: str, task_id: str, path: Path, write: Write) -> None:
        prefix = options.get("awslogs-stream-prefix")
        self._where = {
            "logGroupName": options["awslogs-group"],
            "logStreamName": f"{prefix}/{container}/{task_id}" if prefix else task_id,
        }
        self._path, self._write = path, write
        self._sent = 0

    def open(self) -> None:
        """Make the stream. Raises Refused: then the container cannot start."""
        self._write("CreateLogStream", self._where)

    def ship(self) -> None:
        """Send the whole lines written since. What cannot be sent is left out, as in `non-blocking` mode."""
        with self._path.open("rb") as file:
            file.seek(self._sent)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._sent += len(whole)
        lines = [line[:_LONGEST_LINE] for line in whole.decode("utf-8", "replace").splitlines() if line.strip()]
        at = int(time.time() * 1000)
        for start in range(0, len(lines), _MOST_LINES):
            events = [{"timestamp": at, "message": line} for line in lines[start : start + _MOST_LINES]]
            try:
                self._write("PutLogEvents", {**self._where, "logEvents": events})
            except Refused:
                return
