"""Who may work on a job, and until when (pure).

    QUEUED ----claim----> RUNNING --finish--> SUCCEEDED
       ^                     |----reject----> FAILED
       '-release, fail, lapse'-----split----> SPLIT (parts.py)

A claim takes a QUEUED job. Each later write asks for the same owner *and* the same attempt, so that a worker that lost
its lease can neither finish nor fail the job. The worker of a RUNNING job whose lease has ended is dead, and whoever
finds out gives the job back in its place.

What the worker died of decides whether the job is to blame. Instances are lost, and that is no job's fault, nor is what
nobody knows; only that too many workers are lost with one job is. A crash of the worker itself makes suspects of all
jobs that it held. A suspect is worked on alone from then on, so that the next crash is surely its own, and a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from gpu_worker.job import Job
from gpu_worker.outcome import REJECTED, Outcome

LOOK_AGAIN = timedelta(seconds=15)
"""A hidden message counts as work in flight and keeps a GPU waiting for it, so it is not hidden for a whole lease."""

MOST_LAPSES = 20
"""Workers that may be lost with one job. Spot takes some of them without notice; so many in a row, nobody takes."""

NO_CRASH = (None, 0, 2, 64, 137, 143)
"""Exit codes: none is known, told to go, bad settings, broken GPU (see __main__), SIGKILL, SIGTERM."""


@dataclass(frozen=True)
class Lease:
    """The right to work on a job, claimed at `started`; it lasts while it is renewed."""

    job: Job
    owner: str
    attempt: int
    failures: int
    started: datetime
    checkpoint: bool
    """Whether an earlier attempt left one."""


def renew_at(now: datetime, length: timedelta) -> datetime:
    """When what was claimed or renewed at `now` is due again; a third of its length leaves two more tries."""
    return now + length / 3


@dataclass(frozen=True)
class Drop:
    """The job is over, or goes on in its parts: its message has no more use. `succeeded` tells whether its upload has
    none either.
    """

    succeeded: bool


@dataclass(frozen=True)
class Hide:
    """Someone else is at work, and this may be their message too: keep it, out of sight."""

    delay: timedelta


@dataclass(frozen=True)
class Lapsed:
    """Its worker is dead."""

    owner: str
    attempt: int
    crashes: int
    lapses: int


@dataclass(frozen=True)
class Suspect:
    """It waits, and may have crashed its worker: to be claimed by one that works on nothing else."""


@dataclass(frozen=True)
class Bury:
    """The message can never become work: to the dead-letter queue with it."""

    reason: str


def when_refused(record: Mapping[str, Any] | None, now: datetime) -> Drop | Hide | Bury | Lapsed | Suspect:
    """What to do with a message whose job would not be claimed; `record` is the job as it was found afterwards."""
    match record:
        case None:
            return Bury("the job has no record")  # it is written before the message is sent, or before the claim
        case {"state": "FAILED", "job_id": job_id, "unburied": unburied, "error": error} if unburied == job_id:
            return Bury(error)  # whoever failed it died before the dead-letter queue had its copy
        case {"state": "SUCCEEDED" | "FAILED" | "SPLIT" as state}:
            return Drop(succeeded=state == "SUCCEEDED")
        case {"state": "RUNNING"}:
            left = datetime.fromtimestamp(record["lease_until"], UTC) - now
            if left < timedelta(0):
                counts = (int(record.get(each, 0)) for each in ("attempts", "crashes", "lapses"))
                return Lapsed(str(record["owner"]), *counts)
            return Hide(min(left + timedelta(seconds=1), LOOK_AGAIN))
        case _:  # it waits, and is a suspect, or changed between the claim and the look: try again
            return Suspect() if record.get("crashes") else Hide(timedelta(seconds=1))


@dataclass(frozen=True)
class Inquest:
    """What is counted of a job whose worker is dead, and how that attempt ended if it is to end as one."""

    counts: tuple[str, ...]
    outcome: Outcome | None = None


def inquest(lapsed: Lapsed, crash: str | None) -> Inquest:
    """Find who is to blame; `crash` is what the worker died of if it was its own death."""
    lost = lapsed.lapses + 1
    if lost >= MOST_LAPSES:
        return Inquest(("lapses",), Outcome(REJECTED, f"{lost} workers were lost with it"))
    if crash is None:
        return Inquest(("lapses",))
    surely = lapsed.crashes > 0  # it was worked on alone then
    return Inquest(("lapses", "crashes"), Outcome(1, f"its worker crashed: {crash}") if surely else None)


def crash_of(task: Mapping[str, Any]) -> str | None:
    """What a worker died of by itself, from ECS's DescribeTasks; None where its end was another's doing, or may be.

    {"stopCode": "EssentialContainerExited", "containers": [{"exitCode": 139, "reason": ...}], ...}. A 137 is a SIGKILL:
    by the kernel for want of memory, which ECS then says, or by whoever shut the host down.
    """
    if task.get("stopCode") != "EssentialContainerExited":
        return None
    for container in task.get("containers", []):
        code, reason = container.get("exitCode"), str(container.get("reason", ""))
        if "OutOfMemory" in reason or code not in NO_CRASH:
            return reason or f"exit code {code}"
    return None
