"""What a worker has CloudWatch measure: one line of its log a minute is the measurement.

CloudWatch Logs makes metrics of lines in the embedded metric format, without a call and whoever sends the lines
(CloudWatch user guide, "Specification: Embedded metric format").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from threading import Lock

NAMESPACE = "Spindrift"
DIMENSIONS = ("Stack", "Queue")
EVERY = timedelta(minutes=1)
MOST_VALUES = 100
"""Of one metric in one line (the specification, "Target members")."""


class Metric(StrEnum):
    """The names that dashboard and alarms know; what is counted, then what has a value for each job."""

    SUCCEEDED = "JobsSucceeded"
    FAILED = "JobsFailed"
    RETRIED = "JobsRetried"
    RELEASED = "JobsReleased"
    BUSY = "ProcessorBusyPercent"
    GPU_BUSY = "GpuBusyPercent"
    READYING = "ReadyingMilliseconds"
    """From claim to processor: download, and the wait for one."""
    WORKING = "WorkingMilliseconds"
    STORING = "StoringMilliseconds"
    ETA_ERROR = "EtaErrorPercent"
    """How much longer a job took than was thought when it began; less is negative."""


COUNTS = (Metric.SUCCEEDED, Metric.FAILED, Metric.RETRIED, Metric.RELEASED)
Values = Mapping[str, float | Sequence[float]]


class Tally:
    """What happened since the last line."""

    def __init__(self, lanes: int, now: datetime) -> None:
        self._lanes = lanes
        self._since = now
        self._lock = Lock()
        self._clear()

    def count(self, metric: Metric) -> None:
        """One more of them."""
        with self._lock:
            self._counts[metric] += 1

    def time(self, metric: Metric, took: timedelta) -> None:
        """How long a stage of a job took."""
        with self._lock:
            self._values[metric].append(round(took / timedelta(milliseconds=1)))
            if metric is Metric.WORKING:
                self._worked += took

    def err(self, eta: timedelta | None, took: timedelta) -> None:
        """How wrong the ETA of a job was, if there was one."""
        if eta:
            with self._lock:
                self._values[Metric.ETA_ERROR].append(round(100 * (took / eta - 1)))

    def due(self, now: datetime, gpu_busy: float | None) -> Values | None:
        """The values of the past minute, once a minute; `gpu_busy` is a share as the GPU tells it, None if it does not.

        A processor that is busy longer than that is told of when it is done: its share is capped.
        """
        if now - self._since < EVERY:
            return None
        with self._lock:
            busy = min(1.0, self._worked / (self._lanes * (now - self._since)))
            values: dict[str, float | Sequence[float]] = {metric: self._counts[metric] for metric in COUNTS}
            values[Metric.BUSY] = round(100 * busy, 1)
            if gpu_busy is not None:
                values[Metric.GPU_BUSY] = round(100 * gpu_busy, 1)
            values |= {metric: each[-MOST_VALUES:] for metric, each in self._values.items()}
            self._since = now
            self._clear()
        return values

    def _clear(self) -> None:
        self._counts: dict[Metric, int] = defaultdict(int)
        self._values: dict[Metric, list[float]] = defaultdict(list)
        self._worked = timedelta(0)


def embedded(stack: str, queue: str, values: Values, at: datetime) -> dict[str, object]:
    """The values in embedded metric format, to be merged into a line of the log."""
    metrics = [{"Name": name, "Unit": _unit(name)} for name in values]
    return {
        "_aws": {
            "Timestamp": int(at.timestamp() * 1000),
            "CloudWatchMetrics": [{"Namespace": NAMESPACE, "Dimensions": [[*DIMENSIONS]], "Metrics": metrics}],
        },
        **dict(zip(DIMENSIONS, (stack, queue), strict=True)),
        **values,
    }


def _unit(name: str) -> str:
    return next((unit for unit in ("Milliseconds", "Percent") if name.endswith(unit)), "Count")
