"""What the job records add up to: what is in which state, who works, what was done lately and what it cost. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from ops.obstacles import Retry

RECENT = timedelta(minutes=10)
"""Over which throughput is told."""
WITHDRAWN = "withdrawn: the benchmark is over"
"""The error of a job that `bench` called off while it waited: its record says FAILED, and nothing has failed."""
FIELDS = (
    "job_id",
    "key",
    "queue",
    "state",
    "lease_until",
    "instance_id",
    "instance_type",
    "zone",
    "lifecycle",
    "created",
    "started",
    "finished",
    "failures",
    "error",
    "cost_usd",
    "gpu_seconds",
)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A job that a worker holds, and where; "" is not known."""

    job_id: str
    key: str
    queue: str
    instance_id: str
    pool: str
    lifecycle: str
    since: datetime


@dataclass(kw_only=True)
class Work:
    """What the job records say. `whole` is False when there are more than were read."""

    states: dict[str, int] = field(default_factory=dict)
    """How many jobs are in each, but for those that were withdrawn: they are in no other number either."""
    withdrawn: int = 0
    running: list[Running] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    oldest: dict[str, datetime] = field(default_factory=dict)
    """By queue: since when its oldest job has waited."""
    per_minute: float | None = None
    """Jobs that ended; None when none did lately."""
    today: int = 0
    """Jobs that ended since midnight UTC, and what their attempts cost."""
    cost_usd: float | None = None
    gpu_seconds: float = 0.0
    whole: bool = True


def work(records: Iterable[Mapping[str, Any]], now: datetime) -> Work:
    """Add up job records. Pure."""
    found = Work()
    midnight, recently = now.replace(hour=0, minute=0, second=0, microsecond=0), now - RECENT
    ended, began = 0, now
    for record in records:
        state = str(record["state"])
        if state == "FAILED" and record.get("error") == WITHDRAWN:
            found.withdrawn += 1
            continue
        found.states[state] = found.states.get(state, 0) + 1
        if state == "RUNNING" and float(record.get("lease_until", 0)) >= now.timestamp():
            found.running.append(_running(record, now))
        elif state == "QUEUED":
            created = _moment(record.get("created")) or now
            queue = str(record.get("queue", ""))
            found.oldest[queue] = min(created, found.oldest.get(queue, created))
            if failures := int(record.get("failures", 0)):
                found.retries.append(
                    Retry(
                        job_id=str(record["job_id"]),
                        key=str(record.get("key", "")),
                        failures=failures,
                        error=str(record.get("error", "")),
                    )
                )
        finished = _moment(record.get("finished"))
        if finished and finished >= midnight:
            found.today += 1
            found.gpu_seconds += float(record.get("gpu_seconds", 0))
            if "cost_usd" in record:
                found.cost_usd = (found.cost_usd or 0.0) + float(record["cost_usd"])
        if finished and finished >= recently:
            ended += 1
            began = min(began, _moment(record.get("started")) or finished)
    if ended:
        # Who has just begun is not judged by the minutes before.
        span = now - max(began, recently)
        found.per_minute = ended / max(span / timedelta(minutes=1), 1 / 60)
    found.running.sort(key=lambda one: (one.instance_id, one.since))
    return found


def _running(record: Mapping[str, Any], now: datetime) -> Running:
    kind, zone = record.get("instance_type"), record.get("zone")
    return Running(
        job_id=str(record["job_id"]),
        key=str(record.get("key", "")),
        queue=str(record.get("queue", "")),
        instance_id=str(record.get("instance_id", "")),
        pool=f"{kind}/{zone}" if kind and zone else "",
        lifecycle=str(record.get("lifecycle", "")),
        since=_moment(record.get("started")) or now,
    )


def _moment(text: object) -> datetime | None:
    return datetime.fromisoformat(str(text)) if text else None
