"""Who may work on a job, and until when (pure).

    QUEUED --claim--> RUNNING --finish--> SUCCEEDED
       ^                 |----reject----> FAILED
       '--release, fail--'

A claim takes a QUEUED job, or a RUNNING one whose lease has ended: its worker is dead. Each later write asks for the
same owner *and* the same attempt, so that a worker that lost its lease can neither finish nor fail the job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from gpu_worker.job import Job

LOOK_AGAIN = timedelta(seconds=15)
"""A hidden message counts as work in flight and keeps a GPU waiting for it, so it is not hidden for a whole lease."""


@dataclass(frozen=True)
class Lease:
    """The right to work on a job: ours until `until`, and to be renewed at `renew_at`."""

    job: Job
    owner: str
    attempt: int
    failures: int
    started: datetime
    until: datetime
    renew_at: datetime

    @classmethod
    def taken(cls, job: Job, owner: str, attempt: int, failures: int, now: datetime, length: timedelta) -> Lease:
        """A lease claimed at `now`."""
        return cls(job, owner, attempt, failures, now, now + length, now + length / 3)

    def renewed(self, now: datetime, length: timedelta) -> Lease:
        """The same lease after a heartbeat; a third of its length leaves two more tries before it ends."""
        return replace(self, until=now + length, renew_at=now + length / 3)

    def retried(self, at: datetime) -> Lease:
        """The same lease after a heartbeat that did not get through."""
        return replace(self, renew_at=at)


@dataclass(frozen=True)
class Drop:
    """The job is over: its message has no more use. `succeeded` tells whether its upload has none either."""

    succeeded: bool


@dataclass(frozen=True)
class Hide:
    """Someone else is at work, and this may be their message too: keep it, out of sight."""

    delay: timedelta


@dataclass(frozen=True)
class Bury:
    """The message can never become work: to the dead-letter queue with it."""

    reason: str


def when_refused(record: Mapping[str, Any] | None, now: datetime) -> Drop | Hide | Bury:
    """What to do with a message whose job would not be claimed; `record` is the job as it was found afterwards."""
    if record is None:
        return Bury("the job has no record")  # it is written before the message is sent, or before the claim
    match record["state"]:
        case "SUCCEEDED" | "FAILED" as state:
            return Drop(succeeded=state == "SUCCEEDED")
        case "RUNNING":
            left = datetime.fromtimestamp(record["lease_until"], UTC) - now
            return Hide(min(max(left, timedelta(0)) + timedelta(seconds=1), LOOK_AGAIN))
        case _:
            return Hide(timedelta(seconds=1))  # it changed between the claim and the look: try again
